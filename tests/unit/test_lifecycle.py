"""The table of allowed moves, and the policy for ended attempts, against expectations written down here once more."""

from __future__ import annotations

import pytest

from autotune.errors import StateError
from autotune.lifecycle import (
    FENCED,
    KILLED,
    MOVES,
    Event,
    RetryPolicy,
    after_attempt,
    common_failure,
    move,
    sources,
    target,
)
from autotune.trial import ACTIVE_STATES, ENDED_STATES, Cause, TrialState

#         queued       running      paused       finished  pruned  failed    cancelled
TABLE = """
claim     running      -            -            -         -       -         -
renew     -            running      -            -         -       -         -
report    -            running      -            -         -       -         -
finish    -            finished     -            -         -       -         -
deliver   finished     -            -            -         -       -         -
fail      -            failed       -            -         -       -         -
release   -            queued       -            -         -       -         -
prune     -            pruned       pruned       -         -       -         -
pause     -            paused       -            -         -       -         -
promote   -            -            queued       -         -       -         -
cancel    cancelled    cancelled    cancelled    -         -       -         -
retry     -            -            -            -         -       queued    queued
"""
COLUMNS = ["queued", "running", "paused", "finished", "pruned", "failed", "cancelled"]
ROWS = {row.split()[0]: dict(zip(COLUMNS, row.split()[1:], strict=True)) for row in TABLE.strip().splitlines()}


def test_the_expectation_covers_every_event_and_every_state() -> None:
    assert set(ROWS) == {str(e) for e in Event} == {str(e) for e in MOVES}
    assert set(COLUMNS) == {str(s) for s in TrialState}


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", TrialState)
def test_every_event_in_every_state(state: TrialState, event: Event) -> None:
    expected = ROWS[event][state]
    if expected == "-":
        assert str(state) not in sources(event)
        with pytest.raises(StateError, match=f"{state} cannot {event}; allowed when {sources(event)[0]}"):
            move(state, event)
    else:
        assert str(state) in sources(event)
        assert move(state, event) == target(event) == expected


def test_finished_and_pruned_trials_stay() -> None:
    for state in (TrialState.FINISHED, TrialState.PRUNED):
        assert not [event for event in Event if str(state) in sources(event)]


def test_only_a_retry_brings_an_ended_trial_back() -> None:
    back = {e for e in Event if set(sources(e)) & {str(s) for s in ENDED_STATES} and target(e) in ACTIVE_STATES}
    assert back == {Event.RETRY}


def test_fenced_events_need_a_running_trial() -> None:
    assert {Event.RENEW, Event.REPORT, Event.FINISH, Event.FAIL, Event.RELEASE, Event.PAUSE} == FENCED
    assert all(sources(event) == ["running"] for event in FENCED)


FAIL, RELEASE = Event.FAIL, Event.RELEASE
ALWAYS = {
    Cause.LOST: RELEASE,
    Cause.PREEMPTED: RELEASE,
    Cause.STOPPED: Event.CANCEL,
    Cause.SCHEDULE: Event.PRUNE,
}
"""What no policy changes."""
COUNTED = [Cause.OUT_OF_MEMORY, Cause.NOT_A_NUMBER, Cause.ERROR, Cause.TIMEOUT]
POLICIES: list[tuple[RetryPolicy, dict[Cause, int]]] = [
    (RetryPolicy(), {Cause.OUT_OF_MEMORY: 1}),
    (RetryPolicy(retries={}), {}),
    (RetryPolicy(retries={"error": 2, "timeout": 1}), {Cause.ERROR: 2, Cause.TIMEOUT: 1}),
    (
        RetryPolicy(retries={"out-of-memory": 3, "not-a-number": 1, "lost": 0}),
        {Cause.OUT_OF_MEMORY: 3, Cause.NOT_A_NUMBER: 1},
    ),
]


@pytest.mark.parametrize(("policy", "retries"), POLICIES, ids=lambda v: str(v) if isinstance(v, dict) else "")
@pytest.mark.parametrize("cause", Cause)
def test_what_an_ended_attempt_means(cause: Cause, policy: RetryPolicy, retries: dict[Cause, int]) -> None:
    """With each policy and each cause: so many attempts go back as the policy says, then the trial fails."""
    for before in range(5):
        expected = ALWAYS.get(cause, RELEASE if before < retries.get(cause, 0) else FAIL)
        assert after_attempt(cause, ends={str(cause): before}, policy=policy) is expected
        others = {str(c): 100 for c in Cause if c is not cause} | {KILLED: 100, str(cause): before}
        assert after_attempt(cause, ends=others, policy=policy) is expected, "other causes do not count"
        assert "running" in sources(expected)


def test_every_cause_has_its_expectation() -> None:
    assert {*ALWAYS, *COUNTED} == set(Cause)


@pytest.mark.parametrize(
    ("max_kills", "events"),
    [
        (5, [RELEASE] * 4 + [FAIL] * 2),
        (1, [FAIL] * 6),
        (0, [RELEASE] * 6),
    ],
)
def test_a_killed_process_fails_its_trial_at_the_limit(max_kills: int, events: list[Event]) -> None:
    policy = RetryPolicy(max_kills=max_kills)
    seen = [after_attempt(Cause.LOST, ends={KILLED: n}, process_killed=True, policy=policy) for n in range(6)]
    assert seen == events
    assert after_attempt(Cause.LOST, ends={KILLED: 100, "lost": 100}, policy=policy) is RELEASE
    assert after_attempt(Cause.PREEMPTED, ends={KILLED: 100}, process_killed=True, policy=policy) is RELEASE


ERROR, OTHER = ("error", "no module named x"), ("out-of-memory", "8 GB")


@pytest.mark.parametrize(
    ("causes", "first", "stops"),
    [
        ([ERROR] * 3, 3, True),
        ([ERROR] * 5, 3, True),
        ([ERROR] * 2, 3, False),
        ([ERROR] * 3, 0, False),
        ([], 0, False),
        ([None, ERROR, ERROR, ERROR], 3, False),
        ([ERROR, OTHER, ERROR], 3, False),
        ([ERROR, ERROR, ERROR, None], 3, True),
    ],
)
def test_a_campaign_whose_first_trials_all_fail_alike_stops(
    causes: list[tuple[str, str] | None], first: int, stops: bool
) -> None:
    reason = common_failure(causes, first)
    assert (reason is not None) is stops
    if reason is not None:
        assert reason == "the first 3 trials all failed (error): no module named x"

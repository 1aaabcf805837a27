"""The table of allowed moves, and the policy for ended attempts."""

from __future__ import annotations

import pytest

from autotune.errors import StateError
from autotune.lifecycle import (
    FENCED,
    MAX_KILLED_ATTEMPTS,
    MOVES,
    Event,
    after_attempt,
    common_failure,
    move,
    sources,
    target,
)
from autotune.trial import ACTIVE_STATES, ENDED_STATES, Cause, TrialState


def test_every_event_has_a_move_and_every_state_can_be_reached() -> None:
    assert set(MOVES) == set(Event)
    assert {after for _, after in MOVES.values()} == set(TrialState)


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", TrialState)
def test_move_follows_the_table_or_says_what_is_allowed(state: TrialState, event: Event) -> None:
    if str(state) in sources(event):
        assert move(state, event) is target(event)
    else:
        with pytest.raises(StateError, match=f"{state} cannot {event}; allowed when {sources(event)[0]}"):
            move(state, event)


def test_finished_and_pruned_trials_stay() -> None:
    for state in (TrialState.FINISHED, TrialState.PRUNED):
        assert not [event for event in Event if str(state) in sources(event)]


def test_only_a_retry_brings_an_ended_trial_back() -> None:
    back = {e for e in Event if set(sources(e)) & {str(s) for s in ENDED_STATES} and target(e) in ACTIVE_STATES}
    assert back == {Event.RETRY}


def test_fenced_events_need_a_running_trial() -> None:
    assert all(sources(event) == ["running"] for event in FENCED)


@pytest.mark.parametrize(
    ("cause", "event"),
    [
        (Cause.LOST, Event.RELEASE),
        (Cause.PREEMPTED, Event.RELEASE),
        (Cause.OUT_OF_MEMORY, Event.FAIL),
        (Cause.NOT_A_NUMBER, Event.FAIL),
        (Cause.ERROR, Event.FAIL),
        (Cause.TIMEOUT, Event.FAIL),
        (Cause.STOPPED, Event.CANCEL),
        (Cause.SCHEDULE, Event.PRUNE),
    ],
)
def test_what_an_ended_attempt_means(cause: Cause, event: Event) -> None:
    assert after_attempt(cause) is event
    assert after_attempt(cause, killed_before=100) is event
    assert "running" in sources(event)


def test_a_killed_process_fails_its_trial_at_the_limit() -> None:
    events = [after_attempt(Cause.LOST, killed_before=n, process_killed=True) for n in range(MAX_KILLED_ATTEMPTS + 1)]
    assert events == [Event.RELEASE] * (MAX_KILLED_ATTEMPTS - 1) + [Event.FAIL] * 2
    assert after_attempt(Cause.PREEMPTED, killed_before=100, process_killed=True) is Event.RELEASE


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

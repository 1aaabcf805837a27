"""What the coordinator decides, as a pure function of the trials."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.planning import Budget, Plan, members, observations, plan, trial_seed
from autotune.schedule import Propose, make_schedule
from autotune.trial import ACTIVE_STATES, Attempt, CampaignState, Trial, TrialState

Q, R, F, X, P = TrialState.QUEUED, TrialState.RUNNING, TrialState.FINISHED, TrialState.FAILED, TrialState.PAUSED


def _trials(states: Sequence[TrialState], cause: str = "error") -> list[Trial]:
    failed = (Attempt(token="t", owner="w", cause=cause, message="it broke"),)
    return [
        Trial(
            campaign="c", number=i, params={"x": i}, config_hash=str(i), state=s,
            score=float(i) if s is F else None, attempts=failed if s is X else (),
        )
        for i, s in enumerate(states)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("states", "idle", "budget", "proposed"),
    [
        ([], 2, 10, 2),
        ([], 0, 10, 0),
        ([], 20, 10, 10),
        ([Q, Q], 2, 10, 0),
        ([Q, R], 3, 10, 2),
        ([Q, Q, Q], 1, 10, 0),
        ([F] * 9, 4, 10, 1),
        ([F] * 9 + [R], 4, 10, 0),
        ([F] * 9 + [Q], 4, 10, 0),
    ],
)
def test_as_many_are_proposed_as_slots_are_idle_and_the_budget_allows(
    states: list[TrialState], idle: int, budget: int, proposed: int
) -> None:
    trials = _trials(states)
    todo = plan(trials, budget=Budget(max_trials=budget))
    assert todo.end is None
    actions = make_schedule({}).actions(members(trials, "min"), idle=idle, remaining=todo.remaining)
    assert actions == [Propose()] * proposed


@pytest.mark.parametrize(
    ("states", "budget", "expected"),
    [
        ([F] * 9 + [P], 10, Plan()),
        ([F] * 10, 10, Plan(end=CampaignState.FINISHED)),
        ([F] * 9 + [X], 10, Plan(end=CampaignState.FINISHED, message="1 of 10 trials failed")),
        ([X] * 3, 3, Plan(end=CampaignState.FAILED, message="3 of 3 trials failed")),
    ],
)
def test_a_campaign_ends_when_its_last_trial_has(states: list[TrialState], budget: int, expected: Plan) -> None:
    assert plan(_trials(states), budget=Budget(max_trials=budget)) == expected


def test_an_exhausted_space_ends_when_the_last_trial_ended() -> None:
    assert plan(_trials([F, R]), budget=Budget(max_trials=9), exhausted=True) == Plan()
    ended = plan(_trials([F, F]), budget=Budget(max_trials=9), exhausted=True)
    assert ended == Plan(end=CampaignState.FINISHED, message="space exhausted after 2 of 9 trials")


@pytest.mark.parametrize(
    ("states", "abort_after", "aborts"),
    [([X, X, R], 2, True), ([X, F, X], 2, False), ([X], 2, False), ([X] * 5, 0, False), ([F, X, X], 2, False)],
)
def test_a_campaign_that_only_fails_is_stopped(states: list[TrialState], abort_after: int, aborts: bool) -> None:
    todo = plan(_trials(states), budget=Budget(max_trials=9), abort_after=abort_after)
    assert (todo.end is CampaignState.FAILED) == aborts
    if aborts:
        assert todo.message == f"the first {abort_after} trials all failed (error): it broke"


def test_failures_of_different_kinds_do_not_stop_a_campaign() -> None:
    trials = [_trials([X])[0], _trials([X, X], cause="not-a-number")[1]]
    assert plan(trials, budget=Budget(max_trials=9), abort_after=2).end is None


@given(
    states=st.lists(st.sampled_from(sorted(TrialState)), max_size=30),
    idle=st.integers(0, 40),
    budget=st.integers(1, 30),
    exhausted=st.booleans(),
)
def test_the_budget_is_never_passed_and_nothing_ends_while_something_runs(
    states: list[TrialState], idle: int, budget: int, exhausted: bool
) -> None:
    trials = _trials(states[:budget])
    todo = plan(trials, budget=Budget(max_trials=budget), exhausted=exhausted)
    assert 0 <= todo.remaining <= max(0, budget - len(trials))
    actions = make_schedule({}).actions(members(trials, "min"), idle=idle, remaining=todo.remaining)
    proposed = sum(isinstance(a, Propose) for a in actions)
    assert 0 <= proposed <= todo.remaining
    assert proposed + sum(t.state is Q for t in trials) <= max(idle, sum(t.state is Q for t in trials))
    if any(t.state in ACTIVE_STATES for t in trials):
        assert todo.end is None
    if todo.end is not None:
        assert todo.remaining == 0
        assert len(trials) == budget or exhausted


def test_scores_become_losses_that_are_smaller_when_better() -> None:
    trials = _trials([F, F, X, R])
    assert [o.loss for o in observations(trials, "min")] == [0.0, 1.0, None, None]
    assert [o.loss for o in observations(trials, "max")] == [-0.0, -1.0, None, None]
    assert [o.state for o in observations(trials, "max")] == ["finished", "finished", "failed", "running"]


def test_seeds_differ_between_trials_and_campaigns_and_never_change() -> None:
    seeds = {trial_seed(campaign, number) for campaign in range(20) for number in range(200)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert trial_seed(0, 3) == 2613022947

"""Budgets in hours and device hours, and which failures teach the search: pure functions of the trials."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.planning import Budget, Plan, device_use, is_infeasible, observations, plan
from autotune.trial import Attempt, CampaignState, Trial, TrialState

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
Q, R, F, X = TrialState.QUEUED, TrialState.RUNNING, TrialState.FINISHED, TrialState.FAILED


def make(number: int, state: TrialState, *attempts: Attempt) -> Trial:
    return Trial(
        campaign="c", number=number, params={"x": number}, config_hash=str(number), state=state, attempts=attempts,
        score=1.0 if state is F else None,
    )  # fmt: skip


def attempt(began_s: float | None, ended_s: float | None = None, *, share: float = 1.0, **more: str) -> Attempt:
    """Return an attempt that began and ended so many seconds before `NOW`."""
    began = None if began_s is None else NOW - timedelta(seconds=began_s)
    ended = None if ended_s is None else NOW - timedelta(seconds=ended_s)
    return Attempt(token="t", owner="w", started_at=began, ended_at=ended, share=share, **more)  # type: ignore[arg-type]


def test_device_use_sums_all_attempts() -> None:
    trials = [
        make(0, F, attempt(100, 90, cause="lost"), attempt(80, 60)),
        make(1, X, attempt(50, 40, share=0.5, cause="error")),
        make(2, R, attempt(70, 65, cause="out-of-memory"), attempt(20, share=0.25)),
        make(3, Q),
        make(4, R, attempt(10)),
    ]
    used_s, devices = device_use(trials, NOW)
    assert used_s == pytest.approx(10 + 20 + 5 + 5 + 5 + 10)
    assert devices == pytest.approx(1.25)


def test_device_use_is_never_negative() -> None:
    """A trial claimed after the campaign was read begins in the future of that reading."""
    assert device_use([make(0, R, attempt(-5)), make(1, R, attempt(None))], NOW) == (0.0, 1.0)
    assert device_use([], NOW) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("budget", "spent", "left_s"),
    [
        (Budget(max_trials=3), None, math.inf),
        (Budget(max_trials=3, used_s=9e9, device_s=9e9, devices=4), None, math.inf),
        (Budget(max_trials=3, max_s=7200, used_s=7199), None, 1.0),
        (Budget(max_trials=3, max_s=7200, used_s=7200), "the budget of 2 hours is used up", 0.0),
        (Budget(max_trials=3, max_s=5, used_s=9), "the budget of 0.001389 hours is used up", 0.0),
        (Budget(max_trials=3, max_device_s=100, device_s=90, devices=4), None, 2.5),
        (Budget(max_trials=3, max_device_s=100, device_s=90, devices=0.5), None, 20.0),
        (Budget(max_trials=3, max_device_s=100, device_s=90), None, math.inf),
        (Budget(max_trials=3, max_device_s=3600, device_s=3600), "the budget of 1 device hours is used up", None),
        (Budget(max_trials=3, max_s=50, used_s=10, max_device_s=100, device_s=90, devices=1), None, 10.0),
    ],
)
def test_budgets_in_time(budget: Budget, spent: str | None, left_s: float | None) -> None:
    assert budget.spent == spent
    if left_s is not None:
        assert budget.left_s == pytest.approx(left_s)


OUT = Budget(max_trials=5, max_s=10, used_s=11)


@pytest.mark.parametrize(
    ("states", "state", "message"),
    [
        ([F, R, Q], CampaignState.FINISHED, "; 1 of 5 trials finished"),
        ([], CampaignState.FINISHED, "; 0 of 5 trials finished"),
        ([R], CampaignState.FINISHED, "; 0 of 5 trials finished"),
        ([X, R], CampaignState.FAILED, "; 0 of 5 trials finished"),
        ([X, F], CampaignState.FINISHED, "; 1 of 5 trials finished"),
        ([R] * 5, CampaignState.FINISHED, "; 0 of 5 trials finished"),
    ],
)
def test_a_budget_in_time_ends_the_campaign(states: list[TrialState], state: CampaignState, message: str) -> None:
    trials = [make(n, s) for n, s in enumerate(states)]
    todo = plan(trials, budget=OUT)
    assert todo == Plan(end=state, message="the budget of 0.002778 hours is used up" + message, spent=OUT)


def test_a_campaign_whose_trials_have_all_ended_is_not_out_of_time() -> None:
    trials = [make(n, F) for n in range(5)]
    assert plan(trials, budget=OUT) == Plan(end=CampaignState.FINISHED)


def test_a_trial_counts_once_however_often_it_was_tried() -> None:
    tried = [attempt(100 - n, 99 - n, cause="out-of-memory") for n in range(3)]
    trials = [make(0, Q, *tried), make(1, F, *tried), make(2, R, *tried)]
    assert plan(trials, budget=Budget(max_trials=5)) == Plan(remaining=2)


@pytest.mark.parametrize(
    ("cause", "infeasible"),
    [
        ("out-of-memory", True), ("not-a-number", True), ("error", True), ("timeout", True),
        ("lost", False), ("preempted", False), ("stopped", False),
    ],
)  # fmt: skip
def test_deterministic_failures_teach_the_search(cause: str, infeasible: bool) -> None:
    failed = make(0, X, attempt(9, 8, cause=cause))
    assert is_infeasible(failed) == infeasible
    (seen,) = observations([failed], "min")
    assert seen.infeasible == infeasible
    assert not is_infeasible(make(0, Q, attempt(9, 8, cause=cause)))
    assert not is_infeasible(make(0, F, attempt(9, 8, cause=cause), attempt(7, 6)))
    assert not is_infeasible(make(0, X))


@given(
    used_s=st.floats(0, 1e6),
    device_s=st.floats(0, 1e6),
    devices=st.floats(0, 64),
    states=st.lists(st.sampled_from([Q, R, F, X]), max_size=8),
)
def test_nothing_is_proposed_beyond_a_budget(
    used_s: float, device_s: float, devices: float, states: list[TrialState]
) -> None:
    budget = Budget(
        max_trials=8, max_s=1e5, max_device_s=1e5, used_s=used_s, device_s=device_s, devices=devices
    )  # fmt: skip
    todo = plan([make(n, s) for n, s in enumerate(states)], budget=budget)
    assert budget.left_s >= 0
    assert (budget.spent is None) == (used_s < 1e5 and device_s < 1e5)
    if budget.spent is not None:
        assert todo.remaining == 0
        assert todo.end is not None

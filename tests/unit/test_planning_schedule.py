"""What a schedule and a search see of the trials under a schedule with rungs."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.mirror import Members, Mirror, Told, Usage
from autotune.planning import device_use, members, observations, rung_observations, schedule_mode
from autotune.search import History, make_search
from autotune.space import parse_space
from autotune.testing.helpers import campaign_record
from autotune.trial import ACTIVE_STATES, Attempt, Trial, TrialState

FINISHED, PRUNED, FAILED, PAUSED = TrialState.FINISHED, TrialState.PRUNED, TrialState.FAILED, TrialState.PAUSED
QUEUED, RUNNING, CANCELLED = TrialState.QUEUED, TrialState.RUNNING, TrialState.CANCELLED


def make(number: int, state: TrialState, *scores: float | None, rung: int | None = None, **more: Any) -> Trial:
    """Return a trial with these scores at its rungs; `rung` is by default that of the last of them."""
    more = {"params": {"x": number}, **more}
    return Trial(
        campaign="c", number=number, config_hash=str(number), state=state, rung_scores=scores,
        rung=max(0, len(scores) - 1) if rung is None else rung, **more,
    )  # fmt: skip


def mirror_of(*trials: Trial) -> Mirror:
    """Return a mirror that has taken in these trials; it has no store to read from."""
    mirror = Mirror(None, "c")  # type: ignore[arg-type]
    for trial in trials:
        mirror.add(trial)
    return mirror


def failed(number: int, *scores: float | None, cause: str = "error", rung: int | None = None) -> Trial:
    attempt = Attempt(token="t", owner="w", cause=cause)
    return make(number, FAILED, *scores, rung=len(scores) if rung is None else rung, attempts=(attempt,))


def seen(trials: list[Trial], mode: str = "min", least: int = 2) -> list[tuple[str, float | None]]:
    return [(o.state, o.loss) for o in rung_observations(trials, mode, least)]


def test_the_metric_of_the_schedule_says_what_is_better() -> None:
    metric = {"name": "loss", "mode": "min"}
    assert schedule_mode(campaign_record(metric=metric, spec={})) == "min"
    assert schedule_mode(campaign_record(metric=metric, spec={"schedule": {"algorithm": "asha"}})) == "min"
    other = {"algorithm": "asha", "metric": {"name": "elbo", "mode": "max"}}
    assert schedule_mode(campaign_record(metric=metric, spec={"schedule": other})) == "max"


def test_members_are_smaller_is_better() -> None:
    trials = [make(0, PAUSED, 1.0, None, bracket=2), make(1, RUNNING, 3.0, rung=1)]
    first, second = members(trials, "max")
    assert (first.number, first.state, first.bracket, first.rung) == (0, PAUSED, 2, 1)
    assert first.losses[0] == -1.0
    assert math.isnan(first.losses[1])
    assert second.losses == (-3.0,)
    assert second.rung == 1
    assert members(trials, "min")[1].losses == (3.0,)


def test_a_trial_that_has_not_changed_is_the_same_member() -> None:
    """Schedules compare members by identity; a trial that is read again is a new object, and often an equal one."""
    mirror, known = mirror_of(make(0, PAUSED, 1.0, None), make(1, RUNNING)), Members()
    before = list(known.follow(mirror, "min", ended=True))
    assert before == members(mirror.trials, "min")
    for trial in (make(0, PAUSED, 1.0, None), make(1, PAUSED, 2.0), make(2, QUEUED)):
        mirror.add(trial)
    after = known.follow(mirror, "min", ended=True)
    assert after[0] is before[0]
    assert after[1:] == members([make(1, PAUSED, 2.0), make(2, QUEUED)], "min")


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(list(TrialState)), st.booleans()), max_size=40))
def test_what_follows_a_mirror_is_what_all_trials_give(events: list[tuple[int, TrialState, bool]]) -> None:
    """Trials come in any order, change, and are asked for now and then; followers look at what changed alone."""
    mirror, known, told, usage = mirror_of(), Members(), Told(), Usage()
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    for second, (number, state, looks) in enumerate(events):
        end = None if state is RUNNING else begin + timedelta(seconds=number)
        attempt = Attempt(token="t", owner="w", started_at=begin, ended_at=end, share=0.5)
        mirror.add(make(number, state, 1.0, score=2.0 if state is FINISHED else None, attempts=(attempt,)))
        assert mirror[number].state is state
        if not looks:
            continue
        active = [t for t in mirror.trials if t.state in ACTIVE_STATES]
        assert mirror.active == active
        assert sorted(known.follow(mirror, "max", ended=True), key=lambda m: m.number) == members(mirror.trials, "max")
        assert known.follow(mirror, "max", ended=False) == members(active, "max")
        now = begin + timedelta(seconds=second)
        assert usage.follow(mirror, now) == pytest.approx(device_use(mirror.trials, now))
        history = told.follow(mirror, "max")
        assert sorted(history, key=lambda o: o.number) == observations(mirror.trials, "max")
    assert [t.number for t in mirror.changed_since(0)] == sorted({number for number, _, _ in events})
    assert mirror.changed_since(mirror.revision) == []


def test_the_highest_rung_with_enough_results_is_modelled() -> None:
    trials = [
        make(0, FINISHED, 9.0, 5.0, 1.0),
        make(1, PAUSED, 8.0, 4.0),
        make(2, PRUNED, 7.0, 6.0),
        make(3, PRUNED, 20.0),
        make(4, PAUSED, 10.0),
        make(5, RUNNING, 6.0, rung=1),
        make(6, QUEUED),
    ]
    at_the_first: list[tuple[str, float | None]] = [("finished", v) for v in (9.0, 8.0, 7.0, 20.0, 10.0, 6.0)]
    at_the_second: list[tuple[str, float | None]] = [("finished", 5.0), ("finished", 4.0), ("finished", 6.0)]
    rest: list[tuple[str, float | None]] = [("pruned", None), ("pruned", None), ("running", None), ("queued", None)]
    assert seen(trials, least=4) == [*at_the_first, ("queued", None)]
    assert seen(trials, least=3) == at_the_second + rest
    assert seen(trials, least=2) == at_the_second + rest
    assert seen(trials, least=1)[:2] == [("finished", 1.0), ("pruned", None)]


def test_where_no_rung_has_enough_the_fullest_counts() -> None:
    trials = [make(0, PAUSED, 9.0, 5.0), make(1, PAUSED, 8.0)]
    assert seen(trials, least=50) == [("finished", 9.0), ("finished", 8.0)]
    assert seen([], least=5) == []
    assert seen([make(0, QUEUED)], least=5) == [("queued", None)]


def test_what_waits_or_was_stopped_below_the_rung_is_left_out() -> None:
    """Its last value is never taken for that of a higher rung, and it teaches nothing of what cannot be trained."""
    trials = [make(0, FINISHED, 9.0, 5.0), make(1, FINISHED, 9.0, 6.0), make(2, PAUSED, 7.0), make(3, PRUNED)]
    trials += [make(4, PRUNED, 1e9), make(5, PRUNED, 1.0)]
    assert seen(trials)[2:] == [("pruned", None)] * 4
    assert not any(o.infeasible for o in rung_observations(trials, "min", 2))


def test_what_was_stopped_is_not_proposed_again() -> None:
    space = parse_space({"x": {"int": [1, 12]}, "y": {"choice": [1, 2]}})
    trials = [
        make(n, FINISHED, 9.0, float(n), params={"x": 1 + n, "y": 1}) if n < 9 else
        make(n, PRUNED, 9.0, params={"x": n - 8, "y": 2})
        for n in range(20)
    ]  # fmt: skip
    search = make_search({"algorithm": "tpe", "startup": 5, "seed": 0})
    history = History(rung_observations(trials, "min", 8))
    proposals = [search.propose(space, history, 20 + n) for n in range(20)]
    assert all(proposal not in [t.params for t in trials] for proposal in proposals)


def test_what_failed_or_was_no_number_at_the_rung_has_failed() -> None:
    trials = [make(0, FINISHED, 9.0, 5.0), make(1, FINISHED, 9.0, 6.0), failed(2, 1.0), make(3, PRUNED, 2.0, None)]
    trials += [failed(4), failed(5, cause="lost"), make(6, CANCELLED)]
    found = rung_observations(trials, "min", 2)
    assert [(o.state, o.loss) for o in found[2:6]] == [("failed", None)] * 4
    assert [o.infeasible for o in found] == [False, False, True, False, True, False, False]
    assert found[6].state == "cancelled"


def test_a_trial_that_failed_above_the_rung_has_its_loss_there() -> None:
    trials = [make(0, PAUSED, 9.0), make(1, PAUSED, 8.0), failed(2, 1.0)]
    assert seen(trials)[2] == ("finished", 1.0)


def test_larger_is_better_is_negated() -> None:
    assert seen([make(0, PAUSED, 9.0), make(1, PAUSED, 8.0)], "max") == [("finished", -9.0), ("finished", -8.0)]


_SCORES = st.lists(st.none() | st.floats(allow_nan=True, allow_infinity=True), max_size=4)
_TRIALS = st.lists(st.tuples(st.sampled_from(TrialState), _SCORES, st.integers(0, 4), st.sampled_from(["", "error"])))


@given(drawn=_TRIALS, mode=st.sampled_from(["min", "max"]), least=st.integers(0, 6))
def test_observations_are_consistent(
    drawn: list[tuple[TrialState, list[float | None], int, str]], mode: str, least: int
) -> None:
    trials = [
        make(n, state, *scores, rung=rung, attempts=(Attempt(token="t", owner="w", cause=cause),) if cause else ())
        for n, (state, scores, rung, cause) in enumerate(drawn)
    ]
    found = rung_observations(trials, mode, least)
    assert [o.number for o in found] == [t.number for t in trials]
    for trial, observation in zip(trials, found, strict=True):
        assert observation.params == trial.params
        assert (observation.loss is not None) == (observation.state == "finished"), "a result has a loss, others none"
        assert observation.state in set(TrialState) - {PAUSED}, "the search knows no pauses"
        if observation.infeasible:
            assert (trial.state, observation.state) == (FAILED, "failed")
        if observation.loss is not None:
            assert math.isfinite(observation.loss)
            assert (-observation.loss if mode == "max" else observation.loss) in trial.rung_scores
    results = [sum(math.isfinite(v) for v in row if v is not None) for row in _columns(trials)]
    modelled = sum(o.loss is not None for o in found)
    if any(n >= least for n in results):
        highest = max(r for r, n in enumerate(results) if n >= least)
        assert modelled == results[highest]
    else:
        assert modelled == max(results, default=0)


def _columns(trials: list[Trial]) -> list[list[float | None]]:
    """Return the scores per rung."""
    length = max((len(t.rung_scores) for t in trials), default=0)
    return [[t.rung_scores[r] for t in trials if r < len(t.rung_scores)] for r in range(length)]


@pytest.mark.parametrize("least", [0, -1])
def test_any_number_is_enough_if_none_is_asked_for(least: int) -> None:
    assert seen([make(0, PAUSED, 9.0, None)], least=least) == [("failed", None)]


def test_a_search_is_told_what_changed_and_nothing_twice() -> None:
    told, mirror = Told(), mirror_of(*(make(n, FINISHED, score=float(n)) for n in range(3)))
    history = told.follow(mirror, "min")
    assert [o.loss for o in history] == [0.0, 1.0, 2.0]
    seen = history.changed
    mirror.add(make(1, FINISHED, score=1.0))
    assert told.follow(mirror, "min") is history
    assert history.changed == seen, "read anew, but the same"
    mirror.add(make(3, RUNNING))
    told.follow(mirror, "min")
    mirror.add(make(3, FINISHED, score=9.0))
    told.follow(mirror, "min")
    assert [(o.state, o.loss) for o in history.changes(seen)] == [("running", None), ("finished", 9.0)]
    assert list(history) == observations(mirror.trials, "min")

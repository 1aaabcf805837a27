"""The median stopping rule, by hand."""

from __future__ import annotations

import math
import statistics

import hypothesis
import pytest
from hypothesis import strategies as st

from autotune.schedule import Curve, Verdict, make_schedule


def curve(*losses: float) -> Curve:
    return Curve(steps=tuple(range(1, len(losses) + 1)), losses=losses)


def flat(*levels: float) -> list[Curve]:
    return [curve(*[level] * 10) for level in levels]


def verdict(mine: Curve, others: list[Curve], **settings: int) -> Verdict:
    return make_schedule({"algorithm": "median", **settings}).verdict(mine, others)


def test_the_best_so_far_is_compared_with_the_median_of_running_averages() -> None:
    others = [curve(9, 1, 1), curve(6, 2, 1), curve(3, 3, 3)]  # averages up to step 2: 5, 4, 3
    assert verdict(curve(8, 4.1), others, least=3) is Verdict.STOP
    assert verdict(curve(8, 4), others, least=3) is Verdict.CONTINUE  # worse, not as bad
    assert verdict(curve(2, 50), others, least=3) is Verdict.CONTINUE  # the best counts, not the last
    assert verdict(curve(7, 7), [*others, curve(100, 100)], least=3) is Verdict.STOP  # 4.5


def test_warm_up_and_least() -> None:
    assert verdict(curve(9, 9, 9), flat(1, 1, 1), least=3, warm_up=4) is Verdict.CONTINUE
    assert verdict(curve(9, 9, 9, 9), flat(1, 1, 1), least=3, warm_up=4) is Verdict.STOP
    assert verdict(curve(9, 9), flat(1, 1), least=3) is Verdict.CONTINUE
    assert verdict(curve(), flat(1, 1, 1), least=3) is Verdict.CONTINUE


def test_only_trials_that_came_as_far_count() -> None:
    assert verdict(curve(9, 9, 9), [curve(1, 1)] * 9, least=3) is Verdict.CONTINUE
    assert verdict(curve(9, 9), [curve(1, 1)] * 9, least=3) is Verdict.STOP


def test_losses_that_are_no_number() -> None:
    assert verdict(curve(math.nan, math.nan), flat(1, 2, 3), least=3) is Verdict.STOP
    assert verdict(curve(math.nan, 1.0), flat(1, 2, 3), least=3) is Verdict.CONTINUE
    assert verdict(curve(5.0), [curve(math.nan)] * 3, least=3) is Verdict.CONTINUE
    assert verdict(curve(math.nan), [curve(math.nan)] * 3, least=3) is Verdict.CONTINUE
    assert verdict(curve(5.0), [curve(math.inf), curve(-math.inf)], least=2) is Verdict.CONTINUE


def test_a_step_between_two_reports_of_another() -> None:
    sparse = Curve(steps=(1, 5, 9), losses=(3.0, 2.0, 1.0))
    assert sparse.average(5) == sparse.average(6) == 2.5
    assert sparse.average(9) == 2.0
    assert sparse.average(10) is None
    assert sparse.average(0) is None


@pytest.mark.parametrize("algorithm", ["none", "asha", "hyperband"])
def test_others_stop_nothing_between_rungs(algorithm: str) -> None:
    schedule = make_schedule({"algorithm": algorithm, "maximum": 9})
    assert schedule.verdict(curve(9, 9, 9), flat(*[1.0] * 20)) is Verdict.CONTINUE


@hypothesis.given(
    mine=st.lists(st.floats(-9, 9), min_size=1, max_size=8),
    others=st.lists(st.lists(st.floats(-9, 9), min_size=1, max_size=8), max_size=9),
)
def test_against_the_rule_written_out(mine: list[float], others: list[list[float]]) -> None:
    step = len(mine)
    averages = [sum(o[:step]) / step for o in others if len(o) >= step]
    stops = len(averages) >= 2 and min(mine) > statistics.median(averages) + 1e-9
    keeps = len(averages) < 2 or min(mine) < statistics.median(averages) - 1e-9
    found = verdict(curve(*mine), [curve(*o) for o in others], least=2)
    assert not (stops and found is Verdict.CONTINUE)
    assert not (keeps and found is Verdict.STOP)

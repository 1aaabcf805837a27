"""The statistics of a benchmark against known answers, SciPy, and simulations."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from autotune.errors import InputError
from autotune.report.statistics import BETTER, SAME, WORSE, Scored, mean_and_se, optimism, paired

FLOATS = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))


def test_mean_and_standard_error() -> None:
    mean, se = mean_and_se([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert se == pytest.approx(math.sqrt(5 / 3) / 2)  # sd of 1..4 is sqrt(5/3), over sqrt(4)
    assert mean_and_se([7.0])[0] == 7.0
    assert math.isnan(mean_and_se([7.0])[1])
    assert all(math.isnan(value) for value in mean_and_se([]))


def test_a_paired_test_by_hand() -> None:
    found = paired([9.0, 8.0, 7.0], [10.0, 10.0, 10.0], "min")
    assert found is not None
    # differences -1, -2, -3: mean -2, sd 1, se 1/sqrt(3), t = -2 sqrt(3), 2 degrees of freedom
    assert (found.difference, found.n) == (-2.0, 3)
    assert found.t == pytest.approx(-3.4641016)
    assert found.p == pytest.approx(0.0741799, abs=1e-6)
    assert found.verdict == SAME
    half = 4.3026527 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((-2 - half, -2 + half))


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=2, max_size=12))
def test_the_paired_test_is_that_of_scipy(pairs: list[tuple[float, float]]) -> None:
    first, second = [list(values) for values in zip(*pairs, strict=True)]
    differences = np.subtract(first, second)
    if np.ptp(differences) < 1e-6:
        return  # SciPy warns there; see the next test
    found = paired(first, second, "min")
    theirs = stats.ttest_rel(first, second)
    interval = theirs.confidence_interval(0.95)
    assert found is not None
    assert (found.t, found.p) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-6, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-6)
    assert (found.verdict == SAME) == (theirs.pvalue >= 0.05)


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, SAME), (-0.1, BETTER), (0.1, WORSE)])
def test_differences_that_are_all_the_same(shift: float, verdict: str) -> None:
    second = [1.1, 2.3, 3.7]
    found = paired([value + shift for value in second], second, "min")
    assert found is not None
    assert found.verdict == verdict
    assert found.p == (1.0 if shift == 0 else 0.0)


def test_the_verdict_knows_which_way_is_better() -> None:
    low, high = [1.0, 1.1, 1.2, 1.05], [2.0, 2.2, 2.1, 2.3]
    verdicts = [
        found.verdict
        for first, second, mode in ((low, high, "min"), (high, low, "min"), (low, high, "max"), (high, low, "max"))
        if (found := paired(first, second, mode)) is not None
    ]
    assert verdicts == [BETTER, WORSE, WORSE, BETTER]


def test_no_pairs_no_test() -> None:
    assert paired([1.0], [2.0], "min") is None
    assert paired([], [], "min") is None
    with pytest.raises(ValueError, match="needs pairs"):
        paired([1.0, 2.0], [1.0], "min")


def test_without_scipy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(InputError, match=r"autotune\[cells\]"):
        paired([1.0, 2.0], [2.0, 4.0], "min")


def test_the_test_errs_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        common = generator.normal(0, 5, 5)  # what the seeds share does not count
        first, second = common + generator.normal(0, 1, 5), common + generator.normal(0, 1, 5)
        found = paired(first.tolist(), second.tolist(), "min")
        assert found is not None
        wrong += found.verdict != SAME
    assert 0.03 < wrong / 1000 < 0.07


def test_the_gap_is_search_minus_test() -> None:
    gap = optimism(Scored(values=[3.0]), Scored(values=[5.0, 5.0, 5.0]))
    assert (gap.value, gap.low, gap.high) == (-2.0, -2.0, -2.0)
    alone = optimism(Scored(values=[3.0]), Scored(values=[5.0]))
    assert alone.value == -2.0
    assert math.isnan(alone.low)


def test_cells_alone_give_the_normal_interval() -> None:
    gap = optimism(Scored(values=[3.0], se=0.3), Scored(values=[5.0], se=0.4), draws=200_000)
    assert (gap.low, gap.high) == pytest.approx((-2 - 1.96 * 0.5, -2 + 1.96 * 0.5), abs=0.02)


def test_the_gap_is_the_same_each_time() -> None:
    search, test = Scored(values=[3.0], se=0.3), Scored(values=[5.0, 5.5, 4.8], se=0.4)
    assert optimism(search, test) == optimism(search, test)
    assert optimism(search, test) != optimism(search, test, seed=1)


def _covers(n: int, *, seeds: float, cells: float, groups: int = 0) -> float:
    """Return how often the interval holds the truth, -2, in 500 simulated benchmarks."""
    generator = np.random.default_rng([n, groups])
    hits = 0
    for index in range(500):
        search = Scored(values=[3.0 + generator.normal(0, cells)], se=cells)
        luck = generator.normal(0, seeds, n)
        if groups:
            sizes, effects = generator.integers(50, 150, groups), generator.normal(0, 1.0, groups)
            per_seed = [
                {str(g): (float(sizes[g]), 5.0 + float(effects[g]) + float(luck[r])) for g in range(groups)}
                for r in range(n)
            ]
            values = [float(np.average([m for _, m in g.values()], weights=sizes)) for g in per_seed]
            test = Scored(values=values, se=0.001, groups=per_seed)
        else:
            test = Scored(values=(5.0 + generator.normal(0, cells) + luck).tolist(), se=cells)
        gap = optimism(search, test, draws=1000, seed=index)
        hits += gap.low <= -2.0 <= gap.high
    return hits / 500


@pytest.mark.parametrize(
    ("n", "seeds", "cells", "groups"),
    [(5, 1.0, 0.0, 0), (5, 1.0, 0.5, 0), (5, 0.1, 1.0, 0), (10, 1.0, 0.0, 0), (5, 0.1, 0.1, 3), (5, 0.1, 0.1, 8)],
)
def test_the_interval_of_the_gap_covers_as_it_says(n: int, seeds: float, cells: float, groups: int) -> None:
    assert 0.925 < _covers(n, seeds=seeds, cells=cells, groups=groups) < 0.99


def test_without_groups_the_interval_would_be_too_narrow() -> None:
    groups = [{"a": (100.0, 4.0), "b": (100.0, 6.0), "c": (100.0, 5.0)}] * 3
    test = Scored(values=[5.0, 5.0, 5.0], se=0.01)
    narrow = optimism(Scored(values=[3.0], se=0.01), test)
    wide = optimism(Scored(values=[3.0], se=0.01), Scored(values=test.values, se=test.se, groups=groups))
    assert wide.high - wide.low > 10 * (narrow.high - narrow.low)
    one = [{"a": (300.0, 5.0)}] * 3
    assert optimism(Scored(values=[3.0], se=0.01), Scored(values=test.values, se=test.se, groups=one)) == narrow

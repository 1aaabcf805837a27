"""Bracket tables: published ones, powers counted in whole numbers, and what holds for all of them."""

from __future__ import annotations

import math
from fractions import Fraction

import hypothesis
import pytest
from hypothesis import strategies as st

from autotune.errors import CampaignError
from autotune.schedule.brackets import asha_rungs, hyperband_brackets, reductions

# (maximum, eta) -> the rungs (members, resource) of each bracket, s = s_max first
PUBLISHED = {
    (81, 3): [
        [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
        [(34, 3), (11, 9), (3, 27), (1, 81)],
        [(15, 9), (5, 27), (1, 81)],
        [(8, 27), (2, 81)],
        [(5, 81)],
    ],
    (27, 3): [[(27, 1), (9, 3), (3, 9), (1, 27)], [(12, 3), (4, 9), (1, 27)], [(6, 9), (2, 27)], [(4, 27)]],
    (9, 3): [[(9, 1), (3, 3), (1, 9)], [(5, 3), (1, 9)], [(3, 9)]],
    (16, 4): [[(16, 1), (4, 4), (1, 16)], [(6, 4), (1, 16)], [(3, 16)]],
    (8, 2): [[(8, 1), (4, 2), (2, 4), (1, 8)], [(6, 2), (3, 4), (1, 8)], [(4, 4), (2, 8)], [(4, 8)]],
}


@pytest.mark.parametrize(("maximum", "eta"), PUBLISHED)
def test_published_tables(maximum: int, eta: int) -> None:
    assert [list(b.rungs) for b in hyperband_brackets(1, maximum, eta)] == PUBLISHED[maximum, eta]


def test_the_papers_costs_without_checkpoints() -> None:
    costs = [sum(n * r for n, r in b.rungs) for b in hyperband_brackets(1, 81, 3)]
    assert costs == [405, 363, 351, 378, 405]


@pytest.mark.parametrize(
    ("maximum", "eta", "s_max"),
    [(243, 3, 5), (1000, 10, 3), (16, 4, 2), (100, 3, 4), (81, 3, 4), (80, 3, 3), (1, 3, 0), (2, 3, 0), (3**30, 3, 30)],
)
def test_powers_are_counted(maximum: int, eta: int, s_max: int) -> None:
    assert reductions(1, maximum, eta) == s_max
    assert len(hyperband_brackets(1, maximum, eta)) == s_max + 1


def test_the_logarithm_would_lose_a_bracket() -> None:
    assert math.floor(math.log(243, 3)) == 4
    assert math.floor(math.log(1000, 10)) == 2


@pytest.mark.parametrize(
    ("minimum", "maximum", "eta", "rungs"),
    [
        (1, 81, 3, (1, 3, 9, 27, 81)),
        (1, 100, 3, (1, 3, 11, 33, 100)),
        (1, 50, 3, (1, 5, 16, 50)),
        (5, 100, 4, (6, 25, 100)),
        (10, 10, 3, (10,)),
        (1, 100, 2, (1, 3, 6, 12, 25, 50, 100)),
    ],
)
def test_resources_that_are_no_powers_are_rounded_down(
    minimum: int, maximum: int, eta: int, rungs: tuple[int, ...]
) -> None:
    assert asha_rungs(minimum, maximum, eta) == rungs


@hypothesis.given(st.integers(1, 50), st.integers(0, 5000), st.integers(2, 12))
def test_what_holds_for_all(minimum: int, more: int, eta: int) -> None:
    maximum = minimum + more
    brackets = hyperband_brackets(minimum, maximum, eta)
    s_max = len(brackets) - 1
    assert minimum * eta**s_max <= maximum < minimum * eta ** (s_max + 1)
    levels = asha_rungs(minimum, maximum, eta)
    for s, bracket in zip(range(s_max, -1, -1), brackets, strict=True):
        assert bracket.s == s
        assert bracket.resources == levels[s_max - s :]
        assert bracket.resources[-1] == maximum
        assert bracket.resources[0] >= minimum
        assert all(a < b for a, b in zip(bracket.resources, bracket.resources[1:], strict=False))
        assert bracket.sizes[0] == math.ceil(Fraction(s_max + 1, s + 1) * eta**s)
        assert bracket.sizes == tuple(math.floor(Fraction(bracket.sizes[0], eta**i)) for i in range(s + 1))
        assert bracket.cut(bracket.sizes[0]) == bracket
        assert [bracket.kept(i, n) for i, n in enumerate(bracket.sizes[:-1])] == list(bracket.sizes[1:])


def test_a_bracket_cut_short_keeps_one_in_eta_and_at_least_one() -> None:
    largest = hyperband_brackets(1, 81, 3)[0]
    assert largest.cut(30).sizes == (30, 10, 3, 1, 1)
    assert largest.cut(2).sizes == (2, 1, 1, 1, 1)
    assert largest.cut(500) == largest


@pytest.mark.parametrize(("minimum", "maximum", "eta"), [(0, 9, 3), (10, 9, 3), (1, 9, 1), (-1, 9, 3)])
def test_out_of_range(minimum: int, maximum: int, eta: int) -> None:
    with pytest.raises(CampaignError, match="schedule"):
        hyperband_brackets(minimum, maximum, eta)

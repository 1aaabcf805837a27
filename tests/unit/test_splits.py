"""Division of cells: exact parts, whole groups, a hash that says which."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autotune.errors import DataError
from workers.workloads.cells.spec import SplitSpec
from workers.workloads.cells.splits import CellSplit, divide, split_cells

KNOWN_TEST = "53923c9fcf68ad62042c07a1ea7bc6fd60a482c9ab37cebe729e7dbb0680c317"
KNOWN = "bfcce7be2070f48313830cc3bbf65b507999205c4d261250879e6e4cf9cb028e"


def split(n: int = 20, **spec: object) -> CellSplit:
    return split_cells(SplitSpec(**spec), names=[f"c{i}" for i in range(n)], usable=np.ones(n, bool))  # type: ignore[arg-type]


@given(n=st.integers(2, 200), share=st.floats(0.05, 0.95), seed=st.integers(0, 2**32 - 1))
def test_parts_cover_all_cells_once(n: int, share: float, seed: int) -> None:
    number = int(n * share + 0.5)
    if number in (0, n):
        with pytest.raises(DataError, match="empty split"):
            split(n, validation=share, seed=seed)
        return
    made = split(n, validation=share, seed=seed)
    assert len(made.validation) == number
    np.testing.assert_array_equal(np.sort(np.concatenate([made.train, made.validation])), np.arange(n))


def test_same_seed_same_split_other_seed_other_split() -> None:
    assert split(seed=1).sha256 == split(seed=1).sha256
    assert split(seed=1).sha256 != split(seed=2).sha256


def test_known_split_never_changes() -> None:
    made = split(8, seed=0)
    assert list(made.validation) == [2, 6]
    assert made.sha256 == KNOWN


def test_hash_knows_names_parts_and_left_out_cells() -> None:
    names, usable = [f"c{i}" for i in range(8)], np.ones(8, bool)
    base = split_cells(SplitSpec(), names=names, usable=usable)
    renamed = split_cells(SplitSpec(), names=["other", *names[1:]], usable=usable)
    fewer = usable.copy()
    fewer[0] = False
    without = split_cells(SplitSpec(), names=names, usable=fewer)
    assert len({base.sha256, renamed.sha256, without.sha256}) == 3
    assert set(without.train) | set(without.validation) == set(range(1, 8))
    assert set(without.validation) <= set(base.validation)


@given(
    groups=st.lists(st.sampled_from("abcdefg"), min_size=2, max_size=80),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 1000),
)
def test_groups_are_never_divided(groups: list[str], share: float, seed: int) -> None:
    column, spec = np.asarray(groups), SplitSpec(validation=share, seed=seed, by="donor")
    names, usable = [str(i) for i in range(len(groups))], np.ones(len(groups), bool)
    if len(set(groups)) < 2:
        with pytest.raises(DataError, match="at least 2 are needed"):
            split_cells(spec, names=names, usable=usable, groups=column)
        return
    made = split_cells(spec, names=names, usable=usable, groups=column)
    trained, held_out = set(column[made.train]), set(column[made.validation])
    assert trained
    assert held_out
    assert not trained & held_out
    assert set(made.validation_groups) == held_out
    assert len(made.train) + len(made.validation) == len(groups)


def test_drawn_groups_come_closest_to_the_fraction() -> None:
    column = np.repeat([f"d{i}" for i in range(10)], 10)
    for seed in range(5):
        made = split_cells(
            SplitSpec(validation=0.3, seed=seed, by="d"),
            names=[str(i) for i in range(100)],
            usable=np.ones(100, bool),
            groups=column,
        )
        assert len(made.validation) == 30


def three(column: list[str] | None, n: int, spec: SplitSpec, usable: np.ndarray | None = None) -> CellSplit:
    groups = None if column is None else np.asarray(column)
    kept = np.ones(n, bool) if usable is None else usable
    return split_cells(spec, names=[f"c{i}" for i in range(n)], usable=kept, groups=groups)


@st.composite
def inputs(draw: st.DrawFn) -> tuple[list[str] | None, int, SplitSpec, np.ndarray]:
    """Cells, in groups or not, of which some are not usable; fractions with a test part."""
    n = draw(st.integers(3, 120))
    column = draw(st.none() | st.lists(st.sampled_from("abcdefghij"), min_size=n, max_size=n))
    validation = draw(st.floats(0.05, 0.6))
    test = draw(st.floats(0.05, 0.95 - validation))
    spec = SplitSpec(validation=validation, test=test, seed=draw(st.integers(0, 2**32 - 1)), by=column and "donor")
    return column, n, spec, np.asarray(draw(st.lists(st.sampled_from([True] * 9 + [False]), min_size=n, max_size=n)))


@given(inputs())
def test_three_parts_hold_every_usable_cell_once_and_groups_whole(
    given: tuple[list[str] | None, int, SplitSpec, np.ndarray],
) -> None:
    column, n, spec, usable = given
    try:
        made = three(column, n, spec, usable)
    except DataError:
        too_few = column is not None and len(set(column)) < 3
        parts = divide(spec, n, None if column is None else np.asarray(column)).parts if not too_few else None
        assert parts is None or any(not (usable & (parts == part)).any() for part in range(3))
        return
    together = np.concatenate([made.train, made.validation, made.test])
    np.testing.assert_array_equal(np.sort(together), np.flatnonzero(usable))
    assert all(np.all(np.diff(part) > 0) for part in (made.train, made.validation, made.test))
    assert made.n_test == len(made.test) > 0
    if column is not None:
        groups = np.asarray(column)
        members = [set(groups[part]) for part in (made.train, made.validation, made.test)]
        assert not members[0] & members[1] | members[0] & members[2] | members[1] & members[2]
        assert members[1] <= set(made.validation_groups)
        assert members[2] <= set(made.test_groups)
    again = three(column, n, spec, usable)
    assert again.sha256 == made.sha256
    np.testing.assert_array_equal(again.test, made.test)


@given(inputs())
def test_a_test_part_takes_its_cells_from_training_alone(
    given: tuple[list[str] | None, int, SplitSpec, np.ndarray],
) -> None:
    _, n, spec, _ = given
    spec = replace(spec, by=None)
    assume(int(n * spec.validation + 0.5) > 0 and int(n * spec.validation + 0.5) + int(n * spec.test + 0.5) < n)
    assume(int(n * spec.test + 0.5) > 0)
    with_test, without = three(None, n, spec), three(None, n, replace(spec, test=0.0))
    np.testing.assert_array_equal(with_test.validation, without.validation)
    assert set(with_test.train) | set(with_test.test) == set(without.train)
    assert with_test.sha256 != without.sha256


@given(inputs())
def test_a_sealed_split_tells_nothing_of_who_is_tested(
    given: tuple[list[str] | None, int, SplitSpec, np.ndarray],
) -> None:
    column, n, spec, usable = given
    try:
        opened = three(column, n, spec, usable)
    except DataError:
        return
    sealed, tested = opened.sealed(), set(opened.test.tolist())
    assert sealed.n_test == len(tested)
    assert sealed.sha256 == opened.sha256
    for name, value in vars(sealed).items():
        if isinstance(value, np.ndarray):
            assert not tested & set(value.tolist()), name
    assert sealed.test.base is None, "a view of what it hides"


def test_known_split_in_three_never_changes() -> None:
    made = split(8, seed=0, test=0.25)
    assert list(made.validation) == [2, 6]
    assert list(made.test) == [1, 7]
    assert made.sha256 == KNOWN_TEST


def test_three_groups_give_each_part_one() -> None:
    column = list("aaaaaaabbc")
    for seed in range(6):
        made = three(column, 10, SplitSpec(validation=0.25, test=0.2, seed=seed, by="d"))
        assert len({*made.validation_groups, *made.test_groups}) == 2
        assert len(made.train)
    with pytest.raises(DataError, match=r"split\.by: d has 2 groups, at least 3 are needed"):
        three(list("aaab"), 4, SplitSpec(validation=0.25, test=0.2, by="d"))


def test_drawn_test_groups_come_closest_to_their_fraction() -> None:
    column = [f"d{i // 10}" for i in range(100)]
    for seed in range(5):
        made = three(column, 100, SplitSpec(validation=0.3, test=0.2, seed=seed, by="d"))
        assert (len(made.validation), len(made.test), len(made.train)) == (30, 20, 50)


def test_an_empty_test_part_is_said() -> None:
    with pytest.raises(DataError, match=r"no test cells with .* split\.test 0\.01 of 20 cells; change split\.test"):
        split(20, test=0.01)

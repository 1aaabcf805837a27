"""Division of cells: exact parts, whole groups, a hash that says which."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import DataError
from workers.workloads.cells.spec import SplitSpec
from workers.workloads.cells.splits import CellSplit, split_cells

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

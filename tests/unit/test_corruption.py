"""Counts lost on purpose: how many, which, how much; the same for the same seed, and never a dense matrix."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse, stats

from autotune.errors import DataError
from workers.workloads.cells import corruption
from workers.workloads.cells.corruption import KINDS, Corruption, Kind, corrupt, hypergeometric

ONES = sparse.csr_matrix(np.ones((1000, 100), dtype=np.float32))


@st.composite
def matrices(draw: Any) -> Any:
    """Small counts with empty rows and columns among them."""
    n_cells, n_genes = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    counts = draw(st.lists(st.integers(0, 4), min_size=n_cells * n_genes, max_size=n_cells * n_genes))
    return sparse.csr_matrix(np.array(counts, dtype=np.float32).reshape(n_cells, n_genes))


def chosen(kind: Kind, rate: float, counts: Any) -> int:
    size = counts.nnz if kind == "uniform" else counts.shape[0] * counts.shape[1]
    return math.floor(Fraction(str(rate)) * size)


# --- known answers


def test_uniform_drops_a_tenth_of_the_chosen() -> None:
    made = corrupt(ONES, "uniform", 0.1, 0)
    lost = int((made.counts.toarray() == 0).sum())
    assert made.n_chosen == 10_000
    assert lost == len(made.rows)
    assert lost == pytest.approx(1000, abs=5 * 30)  # Binomial(10 000, 0.1), standard deviation 30
    assert set(made.counts.data) == {0.0, 1.0}


def test_binomial_keeps_a_fifth_of_the_molecules_of_the_chosen() -> None:
    made = corrupt(ONES * 10, "binomial", 0.1, 0)
    after = made.counts.toarray()[made.rows, made.columns]
    assert made.n_chosen == 10_000
    assert len(made.rows) == pytest.approx(10_000, abs=5)  # only Binomial(10, 0.2) = 10 is no change: 1e-7
    assert after.mean() == pytest.approx(2, abs=5 * math.sqrt(1.6 / 10_000))
    assert after.var() == pytest.approx(1.6, abs=0.1)


def test_binomial_on_zeros_changes_nothing() -> None:
    empty = sparse.csr_matrix((50, 20), dtype=np.float32)
    made = corrupt(empty, "binomial", 0.5, 0)
    assert (made.n_chosen, len(made.rows), made.counts.nnz) == (500, 0, 0)


def test_binomial_chooses_among_all_entries() -> None:
    """With one non-zero entry in ten, a tenth of what is chosen is not zero: hypergeometric, over many seeds."""
    counts = sparse.random(100, 100, density=0.1, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    counts.data[:] = 1000  # Binomial(1000, 0.2) = 1000 never happens: each chosen one changes
    changed = np.array([len(corrupt(counts, "binomial", 0.2, seed).rows) for seed in range(400)])
    law = stats.hypergeom(10_000, 1000, 2000)
    assert changed.mean() == pytest.approx(law.mean(), abs=5 * law.std() / 20)
    assert changed.std() == pytest.approx(law.std(), rel=0.2)


@pytest.mark.parametrize(("kind", "expected"), [("uniform", "c442b651976ea1d4"), ("binomial", "e9a52494ca1f8c8b")])
def test_known_corruption_never_changes(kind: Kind, expected: str) -> None:
    counts = sparse.csr_matrix(np.arange(600, dtype=np.float32).reshape(20, 30) % 7)
    assert corrupt(counts, kind, 0.5, 7).sha256[:16] == expected


@pytest.mark.parametrize(("rate", "expected"), [(0.29, 29), (0.1, 10), (0.07, 7), (0.999, 99), (0, 0), (1, 100)])
def test_share_is_exact(rate: float, expected: int) -> None:
    """``math.floor(0.29 * 100)`` is 28."""
    row = sparse.csr_matrix(np.ones((1, 100), dtype=np.float32))
    assert [corrupt(row, kind, rate, 0).n_chosen for kind in KINDS] == [expected, expected]


# --- properties


@given(counts=matrices(), kind=st.sampled_from(KINDS), rate=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_what_changed_is_said_and_nothing_else_changed(counts: Any, kind: Kind, rate: float, seed: int) -> None:
    before = counts.toarray()
    made = corrupt(counts, kind, rate, seed)
    after = made.counts.toarray()
    np.testing.assert_array_equal(counts.toarray(), before)
    np.testing.assert_array_equal(np.argwhere(after != before), np.stack([made.rows, made.columns], axis=1))
    np.testing.assert_array_equal(before[made.rows, made.columns], made.original)
    assert made.n_chosen == chosen(kind, rate, counts)
    assert len(made.rows) <= made.n_chosen
    assert (after >= 0).all()
    assert (after <= before).all()
    assert (after % 1 == 0).all()
    if kind == "uniform":
        assert ((after == before) | (after == 0)).all()
    assert made.counts.dtype == counts.dtype
    assert made.counts.shape == counts.shape


@given(counts=matrices(), kind=st.sampled_from(KINDS), rate=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_same_seed_same_corruption(counts: Any, kind: Kind, rate: float, seed: int) -> None:
    first, again = corrupt(counts, kind, rate, seed), corrupt(counts.copy(), kind, rate, seed)
    assert first.sha256 == again.sha256
    np.testing.assert_array_equal(first.counts.toarray(), again.counts.toarray())


@given(counts=matrices(), kind=st.sampled_from(KINDS), seed=st.integers(0, 99), block=st.integers(1, 30))
def test_any_block_size_gives_a_draw_without_replacement(counts: Any, kind: Kind, seed: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corruption, "_BLOCK", block)
        patch.setattr(corruption, "_drop", lambda generator, values: np.zeros_like(values))
        patch.setattr(corruption, "_thin", lambda generator, values: np.zeros_like(values))
        made = corrupt(counts, kind, 0.5, seed)
    pairs = set(zip(made.rows.tolist(), made.columns.tolist(), strict=True))
    assert len(pairs) == len(made.rows)
    if kind == "uniform":
        assert len(made.rows) == made.n_chosen


def test_blocks_choose_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruption, "_BLOCK", 3)
    monkeypatch.setattr(corruption, "_drop", lambda generator, values: np.zeros_like(values))
    row = sparse.csr_matrix(np.ones((1, 10), dtype=np.float32))
    often = sum(np.bincount(corrupt(row, "uniform", 0.3, seed).columns, minlength=10) for seed in range(4000))
    assert stats.chisquare(often).pvalue > 1e-4


def test_other_seed_kind_or_rate_is_another_corruption() -> None:
    asked: list[tuple[Kind, float, int]] = [("uniform", 0.1, 0), ("uniform", 0.1, 1), ("binomial", 0.1, 0)]
    made = [corrupt(ONES, *one).sha256 for one in (*asked, ("uniform", 0.2, 0))]
    assert len(set(made)) == 4


def test_nothing_chosen_still_has_a_hash() -> None:
    first, second = corrupt(ONES, "uniform", 0, 0), corrupt(ONES, "uniform", 0, 1)
    assert len(first.rows) == len(second.rows) == 0
    assert first.sha256 != second.sha256


# --- storage


def test_order_of_storage_does_not_matter() -> None:
    """Stored zeros, duplicates and unsorted entries are the same counts."""
    untidy = sparse.csr_matrix(
        (np.array([1, 2, 0, 3, 1], np.float32), np.array([2, 0, 1, 1, 1]), np.array([0, 3, 5])), shape=(2, 3)
    )
    tidy = sparse.csr_matrix(np.array([[2, 0, 1], [0, 4, 0]], dtype=np.float32))
    for kind in KINDS:
        first, second = corrupt(untidy, kind, 1, 2), corrupt(tidy, kind, 1, 2)
        assert (first.n_chosen, first.sha256) == (second.n_chosen, second.sha256)
    assert untidy.nnz == 5


def test_original_is_shared_and_read_only_will_do() -> None:
    counts = ONES.copy()
    for array in (counts.data, counts.indices, counts.indptr):
        array.flags.writeable = False
    made = corrupt(counts, "uniform", 0.1, 0)
    assert np.shares_memory(made.counts.indices, counts.indices)
    assert not np.shares_memory(made.counts.data, counts.data)


def test_counts_mapped_from_disk_will_do(tmp_path: Path) -> None:
    for name in ("data", "indices", "indptr"):
        np.save(tmp_path / f"{name}.npy", getattr(ONES, name))
    parts = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("data", "indices", "indptr")]
    mapped = sparse.csr_matrix(tuple(parts), shape=ONES.shape, copy=False)
    made, expected = corrupt(mapped, "uniform", 0.1, 0), corrupt(ONES, "uniform", 0.1, 0)
    assert made.sha256 == expected.sha256
    np.testing.assert_array_equal(made.counts.data, expected.counts.data)


def test_never_dense() -> None:
    """A matrix that would take 40 TB when dense."""
    n_cells, n_genes = 10_000_000, 1_000_000
    rows = np.sort(np.random.default_rng(0).integers(0, n_cells, 1000))
    columns = np.arange(1000) * 1000
    counts = sparse.csr_matrix((np.full(1000, 1000, np.float32), (rows, columns)), shape=(n_cells, n_genes))
    made = corrupt(counts, "binomial", 0.5, 0)
    assert made.n_chosen == n_cells * n_genes // 2
    assert len(made.rows) == pytest.approx(500, abs=5 * math.sqrt(250))


# --- draws of any size


@pytest.mark.parametrize(("good", "bad", "number"), [(30, 70, 20), (3, 500, 250), (40, 10, 45), (5, 5, 9)])
def test_large_populations_follow_the_same_law(
    good: int, bad: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With numpy's limit at zero every draw goes the other way, down to single things."""
    monkeypatch.setattr(corruption, "_NUMPY_LIMIT", 0)
    generator = np.random.RandomState(1)
    drawn = [hypergeometric(generator, good, bad, number) for _ in range(5000)]
    expected = 5000 * stats.hypergeom(good + bad, good, number).pmf(np.arange(number + 1))
    seen = np.bincount(drawn, minlength=number + 1)
    assert len(seen) == number + 1
    assert (seen[expected == 0] == 0).all()
    usual = expected >= 5
    rest = seen[~usual].sum(), expected[~usual].sum()
    assert abs(rest[0] - rest[1]) <= 5 * math.sqrt(rest[1]) + 1
    assert stats.chisquare(seen[usual], expected[usual] * seen[usual].sum() / expected[usual].sum()).pvalue > 1e-4


def test_all_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruption, "_NUMPY_LIMIT", 0)
    assert hypergeometric(np.random.RandomState(0), 7, 5, 12) == 7


def test_population_beyond_numpys_limit() -> None:
    generator = np.random.RandomState(0)
    drawn = hypergeometric(generator, 2_000_000_000, 6_000_000_000, 400_000_000)
    assert drawn == pytest.approx(100_000_000, abs=5 * math.sqrt(400_000_000 * 0.25 * 0.75))


# --- errors


@pytest.mark.parametrize(
    ("kind", "rate"), [("normal", 0.1), ("uniform", -0.1), ("uniform", 1.1), ("uniform", math.nan)]
)
def test_wrong_request_is_said(kind: Any, rate: float) -> None:
    with pytest.raises(DataError, match="use uniform or binomial and a rate in 0"):
        corrupt(ONES, kind, rate, 0)


def test_kinds_are_all_kinds() -> None:
    assert get_args(Kind) == KINDS
    assert isinstance(corrupt(ONES, "uniform", 0.1, 0), Corruption)

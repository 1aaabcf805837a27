"""Large counts on disk: written once, mapped, whole or not there, bounded."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from workers.workloads.baseline.features import log_normalised
from workers.workloads.cells import load, matrices
from workers.workloads.cells.corruption import corrupt
from workers.workloads.cells.counts import Choice, MemoryTarget, as_matrix, canonical, cell_totals
from workers.workloads.cells.load import load_cells, matrix_hash
from workers.workloads.cells.names import Names
from workers.workloads.cells.prepared import prepare_cells
from workers.workloads.cells.sources import row_blocks
from workers.workloads.cells.spec import data_spec

N_CELLS, N_GENES = 400, 30


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large, and a home of its own."""
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(matrices, "SMALL_BYTES", 100)
    return write(tmp_path / "a.h5ad")


def write(path: Path, seed: int = 0) -> Path:
    counts = np.random.RandomState(seed).poisson(0.5, size=(N_CELLS, N_GENES)).astype(np.float32)
    names = pandas.DataFrame({"donor": [f"d{i % 7}" for i in range(N_CELLS)]}, index=[f"c{i}" for i in range(N_CELLS)])
    anndata.AnnData(X=sparse.csr_matrix(counts), obs=names).write_h5ad(path)
    return path


def read(path: Path, **data: Any) -> Any:
    return load_cells(data_spec({"path": str(path), **data}))


def folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "home" / "matrices").iterdir())


def base(array: Any) -> Any:
    """Return the array that holds an array's memory."""
    while isinstance(getattr(array, "base", None), np.ndarray):
        array = array.base
    return array


def test_counts_on_disk_are_those_in_memory(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = read(path, genes={"top_variance": 12})
    assert isinstance(base(mapped.counts.data), np.memmap)
    assert isinstance(base(mapped.counts.indices), np.memmap)
    assert mapped.counts.indices.dtype == np.int32
    assert mapped.counts.data.dtype == np.uint8
    monkeypatch.setattr(matrices, "SMALL_BYTES", 10**9)
    in_memory = read(path, genes={"top_variance": 12})
    assert not isinstance(base(in_memory.counts.data), np.memmap)
    assert in_memory.counts.data.dtype == np.float32
    assert (mapped.counts != in_memory.counts).nnz == 0
    np.testing.assert_array_equal(cell_totals(mapped.counts), cell_totals(in_memory.counts))
    for kind in ("uniform", "binomial"):
        small, plain = (corrupt(cells.counts, kind, 0.2, 3) for cells in (mapped, in_memory))
        assert small.sha256 == plain.sha256
        assert (small.counts != plain.counts).nnz == 0
    assert matrix_hash(mapped) == matrix_hash(in_memory)
    assert (mapped.names, mapped.genes) == (in_memory.names, in_memory.genes)
    assert mapped.n_genes_total == in_memory.n_genes_total == N_GENES
    np.testing.assert_array_equal(mapped.people["donor"], in_memory.people["donor"])
    assert len(folders(tmp_path)) == 1


def test_they_are_written_once(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(path)
    monkeypatch.setattr(load, "choose", lambda *_: pytest.fail("the file was looked through again"))
    again = read(path)
    assert matrix_hash(first) == matrix_hash(again)
    assert base(again.counts.data).filename == base(first.counts.data).filename
    monkeypatch.undo()


def test_genes_layer_and_test_part_have_folders_of_their_own(path: Path, tmp_path: Path) -> None:
    data = {"path": str(path), "genes": {"top_variance": 5}}
    for split, number in (({}, 1), ({"seed": 1}, 1), ({"test": 0.2}, 2), ({"test": 0.2, "seed": 1}, 3), ({}, 3)):
        prepare_cells(data, split)
        assert len(folders(tmp_path)) == number, split
    read(path)
    assert len(folders(tmp_path)) == 4


@pytest.mark.parametrize("name", ["data.npy", "indices.npy", "indptr.npy", "cells.npy", "cell_ends.npy", "about.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99, None])
def test_half_a_folder_is_written_again(
    path: Path, tmp_path: Path, name: str, share: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    whole = matrix_hash(read(path))
    [folder] = folders(tmp_path)
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if share is not None:
        (folder / name).write_bytes(content[: int(len(content) * share)])
    with caplog.at_level(logging.WARNING):
        assert matrix_hash(read(path)) == whole
    assert "is damaged" in caplog.text
    assert [part.name for part in folders(tmp_path)] == [folder.name]
    assert (folder / name).read_bytes() == content


def test_a_writer_that_is_killed_leaves_nothing_that_is_used(path: Path, tmp_path: Path) -> None:
    program = """
import os, sys
from workers.workloads.cells import matrices
from workers.workloads.cells.load import load_cells
from workers.workloads.cells.sources import row_blocks
from workers.workloads.cells.spec import data_spec
matrices.SMALL_BYTES = 100
matrices._write_rest = lambda *_: os._exit(9)
load_cells(data_spec({"path": sys.argv[1]}))
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], timeout=60, check=False)
    assert done.returncode == 9
    [left] = folders(tmp_path)
    assert ".part-" in left.name
    read(path)
    assert len(folders(tmp_path)) == 2
    os.utime(left, (1, 1))
    read(write(tmp_path / "b.h5ad", seed=1))
    assert left not in folders(tmp_path)
    assert len(folders(tmp_path)) == 2


def test_processes_that_write_at_a_time_end_with_one_folder(path: Path, tmp_path: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(matrix_hash(read(path)))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 6
    assert len(set(found)) == 1
    assert len(folders(tmp_path)) == 1


def test_what_was_not_used_for_longest_goes_when_there_is_no_room(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, size = read(path), sum(file.stat().st_size for file in folders(tmp_path)[0].iterdir())
    [old] = folders(tmp_path)
    read(write(tmp_path / "b.h5ad", seed=1))
    os.utime(old, (1, 1))
    monkeypatch.setenv("AUTOTUNE_CACHE_BYTES", str(int(2.5 * size)))
    read(write(tmp_path / "c.h5ad", seed=2))
    assert old not in folders(tmp_path)
    assert len(folders(tmp_path)) == 2
    assert first.counts.sum() > 0, "what was mapped stays mapped"


def test_without_room_counts_stay_in_memory(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AUTOTUNE_CACHE_BYTES", "1000")
    with caplog.at_level(logging.WARNING):
        cells = read(path)
    assert "in the memory of each campaign" in caplog.text
    assert not isinstance(base(cells.counts.data), np.memmap)
    assert folders(tmp_path) == []
    monkeypatch.setenv("AUTOTUNE_HOME", str(path / "home"))  # below a file: cannot be made
    assert read(path).counts.nnz == cells.counts.nnz


def test_mapped_counts_cannot_be_changed_and_nothing_tries(path: Path) -> None:
    counts = read(path).counts
    with pytest.raises(ValueError, match="read-only"):
        counts.data[0] = 7
    counts.sum_duplicates()
    counts.sort_indices()
    counts.eliminate_zeros  # noqa: B018 - would write; nothing here calls it on what is kept
    assert counts.has_canonical_format
    table = anndata.AnnData(X=counts)
    assert np.shares_memory(table.X.data, counts.data)
    assert np.shares_memory(table.X.indices, counts.indices)
    assert counts[np.array([3, 1])].toarray().shape == (2, N_GENES)


@given(st.lists(st.text(max_size=8), max_size=60))
def test_packed_names_are_names(names: list[str]) -> None:
    packed = Names.of(names)
    assert list(packed) == names
    assert packed == tuple(names)
    assert [packed[i] for i in range(-len(names), len(names))] == names + names
    assert packed[1:3] == names[1:3]
    with pytest.raises(IndexError):
        packed[len(names)]


@pytest.mark.parametrize(
    ("largest", "kind"),
    [(None, "float32"), (255, "uint8"), (256, "uint16"), (65535, "uint16"), (65536, "float32")],
)
def test_counts_take_as_few_bytes_as_they_need(largest: float | None, kind: str) -> None:
    assert Choice(genes=None, n_entries=1, largest=largest).value_type == kind


def test_a_count_that_is_large_after_all_stays_what_it_is(path: Path) -> None:
    cells = anndata.read_h5ad(path)
    for largest, kind in ((70_000, "float32"), (300, "uint16")):
        cells.X.data[7] = largest
        cells.write_h5ad(path)
        counts = read(path).counts
        assert counts.dtype == kind
        assert counts.toarray().max() == largest


def test_many_entries_are_indexed_as_scipy_wants() -> None:
    assert Choice(genes=None, n_entries=2**31 - 1).index_type == np.int32
    assert Choice(genes=None, n_entries=2**31).index_type == np.int64


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=12), st.integers(1, 5))
def test_blocks_add_up_to_the_whole(rows: list[list[int]], step: int) -> None:
    whole = sparse.csr_matrix(np.array(rows, dtype=np.float32))
    target = MemoryTarget(Choice(genes=None, n_entries=whole.nnz), len(rows))
    for start in range(0, len(rows), step):
        target.add(canonical(whole[start : start + step]))
    made = as_matrix(target.data, target.indices, target.indptr, 4)
    np.testing.assert_array_equal(made.toarray(), whole.toarray())


def test_totals_of_cells_are_exact_in_blocks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_blocks, "__defaults__", (7,))
    counts = read(path).counts
    np.testing.assert_array_equal(cell_totals(counts), counts.toarray().sum(axis=1, dtype=np.float64))
    expected = np.log1p(counts.toarray() * (1e4 / np.maximum(cell_totals(counts), 1))[:, None])
    expression = log_normalised(counts)
    np.testing.assert_allclose(expression.toarray(), expected, rtol=1e-6)
    assert np.shares_memory(expression.indices, counts.indices)


def test_about_says_what_is_kept(path: Path, tmp_path: Path) -> None:
    read(path, genes={"top_variance": 3})
    about = json.loads((folders(tmp_path)[0] / "about.json").read_text())
    assert (len(about["genes"]), about["n_genes_total"]) == (3, N_GENES)

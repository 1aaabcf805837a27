"""Simulated cells: reproducible, really counts, with types that can be told apart, and marked as simulated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autotune.errors import DataError
from workers.workloads.cells.simulate import simulate_cells
from workers.workloads.registry import get_workload

ROOT = Path(__file__).parents[2]


def test_same_seed_same_counts() -> None:
    first, again, other = (simulate_cells(60, 40, 3, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.X.toarray(), again.X.toarray())
    assert (first.X != other.X).nnz > 0


def test_counts_are_overdispersed_whole_numbers() -> None:
    cells = simulate_cells(2000, 50, 1, dropout=0.0, n_donors=1)
    counts = cells.X.toarray()
    assert cells.X.dtype == np.float32
    assert (counts >= 0).all()
    assert (counts % 1 == 0).all()
    mean, variance = counts.mean(axis=0), counts.var(axis=0)
    busy = mean > 2
    assert (variance[busy] > mean[busy]).all()


def test_dropout_takes_more_of_lowly_expressed_genes() -> None:
    full, sparse = (simulate_cells(800, 100, 2, dropout=strength).X.toarray() for strength in (0.0, 0.8))
    lost = (sparse > 0).mean(axis=0) - (full > 0).mean(axis=0)
    order = np.argsort(full.mean(axis=0))
    assert lost[order[:30]].mean() < lost[order[-30:]].mean() - 0.05


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="n_genes >= 2 n_types"):
        simulate_cells(100, 5, 3)


def test_the_command_writes_a_file_that_a_campaign_can_use(tmp_path: Path) -> None:
    out = tmp_path / "cells.h5ad"
    simulate = ["-m", "autotune.cli.main", "data", "simulate"]
    command = [sys.executable, *simulate, str(out), "--cells", "80", "--genes", "40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    data = {"path": str(out), "labels": "cell_type", "batch": "donor_id"}
    found = get_workload("baseline").inspect(data, {"by": "donor_id"})
    assert found["data"]["simulated"] is True
    assert found["data"]["n_cells"] == 80
    assert found["data"]["batch"]["n_values"] == 4

"""Small simulated cells and small trained models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workers.reporting import Trial
from workers.workloads.cells.simulate import simulate_cells
from workers.workloads.registry import get_workload

GENES, TOP = 60, 40
BASE: dict[str, Any] = {"n_hidden": 32, "n_latent": 5, "max_epochs": 6, "lr": 0.01, "n_epochs_kl_warmup": None}


@pytest.fixture(scope="session")
def cells_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 300 simulated cells."""
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    simulate_cells(300, GENES, 3, seed=3).write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def prepared(cells_path: Path) -> Any:
    """Its cells, divided by donor, with donors as batches."""
    data = {"path": str(cells_path), "genes": {"top_variance": TOP}, "batch": "donor_id"}
    return get_workload("scvi").prepare(data, {"validation": 0.3, "seed": 1})


def _trained(prepared: Any, **params: Any) -> Any:
    from workers.workloads.fields import defaults
    from workers.workloads.scvi.quiet import quiet
    from workers.workloads.scvi.space import FIELDS
    from workers.workloads.scvi.training import seed_all, train

    with quiet():
        seed_all(0)
        return train(Trial(params={}), prepared, {**defaults(FIELDS), **BASE, **params})


@pytest.fixture(scope="session")
def observed_library(prepared: Any) -> Any:
    """A model that takes the library size as given."""
    return _trained(prepared)


@pytest.fixture(scope="session")
def latent_library(prepared: Any) -> Any:
    """A model with a latent library size."""
    return _trained(prepared, use_observed_lib_size=False)

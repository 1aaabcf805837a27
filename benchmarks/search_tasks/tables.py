"""Real models, every configuration of a grid scored once: scikit-learn on its bundled data sets, scVI on cells.

The tables are made by ``python -m search_tasks.sklearn_tables`` (in ``benchmarks/``; minutes) and, that of scVI, by
``python -m search_tasks.scvi_table DATA`` (half an hour on two cores), and committed, so that a comparison costs
nothing and all searches see the same numbers. Parameters are positions in the lists of values below.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from search_tasks.base import Task

FOLDER = Path(__file__).parent / "tables"
GRIDS: dict[str, dict[str, list[Any]]] = {
    "svc-digits": {
        "C": [10**e for e in (-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, 3)],
        "gamma": [10**e for e in (-5, -4.5, -4, -3.5, -3, -2.5, -2, -1.5, -1)],
        "kernel": ["rbf", "poly", "sigmoid"],
    },
    "trees-cancer": {
        "max_depth": [1, 2, 3, 4, 6, 8, 12, 20],
        "min_samples_leaf": [1, 2, 3, 5, 8, 13, 21],
        "max_features": [0.05, 0.1, 0.2, 0.4, 0.7, 1.0],
        "criterion": ["gini", "entropy"],
    },
    "boosting-diabetes": {
        "learning_rate": [0.01, 0.02, 0.04, 0.07, 0.12, 0.2, 0.35, 0.6],
        "n_estimators": [10, 20, 40, 80, 160],
        "max_depth": [1, 2, 3, 4, 6],
        "subsample": [0.4, 0.7, 1.0],
    },
    "mlp-wine": {
        "alpha": [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0],
        "learning_rate_init": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
        "hidden": [2, 4, 8, 16, 32, 64],
        "activation": ["relu", "tanh"],
    },
}
SCVI_GRID: dict[str, list[Any]] = {
    "n_layers": [1, 2, 3],
    "n_hidden": [64, 128, 256],
    "lr": [0.0005, 0.001, 0.002, 0.005, 0.01],
    "dropout_rate": [0.1, 0.3, 0.5],
    "reconstruction_loss": ["zinb", "nb"],
}
GRIDS_OF_TASKS = {**GRIDS, "scvi-cortex": SCVI_GRID}


def space_of(grid: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Return the space of positions in a grid; text values are a choice."""
    return {
        name: {"choice": values} if isinstance(values[0], str) else {"int": [0, len(values) - 1]}
        for name, values in grid.items()
    }


def key_of(grid: Mapping[str, list[Any]], params: Mapping[str, Any]) -> str:
    """Return the key of a table for a configuration: positions, and text values as they are."""
    return " ".join(str(params[k] if isinstance(values[0], str) else int(params[k])) for k, values in grid.items())


@cache
def read(name: str) -> dict[str, Any]:
    """Return a table as it was written; ``losses`` are by `key_of`."""
    with gzip.open(FOLDER / f"{name}.json.gz", "rt") as file:
        content: dict[str, Any] = json.load(file)
    return content


def look_up(name: str, params: Mapping[str, Any]) -> float:
    """Return the loss of a configuration of a table."""
    return float(read(name)["losses"][key_of(GRIDS_OF_TASKS[name], params)])


def table_tasks() -> list[Task]:
    """Return the tasks whose tables are there."""
    return [
        Task(name=name, family="table", space=space_of(grid), loss=partial(look_up, name))
        for name, grid in GRIDS_OF_TASKS.items()
        if (FOLDER / f"{name}.json.gz").exists()
    ]

"""What can be tuned and set of the baseline."""

from __future__ import annotations

from typing import Any

from workers.workloads.base import MetricSpec
from workers.workloads.fields import Field

PARAMS: dict[str, Field] = {
    "C": Field(kind="float", default=1.0, above=0, searchable=True),
    "n_genes": Field(kind="int", default=200, low=1, searchable=True),
    "class_weight": Field(kind="choice", default="none", choices=("none", "balanced"), searchable=True),
}

SETTINGS: dict[str, Field] = {
    "max_iter": Field(kind="int", default=1000, low=1),
    "bootstrap_draws": Field(kind="int", default=200, low=2),
}

FIELDS: dict[str, Field] = {**PARAMS, **SETTINGS}

METRICS: dict[str, MetricSpec] = {
    "macro_f1": MetricSpec(
        mode="max", split="validation", description="mean over all cell types of F1 on held-out cells, 0 to 1"
    ),
    "accuracy": MetricSpec(
        mode="max", split="validation", description="share of held-out cells with the right type, 0 to 1"
    ),
}


def space() -> dict[str, dict[str, list[Any]]]:
    """Return the default space in plain form.

    ``n_genes`` above the number of genes in the data means all of them.
    """
    return {
        "C": {"log_float": [1e-4, 1e2]},
        "n_genes": {"choice": [50, 100, 200, 500]},
        "class_weight": {"choice": ["none", "balanced"]},
    }

"""What can be tuned and set of scVI. Defaults of parameters are scvi-tools' own (1.4)."""

from __future__ import annotations

from typing import Any

from workers.workloads.base import MetricSpec
from workers.workloads.fields import Field

SCVI, LINEAR, SEMI_SUPERVISED = "SCVI", "LinearSCVI", "SCANVI"

PARAMS: dict[str, Field] = {
    "n_latent": Field(kind="int", default=10, low=1, searchable=True),
    "n_hidden": Field(kind="int", default=128, low=1, searchable=True),
    "n_layers": Field(kind="int", default=1, low=1, searchable=True),
    "dropout_rate": Field(kind="float", default=0.1, low=0, below=1, searchable=True),
    "reconstruction_loss": Field(kind="choice", default="zinb", choices=("zinb", "nb", "poisson"), searchable=True),
    "lr": Field(kind="float", default=1e-3, above=0, searchable=True),
}

SETTINGS: dict[str, Field] = {
    "model": Field(kind="choice", default=SCVI, choices=(SCVI, LINEAR, SEMI_SUPERVISED), searchable=True),
    "max_epochs": Field(kind="int", default=400, low=1),
    "early_stopping": Field(kind="bool", default=True),
    "patience": Field(kind="int", default=50, low=1),
    "batch_size": Field(kind="int", default=128, low=2, searchable=True),
    "n_epochs_kl_warmup": Field(kind="int", default=400, low=1, optional=True, searchable=True),
    "weight_decay": Field(kind="float", default=1e-6, low=0, searchable=True),
    "lr_patience": Field(kind="int", default=25, low=0, optional=True, searchable=True),
    "lr_factor": Field(kind="float", default=0.2, above=0, below=1, optional=True, searchable=True),
    "dispersion": Field(kind="choice", default="gene", choices=("gene", "gene-batch", "gene-cell"), searchable=True),
    "use_observed_lib_size": Field(kind="bool", default=True),
    "marginal_ll_draws": Field(kind="int", default=100, low=1),
    "unlabeled_category": Field(kind="text", default="Unknown"),
    "classification_ratio": Field(kind="float", default=50, low=0, searchable=True),
}

EARLY_METRIC = "elbo_validation_batch"
"""What schedules compare trainings by; see `workers.workloads.scvi.early`."""

FIELDS: dict[str, Field] = {**PARAMS, **SETTINGS}

METRICS: dict[str, MetricSpec] = {
    "marginal_ll": MetricSpec(
        mode="min",
        split="validation",
        description="negative marginal log-likelihood per held-out cell, importance sampling, nats",
    ),
    "elbo_validation": MetricSpec(
        mode="min", split="validation", description="negative ELBO per held-out cell at the best epoch, nats"
    ),
    "elbo_train": MetricSpec(
        mode="min", split="train", description="negative ELBO per training cell at the best epoch, nats"
    ),
    "reconstruction_validation": MetricSpec(
        mode="min",
        split="validation",
        description="reconstruction term of the negative ELBO per held-out cell at the best epoch, nats",
    ),
    "reconstruction_train": MetricSpec(
        mode="min",
        split="train",
        description="reconstruction term of the negative ELBO per training cell at the best epoch, nats",
    ),
    "accuracy_validation": MetricSpec(
        mode="max", split="validation", description="share of held-out cells whose label is right (SCANVI only)"
    ),
}


def space() -> dict[str, dict[str, list[Any]]]:
    """Return the default space in plain form.

    Source: scVI, ``autotune.py`` of 2019-05-08 (commit 12b3cefd): 8250 configurations.
    """
    return {
        "n_latent": {"int": [5, 15]},
        "n_hidden": {"choice": [64, 128, 256]},
        "n_layers": {"int": [1, 5]},
        "dropout_rate": {"choice": [0.1, 0.3, 0.5, 0.7, 0.9]},
        "reconstruction_loss": {"choice": ["zinb", "nb"]},
        "lr": {"choice": [0.01, 0.005, 0.001, 0.0005, 0.0001]},
    }

"""A trained model on disk, as scvi-tools itself writes it, with what it was trained from beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from workers.reporting import Result, Trial
from workers.workloads.cells.prepared import PreparedCells
from workers.workloads.scvi.quiet import quiet
from workers.workloads.scvi.training import Trained, train_and_score

NAME, FORMAT = "autotune.json", 1
_PACKAGES = ("autotune", "scvi-tools", "torch", "lightning", "anndata", "numpy")


def save_trial(trial: Trial, prepared: PreparedCells, config: Mapping[str, Any], folder: Path) -> Result:
    """Train as `training.run_trial` does and write the model of the best epoch.

    ``model.pt`` is scvi-tools' own: ``scvi.model.SCVI.load(folder, adata=...)`` opens it (the class is that of
    ``config["model"]``) with a table that has the campaign's genes and columns. ``autotune.json`` says what it is.

    Args:
        trial: As for a run; the same trial gives the same score.
        prepared: Cells and split.
        config: Every parameter and setting, checked.
        folder: Where to write; made if need be, files of these two names are replaced.

    Raises:
        TrialStopped: Passed on from the trial.
        FloatingPointError: If training or scoring gave NaN or infinity.
    """
    trained, result = train_and_score(trial, prepared, config)
    with quiet():
        trained.model.save(str(folder), overwrite=True, save_anndata=False)
    text = json.dumps(_description(trial, prepared, config, trained, result), indent=1, default=str)
    (folder / NAME).write_text(text + "\n")
    return result


def _description(
    trial: Trial, prepared: PreparedCells, config: Mapping[str, Any], trained: Trained, result: Result
) -> dict[str, Any]:
    """Return what ``autotune.json`` holds, plain JSON."""
    cells, spec, split = prepared.cells, prepared.spec, prepared.split
    score = result.metrics.get(trial.metric)
    return {
        "format": FORMAT,
        "class": f"scvi.model.{type(trained.model).__name__}",
        "campaign": trial.campaign,
        "number": trial.number,
        "seed": trial.seed,
        "metric": trial.metric,
        "mode": trial.mode,
        "score": None if score is None else score.value,
        "params": dict(trial.params),
        "settings": dict(config),
        "metrics": {name: asdict(metric) for name, metric in result.metrics.items()},
        "facts": dict(result.facts),
        "data": {
            "name": spec.name,
            "sha256": cells.sha256,
            "layer": spec.layer,
            "batch": spec.batch,
            "labels": spec.labels,
            "n_cells": len(cells.names),
            "n_genes": len(cells.genes),
            "genes_sha256": hashlib.sha256("\n".join(cells.genes).encode()).hexdigest(),
        },
        "split": {"sha256": split.sha256, "seed": split.seed, "by": split.by},
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "genes": list(cells.genes),
    }


def _version(package: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

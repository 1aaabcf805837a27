"""scVI: a variational auto-encoder of counts. Light to import; torch and scvi-tools come with the first trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from autotune.errors import DataError
from workers.reporting import Result, Trial
from workers.workloads.base import MetricSpec
from workers.workloads.cells.prepared import PreparedCells, facts, prepare_cells, prepared_of
from workers.workloads.fields import check_searchable, check_values, defaults
from workers.workloads.scvi.space import FIELDS, METRICS, SETTINGS, space

_FEWEST_CELLS = 3  # batch normalisation needs more than one cell per batch; as many as in scVI of 2019


class ScviWorkload:
    """Tunes scVI (Lopez et al. 2018) as scVI's autotune of 2019 did: by held-out marginal likelihood."""

    name = "scvi"
    preload: tuple[str, ...] = (
        "torch",
        "anndata",
        "h5py",
        "scipy.sparse",
        "lightning.pytorch",
        "scvi",
        "workers.workloads.scvi.training",
    )
    default_metric = "marginal_ll"

    def default_space(self) -> dict[str, dict[str, list[Any]]]:
        """Return the space of scVI's autotune of May 2019 (8250 configurations)."""
        return space()

    def metrics(self) -> Mapping[str, MetricSpec]:
        """Return the metrics: ``marginal_ll``, ``elbo_validation``, ``elbo_train``."""
        return METRICS

    def settings(self) -> dict[str, Any]:
        """Return default settings."""
        return defaults(SETTINGS)

    def reports(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a schedule compares trials by: ``elbo_validation`` up to ``max_epochs``."""
        return {
            "maximum": settings["max_epochs"],
            "metric": {"name": "elbo_validation", "mode": "min"},
            "metrics": {"elbo_validation": "min", "elbo_train": "min"},
        }

    def check_fixed(self, fixed: Mapping[str, Any]) -> None:
        """Check fixed values; raises `CampaignError`."""
        check_values(self.name, FIELDS, fixed)

    def check_space(self, names: Iterable[str]) -> None:
        """Check the names of a user's space; raises `CampaignError`."""
        check_searchable(self.name, FIELDS, names)

    def inspect(self, data: Mapping[str, Any], split: Mapping[str, Any]) -> dict[str, Any]:
        """Check data and split without torch; raises `CampaignError`, `DataError`."""
        return facts(self.prepare(data, split), split)

    def prepare(self, data: Mapping[str, Any], split: Mapping[str, Any]) -> PreparedCells:
        """Load and split the cells; raises `CampaignError`, `DataError`."""
        prepared = prepare_cells(data, split)
        if len(prepared.split.train) < _FEWEST_CELLS:
            raise DataError(f"only {len(prepared.split.train)} training cells: scvi needs {_FEWEST_CELLS} or more")
        return prepared

    def run(self, trial: Trial) -> Result:
        """Train one configuration and score its best epoch; see `workers.workloads.scvi.training.run_trial`."""
        prepared = prepared_of(trial.data, fold=trial.fold)
        self.check_fixed(trial.params)
        from workers.workloads.scvi.training import run_trial

        return run_trial(trial, prepared, {**defaults(FIELDS), **trial.params})

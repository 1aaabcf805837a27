"""scVI: a variational auto-encoder of counts. Light to import; torch and scvi-tools come with the first trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.errors import DataError
from workers.reporting import Result, Trial
from workers.workloads.base import MetricSpec
from workers.workloads.cells.prepared import PreparedCells, facts, prepare_cells, prepared_of
from workers.workloads.fields import check_searchable, check_values, defaults
from workers.workloads.scvi.checks import check_combination
from workers.workloads.scvi.remarks import remarks
from workers.workloads.scvi.space import EARLY_METRIC, FIELDS, METRICS, PARAMS, SETTINGS, space

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
        "workers.workloads.scvi.scores",
    )
    default_metric = "marginal_ll"

    def default_space(self) -> dict[str, dict[str, list[Any]]]:
        """Return the space of scVI's autotune of May 2019 (8250 configurations)."""
        return space()

    def metrics(self) -> Mapping[str, MetricSpec]:
        """Return the metrics, ``marginal_ll`` first; ``accuracy_validation`` is there for SCANVI only."""
        return METRICS

    def settings(self) -> dict[str, Any]:
        """Return default settings."""
        return defaults(SETTINGS)

    def reports(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a schedule compares trials by: ``elbo_validation_batch`` up to ``max_epochs``."""
        return {
            "maximum": settings["max_epochs"],
            "metric": {"name": EARLY_METRIC, "mode": "min"},
            "metrics": {EARLY_METRIC: "min", "elbo_validation": "min", "elbo_train": "min"},
        }

    def default_params(self) -> dict[str, Any]:
        """Return the default configuration, scvi-tools' own."""
        return defaults(PARAMS)

    def check_fixed(self, fixed: Mapping[str, Any]) -> None:
        """Check fixed values; raises `CampaignError`."""
        check_values(self.name, FIELDS, fixed)

    def check_space(self, names: Iterable[str]) -> None:
        """Check the names of a user's space; raises `CampaignError`."""
        check_searchable(self.name, FIELDS, names)

    def check_together(
        self, values: Mapping[str, Sequence[Any]], data: Mapping[str, Any], metrics: Iterable[str]
    ) -> None:
        """Check what parameters, data and metrics ask of each other; raises `CampaignError`."""
        check_combination(values, data, metrics)

    def inspect(self, data: Mapping[str, Any], split: Mapping[str, Any]) -> dict[str, Any]:
        """Check data and split without torch; raises `CampaignError`, `DataError`."""
        prepared = self.prepare(data, split)
        found = facts(prepared, split)
        found["data"]["warnings"] = [*found["data"].get("warnings", ()), *remarks(prepared)]
        return found

    def prepare(self, data: Mapping[str, Any], split: Mapping[str, Any]) -> PreparedCells:
        """Load and split the cells, the test part left out unless unsealed; raises `CampaignError`, `DataError`."""
        prepared = prepare_cells(data, split, sealed=not split.get("unsealed", False))
        if len(prepared.split.train) < _FEWEST_CELLS:
            raise DataError(f"only {len(prepared.split.train)} training cells: scvi needs {_FEWEST_CELLS} or more")
        return prepared

    def run(self, trial: Trial) -> Result:
        """Train one configuration and score its best epoch; see `workers.workloads.scvi.training.run_trial`."""
        prepared, config = self._of(trial)
        from workers.workloads.scvi.training import run_trial

        return run_trial(trial, prepared, config)

    def save(self, trial: Trial, folder: Path) -> Result:
        """Train as `run` does and write the model; see `workers.workloads.scvi.saving.save_trial`."""
        prepared, config = self._of(trial)
        from workers.workloads.scvi.saving import save_trial

        return save_trial(trial, prepared, config, folder)

    def evaluate(self, trial: Trial, settings: Mapping[str, Any]) -> Result:
        """Train as `run` does, score on the test part and impute; see `workers.workloads.scvi.evaluation`."""
        prepared, config = self._of(trial)
        from workers.workloads.scvi.evaluation import evaluate_trial

        return evaluate_trial(trial, prepared, config, settings)

    def evaluation_settings(self) -> dict[str, Any]:
        """Return the settings of `evaluate` and their defaults."""
        from workers.workloads.scvi.evaluation import evaluation_settings

        return evaluation_settings()

    def evaluation_metrics(self) -> Mapping[str, MetricSpec]:
        """Return every metric that `evaluate` returns."""
        from workers.workloads.scvi.evaluation import evaluation_metrics

        return evaluation_metrics()

    def check_evaluation(self, settings: Mapping[str, Any]) -> None:
        """Check settings of `evaluate`; raises `CampaignError`."""
        from workers.workloads.scvi.evaluation import check_evaluation

        check_evaluation(settings)

    def _of(self, trial: Trial) -> tuple[PreparedCells, dict[str, Any]]:
        """Return a trial's cells, and its configuration with all defaults.

        Raises:
            CampaignError: On a wrong value, or values that do not go together.
            ObjectiveError: If the trial has no prepared cells.
        """
        prepared = prepared_of(trial.data, fold=trial.fold)
        self.check_fixed(trial.params)
        config = {**defaults(FIELDS), **trial.params}
        columns = {"labels": prepared.spec.labels, "batch": prepared.spec.batch}
        check_combination({name: (value,) for name, value in config.items()}, columns, [])
        return prepared, config

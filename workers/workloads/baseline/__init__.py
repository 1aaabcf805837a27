"""Cell types by logistic regression: a simple model to compare deep ones with. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from autotune.errors import CampaignError
from workers.reporting import Result, Trial
from workers.workloads.base import MetricSpec
from workers.workloads.baseline.space import FIELDS, METRICS, SETTINGS, space
from workers.workloads.cells.prepared import facts, prepare_cells, prepared_of
from workers.workloads.fields import check_searchable, check_values, defaults


class BaselineWorkload:
    """Tunes an L2-regularised logistic regression of cell types on the most variable genes."""

    name = "baseline"
    preload: tuple[str, ...] = ("anndata", "h5py", "sklearn.linear_model", "workers.workloads.baseline.training")
    default_metric = "macro_f1"

    def default_space(self) -> dict[str, dict[str, list[Any]]]:
        """Return the default space."""
        return space()

    def metrics(self) -> Mapping[str, MetricSpec]:
        """Return the metrics: ``macro_f1``, ``accuracy``."""
        return METRICS

    def settings(self) -> dict[str, Any]:
        """Return default settings."""
        return defaults(SETTINGS)

    def check_fixed(self, fixed: Mapping[str, Any]) -> None:
        """Check fixed values; raises `CampaignError`."""
        check_values(self.name, FIELDS, fixed)

    def check_space(self, names: Iterable[str]) -> None:
        """Check the names of a user's space; raises `CampaignError`."""
        check_searchable(self.name, FIELDS, names)

    def inspect(self, data: Mapping[str, Any], split: Mapping[str, Any]) -> dict[str, Any]:
        """Check data, split and labels; raises `CampaignError`, `DataError`."""
        prepared = self._labelled(data, split)
        from workers.workloads.baseline.features import class_facts

        found = facts(prepared, split)
        known, warnings = class_facts(prepared)
        found["data"]["labels"].update(known)
        found["data"]["warnings"].extend(warnings)
        return found

    def prepare(self, data: Mapping[str, Any], split: Mapping[str, Any]) -> Any:
        """Load and split the cells, normalise, and order genes by their variance over training cells.

        Returns:
            `workers.workloads.baseline.features.LabelledCells`.

        Raises:
            CampaignError: On a wrong section, or if ``data.labels`` is missing.
            DataError: On wrong data, or if training cells have fewer than two labels.
        """
        from workers.workloads.baseline.features import labelled_cells

        return labelled_cells(self._labelled(data, split))

    def run(self, trial: Trial) -> Result:
        """Train and score one configuration; see `workers.workloads.baseline.training.run_trial`."""
        from workers.workloads.baseline.features import LabelledCells
        from workers.workloads.baseline.training import run_trial

        prepared_of(trial.data.prepared if isinstance(trial.data, LabelledCells) else None, fold=trial.fold)
        self.check_fixed(trial.params)
        return run_trial(trial, trial.data, {**defaults(FIELDS), **trial.params})

    def _labelled(self, data: Mapping[str, Any], split: Mapping[str, Any]) -> Any:
        """Return prepared cells that have labels."""
        if isinstance(data, Mapping) and not data.get("labels"):
            raise CampaignError(
                f"baseline predicts cell types: set data.labels to a column of obs{self._columns(data, split)}"
            )
        return prepare_cells(data, split, sealed=not split.get("unsealed", False))

    def _columns(self, data: Mapping[str, Any], split: Mapping[str, Any]) -> str:
        """Return the names of the file's columns as a hint."""
        columns = prepare_cells(data, split).cells.obs_columns
        return f" ({', '.join(columns)})" if columns else " (the file has none)"

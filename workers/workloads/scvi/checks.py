"""What does not go together: found at launch for all that a campaign can try, and again before each training. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autotune.errors import CampaignError
from workers.workloads.scvi.space import LINEAR, SEMI_SUPERVISED


def check_combination(values: Mapping[str, Sequence[Any]], data: Mapping[str, Any], metrics: Iterable[str]) -> None:
    """Check what parameters, data and metrics ask of each other.

    Args:
        values: Parameter or setting -> all values that it can take; those that are absent have their defaults.
        data: ``labels`` and ``batch``: columns of ``obs``, or None.
        metrics: Names of the campaign's metrics.

    Raises:
        CampaignError: If any choice of values cannot be trained.
    """
    models, dispersions = values.get("model", ()), values.get("dispersion", ())
    labels = data.get("labels")
    if SEMI_SUPERVISED in models and labels is None:
        raise CampaignError("scvi: model SCANVI needs labels: set data.labels to the column of obs with cell types")
    if SEMI_SUPERVISED in models and labels == data.get("batch"):
        raise CampaignError(f"scvi: model SCANVI cannot take {labels!r} both as data.labels and as data.batch")
    if LINEAR in models and "gene-cell" in dispersions:
        raise CampaignError("scvi: model LinearSCVI has no dispersion gene-cell (its decoder gives none): drop either")
    if "accuracy_validation" in metrics and set(models) != {SEMI_SUPERVISED}:
        raise CampaignError("scvi: accuracy_validation is a metric of model SCANVI alone: set fixed.model to SCANVI")

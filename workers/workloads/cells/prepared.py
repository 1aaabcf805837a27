"""Cells and split together, and the facts about them that a campaign keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.errors import DataError, ObjectiveError
from workers.workloads.cells.load import Cells, load_cells, matrix_hash
from workers.workloads.cells.spec import DataSpec, SplitSpec, data_spec, split_spec
from workers.workloads.cells.splits import CellSplit, split_cells

_MOST_GROUPS = 50  # names of held-out groups kept in the facts


@dataclass(frozen=True, kw_only=True)
class PreparedCells:
    """What `prepare` returns and trials read.

    Attributes:
        spec: The checked ``data`` section.
        cells: Counts and the needed columns of ``obs``.
        split: Which cells train and which are held out.
    """

    spec: DataSpec
    cells: Cells
    split: CellSplit


def prepare_cells(data: Mapping[str, Any], split: Mapping[str, Any]) -> PreparedCells:
    """Load and split cells.

    Raises:
        CampaignError: On a wrong ``data`` or ``split`` section.
        DataError: On a file that is not what the sections say.
    """
    spec, how = data_spec(data), split_spec(split)
    cells = load_cells(spec, columns=[how.by])
    return PreparedCells(spec=spec, cells=cells, split=_divide(cells, how))


def prepared_of(data: Any, *, fold: int) -> PreparedCells:
    """Return a trial's data as `PreparedCells`.

    Args:
        data: `Trial.data`.
        fold: `Trial.fold`; these workloads have one division of the cells, so only fold 0.

    Raises:
        ObjectiveError: If the trial has no prepared cells, or asks for another fold.
    """
    if not isinstance(data, PreparedCells):
        raise ObjectiveError("the trial has no prepared cells: pass data=workload.prepare(data, split)")
    if fold != 0:
        raise ObjectiveError(f"this workload has one split, fold {fold} does not exist: use replicates, not folds")
    return data


def facts(prepared: PreparedCells, split: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain JSON facts about data and split: ``{"data": {...}, "split": {...}}``.

    Args:
        prepared: Cells and their split.
        split: The campaign's ``split`` section.
    """
    how = split_spec(split)
    return {"data": _data_facts(prepared, how), "split": _split_facts(prepared, how)}


def _divide(cells: Cells, how: SplitSpec) -> CellSplit:
    """Return the split of the cells that have counts."""
    if not cells.filled.any():
        raise DataError("no cell has a count in the chosen genes: choose more genes")
    groups = None if how.by is None else cells.obs[how.by]
    return split_cells(how, names=cells.names, usable=cells.filled, groups=groups)


def _data_facts(prepared: PreparedCells, how: SplitSpec) -> dict[str, Any]:
    """Return facts about the cells."""
    spec, cells = prepared.spec, prepared.cells
    n_cells, n_genes = cells.counts.shape
    found: dict[str, Any] = {
        "name": spec.name,
        "path": str(spec.path.absolute()),
        "sha256": cells.sha256,
        "matrix_sha256": matrix_hash(cells),
        "n_cells": int(n_cells),
        "n_genes": int(n_genes),
        "n_genes_total": cells.n_genes_total,
        "n_empty_cells": int((~cells.filled).sum()),
        "layer": spec.layer,
        "genes": {
            "top_variance": spec.top_variance,
            "sha256": hashlib.sha256("\n".join(cells.genes).encode()).hexdigest(),
        },
        "simulated": cells.simulated,
        "warnings": _warnings(prepared, how),
    }
    for role, column in (("labels", spec.labels), ("batch", spec.batch)):
        if column is not None:
            values, numbers = np.unique(cells.obs[column], return_counts=True)
            found[role] = {"column": column, "n_values": len(values)}
            if role == "labels":
                found[role]["cells"] = {str(v): int(n) for v, n in zip(values, numbers, strict=True)}
    return found


def _split_facts(prepared: PreparedCells, how: SplitSpec) -> dict[str, Any]:
    """Return facts about the split; ``fractions`` are what came out, not what was asked."""
    split = prepared.split
    n_train, n_validation = len(split.train), len(split.validation)
    total = n_train + n_validation
    return {
        "by": split.by,
        "seed": split.seed,
        "asked": how.validation,
        "fractions": {"train": round(n_train / total, 6), "validation": round(n_validation / total, 6)},
        "n_train": n_train,
        "n_validation": n_validation,
        "n_validation_groups": len(split.validation_groups),
        "validation_groups": list(split.validation_groups[:_MOST_GROUPS]),
        "sha256": split.sha256,
    }


def _warnings(prepared: PreparedCells, how: SplitSpec) -> list[str]:
    """Return sentences about what a reader of the scores should know."""
    spec, cells, split = prepared.spec, prepared.cells, prepared.split
    said = []
    empty = int((~cells.filled).sum())
    if empty:
        said.append(f"{empty} cells have no count in the chosen genes and are left out of training and validation")
    divided = _divided(cells, split)
    if divided:
        said.append(_about_divided(cells, divided, how.by))
    if spec.batch is not None:
        batches = cells.obs[spec.batch]
        unseen = np.setdiff1d(batches[split.validation], batches[split.train])
        if len(unseen):
            said.append(f"{len(unseen)} values of batch {spec.batch} are only held out: their weights are not trained")
    return said


def _divided(cells: Cells, split: CellSplit) -> list[str]:
    """Return the columns of donors, samples and so on of which a group has cells in both parts."""
    found = []
    for name, groups in cells.people.items():
        shared = np.intersect1d(groups[split.train], groups[split.validation])
        if (shared >= 0).any():
            found.append(name)
    return found


def _about_divided(cells: Cells, divided: Sequence[str], by: str | None) -> str:
    """Return a sentence about columns whose groups have cells in both parts, and what to do about it."""
    text = f"groups of {', '.join(divided)} have cells in both parts" + (f", as split.by is {by}" if by else "")
    better = next((name for name in divided if cells.people[name].max() > 0), None)
    if better is None:
        return f"{text}: there is only one group"
    return f"{text}: split.by: {better} keeps its groups together"

"""Cells and split together, and the facts about them that a campaign keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from autotune.errors import DataError, ObjectiveError
from workers.workloads.cells.load import Cells, load_cells, matrix_hash
from workers.workloads.cells.spec import DataSpec, SplitSpec, data_spec, split_spec
from workers.workloads.cells.splits import TEST, CellSplit, divide, split_cells

_MOST_GROUPS = 50  # names of held-out groups kept in the facts


@dataclass(frozen=True, kw_only=True)
class PreparedCells:
    """What `prepare` returns and trials read.

    Attributes:
        spec: The checked ``data`` section.
        cells: Counts and the needed columns of ``obs``.
        split: Which cells train and which are held out; the test part only where it was unsealed.
    """

    spec: DataSpec
    cells: Cells
    split: CellSplit


def prepare_cells(data: Mapping[str, Any], split: Mapping[str, Any], *, sealed: bool = True) -> PreparedCells:
    """Load and split cells.

    Args:
        data: The campaign's ``data`` section.
        split: The campaign's ``split`` section.
        sealed: Whether the test part is kept from whoever gets this: its cells are then in no part, only their number
            is told. Genes are never chosen by what test cells hold.

    Raises:
        CampaignError: On a wrong ``data`` or ``split`` section.
        DataError: On a file that is not what the sections say.
    """
    spec, how = data_spec(data), split_spec(split)
    seen = partial(_not_tested, how) if how.test else None
    cells = load_cells(spec, columns=[how.by], conditions=how.by is not None, seen=seen)
    found = _divide(cells, how)
    return PreparedCells(spec=spec, cells=cells, split=found.sealed() if sealed else found)


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
    opened = _divide(prepared.cells, how)  # facts hold numbers and names of all parts, and no positions
    return {"data": _data_facts(prepared, opened, how), "split": _split_facts(opened, how)}


def _not_tested(how: SplitSpec, n_cells: int, obs: Mapping[str, npt.NDArray[np.str_]]) -> npt.NDArray[np.bool_]:
    """Return True for cells of the training and the validation part, shape ``(n_cells,)``."""
    groups = None if how.by is None else obs[how.by]
    return divide(how, n_cells, groups).parts != TEST


def _divide(cells: Cells, how: SplitSpec) -> CellSplit:
    """Return the split of the cells that have counts, unsealed."""
    if not cells.filled.any():
        raise DataError("no cell has a count in the chosen genes: choose more genes")
    groups = None if how.by is None else cells.obs[how.by]
    return split_cells(how, names=cells.names, usable=cells.filled, groups=groups)


def _data_facts(prepared: PreparedCells, split: CellSplit, how: SplitSpec) -> dict[str, Any]:
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
            "chosen_on": _chosen_on(spec, how),
            "sha256": hashlib.sha256("\n".join(cells.genes).encode()).hexdigest(),
        },
        "simulated": cells.simulated,
        "warnings": _warnings(prepared, split, how),
    }
    for role, column in (("labels", spec.labels), ("batch", spec.batch)):
        if column is not None:
            values, numbers = np.unique(cells.obs[column], return_counts=True)
            found[role] = {"column": column, "n_values": len(values)}
            if role == "labels":
                found[role]["cells"] = {str(v): int(n) for v, n in zip(values, numbers, strict=True)}
    return found


def _chosen_on(spec: DataSpec, how: SplitSpec) -> str | None:
    """Return whose counts the choice of genes looked at; None where all genes are kept."""
    if spec.top_variance is None:
        return None
    return "train and validation cells" if how.test else "all cells"


def _split_facts(split: CellSplit, how: SplitSpec) -> dict[str, Any]:
    """Return facts about the split; ``fractions`` are what came out, not what was asked."""
    sizes = {"train": len(split.train), "validation": len(split.validation), "test": split.n_test}
    total = sum(sizes.values())
    return {
        "by": split.by,
        "seed": split.seed,
        "protocol": how.protocol,
        "asked": how.validation,
        "asked_test": how.test,
        "fractions": {part: round(size / total, 6) for part, size in sizes.items()},
        **{f"n_{part}": size for part, size in sizes.items()},
        "n_validation_groups": len(split.validation_groups),
        "validation_groups": list(split.validation_groups[:_MOST_GROUPS]),
        "n_test_groups": len(split.test_groups),
        "test_groups": list(split.test_groups[:_MOST_GROUPS]),
        "sha256": split.sha256,
    }


def _warnings(prepared: PreparedCells, split: CellSplit, how: SplitSpec) -> list[str]:
    """Return sentences about what a reader of the scores should know."""
    spec, cells = prepared.spec, prepared.cells
    said = []
    empty = int((~cells.filled).sum())
    if empty:
        left = "training, validation and test" if how.test else "training and validation"
        said.append(f"{empty} cells have no count in the chosen genes and are left out of {left}")
    divided = _divided(cells, split)
    if divided:
        said.append(_about_divided(cells, divided, how))
    said.extend(_about_unseen(cells, split, known={split.by, spec.batch}))
    if spec.batch is not None:
        said.extend(_about_batches(spec.batch, cells.obs[spec.batch], split))
    return said


def _divided(cells: Cells, split: CellSplit) -> list[str]:
    """Return the columns of donors, samples and so on of which a group has cells in more than one part."""
    found = []
    for name, groups in cells.people.items():
        parts = [np.unique(groups[part]) for part in (split.train, split.validation, split.test)]
        members, times = np.unique(np.concatenate(parts), return_counts=True)
        if (times[members >= 0] > 1).any():
            found.append(name)
    return found


def _about_batches(column: str, batches: npt.NDArray[np.str_], split: CellSplit) -> list[str]:
    """Return sentences about a column of batches that has one level, or levels that no training cell has."""
    trained, held_out = np.unique(batches[split.train]), np.unique(batches[split.validation])
    tested = np.unique(batches[split.test])
    levels = np.unique(np.concatenate([trained, held_out, tested]))
    if len(levels) < 2:
        return [f"batch {column} has one level, {levels[0]}: the model learns nothing from it; remove data.batch"]
    unseen = np.setdiff1d(levels, trained)
    return [f"{len(unseen)} values of batch {column} are only held out: their weights are not trained"] * bool(
        len(unseen)
    )


def _about_unseen(cells: Cells, split: CellSplit, *, known: Collection[str | None]) -> list[str]:
    """Return sentences about what held-out groups have in ``obs`` and no training cell, except in known columns."""
    said = []
    for column, values in cells.conditions.items():
        if column in known:
            continue
        held_out = values[np.concatenate([split.validation, split.test])]
        unseen = np.setdiff1d(held_out, [*np.unique(values[split.train]), ""])
        if len(unseen):
            share = np.isin(held_out, unseen).mean()
            said.append(
                f"no training cell has {column} {', '.join(unseen)}, but {share:.0%} of the held-out cells: scores are"
                f" of transfer to that; another split.seed may divide the groups of {split.by} differently"
            )
    return said


def _about_divided(cells: Cells, divided: Sequence[str], how: SplitSpec) -> str:
    """Return a sentence about columns whose groups have cells in several parts, and what to do about it."""
    parts = "more than one part" if how.test else "both parts"
    text = f"groups of {', '.join(divided)} have cells in {parts}" + (f", as split.by is {how.by}" if how.by else "")
    better = next((name for name in divided if cells.people[name].max() > 0), None)
    if better is None:
        return f"{text}: there is only one group"
    return f"{text}: split.by: {better} keeps its groups together"

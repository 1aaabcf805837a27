"""Division of cells into training and validation parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autotune.errors import DataError
from workers.workloads.cells.spec import SplitSpec

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class CellSplit:
    """Which cells train and which are held out.

    Attributes:
        train: Positions of training cells, sorted, shape ``(n_train,)``.
        validation: Positions of held-out cells, sorted, shape ``(n_validation,)``.
        sha256: Hash of the names, positions and parts of all cells; nothing else goes into it.
        by: Column whose groups were kept together, or None.
        seed: Seed of the division.
        validation_groups: Held-out groups, sorted; empty when divided cell by cell.
    """

    train: Indices
    validation: Indices
    sha256: str
    by: str | None = None
    seed: int = 0
    validation_groups: tuple[str, ...] = ()


def split_cells(
    spec: SplitSpec,
    *,
    names: Sequence[str],
    usable: npt.NDArray[np.bool_],
    groups: npt.NDArray[np.str_] | None = None,
) -> CellSplit:
    """Divide cells into a training and a validation part.

    All cells of the file are divided first; cells that are not usable then leave their part. So the part of a
    cell does not depend on which genes were chosen. `numpy.random.RandomState` is used because its stream is
    frozen across numpy versions.

    Args:
        spec: Fraction, seed and grouping column.
        names: Name of each cell, length ``n_cells``.
        usable: False for cells to be left out of both parts, shape ``(n_cells,)``.
        groups: Group of each cell when ``spec.by`` is given, shape ``(n_cells,)``.

    Raises:
        DataError: If a part would be empty, or there are fewer than two groups.
    """
    n_cells = len(names)
    held_out = np.zeros(n_cells, dtype=bool)
    chosen: tuple[str, ...] = ()
    if groups is None:
        number = int(n_cells * spec.validation + 0.5)
        held_out[np.random.RandomState(spec.seed).permutation(n_cells)[:number]] = True
    else:
        held_out, chosen = _held_out_groups(spec, groups)
    train, validation = np.flatnonzero(~held_out & usable), np.flatnonzero(held_out & usable)
    for part, indices in (("training", train), ("validation", validation)):
        if not len(indices):
            raise DataError(
                f"empty split: no {part} cells with split.validation {spec.validation:g} of {n_cells} cells;"
                " change split.validation"
            )
    return CellSplit(
        train=train,
        validation=validation,
        sha256=_split_hash(names, held_out, usable),
        by=spec.by,
        seed=spec.seed,
        validation_groups=chosen,
    )


def _held_out_groups(spec: SplitSpec, groups: npt.NDArray[np.str_]) -> tuple[npt.NDArray[np.bool_], tuple[str, ...]]:
    """Draw whole groups in seeded order until the held-out number of cells is closest to what was asked.

    At least one group stays on each side; of two equally close choices the smaller is taken.

    Raises:
        DataError: If there are fewer than two groups.
    """
    names, sizes = np.unique(groups, return_counts=True)
    if len(names) < 2:
        raise DataError(
            f"split.by: {spec.by} has {len(names)} group, at least 2 are needed: choose another column or none"
        )
    order = np.random.RandomState(spec.seed).permutation(len(names))
    distance = np.abs(np.cumsum(sizes[order])[:-1] - spec.validation * len(groups))
    chosen = names[order[: int(np.argmin(distance)) + 1]]
    return np.isin(groups, chosen), tuple(sorted(str(name) for name in chosen))


def _split_hash(names: Sequence[str], held_out: npt.NDArray[np.bool_], usable: npt.NDArray[np.bool_]) -> str:
    """Return the SHA-256 of one line per cell, in order: position, name, part."""
    digest = hashlib.sha256()
    for position, name in enumerate(names):
        part = ("validation" if held_out[position] else "train") if usable[position] else "left out"
        digest.update(f"{position}\t{name}\t{part}\n".encode())
    return digest.hexdigest()

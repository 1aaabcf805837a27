"""Division of cells into training, validation and test parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from autotune.errors import DataError
from workers.workloads.cells.spec import SplitSpec

Indices = npt.NDArray[np.int64]
Parts = npt.NDArray[np.int8]

TRAIN, VALIDATION, TEST = 0, 1, 2
_NAMES = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Division:
    """The part of every cell of a file, whether it is usable or not.

    Attributes:
        parts: `TRAIN`, `VALIDATION` or `TEST`, shape ``(n_cells,)``.
        validation_groups: Groups of the validation part, sorted; empty when divided cell by cell.
        test_groups: Groups of the test part likewise.
    """

    parts: Parts
    validation_groups: tuple[str, ...] = ()
    test_groups: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CellSplit:
    """Which cells train, which are held out, and which nobody sees before the search has ended.

    Attributes:
        train: Positions of training cells, sorted, shape ``(n_train,)``.
        validation: Positions of held-out cells, sorted, shape ``(n_validation,)``.
        sha256: Hash of the names, positions and parts of all cells; nothing else goes into it.
        by: Column whose groups were kept together, or None.
        seed: Seed of the division.
        validation_groups: Held-out groups, sorted; empty when divided cell by cell.
        test: Positions of test cells, sorted, shape ``(n_test,)``; empty while sealed.
        n_test: Number of test cells, sealed or not; 0: there is no test part.
        test_groups: Groups of the test part, sorted; empty when divided cell by cell.
    """

    train: Indices
    validation: Indices
    sha256: str
    by: str | None = None
    seed: int = 0
    validation_groups: tuple[str, ...] = ()
    test: Indices = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    n_test: int = 0
    test_groups: tuple[str, ...] = ()

    def sealed(self) -> CellSplit:
        """Return the same split without the positions of the test cells."""
        return replace(self, test=np.empty(0, dtype=np.int64))


def divide(spec: SplitSpec, n_cells: int, groups: npt.NDArray[np.str_] | None = None) -> Division:
    """Give every cell its part.

    The validation part is drawn first, so that a test part takes its cells from the training part: the same cells are
    held out with and without it. `numpy.random.RandomState` is used because its stream is frozen across numpy versions.

    Args:
        spec: Fractions, seed and grouping column.
        n_cells: Number of cells.
        groups: Group of each cell when ``spec.by`` is given, shape ``(n_cells,)``.

    Raises:
        DataError: If there are fewer groups than parts.
    """
    if groups is not None:
        return _divide_groups(spec, groups)
    parts = np.zeros(n_cells, dtype=np.int8)
    order = np.random.RandomState(spec.seed).permutation(n_cells)
    held_out, tested = (int(n_cells * fraction + 0.5) for fraction in (spec.validation, spec.test))
    parts[order[:held_out]] = VALIDATION
    parts[order[held_out : held_out + tested]] = TEST
    return Division(parts=parts)


def split_cells(
    spec: SplitSpec,
    *,
    names: Sequence[str],
    usable: npt.NDArray[np.bool_],
    groups: npt.NDArray[np.str_] | None = None,
    division: Division | None = None,
) -> CellSplit:
    """Divide cells into parts.

    All cells of the file are divided first; cells that are not usable then leave their part. So the part of a
    cell does not depend on which genes were chosen.

    Args:
        spec: Fractions, seed and grouping column.
        names: Name of each cell, length ``n_cells``.
        usable: False for cells to be left out of all parts, shape ``(n_cells,)``.
        groups: Group of each cell when ``spec.by`` is given, shape ``(n_cells,)``.
        division: What `divide` returned for these, if it was called before.

    Returns:
        The split, unsealed.

    Raises:
        DataError: If a part would be empty, or there are fewer groups than parts.
    """
    found = divide(spec, len(names), groups) if division is None else division
    train, validation, test = (np.flatnonzero((found.parts == part) & usable) for part in (TRAIN, VALIDATION, TEST))
    _check_filled(spec, len(names), train=train, validation=validation, test=test)
    return CellSplit(
        train=train,
        validation=validation,
        sha256=_split_hash(names, found.parts, usable),
        by=spec.by,
        seed=spec.seed,
        validation_groups=found.validation_groups,
        test=test,
        n_test=len(test),
        test_groups=found.test_groups,
    )


def _check_filled(spec: SplitSpec, n_cells: int, *, train: Indices, validation: Indices, test: Indices) -> None:
    """Raise `DataError` if a part that was asked for has no cells."""
    asked = f"split.validation {spec.validation:g}" + (f" and split.test {spec.test:g}" if spec.test else "")
    for part, indices, change in (
        ("training", train, "split.validation"),
        ("validation", validation, "split.validation"),
        ("test", test, "split.test"),
    ):
        if not len(indices) and (part != "test" or spec.test):
            raise DataError(f"empty split: no {part} cells with {asked} of {n_cells} cells; change {change}")


def _divide_groups(spec: SplitSpec, groups: npt.NDArray[np.str_]) -> Division:
    """Draw whole groups in seeded order: for validation, then for test, each until its number of cells is closest.

    At least one group stays for each later part; of two equally close choices the smaller is taken.

    Raises:
        DataError: If there are fewer groups than parts.
    """
    names, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    n_parts = 3 if spec.test else 2
    if len(names) < n_parts:
        number = f"{len(names)} group{'' if len(names) == 1 else 's'}"
        raise DataError(
            f"split.by: {spec.by} has {number}, at least {n_parts} are needed: choose another column or none"
        )
    order = np.random.RandomState(spec.seed).permutation(len(names))
    of_group = np.zeros(len(names), dtype=np.int8)
    chosen: list[tuple[str, ...]] = []
    for part, fraction, later in ((VALIDATION, spec.validation, n_parts - 1), (TEST, spec.test, 1)):
        drawn = order[:0]
        if part < n_parts:
            distance = np.abs(np.cumsum(sizes[order])[:-later] - fraction * len(groups))
            drawn = order[: int(np.argmin(distance)) + 1]
        of_group[drawn], order = part, order[len(drawn) :]
        chosen.append(tuple(sorted(str(name) for name in names[drawn])))
    return Division(parts=of_group[members], validation_groups=chosen[0], test_groups=chosen[1])


def _split_hash(names: Sequence[str], parts: Parts, usable: npt.NDArray[np.bool_]) -> str:
    """Return the SHA-256 of one line per cell, in order: position, name, part."""
    digest = hashlib.sha256()
    for position, (name, part, used) in enumerate(zip(names, parts.tolist(), usable.tolist(), strict=True)):
        digest.update(f"{position}\t{name}\t{_NAMES[part] if used else 'left out'}\n".encode())
    return digest.hexdigest()

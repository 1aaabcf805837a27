"""Counts of the chosen genes: looked through once to check and choose, then once more to keep what was chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from autotune.errors import DataError
from workers.workloads.cells.genes import Moments, most_variable
from workers.workloads.cells.sources import Source, row_blocks

_FAULTS: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("NaN or infinite", lambda part: ~np.isfinite(part)),
    ("negative", lambda part: part < 0),
    ("not whole numbers", lambda part: np.isfinite(part) & (part != np.floor(part))),
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is kept of a source.

    Attributes:
        genes: Positions of the chosen genes, rising; None: all.
        n_entries: Entries that are not zero in them.
        largest: No count is larger; None: not known.
    """

    genes: npt.NDArray[np.intp] | None
    n_entries: int
    largest: float | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of their values, as float32, and positions."""
        return self.n_entries * (4 + self.index_type.itemsize)

    @property
    def value_type(self) -> np.dtype[Any]:
        """The smallest type that holds the counts: unsigned integers of one or two bytes, else float32."""
        largest = np.inf if self.largest is None else self.largest
        return np.dtype(next((kind for kind in (np.uint8, np.uint16) if largest <= np.iinfo(kind).max), np.float32))

    @property
    def index_type(self) -> np.dtype[Any]:
        """What scipy indexes so many entries with; with any other type it would copy."""
        return np.dtype(np.int32 if self.n_entries < 2**31 else np.int64)


@dataclass(kw_only=True)
class _Faults:
    """How many values are wrong in each way, and the first of each."""

    n_values: int = 0
    wrong: dict[str, int] = field(default_factory=dict)
    examples: dict[str, float] = field(default_factory=dict)

    def add(self, values: npt.NDArray[Any]) -> None:
        self.n_values += len(values)
        for fault, is_wrong in _FAULTS:
            mask = is_wrong(values)
            if mask.any():
                self.wrong[fault] = self.wrong.get(fault, 0) + int(mask.sum())
                self.examples.setdefault(fault, float(values[mask][0]))

    def check(self, source: Source) -> None:
        for fault, _ in _FAULTS:
            if fault in self.wrong:
                share = f"{self.wrong[fault]} of {self.n_values} stored values are {fault}"
                example = f"(for example {self.examples[fault]:g})"
                text = f"{place(source)}: {share} {example}; raw counts are needed"
                raise DataError(f"{text}{source.counts_hint}")


class Target(Protocol):
    """Takes blocks of counts in order."""

    def add(self, block: Any) -> None:
        """Append canonical CSR float32 of shape ``(cells of the block, chosen genes)``."""


class MemoryTarget:
    """Arrays in memory that are filled block by block.

    Args:
        choice: Says how large they get.
        n_cells: Number of cells.
    """

    def __init__(self, choice: Choice, n_cells: int) -> None:
        self.data = np.empty(choice.n_entries, dtype=np.float32)
        self.indices = np.empty(choice.n_entries, dtype=choice.index_type)
        self.indptr = np.zeros(n_cells + 1, dtype=choice.index_type)
        self._cells = 0

    def add(self, block: Any) -> None:
        """Append a block."""
        first = int(self.indptr[self._cells])
        last = first + block.nnz
        self.data[first:last], self.indices[first:last] = block.data, block.indices
        self.indptr[self._cells + 1 : self._cells + 1 + block.shape[0]] = block.indptr[1:].astype(np.int64) + first
        self._cells += block.shape[0]


def place(source: Source) -> str:
    """Return where the counts lie, as messages begin."""
    return f"{source.path.name}, {source.where}"


def choose(source: Source, number: int | None, seen: npt.NDArray[np.bool_] | None) -> Choice:
    """Check every value of a source and choose genes.

    Args:
        source: Where the counts are.
        number: How many genes to keep, those whose counts vary most; None: all.
        seen: True for cells from which genes are chosen, shape ``(n_cells,)``; None: all.

    Raises:
        DataError: If it is empty, has fewer genes, or values that are not finite, negative or not whole.
    """
    n_cells, n_genes = source.shape
    if not n_cells or not n_genes:
        raise DataError(f"{place(source)}: {n_cells} cells x {n_genes} genes: nothing to train on")
    if number is not None and number > n_genes:
        raise DataError(f"data.genes.top_variance asks for {number} genes, the file has {n_genes}: ask for fewer")
    faults, moments, largest = _Faults(), Moments(n_genes), 0.0
    entries = np.zeros(n_genes, dtype=np.int64)
    for start, stored in source.blocks():
        if not np.issubdtype(stored.dtype, np.number) and stored.dtype != bool:
            raise DataError(f"{place(source)}: not numbers ({stored.dtype})")
        faults.add(stored.data)
        if faults.wrong:
            continue  # only how many more there are is of interest
        block = canonical(stored)
        entries += np.bincount(block.indices, minlength=n_genes)
        largest = max(largest, float(block.data.max(initial=0.0)))
        if number is not None:
            moments.add(block if seen is None else block[seen[start : start + block.shape[0]]])
    faults.check(source)
    if number is None:
        return Choice(genes=None, n_entries=int(entries.sum()), largest=largest)
    genes = most_variable(moments.variance(), number)
    return Choice(genes=genes, n_entries=int(entries[genes].sum()), largest=largest)


def keep(source: Source, choice: Choice, target: Target) -> None:
    """Hand the counts of the chosen genes to `target`."""
    for _, stored in source.blocks():
        block = canonical(stored)
        target.add(block if choice.genes is None else canonical(block[:, choice.genes]))


def canonical(block: Any) -> Any:
    """Return CSR float32, sorted, without stored zeros; an own copy, whatever was given."""
    from scipy import sparse

    rows = sparse.csr_matrix(block.astype(np.float32))
    rows.sum_duplicates()
    rows.eliminate_zeros()
    return rows


def as_matrix(data: Any, indices: Any, indptr: Any, n_genes: int) -> Any:
    """Return canonical arrays as CSR, shape ``(n_cells, n_genes)``; nothing is copied, nor looked through."""
    from scipy import sparse

    matrix = sparse.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, n_genes), copy=False)
    matrix.has_canonical_format = True  # else scipy would sort in place what may be mapped for reading only
    return matrix


def names_of(names: Sequence[str], choice: Choice) -> tuple[str, ...]:
    """Return the names of the chosen genes."""
    return tuple(names) if choice.genes is None else tuple(names[i] for i in choice.genes)


def cell_totals(matrix: Any) -> npt.NDArray[np.float64]:
    """Return the total counts of each cell, float64, shape ``(n_cells,)``.

    Exact: scipy's own sum adds in float32 whatever dtype is asked, which is exact up to 2^24 only.

    Args:
        matrix: CSR, shape ``(n_cells, n_genes)``.
    """
    totals = np.zeros(matrix.shape[0])
    for start, stop in row_blocks(matrix.indptr):
        first, last = matrix.indptr[start], matrix.indptr[stop]
        cells = np.repeat(np.arange(stop - start), np.diff(matrix.indptr[start : stop + 1]))
        totals[start:stop] = np.bincount(cells, weights=matrix.data[first:last], minlength=stop - start)
    return totals

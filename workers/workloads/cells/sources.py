"""A file of counts as the loader sees it, whatever its format: names, columns, and counts in blocks of cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autotune.errors import DataError, ObjectiveError, nearest

BLOCK = 1 << 22
"""Entries in one block: what is in memory at a time when a large file is read."""

Blocks = Iterator[tuple[int, Any]]
"""Number of the first cell of a block, and its counts as stored: CSR, shape ``(cells of the block, n_genes)``."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file or folder of counts; nothing but its layout has been read, and nothing stays open.

    Attributes:
        path: The file or folder.
        where: Where in it the counts lie, for messages: ``X``, ``layer counts``.
        layers: Names of its layers.
        layer: The layer that was asked for, or None.
        shape: ``(n_cells, n_genes)``.
        columns: Names of the columns that describe cells.
        simulated: Whether the file says that its counts are simulated.
        cell_names: Reads the names of cells, length ``n_cells``.
        gene_names: Reads the names of genes, length ``n_genes``.
        column: Reads a column that describes cells, as pandas Series, shape ``(n_cells,)``.
        blocks: Reads the counts from the first cell to the last, anew at each call.
    """

    path: Path
    where: str
    layers: tuple[str, ...]
    layer: str | None
    shape: tuple[int, int]
    columns: tuple[str, ...]
    simulated: bool
    cell_names: Callable[[], Sequence[str]]
    gene_names: Callable[[], Sequence[str]]
    column: Callable[[str], Any]
    blocks: Callable[[], Blocks]

    @property
    def counts_hint(self) -> str:
        """Where counts may be instead, as the end of a sentence."""
        others = [name for name in self.layers if name != self.layer]
        if "counts" in others:
            return ": there is a layer named counts, set data.layer: counts"
        return f": set data.layer to one of {', '.join(others)}" if others else ", and the file has no other layer"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """While inside, what the libraries raise on a damaged file becomes one line.

    Raises:
        DataError: If the file cannot be read.
        ObjectiveError: If the libraries that read cells are not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ObjectiveError(f"reading cells needs more packages ({error}): pip install 'autotune[cells]'") from error
    except (OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"cannot read {path}, it is damaged or cut short: {reason}") from error


def check_layer(path: Path, layer: str | None, layers: Sequence[str]) -> None:
    """Raise `DataError` if a layer was asked for that is not there; names the nearest."""
    if layer is not None and layer not in layers:
        hint = nearest(layer, layers) or "; the file has no layers"
        raise DataError(f"{path} has no layer {layer!r}{hint}")


def row_blocks(indptr: npt.NDArray[Any], most: int = BLOCK) -> Iterator[tuple[int, int]]:
    """Yield first and last cell (not included) of blocks of at most `most` entries, at least one cell each.

    Args:
        indptr: Where each cell's entries begin, shape ``(n_cells + 1,)``.
        most: Entries in a block.
    """
    start, end = 0, len(indptr) - 1
    while start < end:
        stop = int(np.searchsorted(indptr, int(indptr[start]) + most, side="right")) - 1
        stop = min(end, max(start + 1, stop))
        yield start, stop
        start = stop


def compressed_blocks(file: Any, n_genes: int, most: int = BLOCK) -> Blocks:
    """Yield the blocks of an open HDF5 group of ``indptr``, ``indices``, ``data`` with one run of entries per cell.

    Raises:
        ValueError: If they do not fit together.
    """
    from scipy import sparse

    indptr = file["indptr"][:].astype(np.int64)
    if not len(indptr) or indptr[0] != 0 or np.any(np.diff(indptr) < 0):
        raise ValueError("indptr does not rise from 0")
    if indptr[-1] != file["indices"].shape[0] or indptr[-1] != file["data"].shape[0]:
        raise ValueError(f"indptr ends at {indptr[-1]}, there are {file['data'].shape[0]} values")
    for start, stop in row_blocks(indptr, most):
        first, last = indptr[start], indptr[stop]
        genes = file["indices"][first:last]
        if len(genes) and (genes.min() < 0 or genes.max() >= n_genes):
            raise ValueError(f"an index of a gene is not in 0 .. {n_genes - 1}")
        block = (file["data"][first:last], genes, indptr[start : stop + 1] - first)
        yield start, sparse.csr_matrix(block, shape=(stop - start, n_genes))


def memory_blocks(matrix: Any, most: int = BLOCK) -> Blocks:
    """Yield the blocks of a CSR matrix in memory."""
    for start, stop in row_blocks(matrix.indptr.astype(np.int64), most):
        yield start, matrix[start:stop]


def dense_blocks(dataset: Any, *, genes_first: bool = False, most: int = BLOCK) -> Blocks:
    """Yield the blocks of an open, dense HDF5 dataset.

    Args:
        dataset: Shape ``(n_cells, n_genes)``, or turned if `genes_first`.
        genes_first: Whether genes are its rows.
        most: Values read at a time.
    """
    from scipy import sparse

    n_cells, n_genes = dataset.shape[::-1] if genes_first else dataset.shape
    step = max(1, most // max(1, n_genes))
    for start in range(0, n_cells, step):
        stop = min(n_cells, start + step)
        part = dataset[:, start:stop].T if genes_first else dataset[start:stop]
        yield start, sparse.csr_matrix(part)


def texts(values: Any) -> list[str]:
    """Return names as text, whether they were stored as bytes or as text."""
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]

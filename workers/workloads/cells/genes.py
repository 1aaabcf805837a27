"""Choice of genes by the variance of their counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def column_variance(matrix: Any) -> npt.NDArray[np.float64]:
    """Return the variance (divisor n) of each column of a sparse matrix.

    One pass over the stored entries in float64. For counts all sums are exact integers, so genes with the same
    counts in another order of cells get exactly the same variance.

    Args:
        matrix: CSR matrix, shape ``(n_cells, n_genes)``, without duplicate entries.

    Returns:
        Shape ``(n_genes,)``.
    """
    moments = Moments(matrix.shape[1])
    moments.add(matrix)
    return moments.variance()


class Moments:
    """Sums of the columns of a sparse matrix that comes in blocks of rows.

    Args:
        n_genes: Number of columns.
    """

    def __init__(self, n_genes: int) -> None:
        self._n_cells = 0
        self._total = np.zeros(n_genes)
        self._squares = np.zeros(n_genes)

    def add(self, block: Any) -> None:
        """Add rows, CSR, without duplicate entries."""
        values, n_genes = block.data.astype(np.float64), block.shape[1]
        self._n_cells += block.shape[0]
        self._total += np.bincount(block.indices, weights=values, minlength=n_genes)
        self._squares += np.bincount(block.indices, weights=values * values, minlength=n_genes)

    def variance(self) -> npt.NDArray[np.float64]:
        """Return the variance (divisor n) of each column, shape ``(n_genes,)``."""
        return (self._squares * self._n_cells - self._total * self._total) / float(self._n_cells) ** 2


def most_variable(variance: npt.NDArray[np.float64], number: int) -> npt.NDArray[np.intp]:
    """Return the positions of the `number` largest values, rising; ties go to the gene that comes first."""
    return np.sort(np.argsort(-variance, kind="stable")[:number])

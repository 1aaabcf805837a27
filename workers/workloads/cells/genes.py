"""Choice of genes by the variance of their counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from autotune.errors import DataError


def column_variance(matrix: Any) -> npt.NDArray[np.float64]:
    """Return the variance (divisor n) of each column of a sparse matrix.

    One pass over the stored entries in float64. For counts all sums are exact integers, so genes with the same
    counts in another order of cells get exactly the same variance.

    Args:
        matrix: CSR matrix, shape ``(n_cells, n_genes)``, without duplicate entries.

    Returns:
        Shape ``(n_genes,)``.
    """
    n_cells, n_genes = matrix.shape
    values = matrix.data.astype(np.float64)
    total = np.bincount(matrix.indices, weights=values, minlength=n_genes)
    squares = np.bincount(matrix.indices, weights=values * values, minlength=n_genes)
    return (squares * n_cells - total * total) / float(n_cells) ** 2


def top_variance(matrix: Any, number: int) -> npt.NDArray[np.intp]:
    """Return the positions of the `number` genes whose counts vary most, in the original gene order.

    Ties go to the gene that comes first.

    Args:
        matrix: Raw counts, CSR, shape ``(n_cells, n_genes)``.
        number: How many genes to keep.

    Raises:
        DataError: If there are fewer genes than asked for.
    """
    n_genes = matrix.shape[1]
    if number > n_genes:
        raise DataError(f"data.genes.top_variance asks for {number} genes, the file has {n_genes}: ask for fewer")
    order = np.argsort(-column_variance(matrix), kind="stable")
    return np.sort(order[:number])

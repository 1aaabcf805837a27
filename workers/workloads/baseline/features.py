"""Features and labels of the baseline. Nothing here sees a held-out cell, except to normalise that cell itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autotune.errors import DataError
from workers.workloads.cells.counts import cell_totals
from workers.workloads.cells.genes import column_variance
from workers.workloads.cells.prepared import PreparedCells
from workers.workloads.cells.sources import row_blocks

_PER_CELL = 1e4  # counts per cell after normalisation


@dataclass(frozen=True, kw_only=True)
class LabelledCells:
    """What the baseline's trials read.

    Attributes:
        prepared: Cells and split.
        expression: log(1 + counts per 10 000), CSR float32, shape ``(n_cells, n_genes)``.
        gene_order: Genes by falling variance of `expression` over training cells, shape ``(n_genes,)``.
        classes: All labels, sorted, length ``n_classes``.
        codes: Label of each cell as a position in `classes`, shape ``(n_cells,)``.
    """

    prepared: PreparedCells
    expression: Any
    gene_order: npt.NDArray[np.intp]
    classes: tuple[str, ...]
    codes: npt.NDArray[np.intp]


def labelled_cells(prepared: PreparedCells) -> LabelledCells:
    """Normalise the counts and encode the labels.

    Raises:
        DataError: If training cells have fewer than two labels.
    """
    class_facts(prepared)
    expression = log_normalised(prepared.cells.counts)
    order = np.argsort(-column_variance(expression[prepared.split.train]), kind="stable")
    classes, codes = np.unique(_labels(prepared), return_inverse=True)
    return LabelledCells(
        prepared=prepared,
        expression=expression,
        gene_order=order,
        classes=tuple(str(name) for name in classes),
        codes=codes,
    )


def log_normalised(counts: Any) -> Any:
    """Return log(1 + counts per 10 000 counts of the cell); cells without counts stay zero.

    Args:
        counts: CSR, shape ``(n_cells, n_genes)``.
    """
    from scipy import sparse

    totals = cell_totals(counts)
    values = np.empty(counts.nnz, dtype=np.float32)
    for start, stop in row_blocks(counts.indptr):
        first, last = counts.indptr[start], counts.indptr[stop]
        scale = np.repeat(_PER_CELL / np.maximum(totals[start:stop], 1.0), np.diff(counts.indptr[start : stop + 1]))
        values[first:last] = np.log1p(counts.data[first:last] * scale)
    expression = sparse.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape, copy=False)
    expression.has_canonical_format = True  # as that of the counts, whose positions it shares
    return expression


def class_facts(prepared: PreparedCells) -> tuple[dict[str, Any], list[str]]:
    """Return facts about the labels of the two parts, and warnings.

    Raises:
        DataError: If training cells have fewer than two labels.
    """
    labels, split, column = _labels(prepared), prepared.split, prepared.spec.labels
    everything = np.unique(labels)
    trained, held_out = np.unique(labels[split.train]), np.unique(labels[split.validation])
    if len(trained) < 2:
        raise DataError(f"training cells have {len(trained)} value of {column}: two or more labels are needed")
    never_trained = [str(name) for name in np.setdiff1d(everything, trained)]
    never_scored = [str(name) for name in np.setdiff1d(everything, held_out)]
    warnings = []
    if never_trained:
        warnings.append(f"labels without training cells, which count as F1 = 0: {', '.join(never_trained)}")
    if never_scored:
        warnings.append(f"labels without held-out cells, which count as F1 = 0: {', '.join(never_scored)}")
    return {"not_in_train": never_trained, "not_in_validation": never_scored}, warnings


def _labels(prepared: PreparedCells) -> npt.NDArray[np.str_]:
    """Return the label of each cell, shape ``(n_cells,)``."""
    if prepared.spec.labels is None:
        raise DataError("data.labels is missing")
    return prepared.cells.obs[prepared.spec.labels]

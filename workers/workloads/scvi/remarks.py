"""What a reader should know of the cells before scVI is trained on them. Without torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from workers.workloads.cells.prepared import PreparedCells

_FEW_CELLS = 3
_MOST_NAMED = 5
_CHUNK = 1 << 22  # entries looked at a time


def remarks(prepared: PreparedCells) -> list[str]:
    """Return sentences about batches and genes that tell the model nothing, and labels that are rare."""
    spec, cells, train = prepared.spec, prepared.cells, prepared.split.train
    said = []
    if spec.batch is not None and len(np.unique(cells.obs[spec.batch])) == 1:
        said.append(f"batch {spec.batch} has one value: it is trained with, and changes nothing")
    constant = int(_constant(cells.counts).sum())
    if constant:
        said.append(f"{constant} of {len(cells.genes)} genes have the same count in every cell: they tell nothing")
    for role, column in (("labels", spec.labels), ("batch", spec.batch)):
        if column is not None:
            names, numbers = np.unique(cells.obs[column][train], return_counts=True)
            said += _about_rare(f"{role} {column}", [str(name) for name in names[numbers < _FEW_CELLS]])
    return said


def _about_rare(column: str, rare: list[str]) -> list[str]:
    """Return a sentence about values of few cells, if there are any."""
    if not rare:
        return []
    named = ", ".join(rare[:_MOST_NAMED]) + (", ..." if len(rare) > _MOST_NAMED else "")
    return [f"{len(rare)} values of {column} have fewer than {_FEW_CELLS} training cells: {named}"]


def _constant(counts: Any) -> npt.NDArray[np.bool_]:
    """Return whether each gene has one count in all cells; `counts` is CSR, shape ``(n_cells, n_genes)``."""
    n_cells, n_genes = counts.shape
    stored = np.zeros(n_genes, dtype=np.int64)
    for start in range(0, counts.nnz, _CHUNK):
        stored += np.bincount(counts.indices[start : start + _CHUNK], minlength=n_genes)
    low, high = np.full(n_genes, np.inf), np.full(n_genes, -np.inf)
    full = stored == n_cells
    if full.any():  # only genes without a zero need their values looked at
        chosen = counts[:, np.flatnonzero(full)].tocsc()
        low[full], high[full] = chosen.min(axis=0).toarray().ravel(), chosen.max(axis=0).toarray().ravel()
    return (stored == 0) | (full & (low == high))

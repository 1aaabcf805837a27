"""Counts of any known format written as ``.h5ad``."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

from autotune.errors import DataError
from workers.workloads.cells.counts import MemoryTarget, as_matrix, choose, keep
from workers.workloads.cells.formats import open_source


def convert(source: Path, file: Path, layer: str | None = None) -> tuple[int, int]:
    """Write the raw counts of a file or folder as ``.h5ad``, with the columns that describe cells.

    Args:
        source: ``.h5ad``, ``.loom``, 10x ``.h5`` or 10x folder.
        file: Appears when it is whole.
        layer: Layer of `source` that holds the counts; None: its main matrix.

    Returns:
        Number of cells and of genes.

    Raises:
        DataError: If there is nothing, no known format or no counts, or `file` cannot be written.
        ObjectiveError: If the libraries that read cells are not installed.
    """
    if not source.exists():
        raise DataError(f"there is no file or folder {source}")
    found = open_source(source, layer)
    choice = choose(found, None, None)
    target = MemoryTarget(choice, found.shape[0])
    keep(found, choice, target)

    import anndata
    import pandas

    obs = pandas.DataFrame({name: found.column(name) for name in found.columns}, index=range(found.shape[0]))
    obs.index = pandas.Index(list(found.cell_names()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(Observation|Variable) names are not unique")  # as they were
        table = anndata.AnnData(
            X=as_matrix(target.data, target.indices, target.indptr, found.shape[1]),
            obs=obs,
            var=pandas.DataFrame(index=pandas.Index(list(found.gene_names()))),
            uns={"autotune_simulated": True} if found.simulated else {},
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as folder:
            part = Path(folder) / file.name
            table.write_h5ad(part, compression="gzip")
            os.replace(part, file)
    except OSError as error:
        raise DataError(f"cannot write {file}: {error.strerror or error}") from error
    return found.shape

"""Fetches a public data set with scvi-tools' loader: ``python -m workers.workloads.cells.fetching NAME FILE``.

The file appears when it is whole and checked. What went wrong is the last line of standard error.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from autotune.errors import DataError
from workers.workloads.cells.named import Named, named

_SILENCE_S = 60.0  # a server that sends nothing for so long has gone away


def fetch(name: str, file: Path, known: Named | None = None) -> None:
    """Fetch a data set and write it as ``.h5ad``.

    Args:
        name: Its name.
        file: Where it goes; written beside it and renamed.
        known: What it must have; default: what is known of that name.

    Raises:
        DataError: If it has another number of cells, or too few genes.
        OSError: If it cannot be fetched or written.
    """
    expected = named(name) if known is None else known
    socket.setdefaulttimeout(_SILENCE_S)
    with tempfile.TemporaryDirectory(prefix=f"{name}.part-", dir=file.parent) as folder:
        cells = load(name, folder)
        check(name, cells, expected)
        part = Path(folder) / file.name
        cells.write_h5ad(part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(file)


def load(name: str, folder: str) -> Any:
    """Return a data set as AnnData, fetched into `folder` by scvi-tools' loader."""
    import anndata
    import scvi.data
    from scipy import sparse

    loaders = {
        "cortex": scvi.data.cortex,
        "pbmc": scvi.data.pbmc_dataset,
        "brain_large": scvi.data.brainlarge_dataset,
    }
    loaded = loaders[name](save_path=folder)
    obs = loaded.obs.copy()
    obs.index, loaded.var.index = obs.index.astype(str), loaded.var.index.astype(str)
    return anndata.AnnData(X=sparse.csr_matrix(loaded.X, dtype="float32"), obs=obs, var=loaded.var[[]].copy())


def check(name: str, cells: Any, expected: Named) -> None:
    """Raise `DataError` unless a data set has its cells and enough genes: its page may have changed."""
    n_cells, n_genes = cells.shape
    if n_cells != expected.n_cells or n_genes < expected.top_variance:
        raise DataError(
            f"{name} has {n_cells} cells and {n_genes} genes, not {expected.n_cells} cells and"
            f" {expected.top_variance} genes or more: what was fetched is another data set"
        )


def main() -> int:
    """Fetch what the command line says; return the exit status."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            fetch(sys.argv[1], Path(sys.argv[2]))
    except Exception as error:  # noqa: BLE001 - whatever the loader raises becomes one line
        sys.stderr.write(f"\n{' '.join(str(error).split())[:400] or type(error).__name__}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

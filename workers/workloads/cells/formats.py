"""Which format a file or folder of counts has: told by its content, since copies from the store have other names."""

from __future__ import annotations

import hashlib
from pathlib import Path

from autotune.errors import DataError, ObjectiveError
from workers.workloads.cells.h5ad import open_h5ad
from workers.workloads.cells.loom import open_loom
from workers.workloads.cells.sources import Source, reading
from workers.workloads.cells.tenx import folder_hash, open_folder, open_tenx, tenx_groups


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content; of a 10x folder that of the names and hashes of its files.

    Raises:
        DataError: If there is no such file, or it cannot be read.
    """
    try:
        if path.is_dir():
            return folder_hash(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataError(f"no data file {path}: check data.path (it must exist on every worker)") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def open_source(path: Path, layer: str | None = None) -> Source:
    """Return the source in a file or folder of any format that is known.

    Args:
        path: ``.h5ad``, ``.loom``, 10x ``.h5``, or a 10x folder.
        layer: Layer that holds the counts; None: the main matrix.

    Raises:
        DataError: If it has no such format, or lacks the layer.
        ObjectiveError: If the libraries that read cells are not installed.
    """
    if path.is_dir():
        return open_folder(path, layer)
    try:
        import h5py
    except ImportError as error:
        raise ObjectiveError(f"reading cells needs more packages ({error}): pip install 'autotune[cells]'") from error
    if not h5py.is_hdf5(path):
        raise DataError(
            f"{path} is not an .h5ad file (not HDF5), nor .loom, 10x .h5 or a 10x folder: write one with anndata's"
            " write_h5ad"
        )
    with reading(path), h5py.File(path, "r") as file:
        parts = set(file)
        tenx = bool(tenx_groups(file))
    if {"obs", "var"} <= parts:
        return open_h5ad(path, layer)
    if {"matrix", "col_attrs", "row_attrs"} <= parts:
        return open_loom(path, layer)
    if tenx:
        return open_tenx(path, layer)
    missing = "obs" if "obs" not in parts else "var"
    raise DataError(f"{path} is HDF5 but not an .h5ad file: it has no {missing}; nor is it .loom or 10x .h5")

"""Sources as CellRanger writes them: ``.h5`` files of releases 2 and 3, and folders of a Matrix Market file.

As scanpy's readers do: genes are known by their symbol, and only features of type "Gene Expression" are genes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autotune.errors import DataError
from workers.workloads.cells.sources import (
    Blocks,
    Source,
    check_layer,
    compressed_blocks,
    memory_blocks,
    reading,
    texts,
)

GENES = "Gene Expression"
_PARTS = {"matrix": ("matrix.mtx",), "genes": ("features.tsv", "genes.tsv"), "barcodes": ("barcodes.tsv",)}


def tenx_groups(file: Any) -> list[str]:
    """Return the groups of an open HDF5 file that are laid out as CellRanger does, release 3 or 2 (one per genome)."""
    needed = {"barcodes", "data", "indices", "indptr", "shape"}
    groups = [name for name in file if hasattr(file[name], "keys") and needed <= set(file[name])]
    return [name for name in groups if "features" in file[name] or {"genes", "gene_names"} <= set(file[name])]


def open_tenx(path: Path, layer: str | None) -> Source:
    """Return the source in a 10x ``.h5`` file.

    Raises:
        DataError: If it has several genomes, or a layer was asked for.
    """
    import h5py

    check_layer(path, layer, ())
    with reading(path), h5py.File(path, "r") as file:
        groups = tenx_groups(file)
        if len(groups) == 1:
            group = file[groups[0]]
            n_features, n_cells = (int(n) for n in group["shape"][:])
            kinds = texts(group["features/feature_type"][:]) if "features" in group else None
            names = texts(group["features/name"][:] if "features" in group else group["gene_names"][:])
    if len(groups) > 1:
        raise DataError(
            f"{path} has several genomes ({', '.join(groups)}): write an .h5ad of one of them with scanpy's"
            " read_10x_h5(..., genome=...)"
        )
    keep = _genes(path, names, kinds, n_features)
    return Source(
        path=path,
        where="matrix",
        layers=(),
        layer=None,
        shape=(n_cells, len(keep)),
        columns=(),
        simulated=False,
        cell_names=lambda: _barcodes(path, groups[0], n_cells),
        gene_names=lambda: _unique([names[i] for i in keep]),
        column=_no_column,
        blocks=lambda: _blocks(path, groups[0], n_features, keep),
    )


def folder_files(folder: Path) -> dict[str, Path]:
    """Return the files of a 10x folder: ``matrix``, ``genes`` and ``barcodes``, each plain or ``.gz``.

    Raises:
        DataError: If one is missing.
    """
    found = {}
    for part, names in _PARTS.items():
        files = [
            folder / f"{name}{end}" for name in names for end in (".gz", "") if (folder / f"{name}{end}").is_file()
        ]
        if not files:
            wanted = " or ".join(f"{name}[.gz]" for name in names)
            raise DataError(
                f"{folder} is no folder of 10x counts: it has no {wanted}; name the folder that holds matrix.mtx,"
                " features.tsv (or genes.tsv) and barcodes.tsv"
            )
        found[part] = files[0]
    return found


def folder_hash(folder: Path) -> str:
    """Return the content hash of a 10x folder: SHA-256 of the sorted ``name sha256`` lines of the files that are read.

    Raises:
        DataError: If a file is missing.
        OSError: If one cannot be read.
    """
    lines = []
    for file in folder_files(folder).values():
        with file.open("rb") as opened:
            lines.append(f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def open_folder(folder: Path, layer: str | None) -> Source:
    """Return the source in a 10x folder; its matrix is text, and is read whole.

    Raises:
        DataError: If a file is missing or damaged, they do not fit together, or a layer was asked for.
    """
    check_layer(folder, layer, ())
    files = folder_files(folder)
    features, cells = _table(files["genes"]), _table(files["barcodes"])
    with reading(files["genes"]):
        names = [str(name) for name in features[1 if features.shape[1] > 1 else 0]]
        kinds = [str(kind) for kind in features[2]] if features.shape[1] > 2 else None
    keep = _genes(folder, names, kinds, len(names))
    matrix: list[Any] = []

    def blocks() -> Blocks:
        if not matrix:
            matrix.append(_matrix(files["matrix"], len(names), len(cells), keep))
        yield from memory_blocks(matrix[0])

    return Source(
        path=folder,
        where="matrix",
        layers=(),
        layer=None,
        shape=(len(cells), len(keep)),
        columns=(),
        simulated=False,
        cell_names=lambda: [str(name) for name in cells[0]],
        gene_names=lambda: _unique([names[i] for i in keep]),
        column=_no_column,
        blocks=blocks,
    )


def _blocks(path: Path, group: str, n_features: int, keep: npt.NDArray[np.intp]) -> Blocks:
    import h5py

    with reading(path), h5py.File(path, "r") as file:
        for start, block in compressed_blocks(file[group], n_features):
            yield start, block if len(keep) == n_features else block[:, keep]


def _barcodes(path: Path, group: str, n_cells: int) -> list[str]:
    import h5py

    with reading(path), h5py.File(path, "r") as file:
        found = texts(file[group]["barcodes"][:])
        if len(found) != n_cells:
            raise ValueError(f"{len(found)} barcodes, {n_cells} cells")
        return found


def _genes(path: Path, names: Sequence[str], kinds: Sequence[str] | None, n_features: int) -> npt.NDArray[np.intp]:
    """Return the positions of the features that are genes.

    Raises:
        DataError: If there is none, or names and matrix do not fit together.
    """
    if len(names) != n_features or (kinds is not None and len(kinds) != n_features):
        raise DataError(f"cannot read {path}, it is damaged or cut short: {n_features} features, {len(names)} names")
    keep = np.arange(n_features) if kinds is None else np.flatnonzero(np.asarray(kinds) == GENES)
    if not len(keep):
        raise DataError(f"{path} has no features of type {GENES}")
    return keep


def _unique(names: Sequence[str]) -> list[str]:
    """Return names of which none occurs twice: ``-1``, ``-2`` and so on are appended, as scanpy does."""
    import pandas
    from anndata.utils import make_index_unique

    return [str(name) for name in make_index_unique(pandas.Index(list(names)))]


def _table(file: Path) -> Any:
    """Return a table of a 10x folder as text, one column per field."""
    import pandas

    with reading(file):
        return pandas.read_csv(file, sep="\t", header=None, dtype=str, keep_default_na=False, quoting=3)


def _matrix(file: Path, n_features: int, n_cells: int, keep: npt.NDArray[np.intp]) -> Any:
    """Return the counts of the genes, CSR, shape ``(n_cells, n_genes)``."""
    from scipy import io, sparse

    with reading(file):
        stored = io.mmread(file)
        if stored.shape != (n_features, n_cells):
            raise ValueError(f"it is {stored.shape[0]} x {stored.shape[1]}, not {n_features} genes x {n_cells} cells")
        rows = sparse.csr_matrix(stored.T)
        return rows if len(keep) == n_features else rows[:, keep]


def _no_column(name: str) -> Any:
    raise KeyError(name)

"""Sources in ``.loom`` files, read with h5py: the format is small, and its library brings a compiler along.

Specification: https://linnarssonlab.org/loompy/format. Genes are rows there; ``data.layer`` names one of ``layers``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autotune.errors import DataError
from workers.workloads.cells.sources import Blocks, Source, check_layer, dense_blocks, reading, texts

_CELL_NAMES = ("CellID", "obs_names", "cell_id", "Cell", "cell_names")
_GENE_NAMES = ("Gene", "var_names", "gene_names", "Accession", "gene_ids")


def open_loom(path: Path, layer: str | None) -> Source:
    """Return the source in a ``.loom`` file.

    Raises:
        DataError: If it lacks the layer, or its attributes do not fit the matrix.
    """
    import h5py

    key = "matrix" if layer is None else f"layers/{layer}"
    with reading(path), h5py.File(path, "r") as file:
        layers = sorted(file["layers"]) if "layers" in file else []
    check_layer(path, layer, layers)
    with reading(path), h5py.File(path, "r") as file:
        n_genes, n_cells = (int(n) for n in file[key].shape)
        columns = [name for name in file["col_attrs"] if file["col_attrs"][name].ndim == 1]
        lengths = {file["col_attrs"][name].shape[0] for name in columns}
    if lengths - {n_cells}:
        text = f"{key} has {n_cells} cells, an attribute of cells has {max(lengths - {n_cells})} values"
        raise DataError(f"cannot read {path}, it is damaged or cut short: {text}")
    index = next((name for name in _CELL_NAMES if name in columns), None)
    return Source(
        path=path,
        where="matrix" if layer is None else f"layer {layer}",
        layers=tuple(layers),
        layer=layer,
        shape=(n_cells, n_genes),
        columns=tuple(name for name in columns if name != index),
        simulated=False,
        cell_names=lambda: _names(path, "col_attrs", _CELL_NAMES, n_cells),
        gene_names=lambda: _names(path, "row_attrs", _GENE_NAMES, n_genes),
        column=lambda name: _column(path, name),
        blocks=lambda: _blocks(path, key),
    )


def _names(path: Path, part: str, known: tuple[str, ...], number: int) -> list[str]:
    """Return the names of cells or genes; their numbers where the file has none."""
    import h5py

    with reading(path), h5py.File(path, "r") as file:
        name = next((name for name in known if name in file[part]), None)
        found = [str(i) for i in range(number)] if name is None else texts(file[part][name][:])
        if len(found) != number:
            raise ValueError(f"{part}/{name} has {len(found)} names, {number} are needed")
        return found


def _column(path: Path, name: str) -> Any:
    import h5py
    import pandas

    with reading(path), h5py.File(path, "r") as file:
        values = file["col_attrs"][name][:]
        return pandas.Series(texts(values) if values.dtype.kind in "OS" else values)


def _blocks(path: Path, key: str) -> Blocks:
    import h5py

    with reading(path), h5py.File(path, "r") as file:
        yield from dense_blocks(file[key], genes_first=True)

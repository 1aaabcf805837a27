"""Sources in anndata's ``.h5ad`` files. Only what is needed is read: embeddings and graphs stay on disk."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autotune.errors import DataError
from workers.workloads.cells.sources import (
    Blocks,
    Source,
    check_layer,
    compressed_blocks,
    dense_blocks,
    memory_blocks,
    reading,
)


def open_h5ad(path: Path, layer: str | None) -> Source:
    """Return the source in an ``.h5ad`` file.

    Raises:
        DataError: If it is laid out as no h5ad, or lacks the layer.
    """
    import h5py

    key = "X" if layer is None else f"layers/{layer}"
    with reading(path), h5py.File(path, "r") as file:
        layers = sorted(file["layers"]) if "layers" in file else []
        for part in ("obs", "var"):
            if not hasattr(file[part], "keys"):
                break
        else:
            part = ""
    if part:
        raise DataError(f"{path} was written by anndata before 0.7: read it and write it again with a newer one")
    check_layer(path, layer, layers)
    with reading(path), h5py.File(path, "r") as file:
        shape = _shape(file[key]) if key in file else ()
        counted = {part: _index(file[part]).shape[0] for part in ("obs", "var")}
        columns = _columns(file["obs"])
        simulated = "uns/autotune_simulated" in file and bool(_element(file["uns/autotune_simulated"]))
    where = "X" if layer is None else f"layer {layer}"
    source = Source(
        path=path,
        where=where,
        layers=tuple(layers),
        layer=layer,
        shape=(shape[0], shape[1]) if len(shape) == 2 else (0, 0),
        columns=columns,
        simulated=simulated,
        cell_names=lambda: _names(path, "obs"),
        gene_names=lambda: _names(path, "var"),
        column=lambda name: _column(path, name),
        blocks=lambda: _blocks(path, key),
    )
    if not shape:
        raise DataError(f"{path} has no X{source.counts_hint}")
    if len(shape) != 2:
        raise DataError(f"{path.name}, {where}: not a matrix")
    if shape != (counted["obs"], counted["var"]):
        text = f"{where} is {shape[0]} x {shape[1]}, but there are {counted['obs']} cells and {counted['var']} genes"
        raise DataError(f"cannot read {path}, it is damaged or cut short: {text}")
    return source


def _shape(element: Any) -> tuple[int, ...]:
    """Return the shape of an array or sparse matrix of an open file."""
    if hasattr(element, "shape"):
        return tuple(int(n) for n in element.shape)
    stored = element.attrs["shape"] if "shape" in element.attrs else element.attrs["h5sparse_shape"]
    return tuple(int(n) for n in stored)


def _index(group: Any) -> Any:
    return group[group.attrs["_index"]]


def _columns(group: Any) -> tuple[str, ...]:
    index = group.attrs["_index"]
    if "column-order" in group.attrs:
        return tuple(str(name) for name in group.attrs["column-order"])
    return tuple(name for name in group if name not in (index, "__categories"))


def _names(path: Path, part: str) -> list[str]:
    import h5py

    with reading(path), h5py.File(path, "r") as file:
        return [str(name) for name in _element(_index(file[part]))]


def _column(path: Path, name: str) -> Any:
    """Return a column of ``obs`` as pandas Series."""
    import h5py
    import pandas

    with reading(path), h5py.File(path, "r") as file:
        if "__categories" in file["obs"]:  # anndata 0.7: a column alone does not know its categories
            return _element(file["obs"])[name].reset_index(drop=True)
        return pandas.Series(_element(file["obs"][name]))


def _blocks(path: Path, key: str) -> Blocks:
    import h5py
    from scipy import sparse

    with reading(path), h5py.File(path, "r") as file:
        element = file[key]
        if hasattr(element, "shape"):
            yield from dense_blocks(element)
        elif element.attrs.get("encoding-type") == "csr_matrix":
            yield from compressed_blocks(element, _shape(element)[1])
        else:
            yield from memory_blocks(sparse.csr_matrix(_element(element)))


def _element(element: Any) -> Any:
    """Return one element of an open h5ad file in memory."""
    try:
        from anndata.io import read_elem
    except ImportError:  # anndata < 0.11
        from anndata.experimental import read_elem
    read: Callable[[Any], Any] = read_elem
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="anndata")  # about files of old releases, which are read all the same
        return read(element)

"""Counts of large files as memory-mapped arrays on disk: written once, then shared by all processes of a host.

``matrices`` in the service's folder holds one folder per content, layer and choice of genes, named by their hash:
``data.npy`` (the smallest of uint8, uint16 and float32 that holds them), ``indices.npy`` and ``indptr.npy`` (int32, or
int64 from 2^31 entries on), ``cells.npy`` (names, UTF-8) and ``cell_ends.npy``, and ``about.json``. It is written
beside its place, flushed to the disk and renamed, so a folder under its own name is whole. What a process has mapped
stays there for it when the folder is removed; so no locks are needed to evict what was not used for longest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autotune.errors import StoreSetupError
from autotune.home import home
from workers.workloads.cells.counts import Choice, as_matrix
from workers.workloads.cells.names import Names

_log = logging.getLogger(__name__)

SMALL_BYTES = 64 * 10**6
"""Smaller counts are kept in memory; forked processes share them there too."""
BYTES_VARIABLE = "AUTOTUNE_CACHE_BYTES"
DEFAULT_BYTES = 50 * 10**9
FORGOTTEN_S = 24 * 3600.0
"""What nobody went on writing for so long was left by a process that was killed."""

_FORMAT = 2
_ARRAYS = ("data", "indices", "indptr", "cells", "cell_ends")
_PART = ".part-"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Counts of the chosen genes, with names.

    Attributes:
        matrix: CSR, canonical, whole numbers as float32, uint8 or uint16, shape ``(n_cells, n_genes)``.
        names: Names of cells.
        genes: Names of the chosen genes.
        n_genes_total: Number of genes in the file.
    """

    matrix: Any
    names: Names
    genes: tuple[str, ...]
    n_genes_total: int


def matrix_key(sha256: str, layer: str | None, top_variance: int | None, seen: npt.NDArray[np.bool_] | None) -> str:
    """Return the name of the folder of some counts.

    Args:
        sha256: Content hash of the file.
        layer: Layer that holds the counts.
        top_variance: Number of chosen genes, None: all.
        seen: Cells from which they were chosen, None: all.
    """
    chosen_on = (
        None if seen is None or top_variance is None else hashlib.sha256(np.packbits(seen).tobytes()).hexdigest()
    )
    text = json.dumps([_FORMAT, sha256, layer, top_variance, chosen_on])
    return hashlib.sha256(text.encode()).hexdigest()


def find(key: str) -> Kept | None:
    """Return what is kept under a key, mapped; None where there is nothing, or nothing whole."""
    with contextlib.suppress(StoreSetupError):
        folder = _root() / key
        if folder.is_dir():
            try:
                found = _open(folder)
            except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
                _log.warning("%s is damaged: %s", folder, error, extra={"action": "counts-damaged"})
                shutil.rmtree(folder, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # another user's, or evicted just now
                    os.utime(folder)
                return found
    return None


def store(
    key: str, choice: Choice, names: Names, about: Mapping[str, Any], fill: Callable[[Any], object]
) -> Kept | None:
    """Write counts under a key; return them mapped, or None where that cannot be: they then stay in memory.

    Args:
        key: What `matrix_key` returned.
        choice: Says how large they are.
        names: Names of cells.
        about: ``genes`` and ``n_genes_total``.
        fill: Called with the target that takes the blocks.
    """
    part: Path | None = None
    try:
        root = _root()
        _make_room(root, choice.n_bytes)
        part = Path(tempfile.mkdtemp(prefix=f"{key}{_PART}", dir=root))
        with _FileTarget(part, choice, len(names)) as target:
            fill(target)
        _write_rest(part, names, target.indptr, about)
        with contextlib.suppress(FileExistsError, OSError):
            part.rename(root / key)  # fails when another process was faster: then its copy is as good
        _flush_folder(root)
    except (OSError, StoreSetupError, _NoRoom) as error:
        text = "counts are not kept on disk, but in the memory of each campaign: %s; set AUTOTUNE_HOME or %s"
        _log.warning(text, error, BYTES_VARIABLE, extra={"action": "counts-in-memory"})
        return None
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)
    return find(key)


class _NoRoom(Exception):
    """The counts do not fit into the bound or the disk."""


class _FileTarget:
    """Arrays in files that are filled block by block.

    Args:
        folder: Where they go.
        choice: Says how large they get.
        n_cells: Number of cells.
    """

    def __init__(self, folder: Path, choice: Choice, n_cells: int) -> None:
        self.indptr = np.zeros(n_cells + 1, dtype=choice.index_type)
        self._types = choice.value_type, choice.index_type
        self._cells = 0
        self._files = [
            _array_file(folder / f"{name}.npy", kind, choice.n_entries)
            for name, kind in zip(("data", "indices"), self._types, strict=True)
        ]

    def __enter__(self) -> _FileTarget:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            with file:
                _flush(file)

    def add(self, block: Any) -> None:
        """Append a block."""
        first = int(self.indptr[self._cells])
        for file, array, kind in zip(self._files, (block.data, block.indices), self._types, strict=True):
            file.write(array.astype(kind).tobytes())
        self.indptr[self._cells + 1 : self._cells + 1 + block.shape[0]] = block.indptr[1:].astype(np.int64) + first
        self._cells += block.shape[0]


def _root() -> Path:
    folder = home() / "matrices"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def _open(folder: Path) -> Kept:
    """Return the counts in a folder.

    Raises:
        OSError, EOFError, ValueError, KeyError, TypeError: If it is not whole.
    """
    about = json.loads((folder / "about.json").read_text())
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
    indptr = np.array(arrays["indptr"])
    n_cells = len(indptr) - 1
    if len(arrays["data"]) != indptr[-1] or len(arrays["indices"]) != indptr[-1] or len(arrays["cell_ends"]) != n_cells:
        raise ValueError("its arrays do not fit together")
    matrix = as_matrix(arrays["data"], arrays["indices"], indptr, len(about["genes"]))
    return Kept(
        matrix=matrix,
        names=Names(arrays["cells"], arrays["cell_ends"]),
        genes=tuple(about["genes"]),
        n_genes_total=int(about["n_genes_total"]),
    )


def _write_rest(folder: Path, names: Names, indptr: Any, about: Mapping[str, Any]) -> None:
    for name, array in (("indptr", indptr), ("cells", names.text), ("cell_ends", names.ends)):
        with (folder / f"{name}.npy").open("wb") as file:
            np.save(file, array)
            _flush(file)
    with (folder / "about.json").open("w") as file:
        json.dump(dict(about), file)
        _flush(file)
    for path in folder.iterdir():
        path.chmod(0o400)
    _flush_folder(folder)


def _array_file(path: Path, kind: np.dtype[Any], length: int) -> Any:
    """Return an open file with the header of a ``.npy`` array, to which the values are then written."""
    file = path.open("wb")
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)
    return file


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_room(root: Path, size: int) -> None:
    """Remove what was not used for longest until there is room for `size` bytes.

    Raises:
        _NoRoom: If there is none all the same.
    """
    given = os.environ.get(BYTES_VARIABLE, "")
    bound = int(given) if given.strip().isdecimal() else DEFAULT_BYTES
    newest = max((used for _, used, _ in _entries(root)), default=0.0)
    for folder, used_at, _ in list(_entries(root)):
        if _PART in folder.name and newest - used_at > FORGOTTEN_S:
            shutil.rmtree(folder, ignore_errors=True)
    others = sorted(_entries(root), key=lambda entry: entry[1])
    while sum(taken for _, _, taken in others) + size > bound or shutil.disk_usage(root).free < size:
        whole = next((entry for entry in others if _PART not in entry[0].name), None)
        if whole is None or size > bound:
            raise _NoRoom(
                f"they have {size / 1e9:.3g} GB, {root} is bounded to {bound / 1e9:.3g} GB, or its disk is full"
            )
        _log.info("evicts %s", whole[0], extra={"action": "counts-evicted"})
        shutil.rmtree(whole[0], ignore_errors=True)
        others.remove(whole)


def _entries(root: Path) -> Iterator[tuple[Path, float, int]]:
    """Yield the folders of `root`, each with the time of its last use and its bytes."""
    for folder in root.iterdir():
        with contextlib.suppress(OSError):
            if folder.is_dir():
                yield folder, folder.stat().st_mtime, sum(file.stat().st_size for file in folder.iterdir())

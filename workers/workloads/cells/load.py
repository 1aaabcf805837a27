"""Reading raw counts from ``.h5ad`` files, with one clear line for everything that can be wrong with them."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autotune.errors import DataError, ObjectiveError, nearest
from workers.workloads.cells.genes import top_variance
from workers.workloads.cells.spec import DataSpec

_CHUNK = 1 << 22  # entries checked at a time, 32 MB of float64
_BEINGS = ("donor", "patient", "individual", "subject", "participant", "mouse", "animal", "sample")


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Raw counts of the chosen genes. Shared by the trials of a host: read only.

    Attributes:
        counts: CSR, float32, shape ``(n_cells, n_genes)``, non-negative whole numbers.
        names: Names of cells, length ``n_cells``.
        genes: Names of the chosen genes, length ``n_genes``.
        obs: Chosen columns of ``obs``: column -> text values, shape ``(n_cells,)``.
        obs_columns: Names of all columns of ``obs``.
        people: Columns of ``obs`` named like donors, samples and so on, donors first: column -> number of the group,
            -1 where there is none, shape ``(n_cells,)``.
        filled: False for cells without any count in the chosen genes, shape ``(n_cells,)``.
        n_genes_total: Number of genes in the file.
        sha256: Content hash of the file.
        simulated: Whether the file says that its counts are simulated.
    """

    counts: Any
    names: tuple[str, ...]
    genes: tuple[str, ...]
    obs: dict[str, npt.NDArray[np.str_]]
    obs_columns: tuple[str, ...]
    people: dict[str, npt.NDArray[np.int32]]
    filled: npt.NDArray[np.bool_]
    n_genes_total: int
    sha256: str
    simulated: bool


def load_cells(spec: DataSpec, *, columns: Iterable[str | None] = ()) -> Cells:
    """Read, check and select.

    Args:
        spec: The checked ``data`` section.
        columns: Columns of ``obs`` that are needed beside ``labels`` and ``batch``; None entries are skipped.

    Raises:
        DataError: If the file is missing, damaged, changed, no h5ad, or holds no raw counts where asked.
        ObjectiveError: If the libraries that read cells are not installed.
    """
    digest = _file_hash(spec.path)
    if spec.sha256 and spec.sha256 != digest:
        raise DataError(
            f"{spec.path} differs from the campaign's (sha256 {digest[:12]}, campaign {spec.sha256[:12]}):"
            " put the original file back, or launch a new campaign"
        )
    matrix, obs, cell_names, gene_names, simulated = _read(spec)
    matrix = _as_counts(spec, matrix)
    if spec.top_variance is not None:
        keep = top_variance(matrix, spec.top_variance)
        matrix, chosen = matrix[:, keep], [gene_names[position] for position in keep]
    else:
        chosen = gene_names
    wanted = dict.fromkeys(name for name in (spec.labels, spec.batch, *columns) if name is not None)
    return Cells(
        counts=matrix,
        names=tuple(cell_names),
        genes=tuple(chosen),
        obs={name: _column(spec, obs, name) for name in wanted},
        obs_columns=tuple(str(name) for name in obs.columns),
        people=_people(obs),
        filled=np.diff(matrix.indptr) > 0,
        n_genes_total=len(gene_names),
        sha256=digest,
        simulated=simulated,
    )


def matrix_hash(cells: Cells) -> str:
    """Return a SHA-256 of the chosen counts with cell and gene names, whatever file they came from."""
    digest = hashlib.sha256()
    digest.update("\n".join((*cells.names, "", *cells.genes)).encode())
    for array, kind in (
        (cells.counts.indptr, "<i8"),
        (cells.counts.indices, "<i8"),
        (cells.counts.data, "<f4"),
    ):
        for start in range(0, len(array), _CHUNK):
            digest.update(array[start : start + _CHUNK].astype(kind).tobytes())
    return digest.hexdigest()


def _file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content.

    Raises:
        DataError: If there is no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataError(f"no data file {path}: check data.path (it must exist on every worker)") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _read(spec: DataSpec) -> tuple[Any, Any, list[str], list[str], bool]:
    """Return counts as stored, obs, cell names, gene names, and whether the counts are simulated.

    Only what is needed is read: other layers, embeddings and graphs stay on disk.
    """
    try:
        import h5py
    except ImportError as error:
        raise ObjectiveError(f"reading cells needs more packages ({error}): pip install 'autotune[cells]'") from error
    if not h5py.is_hdf5(spec.path):
        raise DataError(f"{spec.path} is not an .h5ad file (not HDF5): write one with anndata's write_h5ad")
    try:
        with h5py.File(spec.path, "r") as file:
            _check_layout(spec, file)
            key = "X" if spec.layer is None else f"layers/{spec.layer}"
            obs, var = _element(file, "obs"), _element(file, "var")
            matrix = _element(file, key)
            simulated = "uns/autotune_simulated" in file and bool(_element(file, "uns/autotune_simulated"))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"cannot read {spec.path}, it is damaged or cut short: {reason}") from error
    return matrix, obs, [str(name) for name in obs.index], [str(name) for name in var.index], simulated


def _element(file: Any, key: str) -> Any:
    """Return one element of an open h5ad file in memory."""
    try:
        from anndata.io import read_elem
    except ImportError:  # anndata < 0.11
        from anndata.experimental import read_elem
    read: Callable[[Any], Any] = read_elem
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="anndata")  # about files of old releases, which are read all the same
        return read(file[key])


def _check_layout(spec: DataSpec, file: Any) -> None:
    """Raise `DataError` unless the open file is laid out as an h5ad that has the counts asked for."""
    for part in ("obs", "var"):
        if part not in file:
            raise DataError(f"{spec.path} is HDF5 but not an .h5ad file: it has no {part}")
        if not hasattr(file[part], "keys"):
            raise DataError(
                f"{spec.path} was written by anndata before 0.7: read it and write it again with a newer one"
            )
    layers = sorted(file["layers"]) if "layers" in file else []
    if spec.layer is not None and spec.layer not in layers:
        hint = nearest(spec.layer, layers) or "; the file has no layers"
        raise DataError(f"{spec.path} has no layer {spec.layer!r}{hint}")
    if spec.layer is None and "X" not in file:
        raise DataError(f"{spec.path} has no X{_counts_hint(layers)}")


def _as_counts(spec: DataSpec, matrix: Any) -> Any:
    """Return checked counts: CSR float32, shape ``(n_cells, n_genes)``, sorted, no stored zeros.

    Raises:
        DataError: If it is empty, or has values that are not finite, negative or not whole.
    """
    from scipy import sparse

    where = f"{spec.path.name}, {'X' if spec.layer is None else 'layer ' + spec.layer}"
    if getattr(matrix, "ndim", 0) != 2:
        raise DataError(f"{where}: not a matrix")
    n_cells, n_genes = matrix.shape
    if not n_cells or not n_genes:
        raise DataError(f"{where}: {n_cells} cells x {n_genes} genes: nothing to train on")
    rows = sparse.csr_matrix(matrix)
    if not np.issubdtype(rows.dtype, np.number) and rows.dtype != bool:
        raise DataError(f"{where}: not numbers ({rows.dtype})")
    _check_values(spec, where, rows.data)
    rows = rows.astype(np.float32)
    rows.sum_duplicates()
    rows.eliminate_zeros()
    return rows


def _check_values(spec: DataSpec, where: str, values: npt.NDArray[Any]) -> None:
    """Raise `DataError` if any stored value is not a count, saying how many are wrong and showing one."""
    faults: tuple[tuple[str, Callable[[Any], Any]], ...] = (
        ("NaN or infinite", lambda part: ~np.isfinite(part)),
        ("negative", lambda part: part < 0),
        ("not whole numbers", lambda part: part % 1 != 0),
    )
    for fault, is_wrong in faults:
        wrong, example = 0, None
        for start in range(0, len(values), _CHUNK):
            part = values[start : start + _CHUNK]
            mask = is_wrong(part)
            if mask.any():
                wrong += int(mask.sum())
                example = float(part[mask][0]) if example is None else example
        if wrong:
            share = f"{wrong} of {len(values)} stored values are {fault} (for example {example:g})"
            raise DataError(f"{where}: {share}; raw counts are needed{_counts_hint(_layers(spec), spec.layer)}")


def _layers(spec: DataSpec) -> list[str]:
    """Return the names of the file's layers."""
    import h5py

    with h5py.File(spec.path, "r") as file:
        return sorted(file["layers"]) if "layers" in file else []


def _counts_hint(layers: list[str], used: str | None = None) -> str:
    """Return where counts may be instead."""
    others = [name for name in layers if name != used]
    if "counts" in others:
        return ": there is a layer named counts, set data.layer: counts"
    return f": set data.layer to one of {', '.join(others)}" if others else ", and the file has no other layer"


def _column(spec: DataSpec, obs: Any, name: str) -> npt.NDArray[np.str_]:
    """Return a column of ``obs`` as text, shape ``(n_cells,)``.

    Raises:
        DataError: If there is no such column, or it has missing values.
    """
    if name not in obs.columns:
        raise DataError(f"{spec.path.name} has no column {name!r} in obs{nearest(name, obs.columns)}")
    missing = int(obs[name].isna().sum())
    if missing:
        raise DataError(f"{spec.path.name}: {missing} cells have no value in obs column {name!r}: drop or fill them")
    return np.asarray(obs[name].astype(str), dtype=str)


def _people(obs: Any) -> dict[str, npt.NDArray[np.int32]]:
    """Return `Cells.people`: the columns whose name, whatever its case and signs, is that of a being, or of its id."""
    ranks = {name: rank for rank, being in enumerate(_BEINGS) for name in (being, f"{being}id")}
    plain = {name: re.sub(r"[^a-z0-9]", "", str(name).lower()) for name in obs.columns}
    found = sorted((name for name in plain if plain[name] in ranks), key=lambda name: ranks[plain[name]])
    return {str(name): obs[name].factorize()[0].astype(np.int32) for name in found}

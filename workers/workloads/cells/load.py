"""Cells of the chosen genes, with one clear line for everything that can be wrong with their file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from autotune.errors import DataError, nearest
from workers.workloads.cells import matrices, named
from workers.workloads.cells.counts import MemoryTarget, as_matrix, choose, keep, names_of
from workers.workloads.cells.formats import content_hash, open_source
from workers.workloads.cells.matrices import Kept
from workers.workloads.cells.names import Names
from workers.workloads.cells.sources import Source
from workers.workloads.cells.spec import DataSpec

_CHUNK = 1 << 22  # entries hashed at a time, 32 MB
_MOST_LEVELS = 20
_BEINGS = ("donor", "patient", "individual", "subject", "participant", "mouse", "animal", "sample")

Seen = Callable[[int, Mapping[str, npt.NDArray[np.str_]]], npt.NDArray[np.bool_]]
"""Number of cells, chosen columns of ``obs`` -> True for cells from which genes may be chosen."""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Raw counts of the chosen genes. Shared by the trials of a host: read only.

    Attributes:
        counts: CSR, shape ``(n_cells, n_genes)``, non-negative whole numbers as float32; of a large file mapped from
            disk, for reading only, and where they are small enough as uint8 or uint16: convert before calculating.
        names: Names of cells, length ``n_cells``.
        genes: Names of the chosen genes, length ``n_genes``.
        obs: Chosen columns of ``obs``: column -> text values, shape ``(n_cells,)``.
        obs_columns: Names of all columns of ``obs``.
        people: Columns of ``obs`` named like donors, samples and so on, donors first: column -> number of the group,
            -1 where there is none, shape ``(n_cells,)``.
        conditions: Other columns of ``obs`` with 2 to 20 different values, if they were asked for: column -> text
            values, empty where there is none, shape ``(n_cells,)``.
        filled: False for cells without any count in the chosen genes, shape ``(n_cells,)``.
        n_genes_total: Number of genes in the file.
        sha256: Content hash of the file or folder.
        simulated: Whether the file says that its counts are simulated.
    """

    counts: Any
    names: Sequence[str]
    genes: tuple[str, ...]
    obs: dict[str, npt.NDArray[np.str_]]
    obs_columns: tuple[str, ...]
    people: dict[str, npt.NDArray[np.int32]]
    conditions: dict[str, npt.NDArray[np.str_]]
    filled: npt.NDArray[np.bool_]
    n_genes_total: int
    sha256: str
    simulated: bool


def load_cells(
    spec: DataSpec, *, columns: Iterable[str | None] = (), conditions: bool = False, seen: Seen | None = None
) -> Cells:
    """Read, check and select.

    Args:
        spec: The checked ``data`` section.
        columns: Columns of ``obs`` that are needed beside ``labels`` and ``batch``; None entries are skipped.
        conditions: Whether `Cells.conditions` is wanted.
        seen: Says from which cells the genes are chosen; None: from all.

    Raises:
        DataError: If the file is missing, damaged, changed, of no known format, or holds no raw counts where asked.
        ObjectiveError: If the libraries that read cells are not installed.
    """
    if spec.dataset is not None:
        named.ensure(spec.dataset)
    digest = content_hash(spec.path)
    if spec.sha256 and spec.sha256 != digest:
        raise DataError(
            f"{spec.path} differs from the campaign's (sha256 {digest[:12]}, campaign {spec.sha256[:12]}):"
            " put the original file back, or launch a new campaign"
        )
    source = open_source(spec.path, spec.layer)
    wanted = dict.fromkeys(name for name in (spec.labels, spec.batch, *columns) if name is not None)
    obs = {name: _column(source, name) for name in wanted}
    kept = _kept(source, spec, digest, None if seen is None else seen(source.shape[0], obs))
    return Cells(
        counts=kept.matrix,
        names=kept.names,
        genes=kept.genes,
        obs=obs,
        obs_columns=source.columns,
        people=_people(source),
        conditions=_conditions(source) if conditions else {},
        filled=np.diff(kept.matrix.indptr) > 0,
        n_genes_total=kept.n_genes_total,
        sha256=digest,
        simulated=source.simulated,
    )


def _kept(source: Source, spec: DataSpec, digest: str, seen: npt.NDArray[np.bool_] | None) -> Kept:
    """Return the counts of the chosen genes: mapped from disk where they are large, else in memory."""
    key = matrices.matrix_key(digest, spec.layer, spec.top_variance, seen)
    most_bytes = 8 * source.shape[0] * min(source.shape[1], spec.top_variance or source.shape[1])
    found = matrices.find(key) if most_bytes > matrices.SMALL_BYTES else None
    if found is not None:
        return found
    choice = choose(source, spec.top_variance, seen)
    names, all_genes = Names.of(source.cell_names()), source.gene_names()
    genes = names_of(all_genes, choice)
    if choice.n_bytes > matrices.SMALL_BYTES:
        about = {"genes": genes, "n_genes_total": len(all_genes)}
        stored = matrices.store(key, choice, names, about, partial(keep, source, choice))
        if stored is not None:
            return stored
    target = MemoryTarget(choice, source.shape[0])
    keep(source, choice, target)
    matrix = as_matrix(target.data, target.indices, target.indptr, len(genes))
    return Kept(matrix=matrix, names=names, genes=genes, n_genes_total=len(all_genes))


def matrix_hash(cells: Cells) -> str:
    """Return a SHA-256 of the chosen counts with cell and gene names, whatever file they came from."""
    digest = hashlib.sha256()
    separator = ""
    for name in chain(cells.names, ("",), cells.genes):
        digest.update(f"{separator}{name}".encode())
        separator = "\n"
    for array, kind in (
        (cells.counts.indptr, "<i8"),
        (cells.counts.indices, "<i8"),
        (cells.counts.data, "<f4"),
    ):
        for start in range(0, len(array), _CHUNK):
            digest.update(array[start : start + _CHUNK].astype(kind).tobytes())
    return digest.hexdigest()


def _column(source: Source, name: str) -> npt.NDArray[np.str_]:
    """Return a column of ``obs`` as text, shape ``(n_cells,)``.

    Raises:
        DataError: If there is no such column, or it has missing values.
    """
    if name not in source.columns:
        raise DataError(f"{source.path.name} has no column {name!r} in obs{nearest(name, source.columns)}")
    values = source.column(name)
    missing = int(values.isna().sum())
    if missing:
        raise DataError(f"{source.path.name}: {missing} cells have no value in obs column {name!r}: drop or fill them")
    return np.asarray(values.astype(str), dtype=str)


def people_columns(names: Iterable[str]) -> list[str]:
    """Return the names that are those of a being, or of its id, whatever their case and signs; donors first."""
    ranks = {name: rank for rank, being in enumerate(_BEINGS) for name in (being, f"{being}id")}
    plain = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in names}
    return sorted((name for name in plain if plain[name] in ranks), key=lambda name: ranks[plain[name]])


def _people(source: Source) -> dict[str, npt.NDArray[np.int32]]:
    """Return `Cells.people`."""
    found = people_columns(source.columns)
    return {name: source.column(name).factorize()[0].astype(np.int32) for name in found}


def _conditions(source: Source) -> dict[str, npt.NDArray[np.str_]]:
    """Return `Cells.conditions`."""
    found = {}
    for name in source.columns:
        if name in people_columns(source.columns):
            continue
        values = source.column(name)
        if values.dtype.kind not in "fc" and 2 <= values.nunique() <= _MOST_LEVELS:
            texts = values.astype(object).where(values.notna(), "")
            found[name] = np.asarray(texts.astype(str), dtype=str)
    return found

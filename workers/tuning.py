"""The user's table on its way into a campaign and the best model on its way back: for `autotune.tune_scvi`."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from autotune.errors import DataError, InputError, ObjectiveError, WorkerError, nearest
from autotune.home import home
from autotune.local.follow import Progress
from autotune.trial import Trial
from workers.admission import Admission
from workers.again import slot_like
from workers.models import read_card, save_model
from workers.workloads.cells.load import people_columns

if TYPE_CHECKING:
    from autotune.store.base import CampaignRecord
    from autotune.store.mongo import MongoStore

OnProgress = Callable[[Progress], None]

_FORMAT = "cells 1"
_CHUNK = 1 << 22  # entries looked at at a time


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a campaign needs of an AnnData: counts, names and some columns of ``obs``; embeddings and the rest stay.

    Attributes:
        counts: CSR, float32, shape ``(n_cells, n_genes)``, non-negative whole numbers.
        layer: The layer that they lie in; None for ``X``.
        cells: Names of cells.
        genes: Names of genes.
        columns: Column of ``obs`` -> category of each cell (-1: none) and names of the categories.
        simulated: Whether the table says that its counts are simulated.
        path: The file that holds exactly this; it may not be there yet.
    """

    counts: Any
    layer: str | None
    cells: tuple[str, ...]
    genes: tuple[str, ...]
    columns: Mapping[str, tuple[npt.NDArray[np.int32], tuple[str, ...]]]
    simulated: bool
    path: Path

    def write(self) -> None:
        """Write the file if it is not there; it appears whole or not at all.

        Raises:
            DataError: If the disk does not take it.
        """
        if self.path.exists():
            return
        import anndata
        import pandas

        categorical: Any = pandas.Categorical.from_codes
        obs = pandas.DataFrame(
            {name: categorical(*pair) for name, pair in self.columns.items()},
            index=pandas.Index(self.cells, dtype=object),
        )
        table = anndata.AnnData(
            X=self.counts if self.layer is None else None,
            obs=obs,
            var=pandas.DataFrame(index=pandas.Index(self.genes, dtype=object)),
            layers={} if self.layer is None else {self.layer: self.counts},
            uns={"autotune_simulated": True} if self.simulated else {},
        )
        part = self.path.with_name(f".{self.path.stem}.{secrets.token_hex(6)}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            table.write_h5ad(part)
            os.replace(part, self.path)
        except OSError as error:
            raise DataError(f"cannot write the cells to {self.path}: {error.strerror or error}") from error
        finally:
            with suppress(OSError):
                part.unlink()


def table_of(adata: Any, *, layer: str | None, keys: Mapping[str, str | None]) -> Table:
    """Return what a campaign needs of the user's AnnData, which is not changed.

    Args:
        adata: The AnnData.
        layer: The layer with raw counts; None for ``X``.
        keys: What the user calls a column of ``obs`` (``batch_key``) -> its name, or None.

    Raises:
        DataError: If it is no AnnData, has no raw counts there, or lacks a column or values of it.
        ObjectiveError: If packages are missing.
    """
    missing = [name for name in ("anndata", "scvi") if find_spec(name) is None]
    if missing:
        raise ObjectiveError(f"tune_scvi needs {' and '.join(missing)}: pip install 'autotune[scvi]'")
    import anndata

    if not isinstance(adata, anndata.AnnData):
        raise DataError(f"tune_scvi takes an AnnData, not {type(adata).__name__}")
    if adata.isbacked:
        raise DataError("adata is backed by a file: pass adata.to_memory()")
    counts = _counts(adata, layer)
    columns = {name: _numbered(adata.obs[name]) for name in people_columns(map(str, adata.obs.columns))}
    for key, name in keys.items():
        if name is not None:
            columns[name] = _column(adata.obs, key, name)
    cells, genes = tuple(map(str, adata.obs_names)), tuple(map(str, adata.var_names))
    simulated = bool(adata.uns.get("autotune_simulated", False))
    digest = _hash(counts, layer, cells, genes, columns, simulated)
    return Table(
        counts=counts,
        layer=layer,
        cells=cells,
        genes=genes,
        columns=columns,
        simulated=simulated,
        path=home() / "cells" / f"{digest}.h5ad",
    )


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A trial's model, trained again and opened with the user's own cells.

    Attributes:
        model: Of scvi-tools.
        adata: The AnnData that it has: the user's own, or a copy where genes were chosen, it is a view, or its batches
            or labels are not text, or some labels were unknown to the training cells (they are then set to the
            unlabelled category). scvi-tools notes in it how it is set up.
        score: Score of this model.
    """

    model: Any
    adata: Any
    score: float


def best_model(
    store: MongoStore,
    record: CampaignRecord,
    trial: Trial,
    adata: Any,
    *,
    on_cpu: bool = False,
    allow_mismatch: bool = False,
) -> Opened:
    """Train a trial's model again and open it with the user's own cells.

    Args:
        store: The campaign's store.
        record: The campaign.
        trial: The trial.
        adata: The user's AnnData.
        on_cpu: Whether the model is to lie on the CPU even where there is a GPU.
        allow_mismatch: Whether packages and source may differ from those of the campaign.

    Raises:
        DataError: If the campaign's data are not to be had.
        WorkerError: If this host differs from the one that launched the campaign, or the training failed; says why.
    """
    refusal = Admission(allow_mismatch=allow_mismatch).refusal(record)
    if refusal is not None:
        raise WorkerError(refusal)
    import scvi

    from workers.workloads.scvi.quiet import quiet

    with tempfile.TemporaryDirectory(prefix="autotune-model-") as place:
        folder = Path(place) / "model"
        result = save_model(store, record, trial, folder, slot_like(trial), threading.Event())
        card = read_card(folder)
        own = _fitting(adata, record, card["genes"])
        kind = getattr(scvi.model, card["class"].rpartition(".")[2])
        if kind is scvi.model.SCANVI:
            own = _with_known_labels(own, record.spec["data"]["labels"], _known_labels(kind, folder), card["settings"])
        with quiet():
            model = kind.load(str(folder), adata=own, accelerator="cpu" if on_cpu else "auto")
    return Opened(model=model, adata=own, score=result.score)


@contextmanager
def display(name: str, on_progress: OnProgress | None = None) -> Iterator[OnProgress]:
    """Give what follows a campaign: the user's own, or one that shows its progress on standard error."""
    if on_progress is not None:
        yield on_progress
        return
    from autotune.cli.progress import ProgressDisplay

    with ProgressDisplay(name) as shown:
        yield shown.update


def _fitting(adata: Any, record: CampaignRecord, genes: list[str]) -> Any:
    """Return the user's AnnData as the model wants it: itself, or a copy."""
    data = record.spec["data"]
    own = adata
    if data.get("genes"):
        own = adata[:, genes].copy()
    for name in (data.get("batch"), data.get("labels")):
        if name is not None and not _is_text(own.obs[name]):
            own = own.copy() if own is adata else own
            own.obs[name] = own.obs[name].astype(str).astype("category")
    return own.copy() if own.is_view else own


def _known_labels(kind: Any, folder: Path) -> npt.NDArray[np.str_]:
    """Return the labels that a saved SCANVI knows."""
    from workers.workloads.scvi.quiet import quiet

    with quiet():
        fields = kind.load_registry(str(folder))["field_registries"]
    return np.asarray(fields["labels"]["state_registry"]["categorical_mapping"]).astype(str)


def _with_known_labels(own: Any, column: str, known: Any, settings: Mapping[str, Any]) -> Any:
    """Return the cells with labels that no training cell had set to the unlabelled one; a copy where there are any."""
    values = np.asarray(own.obs[column].astype(str), dtype=object)
    odd = ~np.isin(values.astype(str), known)
    if not odd.any():
        return own
    own = own.copy()
    values[odd] = settings["unlabeled_category"]
    own.obs[column] = values
    own.obs[column] = own.obs[column].astype("category")
    return own


def _is_text(column: Any) -> bool:
    values = column.cat.categories if hasattr(column, "cat") else column
    return all(isinstance(value, str) for value in values)


def _counts(adata: Any, layer: str | None) -> Any:
    """Return the counts of a layer as CSR float32, sorted, without stored zeros; the user's matrix is left alone."""
    from scipy import sparse

    layers = sorted(name for name in adata.layers if name is not None)
    if layer is not None and layer not in layers:
        raise DataError(f"adata has no layer {layer!r}{nearest(str(layer), layers) or '; it has no layers'}")
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None or 0 in matrix.shape:
        shape = "nothing" if matrix is None else f"{matrix.shape[0]} cells x {matrix.shape[1]} genes"
        raise DataError(f"{where} holds {shape}{_elsewhere(adata, layers, layer)}")
    try:
        rows = sparse.csr_matrix(matrix)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} holds no matrix of numbers: {error}") from error
    for start in range(0, len(rows.data), _CHUNK):
        part = rows.data[start : start + _CHUNK]
        wrong = part[~(np.isfinite(part) & (part >= 0) & (np.floor(part) == part))]
        if len(wrong):
            text = f"{where} holds values that are no counts (for example {wrong[0]:g}); scVI needs raw counts"
            raise DataError(f"{text}{_elsewhere(adata, layers, layer)}")
    rows = rows.astype(np.float32)
    if np.shares_memory(rows.data, matrix.data if sparse.issparse(matrix) else matrix):
        rows = rows.copy()
    rows.sum_duplicates()
    rows.eliminate_zeros()
    return rows


def _elsewhere(adata: Any, layers: list[str], used: str | None) -> str:
    """Return where counts may be instead."""
    others = [name for name in layers if name != used]
    if "counts" in others:
        return "; there is a layer named counts: pass layer='counts'"
    if adata.raw is not None:
        return "; if adata.raw has them, pass adata.raw.to_adata()"
    return f"; if one of the layers {', '.join(others)} has them, pass layer=..." if others else ""


def _column(obs: Any, key: str, name: str) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """Return a column of ``obs`` as codes and names."""
    if not isinstance(name, str):
        raise InputError(f"{key} must name a column of adata.obs, not {name!r}")
    if name not in obs.columns:
        raise DataError(f"{key}: adata.obs has no column {name!r}{nearest(str(name), map(str, obs.columns))}")
    missing = int(obs[name].isna().sum())
    if missing:
        raise DataError(f"{key}: {missing} cells have no value in adata.obs[{name!r}]: drop or fill them")
    names, codes = np.unique(np.asarray(obs[name].astype(str), dtype=str), return_inverse=True)
    return codes.astype(np.int32), tuple(map(str, names))


def _numbered(column: Any) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """Return a column as codes and numbers: who is who is not needed."""
    codes = column.factorize()[0].astype(np.int32)
    return codes, tuple(str(number) for number in range(int(codes.max(initial=-1)) + 1))


def _hash(
    counts: Any,
    layer: str | None,
    cells: tuple[str, ...],
    genes: tuple[str, ...],
    columns: Mapping[str, tuple[npt.NDArray[np.int32], tuple[str, ...]]],
    simulated: bool,
) -> str:
    """Return the SHA-256 of the content of a `Table`."""
    digest = hashlib.sha256(f"{_FORMAT}\n{layer}\n{simulated}\n".encode())
    for texts in (cells, genes, *(("", name, *names) for name, (_, names) in sorted(columns.items()))):
        digest.update("\n".join((str(len(texts)), *texts, "")).encode())
    arrays = [(counts.indptr, "<i8"), (counts.indices, "<i8"), (counts.data, "<f4")]
    for array, kind in (*arrays, *((codes, "<i4") for _, (codes, _) in sorted(columns.items()))):
        for start in range(0, len(array), _CHUNK):
            digest.update(array[start : start + _CHUNK].astype(kind).tobytes())
    return digest.hexdigest()


def check_unique(genes: tuple[str, ...]) -> None:
    """Check that genes can be chosen by name.

    Raises:
        InputError: If two have the same name.
    """
    if len(set(genes)) < len(genes):
        raise InputError("genes have the same names: adata.var_names_make_unique() first, or leave n_top_genes out")

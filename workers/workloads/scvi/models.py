"""Untrained models of scvi-tools over prepared cells; the counts are shared, never copied."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from autotune.errors import DataError
from workers.workloads.cells.counts import cell_totals
from workers.workloads.cells.prepared import PreparedCells
from workers.workloads.scvi.space import SEMI_SUPERVISED

FEWEST_LABELLED = 3  # batch normalisation needs more than one cell per batch
_SHAPE = ("n_hidden", "n_latent", "n_layers", "dropout_rate", "dispersion", "use_observed_lib_size")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model with the weights of its best epoch.

    Attributes:
        model: ``scvi.model.SCVI``, ``LinearSCVI`` or ``SCANVI``.
        n_epochs: Number of epochs trained to reach these weights: training for exactly so many gives them again.
        n_epochs_run: Number of epochs trained in all.
    """

    model: Any
    n_epochs: int
    n_epochs_run: int


def build_model(prepared: PreparedCells, config: Mapping[str, Any]) -> Any:
    """Return an untrained model of the class that ``config["model"]`` names: ``scvi.model.SCVI`` and its kin.

    It is set up with the user's names of genes, layer and columns, so that what it saves opens with the user's own
    table. A latent library size gets its prior from the training cells only, and SCANVI sees the labels of training
    cells only, so that held-out cells tell the model nothing.

    Args:
        prepared: Cells and split.
        config: Every parameter and setting, checked.

    Raises:
        DataError: If SCANVI finds too few labels among the training cells.
    """
    import pandas
    import scvi

    kind, column = getattr(scvi.model, config["model"]), prepared.spec.batch
    table = _table(prepared, config)
    keys = {"layer": prepared.spec.layer, "batch_key": column}
    if config["model"] == SEMI_SUPERVISED:
        keys |= {"labels_key": prepared.spec.labels, "unlabeled_category": config["unlabeled_category"]}
    kind.setup_anndata(table, **keys)
    table.obs.index = pandas.Index(table.obs.index.to_numpy())  # without what setup looked up: 60 MB of a million cells
    shape = {name: config[name] for name in _SHAPE}
    model = kind(table, gene_likelihood=config["reconstruction_loss"], **shape)
    if not config["use_observed_lib_size"]:
        codes = np.zeros(len(table), dtype=int) if column is None else table.obs[column].cat.codes.to_numpy()
        _set_library_prior(model.module, prepared, codes)
    return model


def seen_labels(prepared: PreparedCells, unlabelled: str) -> npt.NDArray[np.str_]:
    """Return the labels that SCANVI may see, shape ``(n_cells,)``: those of training cells, `unlabelled` elsewhere.

    Raises:
        DataError: With fewer than two different labels, or three labelled cells, among the training cells.
    """
    column = prepared.spec.labels
    if column is None:
        raise DataError("SCANVI needs labels: set data.labels to a column of obs")
    own = prepared.cells.obs[column]
    labels = np.full(len(own), unlabelled, dtype=np.result_type(own.dtype, np.asarray(unlabelled).dtype))
    labels[prepared.split.train] = own[prepared.split.train]
    known = labels[labels != unlabelled]
    if len(known) < FEWEST_LABELLED or len(np.unique(known)) < 2:
        raise DataError(
            f"SCANVI needs {FEWEST_LABELLED} labelled training cells of 2 labels or more: {column} has {len(known)} of"
            f" {len(np.unique(known))} (cells of {unlabelled!r} count as unlabelled)"
        )
    return labels


def library_prior(
    log_library: npt.NDArray[np.float64], codes: npt.NDArray[Any], n_batches: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and variance of the log library size per batch.

    Args:
        log_library: Log of total counts of training cells, shape ``(n_train,)``.
        codes: Batch of these cells, 0 .. n_batches - 1.
        n_batches: Number of batches; one without training cells (or with equal ones) gets the values of all cells.

    Returns:
        Means and variances, each of shape ``(1, n_batches)``.
    """
    means = np.full((1, n_batches), log_library.mean())
    variances = np.full((1, n_batches), max(log_library.var(), 1e-6))
    for code in np.unique(codes):
        own = log_library[codes == code]
        means[0, code] = own.mean()
        if own.var() > 0:
            variances[0, code] = own.var()
    return means, variances


def _table(prepared: PreparedCells, config: Mapping[str, Any]) -> Any:
    """Return the cells as an AnnData with the columns that the model reads."""
    import anndata
    import pandas

    cells, spec = prepared.cells, prepared.spec
    # One name, one object, for all: a name of its own for each takes 90 MB in every trial of a million cells.
    names = np.empty(len(cells.names), dtype=object)
    names.fill("cell")
    obs = pandas.DataFrame(index=pandas.Index(names))
    if spec.batch is not None:
        obs[spec.batch] = pandas.Categorical(cells.obs[spec.batch])
    if config["model"] == SEMI_SUPERVISED:
        obs[spec.labels] = pandas.Categorical(seen_labels(prepared, config["unlabeled_category"]))
    var = pandas.DataFrame(index=pandas.Index(cells.genes, dtype=str))
    layers = {} if spec.layer is None else {spec.layer: cells.counts}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Observation names are not unique")
        return anndata.AnnData(X=cells.counts, obs=obs, var=var, layers=layers)


def _set_library_prior(module: Any, prepared: PreparedCells, codes: npt.NDArray[Any]) -> None:
    """Give a latent library size the prior of the training cells; `codes` are the batches of all cells."""
    train = prepared.split.train
    log_library = np.log(cell_totals(prepared.cells.counts)[train])
    means, variances = library_prior(log_library, codes[train], module.n_batch)
    module.library_log_means.copy_(torch.from_numpy(means))
    module.library_log_vars.copy_(torch.from_numpy(variances))

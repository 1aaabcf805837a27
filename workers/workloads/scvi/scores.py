"""Scores of a trained model on a part of the cells, as metrics with their errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from workers.reporting import Metric, Result, is_finite
from workers.workloads.cells.prepared import PreparedCells
from workers.workloads.scvi.likelihood import CellScores, score_cells
from workers.workloads.scvi.models import Trained
from workers.workloads.scvi.n_params import n_params
from workers.workloads.scvi.space import LINEAR, SEMI_SUPERVISED
from workers.workloads.scvi.uncertainty import cluster_se, mean_and_se, se_over_draws

_ESTIMATORS = {
    "marginal_ll": "importance sampling from the posterior (on average an upper bound)",
    "elbo": "reconstruction loss + KL, weight 1",
    "reconstruction": "reconstruction loss, mean over draws from the posterior",
    "accuracy": "label of highest probability at the mean of the posterior",
}


@dataclass(frozen=True, kw_only=True)
class PartScores:
    """Scores of one part of the cells.

    Attributes:
        cells: Scores per cell, in the order of the positions.
        metrics: ``marginal_ll``, ``elbo`` and ``reconstruction``, all negative: lower is better, nats per cell.
        se_draws: Standard error of ``marginal_ll`` over draws (jackknife); None for a single draw.
    """

    cells: CellScores
    metrics: dict[str, Metric]
    se_draws: float | None


def score_part(model: Any, positions: npt.NDArray[np.int64], split: str, *, draws: int, epoch: int) -> PartScores:
    """Score the cells at some positions, in evaluation mode. Random: seed before (`training.seed_all`).

    Args:
        model: A trained model of scvi-tools.
        positions: Positions of cells in the model's table, shape ``(n_cells,)``.
        split: Name of the part, written into the metrics.
        draws: Draws from the posterior per cell.
        epoch: Number of epochs trained of the model's weights, written into the metrics.

    Raises:
        FloatingPointError: If a mean is NaN or infinite.
    """
    cells = score_cells(model.module, _batches(model, positions), draws=draws)
    values = {
        "marginal_ll": -cells.log_likelihood,
        "elbo": cells.negative_elbo,
        "reconstruction": cells.reconstruction,
    }
    metrics = {name: _metric(name, value, split, draws=draws, epoch=epoch) for name, value in values.items()}
    return PartScores(cells=cells, metrics=metrics, se_draws=se_over_draws(cells.draw_variance))


def accuracy(
    model: Any, labels: npt.NDArray[np.str_], positions: npt.NDArray[np.int64], split: str, *, epoch: int
) -> Metric | None:
    """Return the share of cells whose label SCANVI gets right; None where no cell has a known label.

    A label that no training cell has counts as wrong.

    Args:
        model: A trained ``scvi.model.SCANVI``.
        labels: True labels of all cells, shape ``(n_cells,)``.
        positions: Positions of the cells to score.
        split: Name of the part, written into the metric.
        epoch: Number of epochs trained, written into the metric.
    """
    known = positions[labels[positions] != model.unlabeled_category_]
    if not len(known):
        return None
    with torch.inference_mode():
        codes = [_predicted(model.module, batch) for batch in _batches(model, known)]
    names = np.asarray(model._label_mapping).astype(str)
    right = torch.from_numpy(names[torch.cat(codes).numpy()] == labels[known])
    return _metric("accuracy", right.double(), split, draws=None, epoch=epoch)


def score_trained(trained: Trained, prepared: PreparedCells, config: Mapping[str, Any]) -> Result:
    """Return metrics and facts of a trained model, on training and validation cells.

    Raises:
        FloatingPointError: If a metric is NaN or infinite.
    """
    split, model, epoch = prepared.split, trained.model, trained.n_epochs
    held_out = score_part(model, split.validation, "validation", draws=config["marginal_ll_draws"], epoch=epoch)
    training = score_part(model, split.train, "train", draws=1, epoch=epoch)
    metrics = {
        "marginal_ll": held_out.metrics["marginal_ll"],
        "elbo_validation": held_out.metrics["elbo"],
        "elbo_train": training.metrics["elbo"],
        "reconstruction_validation": held_out.metrics["reconstruction"],
        "reconstruction_train": training.metrics["reconstruction"],
    }
    if config["model"] == SEMI_SUPERVISED:
        labels = prepared.cells.obs[prepared.spec.labels or ""]
        found = accuracy(model, labels, split.validation, "validation", epoch=epoch)
        metrics |= {} if found is None else {"accuracy_validation": found}
    return Result(metrics=metrics, facts=_facts(trained, prepared, config, held_out))


def se_over_groups(scores: PartScores, prepared: PreparedCells, positions: npt.NDArray[np.int64]) -> float | None:
    """Return the standard error of ``marginal_ll`` over held-out groups; None unless split by groups, two or more."""
    by = prepared.split.by
    return None if by is None else cluster_se(scores.cells.log_likelihood, prepared.cells.obs[by][positions])


def _facts(
    trained: Trained, prepared: PreparedCells, config: Mapping[str, Any], held_out: PartScores
) -> dict[str, Any]:
    """Return what else the tables show."""
    split, model = prepared.split, trained.model
    facts = {
        "n_epochs": trained.n_epochs,
        "n_epochs_run": trained.n_epochs_run,
        "max_epochs": config["max_epochs"],
        "n_params": n_params(
            n_genes=prepared.cells.counts.shape[1],
            n_layers=0 if config["model"] == LINEAR else config["n_layers"],
            n_hidden=config["n_hidden"],
            n_latent=config["n_latent"],
        ),
        "n_weights": sum(weight.numel() for weight in model.module.parameters()),
        "n_train": len(split.train),
        "n_validation": len(split.validation),
        "marginal_ll_se_draws": held_out.se_draws,
    }
    if split.by is not None:
        facts["marginal_ll_se_groups"] = se_over_groups(held_out, prepared, split.validation)
    if config["model"] == SEMI_SUPERVISED:
        facts |= {"n_labels": model.n_labels, "n_labelled": len(model._labeled_indices)}
    return facts


def _predicted(module: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the codes of the likeliest labels of a batch, on the CPU."""
    logits = module.classify(batch["X"].to(module.device), batch_index=batch["batch"].to(module.device))
    return logits.argmax(dim=-1).cpu()


def _batches(model: Any, positions: npt.NDArray[np.int64]) -> Any:
    """Return a data loader over chosen cells, in order."""
    return model._make_data_loader(adata=model.adata, indices=positions, batch_size=128)


def _metric(name: str, values: torch.Tensor, split: str, *, draws: int | None, epoch: int) -> Metric:
    """Return the mean over cells as a `Metric`; the standard error is that over cells.

    Raises:
        FloatingPointError: If the mean is NaN or infinite.
    """
    value, se = mean_and_se(values)
    if not is_finite(value):
        raise FloatingPointError(f"{name} of the {split} cells is {value} at epoch {epoch}")
    return Metric(value=value, se=se, split=split, estimator=_ESTIMATORS[name], draws=draws, epoch=epoch, n=len(values))

"""One trial of scVI: build, train on the training cells, score the best epoch on the held-out cells."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from autotune.errors import ObjectiveError
from workers.reporting import Metric, Result, Trial, is_finite
from workers.workloads.cells.prepared import PreparedCells
from workers.workloads.scvi.best import BestEpoch
from workers.workloads.scvi.callbacks import EpochEnd
from workers.workloads.scvi.likelihood import mean_and_se, score_cells
from workers.workloads.scvi.n_params import n_params
from workers.workloads.scvi.quiet import quiet
from workers.workloads.scvi.resume import BetweenEpochs

_IMPORTANCE_SAMPLING = "importance sampling from the posterior (on average an upper bound)"
_SMALLEST_BATCH = 3  # smaller last batches are skipped, as in scVI of 2019


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model with the weights of its best epoch.

    Attributes:
        model: ``scvi.model.SCVI``.
        n_epochs: Number of epochs trained to reach these weights.
        n_epochs_run: Number of epochs trained in all.
    """

    model: Any
    n_epochs: int
    n_epochs_run: int


def run_trial(trial: Trial, prepared: PreparedCells, config: Mapping[str, Any]) -> Result:
    """Train one configuration and score it.

    Args:
        trial: Gives seed, device and threads, and takes the reports.
        prepared: Cells and split.
        config: Every parameter and setting, checked.

    Raises:
        TrialStopped: Passed on from the trial.
        FloatingPointError: If training or scoring gave NaN or infinity.
        ObjectiveError: If the device is unknown.
    """
    with quiet():
        torch.set_num_threads(trial.threads)
        _seed(trial.seed)
        trained = train(trial, prepared, config)
        _seed(trial.seed)
        return _scored(trained, prepared, config)


def train(trial: Trial, prepared: PreparedCells, config: Mapping[str, Any]) -> Trained:
    """Train a model on exactly the training cells and give it the weights of its best epoch.

    Best is the lowest ``elbo_validation`` (no KL weight). Without ``early_stopping`` all ``max_epochs`` are trained,
    and the best epoch is still the one that counts. Where an earlier attempt left a checkpoint, it goes on from there.

    Raises:
        TrialStopped: Passed on from the trial.
        FloatingPointError: If a loss is NaN or infinite.
    """
    model = build_model(prepared, config)
    accelerator, devices, device = _device(trial.device)
    best = BestEpoch(patience=config["patience"] if config["early_stopping"] else None)
    epoch_end = EpochEnd(trial, best)
    between = BetweenEpochs(trial, epoch_end)
    _fit(model, prepared, config, epoch_end, between, accelerator=accelerator, devices=devices)
    if not epoch_end.best_weights:
        raise FloatingPointError("no epoch gave a finite elbo_validation")
    model.module.to(device)
    model.module.load_state_dict(epoch_end.best_weights)
    model.module.eval()
    model.is_trained_ = True
    model.train_indices, model.validation_indices = prepared.split.train, prepared.split.validation
    return Trained(model=model, n_epochs=best.epoch, n_epochs_run=epoch_end.n_epochs_run)


def build_model(prepared: PreparedCells, config: Mapping[str, Any]) -> Any:
    """Return an untrained ``scvi.model.SCVI``; the counts are shared, not copied.

    A latent library size gets its prior from the training cells only, so that held-out cells tell the model nothing.
    """
    import anndata
    import pandas
    import scvi

    cells, column = prepared.cells, prepared.spec.batch
    obs = pandas.DataFrame(index=pandas.RangeIndex(len(cells.names)).astype(str))
    if column is not None:
        obs["batch"] = pandas.Categorical(cells.obs[column])
    table = anndata.AnnData(X=cells.counts, obs=obs)
    scvi.model.SCVI.setup_anndata(table, batch_key=None if column is None else "batch")
    model = scvi.model.SCVI(
        table,
        n_hidden=config["n_hidden"],
        n_latent=config["n_latent"],
        n_layers=config["n_layers"],
        dropout_rate=config["dropout_rate"],
        dispersion=config["dispersion"],
        gene_likelihood=config["reconstruction_loss"],
        use_observed_lib_size=config["use_observed_lib_size"],
    )
    if not config["use_observed_lib_size"]:
        codes = np.zeros(len(cells.names), dtype=int) if column is None else obs["batch"].cat.codes.to_numpy()
        log_library = np.log(np.asarray(cells.counts.sum(axis=1, dtype=np.float64)).ravel()[prepared.split.train])
        means, variances = library_prior(log_library, codes[prepared.split.train], model.module.n_batch)
        model.module.library_log_means.copy_(torch.from_numpy(means))
        model.module.library_log_vars.copy_(torch.from_numpy(variances))
    return model


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


def _fit(
    model: Any,
    prepared: PreparedCells,
    config: Mapping[str, Any],
    epoch_end: EpochEnd,
    between: BetweenEpochs,
    *,
    accelerator: str,
    devices: Any,
) -> None:
    """Run the training loop with scvi-tools' own data splitter, training plan and trainer.

    ``SCVI.train`` is these three plus a logger and messages on standard output, which trials do without.
    """
    from scvi.dataloaders import DataSplitter
    from scvi.train import Trainer, TrainingPlan

    split, batch_size = prepared.split, config["batch_size"]
    left_out = np.setdiff1d(np.arange(len(prepared.cells.names)), np.union1d(split.train, split.validation))
    splitter = DataSplitter(
        model.adata_manager,
        external_indexing=[split.train, split.validation, left_out],
        batch_size=batch_size,
        drop_last=0 < len(split.train) % batch_size < _SMALLEST_BATCH,
    )
    plan = TrainingPlan(model.module, **_plan_arguments(config))
    plan.n_obs_training, plan.n_obs_validation = len(split.train), len(split.validation)
    trainer = Trainer(
        max_epochs=config["max_epochs"],
        accelerator=accelerator,
        devices=devices,
        benchmark=False,
        check_val_every_n_epoch=1,
        enable_progress_bar=False,
        logger=False,
        callbacks=[epoch_end, between],
    )
    between.load(trainer, model.module)
    try:
        trainer.fit(plan, splitter)
    except ValueError as error:
        if _is_broken(model.module):
            raise FloatingPointError(f"weights became NaN in epoch {epoch_end.n_epochs_run + 1}") from error
        if "found invalid values" in str(error):
            raise FloatingPointError(f"the model's output became NaN in epoch {epoch_end.n_epochs_run + 1}") from error
        raise


def _plan_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of scvi-tools' training plan; its own values where only one of two lr settings is given."""
    arguments = {
        "lr": config["lr"],
        "weight_decay": config["weight_decay"],
        "n_epochs_kl_warmup": config["n_epochs_kl_warmup"],
    }
    plateau = {name: config[name] for name in ("lr_patience", "lr_factor") if config[name] is not None}
    return {**arguments, **plateau, "reduce_lr_on_plateau": bool(plateau)}


def _is_broken(module: torch.nn.Module) -> bool:
    """Return whether any weight is NaN or infinite."""
    return any(not bool(torch.isfinite(weight).all()) for weight in module.state_dict().values())


def _scored(trained: Trained, prepared: PreparedCells, config: Mapping[str, Any]) -> Result:
    """Return metrics and facts of a trained model.

    Raises:
        FloatingPointError: If a metric is NaN or infinite.
    """
    split, module, draws = prepared.split, trained.model.module, config["marginal_ll_draws"]
    held_out = score_cells(module, _batches(trained.model, split.validation), draws=draws)
    training = score_cells(module, _batches(trained.model, split.train), draws=1)
    metrics = {
        "marginal_ll": _metric(-held_out.log_likelihood, "validation", trained, draws, _IMPORTANCE_SAMPLING),
        "elbo_validation": _metric(
            held_out.negative_elbo, "validation", trained, draws, "reconstruction loss + KL, weight 1"
        ),
        "elbo_train": _metric(training.negative_elbo, "train", trained, 1, "reconstruction loss + KL, weight 1"),
    }
    for name, metric in metrics.items():
        if not is_finite(metric.value):
            raise FloatingPointError(f"{name} is {metric.value} at epoch {trained.n_epochs}")
    facts = {
        "n_epochs": trained.n_epochs,
        "n_epochs_run": trained.n_epochs_run,
        "max_epochs": config["max_epochs"],
        "n_params": n_params(
            n_genes=prepared.cells.counts.shape[1],
            n_layers=config["n_layers"],
            n_hidden=config["n_hidden"],
            n_latent=config["n_latent"],
        ),
        "n_weights": sum(weight.numel() for weight in module.parameters()),
        "n_train": len(split.train),
        "n_validation": len(split.validation),
    }
    return Result(metrics=metrics, facts=facts)


def _batches(model: Any, indices: npt.NDArray[np.int64]) -> Any:
    """Return a data loader over chosen cells, in order."""
    return model._make_data_loader(adata=model.adata, indices=indices, batch_size=128)


def _metric(values: torch.Tensor, split: str, trained: Trained, draws: int, estimator: str) -> Metric:
    """Return the mean over cells as a `Metric`; the standard error is that over cells."""
    value, se = mean_and_se(values)
    return Metric(
        value=value, se=se, split=split, estimator=estimator, draws=draws, epoch=trained.n_epochs, n=len(values)
    )


def _seed(seed: int) -> None:
    """Seed Python, numpy and torch; fix cuDNN's choice of algorithms."""
    small = seed % 2**32
    random.seed(small)
    np.random.seed(small)
    torch.manual_seed(small)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def _device(name: str) -> tuple[str, Any, torch.device]:
    """Return Lightning's accelerator and devices, and torch's device.

    Raises:
        ObjectiveError: If it is neither ``cpu`` nor ``cuda:N``.
    """
    if name == "cpu":
        return "cpu", 1, torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index or "0").isdigit():
        raise ObjectiveError(f"unknown device {name!r}: use cpu or cuda:0")
    return "gpu", [int(index or 0)], torch.device("cuda", int(index or 0))

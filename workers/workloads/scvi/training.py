"""One trial of scVI: build, train on the training cells, score the best epoch on the held-out cells."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from autotune.errors import ObjectiveError
from workers.reporting import Result, Trial
from workers.workloads.cells.prepared import PreparedCells
from workers.workloads.scvi.best import BestEpoch
from workers.workloads.scvi.callbacks import PLATEAU, EpochEnd
from workers.workloads.scvi.early import EARLY_METRIC, held_out_batches
from workers.workloads.scvi.loaders import semi_supervised, unsupervised
from workers.workloads.scvi.models import Trained, build_model
from workers.workloads.scvi.quiet import quiet
from workers.workloads.scvi.resume import BetweenEpochs
from workers.workloads.scvi.scores import score_trained
from workers.workloads.scvi.space import SEMI_SUPERVISED

__all__ = ["Trained", "build_model", "run_trial", "seed_all", "train", "train_and_score"]


def run_trial(trial: Trial, prepared: PreparedCells, config: Mapping[str, Any]) -> Result:
    """Train one configuration and score it; see `train_and_score`."""
    return train_and_score(trial, prepared, config)[1]


def train_and_score(trial: Trial, prepared: PreparedCells, config: Mapping[str, Any]) -> tuple[Trained, Result]:
    """Train one configuration and score it on training and validation cells.

    Args:
        trial: Gives seed, device and threads, and takes the reports.
        prepared: Cells and split.
        config: Every parameter and setting, checked.

    Raises:
        TrialStopped: Passed on from the trial.
        FloatingPointError: If training or scoring gave NaN or infinity.
        DataError: If the model asks for labels that are not there.
        ObjectiveError: If the device is unknown.
    """
    with quiet():
        torch.set_num_threads(trial.threads)
        seed_all(trial.seed)
        trained = train(trial, prepared, config)
        seed_all(trial.seed)
        started_s = time.monotonic()
        result = score_trained(trained, prepared, config)
        return trained, replace(result, score_s=time.monotonic() - started_s)


def train(trial: Trial, prepared: PreparedCells, config: Mapping[str, Any]) -> Trained:
    """Train a model on exactly the training cells and give it the weights of its best epoch.

    Best is the lowest ``elbo_validation`` (no KL weight). An epoch makes progress if that or ``elbo_validation_batch``
    is lower than ever before: the training stops after ``patience`` epochs without progress, the learning rate falls
    after ``lr_patience`` such epochs and one. Without ``early_stopping`` all ``max_epochs`` are trained, and the best
    epoch is still the one that counts. Where an earlier attempt left a checkpoint, it goes on from there.

    The caller seeds (`seed_all`) and quietens (`quiet`). A training within a trial must not get its checkpoint.

    Raises:
        TrialStopped: Passed on from the trial.
        FloatingPointError: If a loss is NaN or infinite.
        DataError: If the model asks for labels that are not there.
    """
    model = build_model(prepared, config)
    accelerator, devices, device = _device(trial.device)
    best = BestEpoch(patience=config["patience"] if config["early_stopping"] else None)
    epoch_end = EpochEnd(trial, best)
    if trial.schedule_metric == EARLY_METRIC or config["early_stopping"] or _rate_falls(config):
        epoch_end.early = held_out_batches(model, prepared.split.validation, config["model"])
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


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch; fix cuDNN's choice of algorithms."""
    small = seed % 2**32
    random.seed(small)
    np.random.seed(small)
    torch.manual_seed(small)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


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

    The models' own ``train`` is these three plus a logger and messages on standard output, which trials do without.
    """
    from scvi.train import Trainer

    split = prepared.split
    loaders = semi_supervised if config["model"] == SEMI_SUPERVISED else unsupervised
    data = loaders(model, split.train, split.validation, batch_size=config["batch_size"])
    plan = _plan(model, config)
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
    between.load(trainer, plan)
    try:
        trainer.fit(plan, data)
    except ValueError as error:
        if _is_broken(model.module):
            raise FloatingPointError(f"weights became NaN in epoch {epoch_end.n_epochs_run + 1}") from error
        if "found invalid values" in str(error):
            raise FloatingPointError(f"the model's output became NaN in epoch {epoch_end.n_epochs_run + 1}") from error
        raise


def _plan(model: Any, config: Mapping[str, Any]) -> Any:
    """Return scvi-tools' training plan of a model; the learning rate falls unless one of its two settings is null."""
    from scvi.train import SemiSupervisedTrainingPlan, TrainingPlan

    arguments: dict[str, Any] = {
        "lr": config["lr"],
        "weight_decay": config["weight_decay"],
        "n_epochs_kl_warmup": config["n_epochs_kl_warmup"],
    }
    if _rate_falls(config):
        arguments |= {
            "reduce_lr_on_plateau": True,
            "lr_patience": config["lr_patience"],
            "lr_factor": config["lr_factor"],
            "lr_scheduler_metric": PLATEAU,
        }
    if config["model"] != SEMI_SUPERVISED:
        return TrainingPlan(model.module, **arguments)
    ratio = config["classification_ratio"]
    return SemiSupervisedTrainingPlan(model.module, model.n_labels, classification_ratio=ratio, **arguments)


def _rate_falls(config: Mapping[str, Any]) -> bool:
    """Return whether the learning rate falls when there is no progress."""
    return config["lr_patience"] is not None and config["lr_factor"] is not None


def _is_broken(module: torch.nn.Module) -> bool:
    """Return whether any weight is NaN or infinite."""
    return any(not bool(torch.isfinite(weight).all()) for weight in module.state_dict().values())


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

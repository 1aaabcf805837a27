"""What happens after each epoch: report, keep the best weights, stop."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from workers.reporting import Trial
from workers.workloads.scvi.best import BestEpoch
from workers.workloads.scvi.early import EARLY_METRIC, batch_elbo

PLATEAU = "plateau"
"""What the schedule of the learning rate watches: minus the number of epochs that made progress."""


class EpochEnd(Callback):
    """Reports each epoch, keeps a copy of the best weights and stops when there is no more progress.

    Attributes:
        best: Which epoch is best by ``elbo_validation``, and which made progress.
        best_weights: Copy of the module's state after that epoch.
        n_epochs_run: Number of epochs trained.
        early: Minibatches of held-out cells on which `early.EARLY_METRIC` is computed; empty: it is
            ``elbo_validation``; None: it is not reported.
    """

    def __init__(self, trial: Trial, best: BestEpoch) -> None:
        super().__init__()
        self._trial = trial
        self.early: list[dict[str, torch.Tensor]] | None = None
        self.best = best
        self.best_weights: dict[str, torch.Tensor] = {}
        self.n_epochs_run = 0

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Take the epoch's metrics; the validation pass of this epoch is already done.

        Reported are ``elbo_train`` (mean over the epoch's batches, with dropout, while weights change) and
        ``elbo_validation`` (after the epoch, evaluation mode, one draw per cell), nats per cell, no KL weight; where
        something goes by it also `early.EARLY_METRIC` (for SCANVI that is ``elbo_validation``).

        A held-out ELBO that is no finite number is reported and counts as an epoch without progress, no more: in the
        first epochs the running statistics of batch normalisation lag behind at high learning rates, and the evaluation
        overflows while the training itself is sound and recovers.

        Raises:
            TrialStopped: Passed on from the trial.
            FloatingPointError: If the training's own ELBO is NaN or infinite.
        """
        self.n_epochs_run = trainer.current_epoch + 1
        train = float(trainer.callback_metrics["elbo_train"])
        validation = float(trainer.callback_metrics["elbo_validation"])
        reported = {"elbo_train": train, "elbo_validation": validation}
        steady = math.nan
        if self.early is not None:
            steady = batch_elbo(pl_module.module, self.early) if self.early else validation
            reported[EARLY_METRIC] = steady
        self._trial.report(self.n_epochs_run, **reported)
        if not math.isfinite(train):
            raise FloatingPointError(f"elbo_train is {train} at epoch {self.n_epochs_run}")
        if self.best.update(self.n_epochs_run, validation, steady):
            self.best_weights = copy_weights(pl_module.module)
        pl_module.log(PLATEAU, float(-self.best.progressed))
        if self.best.should_stop:
            trainer.should_stop = True


def copy_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a module's state that later training does not change.

    ``state_dict()`` alone gives live references: loading it back restores the last weights, not the best.
    """
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

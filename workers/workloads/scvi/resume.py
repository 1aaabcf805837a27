"""Checkpoints of a training: all that the next epoch depends on, written between two epochs and put back there.

Lightning's own checkpoints are not used. They are taken before the plateau schedule sees the epoch's metric, they are
pickles, and a training that goes on from one does not draw the random numbers that the uninterrupted one would draw.
Here both ends meet at one place, the start of an epoch: every schedule has taken its step, and the data loader has not
yet drawn the epoch's order.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from workers.reporting import Trial
from workers.workloads.scvi.callbacks import EpochEnd
from workers.workloads.scvi.tensors import read_tensors, write_tensors

FORMAT = 2
_TENSORS, _REST = "state.safetensors", "state.json"
_WEIGHTS, _BEST, _OPTIMIZER, _RANDOM = "weights/", "best/", "optimizer/", "random/"
_BEST_FIELDS = ("epoch", "value", "steady", "waited", "progressed")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class State:
    """A training between two epochs.

    Attributes:
        tensors: Weights of the module, of its best epoch, moments of the optimiser, states of torch's generators.
        rest: What fits into JSON: ``n_epochs``, ``best``, ``lr``, ``schedules``, ``random``, ``moments``.
    """

    tensors: Mapping[str, torch.Tensor]
    rest: Mapping[str, Any]

    @property
    def n_epochs(self) -> int:
        """Number of epochs trained."""
        return int(self.rest["n_epochs"])

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return the tensors below a prefix, without it."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        write_tensors(folder / _TENSORS, self.tensors)
        (folder / _REST).write_text(json.dumps(self.rest))

    @classmethod
    def read(cls, folder: Path) -> State:
        """Return the state in a folder.

        Raises:
            ValueError: If there is none, or another version wrote it.
        """
        try:
            rest = json.loads((folder / _REST).read_text())
            if rest["format"] != FORMAT:
                raise ValueError(f"it has format {rest['format']}, this version knows {FORMAT}")
            return cls(tensors=read_tensors(folder / _TENSORS), rest=rest)
        except (OSError, KeyError, TypeError) as error:
            raise ValueError(f"it is not readable: {error!r}") from error


class BetweenEpochs(Callback):
    """Saves the training's state between epochs, and puts an earlier attempt's state back before the first one.

    Args:
        trial: Says when a checkpoint is wanted.
        epoch_end: Holds the best epoch and its weights.
    """

    def __init__(self, trial: Trial, epoch_end: EpochEnd) -> None:
        super().__init__()
        self._checkpoint = trial.checkpoint
        self._epoch_end = epoch_end
        self._resumed: State | None = None

    def load(self, trainer: Any, plan: Any) -> None:
        """Look for the state of an earlier attempt; where there is one, the trainer goes on behind its last epoch.

        To be called before ``trainer.fit``. A state that does not fit this model, or was trained with another kind of
        schedule, is left alone: the log says so, and the training begins anew.

        Args:
            trainer: Lightning's trainer.
            plan: scvi-tools' training plan.
        """
        folder = self._checkpoint.load()
        if folder is None:
            return
        try:
            state = State.read(folder)
            _check_fit(state, plan.module)
            if bool(state.rest["schedules"]) != plan.reduce_lr_on_plateau:
                raise ValueError("it has another schedule of learning rates")
        except ValueError as error:
            extra = {"action": "checkpoint-unusable"}
            _log.warning("the training begins anew, its checkpoint is not usable: %s", error, extra=extra)
            return
        best = self._epoch_end.best
        for name in _BEST_FIELDS:
            setattr(best, name, state.rest["best"][name])
        self._epoch_end.best_weights = state.part(_WEIGHTS if best.epoch == state.n_epochs else _BEST)
        self._epoch_end.n_epochs_run = state.n_epochs
        trainer.fit_loop.epoch_progress.increment_by(state.n_epochs)
        self._resumed = state

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Put the earlier state back, or save where a checkpoint is wanted.

        Raises:
            TrialStopped: Passed on from the trial's checkpoint.
        """
        if self._resumed is not None:
            restore(self._resumed, trainer, pl_module)
            self._resumed = None
            return
        n_epochs = trainer.current_epoch
        if n_epochs and self._checkpoint.wanted(n_epochs):
            state = capture(trainer, pl_module, self._epoch_end)
            self._checkpoint.save(n_epochs, state.write)


def capture(trainer: Any, pl_module: Any, epoch_end: EpochEnd) -> State:
    """Return the state of a training; the tensors are the live ones: write them before it goes on.

    The copy of the best weights is left out where they are the current ones.
    """
    best, optimizer = epoch_end.best, trainer.optimizers[0]
    moments = optimizer.state_dict()["state"]
    tensors = {f"{_WEIGHTS}{name}": tensor for name, tensor in pl_module.module.state_dict().items()}
    if best.epoch != trainer.current_epoch:
        tensors.update({f"{_BEST}{name}": tensor for name, tensor in epoch_end.best_weights.items()})
    for index, values in moments.items():
        tensors.update({f"{_OPTIMIZER}{index}/{name}": torch.as_tensor(value) for name, value in values.items()})
    tensors[f"{_RANDOM}torch"] = torch.get_rng_state()
    if pl_module.device.type == "cuda":
        tensors[f"{_RANDOM}cuda"] = torch.cuda.get_rng_state(pl_module.device)
    kind, keys, *rest = np.random.get_state(legacy=True)
    return State(
        tensors=tensors,
        rest={
            "format": FORMAT,
            "n_epochs": trainer.current_epoch,
            "best": {name: getattr(best, name) for name in _BEST_FIELDS},
            "lr": [group["lr"] for group in optimizer.param_groups],
            "schedules": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            "random": {"python": random.getstate(), "numpy": [kind, np.asarray(keys).tolist(), *rest]},
        },
    )


def restore(state: State, trainer: Any, pl_module: Any) -> None:
    """Put a state back; the random numbers last, so that nothing here draws any."""
    pl_module.module.load_state_dict(state.part(_WEIGHTS))
    optimizer = trainer.optimizers[0]
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for path, tensor in state.part(_OPTIMIZER).items():
        index, _, name = path.partition("/")
        moments.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    for group, lr in zip(groups, state.rest["lr"], strict=True):
        group["lr"] = lr
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    for config, schedule in zip(trainer.lr_scheduler_configs, state.rest["schedules"], strict=True):
        config.scheduler.load_state_dict(schedule)
    version, numbers, gauss = state.rest["random"]["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state.rest["random"]["numpy"]))
    generators = state.part(_RANDOM)
    torch.set_rng_state(generators["torch"])
    if "cuda" in generators and pl_module.device.type == "cuda":
        torch.cuda.set_rng_state(generators["cuda"], pl_module.device)


def _check_fit(state: State, module: torch.nn.Module) -> None:
    """Check that a state belongs to a model like this.

    Raises:
        ValueError: If a weight is missing, too much, or has another shape.
    """
    here = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for prefix in (_WEIGHTS, _BEST):
        there = {name: tuple(tensor.shape) for name, tensor in state.part(prefix).items()}
        wrong = sorted(name for name, _ in set(here.items()) ^ set(there.items()))
        if wrong and (there or prefix == _WEIGHTS):
            raise ValueError(f"{wrong[0]} does not fit the model")

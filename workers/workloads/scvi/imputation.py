"""The imputation benchmark: counts are lost on purpose, and a model that never saw them says what they were.

Per cell the median of ``|original - predicted|`` over its corrupted entries; then the median and the mean over cells.
``honest`` trains a fresh model on the corrupted counts; ``published`` does what the study of 2019 did, for comparison
only: see docs/imputation.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import Callback

from autotune.errors import DataError
from workers.reporting import NoCheckpoint, Trial
from workers.workloads.cells.corruption import Corruption
from workers.workloads.cells.counts import cell_totals
from workers.workloads.cells.prepared import PreparedCells
from workers.workloads.scvi.likelihood import MAX_ELEMENTS
from workers.workloads.scvi.loaders import unsupervised
from workers.workloads.scvi.models import Trained, build_model
from workers.workloads.scvi.training import seed_all, train

Cells = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

_PUBLISHED_LR = 1e-3
_CELLS = 128  # cells whose rates are predicted at a time


@dataclass(frozen=True, kw_only=True)
class Imputation:
    """Scores of one imputation, in counts; lower is better.

    Attributes:
        median: Median over the scored cells of each cell's median absolute error.
        median_se: Its standard error over cells, None for a single cell.
        mean: Mean over the scored cells of each cell's median absolute error.
        mean_se: Its standard error over cells.
        n_cells: Number of scored cells.
        n_entries: Number of corrupted entries that were compared.
    """

    median: float
    median_se: float | None
    mean: float
    mean_se: float | None
    n_cells: int
    n_entries: int


@dataclass(frozen=True, kw_only=True)
class Imputed:
    """What a model says of corrupted entries.

    Attributes:
        rates: Predicted rates, shape ``(n_entries,)``: see `predict_rates`.
        n_epochs: Number of epochs trained on corrupted counts to the weights that predict.
        n_emptied: Number of training and validation cells that lost all their counts.
    """

    rates: Numbers
    n_epochs: int
    n_emptied: int


def impute(
    trial: Trial,
    prepared: PreparedCells,
    config: Mapping[str, Any],
    corruption: Corruption,
    *,
    cells: Cells,
    draws: int,
    after: int = 0,
) -> Imputed:
    """Train a fresh model on the corrupted counts and predict the corrupted entries of some cells.

    The clean counts are not read: neither for training and early stopping (training and validation cells of the split,
    corrupted) nor for the prediction. A checkpoint of the trial is neither read nor written, because it belongs to a
    model that saw them. To be called within `quiet`.

    Args:
        trial: Gives seed and device; takes the reports, as ``imputation_elbo_train`` and so on.
        prepared: Cells and split.
        config: Every parameter and setting, checked.
        corruption: Of the counts of these cells.
        cells: Sorted positions of the cells to predict.
        draws: Number of draws from the posterior.
        after: Number of steps that the trial has reported; the reports of this training come behind them.

    Raises:
        DataError: If the corruption left a part without a cell that has counts.
        TrialStopped: Passed on from the trial.
        FloatingPointError: If training or prediction gave NaN or infinity.
    """
    corrupted = corrupted_cells(prepared, corruption)
    seed_all(trial.seed)
    trained = train(_reporting_behind(trial, after), corrupted, config)
    seed_all(trial.seed)
    rates = predict_rates(trained.model, corruption, cells=cells, draws=draws)
    return Imputed(rates=rates, n_epochs=trained.n_epochs, n_emptied=_n_emptied(prepared, corrupted))


def impute_as_published(
    trial: Trial,
    prepared: PreparedCells,
    config: Mapping[str, Any],
    corruption: Corruption,
    trained: Trained,
    *,
    cells: Cells,
    after: int = 0,
) -> Imputed:
    """Do as the study of 2019 did: train a copy of the clean model on, and predict with a single draw.

    The copy has seen the clean counts. It is trained for as many epochs as led to its best state, with Adam at 0.001
    whatever the tuned learning rate, no early stopping; its last weights predict.

    Args:
        trial: As for `impute`.
        prepared: Cells and split.
        config: Every parameter and setting, checked; not of SCANVI, which the study did not have.
        corruption: Of the counts of these cells.
        trained: The model trained on the clean counts; not changed.
        cells: Sorted positions of the cells to predict.
        after: As for `impute`.

    Raises:
        DataError: As `impute`.
        TrialStopped: As `impute`.
        FloatingPointError: As `impute`.
    """
    corrupted = corrupted_cells(prepared, corruption)
    seed_all(trial.seed)
    model = build_model(corrupted, config)
    model.module.load_state_dict(trained.model.module.state_dict())
    _train_on(_reporting_behind(trial, after), model, corrupted, config, trained)
    seed_all(trial.seed)
    rates = predict_rates(model, corruption, cells=cells, draws=1)
    return Imputed(rates=rates, n_epochs=trained.n_epochs, n_emptied=_n_emptied(prepared, corrupted))


def corrupted_cells(prepared: PreparedCells, corruption: Corruption) -> PreparedCells:
    """Return the cells with corrupted counts.

    A cell that lost all its counts is left out of training and validation, as every cell without counts is: its
    library size would be zero. It is still scored.

    Raises:
        DataError: If no training or no validation cell is left.
    """
    filled = cell_totals(corruption.counts) > 0
    split = prepared.split
    train_cells, validation = (part[filled[part]] for part in (split.train, split.validation))
    if not len(train_cells) or not len(validation):
        raise DataError(f"imputation with rate {corruption.rate:g} left no counts: lower imputation_rate")
    return replace(
        prepared,
        cells=replace(prepared.cells, counts=corruption.counts, filled=filled),
        split=replace(split, train=train_cells, validation=validation),
    )


def predict_rates(model: Any, corruption: Corruption, *, cells: Cells, draws: int) -> Numbers:
    """Return the posterior mean of the rate at the corrupted entries of some cells.

    ``mean_k rate(z_k, l_k)`` with ``z_k ~ q(z | x')`` (and ``l_k ~ q(l | x')`` when the library size is latent) of the
    corrupted counts ``x'``; the rate is that of the negative binomial or Poisson, library size included and zero
    inflation not (``px_rate`` of scVI). In evaluation mode. No more than a batch of cells is dense at any time.

    Args:
        model: A trained model whose table holds the corrupted counts.
        corruption: Their corruption.
        cells: Sorted positions of the cells.
        draws: Number of draws from the posterior.

    Returns:
        Shape ``(n_entries,)``, in the order of the corruption.

    Raises:
        FloatingPointError: If a rate is NaN or infinite.
    """
    rows, columns, _ = entries_of(corruption, cells)
    wanted, ends = np.unique(rows, return_counts=True)
    ends = np.cumsum(ends)
    rates = np.empty(len(rows))
    module, done, start = model.module, 0, 0
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            for batch in _batches(model, wanted):
                number = len(batch["X"])
                end = int(ends[done + number - 1])
                places = np.searchsorted(wanted[done : done + number], rows[start:end])
                rates[start:end] = _rates_at(module, batch, places, columns[start:end], draws)
                done, start = done + number, end
    finally:
        module.train(was_training)
    if not np.isfinite(rates).all():
        raise FloatingPointError("a predicted rate is NaN or infinite")
    return rates


def entries_of(corruption: Corruption, cells: Cells) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Numbers]:
    """Return the rows, columns and original values of the corrupted entries of some cells."""
    chosen = np.zeros(corruption.counts.shape[0], dtype=bool)
    chosen[cells] = True
    kept = chosen[corruption.rows]
    return corruption.rows[kept], corruption.columns[kept], corruption.original[kept].astype(np.float64)


def score(corruption: Corruption, predicted: Numbers, *, cells: Cells, empty_as_zero: bool = False) -> Imputation:
    """Compare predictions with the original counts.

    Args:
        corruption: What was changed.
        predicted: For the corrupted entries of `cells`, in the order of the corruption.
        cells: Sorted positions of the cells that are scored.
        empty_as_zero: Whether cells without any corrupted entry count as an error of 0, as in the study of 2019. They
            say nothing about the model; otherwise they are not scored.

    Raises:
        DataError: If there is no cell to score.
    """
    rows, _, original = entries_of(corruption, cells)
    errors = cell_medians(rows, np.abs(original - predicted))
    if empty_as_zero:
        errors = np.concatenate([errors, np.zeros(len(cells) - len(errors))])
    check_scorable(len(errors), corruption)
    return Imputation(
        median=float(np.median(errors)),
        median_se=median_se(errors),
        mean=float(errors.mean()),
        mean_se=float(errors.std(ddof=1)) / math.sqrt(len(errors)) if len(errors) > 1 else None,
        n_cells=len(errors),
        n_entries=len(rows),
    )


def check_scorable(n_cells: int, corruption: Corruption) -> None:
    """Raise `DataError` if there is no cell to score."""
    if not n_cells:
        raise DataError(
            f"no held-out cell has a corrupted entry with {corruption.kind} corruption of rate {corruption.rate:g}:"
            " raise imputation_rate"
        )


def cell_medians(rows: npt.NDArray[Any], errors: Numbers) -> Numbers:
    """Return the median error of each cell that has any entry, shape ``(n_cells,)``.

    Args:
        rows: Cell of each entry, sorted.
        errors: Absolute error of each entry.
    """
    _, starts, numbers = np.unique(rows, return_index=True, return_counts=True)
    ordered = errors[np.lexsort((errors, rows))]
    return (ordered[starts + (numbers - 1) // 2] + ordered[starts + numbers // 2]) / 2


def median_se(values: Numbers) -> float | None:
    """Return the standard error of the median: what a bootstrap over cells gives, without drawing.

    The bootstrap distribution of the middle order statistic of n values has weight ``I(i/n) - I((i-1)/n)`` on the
    i-th, with I the beta distribution of parameters ``(n+1)/2`` (Maritz and Jarrett 1978). Exact for odd n, a little
    large for few and even n.

    Args:
        values: Shape ``(n_cells,)``.

    Returns:
        None for a single value.
    """
    from scipy.special import betainc

    n = len(values)
    if n < 2:
        return None
    ordered = np.sort(values) - np.median(values)
    weights = np.diff(betainc((n + 1) / 2, (n + 1) / 2, np.arange(n + 1) / n))
    return math.sqrt(max(0.0, float(weights @ ordered**2) - float(weights @ ordered) ** 2))


def _n_emptied(prepared: PreparedCells, corrupted: PreparedCells) -> int:
    """Return the number of training and validation cells that lost all their counts."""
    was, now = prepared.split, corrupted.split
    return len(was.train) - len(now.train) + len(was.validation) - len(now.validation)


class _Reports(Callback):
    """Reports each epoch of a training that has no early stopping."""

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        self._trial = trial

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Report; raises `TrialStopped`."""
        self._trial.report(trainer.current_epoch + 1, elbo_train=float(trainer.callback_metrics["elbo_train"]))


def _train_on(trial: Trial, model: Any, corrupted: PreparedCells, config: Mapping[str, Any], trained: Trained) -> None:
    """Train a model for `trained.n_epochs` more epochs, as ``Trainer.train(n_epochs)`` of scVI in 2019 did."""
    from scvi.train import Trainer, TrainingPlan

    split, device = corrupted.split, trained.model.module.device
    plan = TrainingPlan(
        model.module,
        lr=_PUBLISHED_LR,
        weight_decay=config["weight_decay"],
        n_epochs_kl_warmup=config["n_epochs_kl_warmup"],
    )
    plan.n_obs_training, plan.n_obs_validation = len(split.train), len(split.validation)
    trainer = Trainer(
        max_epochs=trained.n_epochs,
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=1 if device.type == "cpu" else [device.index or 0],
        benchmark=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        logger=False,
        callbacks=[_Reports(trial)],
    )
    try:
        trainer.fit(plan, unsupervised(model, split.train, split.validation, batch_size=config["batch_size"]))
    except ValueError as error:
        if "found invalid values" in str(error):
            raise FloatingPointError("the model's output became NaN on corrupted counts") from error
        raise
    model.module.to(device)


def _reporting_behind(trial: Trial, after: int) -> Trial:
    """Return the trial for a second training: no checkpoint, and reports behind those of the first, renamed."""

    def send(step: int, values: Mapping[str, float]) -> None:
        trial.report(after + step, **{f"imputation_{name}": value for name, value in values.items()})

    return replace(trial, send=send, checkpoint=NoCheckpoint())


def _batches(model: Any, cells: npt.NDArray[Any]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield minibatches of chosen cells, in order."""
    if len(cells):
        yield from model._make_data_loader(adata=model.adata, indices=cells, batch_size=_CELLS)


def _rates_at(
    module: Any, batch: Mapping[str, torch.Tensor | None], places: npt.NDArray[Any], columns: Any, draws: int
) -> Numbers:
    """Return the mean over draws of the rate at ``(places, columns)`` of one batch."""
    tensors = {name: tensor.to(module.device) for name, tensor in batch.items() if tensor is not None}
    n_cells, n_genes = tensors["X"].shape
    inferred = module.inference(**module._get_inference_input(tensors))
    at = torch.as_tensor(places, device=module.device), torch.as_tensor(columns, device=module.device).long()
    total = torch.zeros(len(places), dtype=torch.float64, device=module.device)
    per_pass = max(1, min(draws, MAX_ELEMENTS // (n_cells * n_genes)))
    for done in range(0, draws, per_pass):
        number = min(per_pass, draws - done)
        rates = _rates(module, tensors, inferred, number).view(number, n_cells, n_genes)
        total += rates[:, at[0], at[1]].sum(dim=0, dtype=torch.float64)
    return (total / draws).cpu().numpy()


def _rates(module: Any, tensors: Mapping[str, torch.Tensor], inferred: Mapping[str, Any], number: int) -> torch.Tensor:
    """Return rates for draws from the posterior, shape ``(number * n_cells, n_genes)``, draw by draw."""
    z = inferred["qz"].sample((number,))
    if inferred["ql"] is None:
        library = inferred["library"].expand(number, *inferred["library"].shape)
    else:
        library = inferred["ql"].sample((number,))
    drawn = {
        "z": module.z_encoder.z_transformation(z.flatten(0, 1)),
        "library": library.flatten(0, 1),
    }
    repeated = {name: tensor.repeat(number, 1) for name, tensor in tensors.items()}
    px = module.generative(**module._get_generative_input(repeated, drawn))["px"]
    return px.rate if module.gene_likelihood == "poisson" else px.mu

"""Trials of scVI from prepared cells to result."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import RandomSampler

from workers.reporting import Trial, TrialStopped
from workers.workloads.cells import matrices
from workers.workloads.fields import defaults
from workers.workloads.registry import get_workload
from workers.workloads.scvi import training
from workers.workloads.scvi.best import BestEpoch
from workers.workloads.scvi.callbacks import PLATEAU, EpochEnd, copy_weights
from workers.workloads.scvi.loaders import Shuffled
from workers.workloads.scvi.quiet import quiet
from workers.workloads.scvi.space import FIELDS

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "n_hidden": 32,
    "n_latent": 5,
    "max_epochs": 4,
    "lr": 0.01,
    "n_epochs_kl_warmup": None,
    "marginal_ll_draws": 20,
}
WORKLOAD = get_workload("scvi")


def run(prepared: Any, **params: Any) -> tuple[Any, list[tuple[int, Mapping[str, float]]]]:
    sent: list[tuple[int, Mapping[str, float]]] = []
    trial = Trial(
        params={**SMALL, **params}, data=prepared, seed=5, send=lambda step, values: sent.append((step, values))
    )
    return WORKLOAD.run(trial), sent


def test_result_says_what_it_is(prepared: Any) -> None:
    result, sent = run(prepared)
    n_train, n_validation = len(prepared.split.train), len(prepared.split.validation)
    assert set(result.metrics) == set(WORKLOAD.metrics()) - {"accuracy_validation"}
    score = result.metrics["marginal_ll"]
    assert (score.split, score.draws, score.n) == ("validation", 20, n_validation)
    assert score.estimator == "importance sampling from the posterior (on average an upper bound)"
    assert score.se is not None
    assert score.epoch == result.facts["n_epochs"]
    assert score.value < result.metrics["elbo_validation"].value
    assert result.metrics["elbo_train"].n == n_train
    for part in ("train", "validation"):
        elbo, reconstruction = result.metrics[f"elbo_{part}"], result.metrics[f"reconstruction_{part}"]
        assert (reconstruction.split, reconstruction.n, reconstruction.draws) == (part, elbo.n, elbo.draws)
        assert reconstruction.value < elbo.value
    assert 0 < result.facts["marginal_ll_se_draws"] < score.se
    assert "marginal_ll_se_groups" not in result.facts
    assert [step for step, _ in sent] == [1, 2, 3, 4]
    assert all(set(values) == {"elbo_train", "elbo_validation", "elbo_validation_batch"} for _, values in sent)
    assert result.facts["n_params"] == 2 * 40 * 32 + 2 * 32 * 5
    assert result.facts["n_weights"] > result.facts["n_params"]
    assert result.facts["n_epochs_run"] == result.facts["max_epochs"] == 4


def test_same_trial_gives_the_same_bits(prepared: Any) -> None:
    first, second = run(prepared), run(prepared)
    assert first == second


@pytest.mark.parametrize(
    "params",
    [
        {"use_observed_lib_size": False},
        {"reconstruction_loss": "nb", "n_layers": 2, "dispersion": "gene-batch"},
        {"dispersion": "gene-cell", "dropout_rate": 0.9},
        {"lr_patience": 0, "lr_factor": 0.5},
        {"lr_patience": None},
        {"reconstruction_loss": "poisson"},
        {"early_stopping": False},
    ],
)
def test_other_settings_train_too(prepared: Any, params: dict[str, Any]) -> None:
    result, _ = run(prepared, max_epochs=2, **params)
    assert np.isfinite(result.metrics["marginal_ll"].value)


def test_best_epoch_is_restored_and_counted_from_one(prepared: Any) -> None:
    """With a huge learning rate the last epoch is not the best: the restored weights must score as that epoch did."""
    result, sent = run(prepared, lr=0.3, max_epochs=8, marginal_ll_draws=100)
    curve = [values["elbo_validation"] for _, values in sent]
    best = int(np.argmin(curve)) + 1
    assert best < len(curve)
    assert result.facts["n_epochs"] == best
    assert result.facts["n_epochs_run"] == len(curve)
    assert curve[-1] > 2 * min(curve)
    assert result.metrics["elbo_validation"].value == pytest.approx(min(curve), rel=0.2)  # the curve has one draw


@pytest.mark.parametrize("plateau", [{}, {"lr_patience": 0, "lr_factor": 0.95}])
def test_training_for_exactly_n_epochs_gives_the_same_weights(prepared: Any, plateau: dict[str, Any]) -> None:
    """Neither one epoch short, nor the last weights instead of the best: both were wrong in scVI's autotune of 2019."""
    config = {**defaults(FIELDS), **SMALL, "lr": 0.3, "max_epochs": 8, "n_epochs_kl_warmup": 20, **plateau}
    first = _weights(prepared, config)
    assert first[0] < 8
    again = _weights(prepared, {**config, "max_epochs": first[0], "early_stopping": False})
    assert again[0] == first[0]
    assert all(torch.equal(again[1][name], tensor) for name, tensor in first[1].items())
    short = _weights(prepared, {**config, "max_epochs": first[0] - 1, "early_stopping": False})
    assert not all(torch.equal(short[1][name], tensor) for name, tensor in first[1].items())


def _weights(prepared: Any, config: dict[str, Any]) -> tuple[int, dict[str, torch.Tensor]]:
    """Return epochs to the best state, and that state."""
    with quiet():
        training.seed_all(5)
        trained = training.train(Trial(params={}), prepared, config)
    return trained.n_epochs, trained.model.module.state_dict()


def test_learning_rate_falls_after_25_epochs_without_progress_to_a_fifth(prepared: Any) -> None:
    config = {**defaults(FIELDS), **SMALL}
    plan = training._plan(training.build_model(prepared, config), config)
    assert (plan.reduce_lr_on_plateau, plan.lr_patience, plan.lr_factor) == (True, 25, 0.2)
    optimizer = plan.configure_optimizers()
    schedule = optimizer["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(52):
        rates.append(optimizer["optimizer"].param_groups[0]["lr"])
        schedule.step(1.0)
    assert rates == [0.01] * 27 + [0.01 * 0.2] * 25  # the first epoch is the best; 26 more without progress
    for name in ("lr_patience", "lr_factor"):
        off = {**config, name: None}
        assert not training._plan(training.build_model(prepared, off), off).reduce_lr_on_plateau


def test_epoch_curve_and_final_score_are_the_same_quantity(prepared: Any) -> None:
    result, sent = run(prepared, max_epochs=6, marginal_ll_draws=100)
    curve = [values["elbo_validation"] for _, values in sent]
    assert result.metrics["elbo_validation"].value == pytest.approx(min(curve), rel=0.01)


def test_copied_weights_do_not_follow_training() -> None:
    layer = torch.nn.Linear(2, 1)
    kept, live = copy_weights(layer), layer.state_dict()
    with torch.no_grad():
        layer.weight.add_(1.0)
    assert torch.equal(live["weight"], layer.weight)  # the trap: live references
    assert not torch.equal(kept["weight"], layer.weight)


def test_early_stopping_waits_for_patience(prepared: Any) -> None:
    result, sent = run(prepared, lr=0.3, max_epochs=40, patience=2)
    plain, steady = ([values[name] for _, values in sent] for name in ("elbo_validation", "elbo_validation_batch"))
    last = max(int(np.argmin(plain)), int(np.argmin(steady))) + 1
    assert len(sent) < 40
    assert len(sent) == last + 2
    assert result.facts["n_epochs"] == int(np.argmin(plain)) + 1


def test_learning_rate_follows_the_steady_score_too(prepared: Any) -> None:
    """Until an epoch makes no progress in either score the rate stays; each such epoch halves it here."""
    rates: list[float] = []
    original = EpochEnd.on_train_epoch_end

    def spy(self: Any, trainer: Any, pl_module: Any) -> None:
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        original(self, trainer, pl_module)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochEnd, "on_train_epoch_end", spy)
        _, sent = run(prepared, lr=0.2, max_epochs=12, lr_patience=0, lr_factor=0.5, patience=50)
    best, expected, rate = {}, [], 0.2
    for _, values in sent:
        expected.append(rate)
        names = ("elbo_validation", "elbo_validation_batch")
        progress = [values[name] < best.get(name, float("inf")) for name in names]
        best = {name: min(values[name], best.get(name, float("inf"))) for name in names}
        rate = rate if any(progress) else rate / 2
    assert rates == pytest.approx(expected)
    assert rates[-1] < 0.2


def test_trains_on_exactly_the_training_cells(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training batch is traced back to its cells by its counts."""
    from scvi.train import TrainingPlan

    rows = {row.tobytes(): i for i, row in enumerate(prepared.cells.counts.toarray())}
    seen: dict[str, list[int]] = {"train": [], "validation": []}
    for part, name in (("train", "training_step"), ("validation", "validation_step")):
        original = getattr(TrainingPlan, name)

        def step(self: Any, batch: Any, index: int, *, part: str = part, original: Any = original) -> Any:
            seen[part] += [rows[row.numpy().tobytes()] for row in batch["X"]]
            return original(self, batch, index)

        monkeypatch.setattr(TrainingPlan, name, step)
    run(prepared, max_epochs=1)
    assert len(rows) == len(prepared.cells.names)
    assert sorted(seen["train"]) == list(prepared.split.train)
    assert sorted(seen["validation"]) == list(prepared.split.validation)


def test_counts_are_shared_not_copied(prepared: Any) -> None:
    model = training.build_model(prepared, {**defaults(FIELDS), **SMALL})
    assert np.shares_memory(model.adata.X.data, prepared.cells.counts.data)


@pytest.mark.parametrize("latent", [True, False])
def test_counts_mapped_in_a_byte_each_train_to_the_same_bits(
    cells_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, latent: bool
) -> None:
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path))
    data, split = {"path": str(cells_path), "batch": "donor_id"}, {"validation": 0.3, "seed": 1}
    plain = WORKLOAD.prepare(data, split)
    monkeypatch.setattr(matrices, "SMALL_BYTES", 100)
    mapped = WORKLOAD.prepare(data, split)
    assert (plain.cells.counts.dtype, mapped.cells.counts.dtype) == (np.float32, np.uint8)
    settings = {"max_epochs": 3, "use_observed_lib_size": not latent}
    assert run(mapped, **settings) == run(plain, **settings)


def test_training_cells_are_shuffled_as_torch_would(prepared: Any) -> None:
    """The sampler that keeps no list draws the same random numbers, for the same order, and leaves the same ones."""
    source = np.arange(40_000)
    torch.manual_seed(3)
    expected, after = list(RandomSampler(source)), torch.rand(3)
    torch.manual_seed(3)
    assert list(Shuffled(source)) == expected
    assert torch.equal(torch.rand(3), after)
    assert sorted(expected) == list(range(40_000))


def test_cells_without_counts_are_left_out(tmp_path: Path) -> None:
    import anndata

    from workers.workloads.cells.simulate import simulate_cells

    cells = simulate_cells(120, 30, 2)
    counts = cells.X.tolil()
    counts[5] = 0
    anndata.AnnData(X=counts.tocsr(), obs=cells.obs).write_h5ad(tmp_path / "a.h5ad")
    cells_left = WORKLOAD.prepare({"path": str(tmp_path / "a.h5ad")}, {})
    result, _ = run(cells_left, max_epochs=1, use_observed_lib_size=False)
    assert result.facts["n_train"] + result.facts["n_validation"] == 119
    assert np.isfinite(result.metrics["marginal_ll"].value)


def test_last_batch_of_one_cell_is_skipped(prepared: Any) -> None:
    result, _ = run(prepared, max_epochs=1, batch_size=(len(prepared.split.train) - 1) // 2)
    assert np.isfinite(result.metrics["marginal_ll"].value)


def test_stop_passes_out_of_the_training_loop(prepared: Any, capfd: pytest.CaptureFixture[str]) -> None:
    def stop(step: int, values: Mapping[str, float]) -> None:
        if step == 2:
            raise TrialStopped("cancelled")

    with pytest.raises(TrialStopped, match="cancelled"):
        WORKLOAD.run(Trial(params=SMALL, data=prepared, send=stop))
    assert capfd.readouterr() == ("", "")


def test_diverged_training_ends_promptly_as_not_a_number(prepared: Any) -> None:
    sent: list[int] = []
    trial = Trial(
        params={**SMALL, "lr": 1e30, "max_epochs": 50}, data=prepared, send=lambda step, values: sent.append(step)
    )
    with pytest.raises(FloatingPointError, match=r"epoch|NaN"):
        WORKLOAD.run(trial)
    assert len(sent) <= 2


class _Plan:
    module = torch.nn.Linear(1, 1)

    def log(self, name: str, value: float) -> None:
        self.logged = (name, value)


class _Trainer:
    current_epoch = 2
    should_stop = False

    def __init__(self, train: float, validation: float) -> None:
        self.callback_metrics = {"elbo_train": torch.tensor(train), "elbo_validation": torch.tensor(validation)}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_training_metric_that_is_no_number_is_reported_then_ends_the_trial(value: float) -> None:
    sent: list[int] = []
    callback = EpochEnd(Trial(params={}, send=lambda step, values: sent.append(step)), BestEpoch(patience=None))
    with pytest.raises(FloatingPointError, match=r"elbo_train is .* at epoch 3"):
        callback.on_train_epoch_end(_Trainer(value, 1.0), None)
    assert sent == [3]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_held_out_metric_that_is_no_number_is_an_epoch_without_progress(value: float) -> None:
    sent: list[float] = []
    callback = EpochEnd(
        Trial(params={}, send=lambda step, values: sent.append(values["elbo_validation"])), BestEpoch(patience=2)
    )
    trainer, plan = _Trainer(1.0, value), _Plan()
    callback.on_train_epoch_end(trainer, plan)
    assert (callback.best.epoch, callback.best.waited, trainer.should_stop) == (0, 1, False)
    callback.on_train_epoch_end(trainer, plan)
    assert (callback.best_weights, trainer.should_stop, len(sent)) == ({}, True, 2)
    assert plan.logged == (PLATEAU, 0.0)


def test_error_that_has_nothing_to_do_with_nan_is_not_renamed(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from scvi.train import TrainingPlan

    def broken(self: Any, batch: Any, index: int) -> Any:
        raise ValueError("a bug")

    monkeypatch.setattr(TrainingPlan, "training_step", broken)
    with pytest.raises(ValueError, match="a bug"):
        run(prepared, max_epochs=1)


def test_trial_is_silent_and_leaves_no_files(
    prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    level = logging.getLogger("lightning.pytorch").level
    run(prepared, max_epochs=2, lr=0.3, patience=1)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger("lightning.pytorch").level == level


FORK = """
import os, sys, threading
from workers.workloads.registry import get_workload
import importlib
workload = get_workload("scvi")
for module in workload.preload:
    importlib.import_module(module)
before = len(os.listdir("/proc/self/task"))
prepared = workload.prepare({"path": sys.argv[1], "batch": "donor_id"}, {"by": "donor_id"})
import torch
assert len(os.listdir("/proc/self/task")) == before, "prepare started threads"
assert not torch.cuda.is_initialized()
from workers.reporting import Trial
children = []
for number in range(2):
    pid = os.fork()
    if pid == 0:
        params = {"max_epochs": 1, "n_hidden": 16, "marginal_ll_draws": 5}
        result = workload.run(Trial(params=params, data=prepared, seed=number, threads=2))
        sys.stdout.write(f"{result.metrics['marginal_ll'].value:.3f}\\n")
        sys.stdout.flush()
        os._exit(0)
    children.append(pid)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and reads /proc")
def test_prepared_cells_survive_a_fork(cells_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(cells_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.split()) == 2

"""A training of scVI that is interrupted and goes on in another process ends as the uninterrupted one, bit for bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from workers.checkpoints.folder import latest
from workers.checkpoints.keeper import Keeper
from workers.reporting import Trial, TrialStopped
from workers.workloads.registry import get_workload
from workers.workloads.scvi.best import BestEpoch
from workers.workloads.scvi.resume import State, capture, restore
from workers.workloads.scvi.tensors import read_tensors, write_tensors

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "n_hidden": 32,
    "n_latent": 5,
    "dropout_rate": 0.3,
    "reconstruction_loss": "zinb",
    "batch_size": 64,
    "lr_patience": 0,
    "lr_factor": 0.5,
    "n_epochs_kl_warmup": 10,
    "marginal_ll_draws": 20,
}
STOPS_EARLY: dict[str, Any] = {**SMALL, "max_epochs": 40, "n_layers": 1, "lr": 0.2, "patience": 3}
TO_THE_END: dict[str, Any] = {**SMALL, "max_epochs": 12, "n_layers": 2, "lr": 0.03, "use_observed_lib_size": False}
Curve = list[tuple[int, Mapping[str, float]]]

FORKS = """
import importlib, json, os, random, sys
from pathlib import Path
from workers.workloads.registry import get_workload
workload = get_workload("scvi")
for module in workload.preload:
    importlib.import_module(module)
data, params, home, runs = (json.loads(text) for text in sys.argv[1:])
prepared = workload.prepare(data, {"validation": 0.3, "seed": 1})
import numpy, torch
from workers.checkpoints.folder import latest
from workers.checkpoints.keeper import Keeper
from workers.reporting import Trial, TrialStopped

def attempt(run, number, target):
    root = Path(home) / run / str(number)
    before = latest(Path(home) / run / str(number - 1))
    assert (before is None) == (number == 0)
    keeper = Keeper(root, earlier=before and before.folder, target=target)
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(os.getpid())
    curve = []
    trial = Trial(params=params, data=prepared, seed=5, checkpoint=keeper, threads=2,
                  send=lambda step, values: curve.append((step, dict(values))))
    end = {}
    try:
        result = workload.run(trial)
        end = {"metrics": {k: [m.value, m.se, m.epoch] for k, m in result.metrics.items()}, "facts": result.facts}
    except TrialStopped:
        end = {"paused_at": keeper.paused_at, "saved_at": keeper.saved_at}
    root.mkdir(parents=True, exist_ok=True)
    (root / "end.json").write_text(json.dumps({"curve": curve, **end}))

for run, targets in runs.items():
    for number, target in enumerate([*targets, None]):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                attempt(run, number, target)
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            sys.exit(f"{run} {number}")
"""


def in_processes(
    home: Path, data: Mapping[str, Any], params: Mapping[str, Any], runs: Mapping[str, list[int]]
) -> dict[str, list[dict[str, Any]]]:
    """Run trainings that pause at the named epochs, each attempt in a process of its own; return how each ended."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS, *(json.dumps(value) for value in (data, params, str(home), runs))],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return {
        run: [json.loads((home / run / str(number) / "end.json").read_text()) for number in range(len(targets) + 1)]
        for run, targets in runs.items()
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")
@pytest.mark.parametrize(
    ("params", "columns"),
    [
        (STOPS_EARLY, {}),
        (TO_THE_END, {"batch": "donor_id"}),
        ({**TO_THE_END, "model": "LinearSCVI", "reconstruction_loss": "poisson"}, {"batch": "donor_id"}),
        ({**TO_THE_END, "model": "SCANVI", "unlabeled_category": "type_0"}, {"labels": "cell_type"}),
    ],
    ids=["stops early", "to the end", "LinearSCVI", "SCANVI"],
)
def test_interrupted_training_ends_as_the_uninterrupted_one(
    cells_path: Path, tmp_path: Path, params: dict[str, Any], columns: dict[str, str]
) -> None:
    data = {"path": str(cells_path), "genes": {"top_variance": 40}, **columns}
    points = sorted(random.Random(12).sample(range(1, 8), 5))
    runs = {"whole": [], "five times": points, "once": [points[2]]}
    ends = in_processes(tmp_path, data, params, runs)
    whole = ends["whole"][0]
    assert (whole["facts"]["n_epochs_run"] < params["max_epochs"]) == (params is STOPS_EARLY)
    assert whole["facts"]["n_epochs_run"] > points[-1]
    for run, targets in runs.items():
        *paused, last = ends[run]
        assert [end["paused_at"] for end in paused] == [end["saved_at"] for end in paused] == targets
        assert last["curve"][0][0] == (targets[-1] + 1 if targets else 1)
        assert [report for end in ends[run] for report in end["curve"]] == whole["curve"], run
        assert (last["metrics"], last["facts"]) == (whole["metrics"], whole["facts"]), run
    states = [_state(tmp_path / "five times" / str(number)) for number in range(len(points))]
    assert params is STOPS_EARLY or states[-1]["lr"][0] < params["lr"]  # the plateau schedule had its say
    if params is STOPS_EARLY:
        assert any(s["best"]["epoch"] < s["n_epochs"] for s in states)  # the best weights were not the last ones


def _state(root: Path) -> dict[str, Any]:
    """Return what a checkpoint holds beside tensors."""
    kept = latest(root)
    assert kept is not None
    state: dict[str, Any] = json.loads((kept.files / "state.json").read_text())
    return state


def trained(prepared: Any, keeper: Keeper, **params: Any) -> tuple[Any, Curve]:
    """Train in this process; return the result, or None for a pause, and the curve."""
    curve: Curve = []
    trial = Trial(
        params={**TO_THE_END, **params}, data=prepared, seed=5, checkpoint=keeper,
        send=lambda step, values: curve.append((step, values)),
    )  # fmt: skip
    try:
        return get_workload("scvi").run(trial), curve
    except TrialStopped:
        return None, curve


def test_every_few_epochs_only_the_newest_is_kept(prepared: Any, tmp_path: Path) -> None:
    saved: list[int] = []
    keeper = Keeper(tmp_path, every=2, saved=lambda step, folder: saved.append(step))
    result, _ = trained(prepared, keeper, max_epochs=5)
    assert result.facts["n_epochs_run"] == 5
    assert saved == [2, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["step-4"]


def test_asked_for_ends_after_the_epoch(prepared: Any, tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    keeper.ask("the worker was stopped")
    result, curve = trained(prepared, keeper)
    assert (result, len(curve), keeper.saved_at, keeper.paused_at) == (None, 1, 1, None)


@pytest.mark.parametrize("other", [{"n_hidden": 16}, {"model": "LinearSCVI"}, {"lr_patience": None}])
def test_checkpoint_of_another_model_is_left_alone(
    prepared: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, other: dict[str, Any]
) -> None:
    assert trained(prepared, Keeper(tmp_path / "a", target=1), **other)[0] is None
    earlier = latest(tmp_path / "a")
    assert earlier is not None
    result, curve = trained(prepared, Keeper(tmp_path / "b", earlier=earlier.folder), max_epochs=2)
    assert result.facts["n_epochs_run"] == len(curve) == 2
    assert "begins anew" in caplog.text


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_all_generators_are_put_back(tmp_path: Path, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    layer = torch.nn.Linear(2, 1, device=device)
    plan = SimpleNamespace(module=layer, device=torch.device(device))
    optimizer = torch.optim.Adam(layer.parameters())
    trainer = SimpleNamespace(optimizers=[optimizer], lr_scheduler_configs=[], current_epoch=1)
    epoch_end: Any = SimpleNamespace(best=BestEpoch(patience=None, epoch=1), best_weights={})

    def draw() -> tuple[float, ...]:
        numbers = (float(torch.randn(1)), float(torch.randn(1, device=device)))
        return (random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), *numbers)

    draw()  # leaves half a pair of normal numbers with Python's and numpy's generators
    capture(trainer, plan, epoch_end).write(tmp_path)
    drawn = draw()
    draw()
    restore(State.read(tmp_path), trainer, plan)
    assert draw() == drawn


def test_tensors_are_those_of_any_safetensors_library(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {
        "a": torch.randn(3, 4),
        "b/c": torch.arange(5),
        "empty": torch.zeros(0, 2),
        "step": torch.tensor(7.0),
        "flags": torch.tensor([True, False, True]),
        "transposed": torch.randn(2, 5, dtype=torch.float64).T,
    }
    write_tensors(tmp_path / "own", tensors)
    safetensors.save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "theirs")
    for found in (
        safetensors.load_file(tmp_path / "own"),
        read_tensors(tmp_path / "own"),
        read_tensors(tmp_path / "theirs"),
    ):
        assert set(found) == set(tensors)
        assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in tensors.items())


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}x"])
def test_broken_tensors_are_a_value_error_or_nothing(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "state.safetensors"
    file.write_bytes(damage)
    if damage.endswith(b"x"):
        assert read_tensors(file) == {}
        return
    with pytest.raises(ValueError, match=r"tensors|Expecting"):
        read_tensors(file)


def test_offsets_beyond_the_file_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (tmp_path / "t").write_bytes(len(header).to_bytes(8, "little") + header + bytes(np.zeros(2, np.float32)))
    with pytest.raises(ValueError, match="not readable"):
        read_tensors(tmp_path / "t")

"""What a worker trained is trained again to the same bits: by ``replay``, by ``best --save``, after interruptions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from autotune.store.mongo import MongoStore
from autotune.trial import Trial, TrialState
from workers.workloads.cells.simulate import simulate_cells

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]

Cli = Callable[..., subprocess.CompletedProcess[str]]

CAMPAIGN: dict[str, Any] = {
    "name": "rungs",
    "objective": "scvi",
    "data": {"path": "cells.h5ad", "genes": {"top_variance": 40}, "batch": "donor_id"},
    "search": {"algorithm": "random", "seed": 1},
    "schedule": {"algorithm": "asha", "minimum": 2, "eta": 3},
    "budget": {"max_trials": 5},
    "fixed": {"max_epochs": 6, "marginal_ll_draws": 20, "n_hidden": 32, "use_observed_lib_size": False},
}

PLAIN = """
import sys
import anndata, scvi, json, numpy
adata = anndata.read_h5ad(sys.argv[1])
folder = sys.argv[2]
genes = json.load(open(f"{folder}/autotune.json"))["genes"]
model = scvi.model.SCVI.load(folder, adata=adata[:, genes].copy())
numpy.save(sys.argv[3], model.get_latent_representation())
assert not {"autotune", "workers"} & set(sys.modules)
"""


def _latent(folder: Path, model: str) -> Any:
    """Return what scvi-tools alone, in another process, makes of a saved model."""
    where = [str(folder / "cells.h5ad"), str(folder / model), str(folder / f"{model}.npy")]
    done = subprocess.run([sys.executable, "-c", PLAIN, *where], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.load(folder / f"{model}.npy")


def _score_line(trial: Trial) -> str:
    return f"marginal_ll of trial {trial.number}: {trial.score!r} then, {trial.score!r} now"


def test_the_same_bits_again(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    cells = simulate_cells(300, 60, 3, seed=3)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "rungs.yaml").write_text(yaml.safe_dump(CAMPAIGN))
    done = run_cli("launch", "rungs.yaml", "--devices", "cpu", "--slots-per-device", "2", timeout_s=500)
    assert done.returncode == 0, done.stderr
    best = store.trials.best("rungs", "min")
    assert best is not None
    assert len(best.attempts) > 1, "it was paused at a rung, and went on"
    assert best.checkpoint is not None
    cores = max(1, len(os.sched_getaffinity(0)) // 2)
    assert {attempt.threads for attempt in best.attempts} == {cores}

    done = run_cli("replay", "rungs", str(best.number))
    assert done.stdout.splitlines() == [_score_line(best), "equal within 0 (difference 0)"], done.stderr
    assert done.returncode == 0

    for place in ("kept", "anew"):
        done = run_cli("best", "rungs", "--save", place)
        assert done.returncode == 0, done.stderr
        assert _score_line(best) in done.stdout.splitlines()
        store.connection.database["artifacts.chunks"].delete_many({})
    latent = _latent(tmp_path, "kept")
    assert latent.shape == (300, best.params["n_latent"])
    np.testing.assert_array_equal(latent, _latent(tmp_path, "anew"))
    printed = done.stdout.splitlines()
    lines = [line.strip() for line in printed[printed.index("wrote anew; open it with:") + 1 :]]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*lines, "print(model.get_latent_representation().shape)"])],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == str(latent.shape), done.stderr

    ended = store.trials.find("rungs", [TrialState.FINISHED, TrialState.PRUNED])
    assert len(ended) == 5

"""A benchmark driven through the command line, as a person would; the objective sees cells, sealed and opened."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import autotune.local.benchmark as local
from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState, TrialState
from tests.acceptance.support import background, one_line, until, write_campaign

Cli = Callable[..., subprocess.CompletedProcess[str]]

OBJECTIVE = """
import time
from pathlib import Path

import numpy as np

from workers.reporting import Metric, Result

default_params = {"x": 0.0}


def train(trial):
    cells = len(trial.data.split.test)
    return Result(metrics={"loss": Metric(value=shape(trial), se=0.01, split="validation")}, facts={"cells": cells})


def evaluate(trial, settings):
    trial.report(1, loss=0.0)
    while Path("wait").exists():
        time.sleep(0.02)
        trial.report(2, loss=0.0)
    cells = len(trial.data.split.test)
    test = Metric(value=shape(trial) + 0.5, se=0.01, split="test", n=cells)
    return Result(metrics={"loss_test": test, "loss": Metric(value=shape(trial))}, facts={"cells": cells, **settings})


def evaluation_settings():
    return {"imputation": "uniform", "imputation_rate": 0.1}


def shape(trial):
    return (trial.params["x"] - 1) ** 2 + np.random.default_rng(trial.seed).normal(0, 0.01)
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file of cells."""
    pytest.importorskip("anndata")
    from workers.workloads.cells.simulate import simulate_cells

    file = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    simulate_cells(80, 40, 2, seed=1).write_h5ad(file)
    return file


def write(folder: Path, cells: Path, **changes: object) -> str:
    """Write the campaign file ``sealed`` and its objective."""
    (folder / "evaluated.py").write_text(OBJECTIVE)
    split = {"validation": 0.25, "test": 0.25, "seed": 1}
    chosen = {"name": "sealed", "objective": "evaluated:train", "data": {"path": str(cells)}, "split": split}
    return str(write_campaign(folder, **{**chosen, "budget": {"max_trials": 6}, **changes}))


def test_from_campaign_to_table(run_cli: Cli, store: MongoStore, tmp_path: Path, cells: Path) -> None:
    launched = run_cli("launch", write(tmp_path, cells), "--slots-per-device", "2")
    assert launched.returncode == 0, launched.stderr
    assert {t.facts["cells"] for t in store.trials.find("sealed")} == {0}, "the search does not see the test part"

    done = run_cli("benchmark", "sealed", "--seeds", "3", "--rate", "0.2", "--slots-per-device", "2", "--out", "tables")
    assert done.returncode == 0, done.stderr
    assert "Benchmark of sealed." in done.stdout
    assert "The test part was opened at" in done.stdout
    trials = store.trials.find("sealed-benchmark")
    assert [t.number for t in trials] == list(range(6))
    assert {t.state for t in trials} == {TrialState.FINISHED}
    assert {t.facts["cells"] for t in trials} == {20}
    assert {t.facts["imputation_rate"] for t in trials} == {0.2}
    assert {p.name for p in (tmp_path / "tables").iterdir()} >= {"benchmark.csv", "benchmark.md", "benchmark.tex"}

    again = json.loads(run_cli("benchmark", "sealed", "--format", "json").stdout)
    assert [row["run"] for row in again["runs"]] == ["default", "tuned"]
    assert again["runs"][1]["verdict"] == "better"
    assert again["runs"][1]["optimism gap"] == pytest.approx(-0.5, abs=0.1)
    assert again["state"] == "finished"
    assert len(store.trials.find("sealed-benchmark")) == 6
    for format_ in ("csv", "markdown", "latex"):
        assert "tuned" in run_cli("benchmark", "sealed", "--format", format_).stdout

    replayed = run_cli("replay", "sealed-benchmark", "1", "--devices", "cpu")
    assert replayed.returncode == 0, replayed.stderr
    assert "loss_test of trial 1" in replayed.stdout
    for words in (
        ["extend", "sealed", "--trials", "9"], ["enqueue", "sealed", "x=0.5"], ["retry", "sealed", "--all"],
        ["resume", "sealed"],
    ):  # fmt: skip
        refused = run_cli(*words)
        assert refused.returncode == 2
        assert "its test part has been opened by a benchmark" in one_line(refused.stderr)
    other = run_cli("benchmark", "sealed", "--rate", "0.3")
    assert other.returncode == 2
    assert "the test part is scored once" in one_line(other.stderr)
    assert "is a benchmark itself" in one_line(run_cli("benchmark", "sealed-benchmark").stderr)
    for words in (["status", "sealed-benchmark"], ["trials", "sealed-benchmark"], ["report", "sealed-benchmark"]):
        assert run_cli(*words).returncode == 0
    assert run_cli("launch", str(tmp_path / "campaign.yaml")).returncode == 0, "a finished campaign is shown as before"


def test_what_is_refused_in_one_line(run_cli: Cli, store: MongoStore, tmp_path: Path, cells: Path) -> None:
    assert run_cli("benchmark", "nobody").returncode == 3
    file = write(tmp_path, cells, split={"validation": 0.25})
    opened = run_cli("launch", file, "--set", "split.unsealed=true")
    assert opened.returncode == 2
    assert "split.unsealed is not for campaign files" in one_line(opened.stderr)
    assert run_cli("launch", file, "--set", "budget.max_trials=2").returncode == 0
    refused = run_cli("benchmark", "sealed")
    assert refused.returncode == 2
    assert "has no test part; launch it under another name with split: {test: 0.2}" in one_line(refused.stderr)
    store.campaigns.set_state("sealed", CampaignState.PAUSED, expected=[CampaignState.FINISHED])
    early = run_cli("benchmark", "sealed")
    assert early.returncode == 2
    assert "is paused; its test part is opened when it is finished" in one_line(early.stderr)
    assert run_cli("benchmark", "sealed", "--seeds", "0").returncode == 2


def test_ctrl_c_and_again(run_cli: Cli, store: MongoStore, store_uri: str, tmp_path: Path, cells: Path) -> None:
    assert run_cli("launch", write(tmp_path, cells, budget={"max_trials": 2})).returncode == 0
    (tmp_path / "wait").touch()
    with background(tmp_path, store_uri, "benchmark", "sealed", "--seeds", "2") as command:
        until(lambda: store.trials.counts("sealed-benchmark").get(TrialState.RUNNING) == 1)
        command.send_signal(signal.SIGINT)
        assert command.wait(60) == 130
        assert command.stderr is not None
        assert "go on with: autotune benchmark sealed" in command.stderr.read()
    assert store.campaigns.get("sealed-benchmark").state is CampaignState.PAUSED
    (tmp_path / "wait").unlink()
    detached = run_cli("benchmark", "sealed", "--detach")
    assert detached.returncode == 0, detached.stderr
    until(lambda: store.campaigns.get("sealed-benchmark").state is CampaignState.FINISHED, 120)
    until(lambda: store.workers.live() == [])
    trials = store.trials.find("sealed-benchmark")
    assert [(t.number, t.state) for t in trials] == [(n, TrialState.FINISHED) for n in range(4)]


def test_from_python(
    run_cli: Cli, store: MongoStore, tmp_path: Path, cells: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_cli("launch", write(tmp_path, cells, budget={"max_trials": 2})).returncode == 0
    monkeypatch.chdir(tmp_path)
    made = local.benchmark("sealed", store=store, seeds=2, settings={"imputation": None}, devices="cpu")
    assert made.table["seeds"].tolist() == [2, 2]
    assert made.table["verdict"].notna().tolist() == [False, True]

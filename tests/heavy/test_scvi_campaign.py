"""A real scVI campaign on real cells, through the command line, with a worker killed in the middle."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from autotune.store.mongo import MongoStore
from autotune.trial import TrialState
from tests.acceptance.support import background, until
from tests.objectives.support import run_out

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]

CAMPAIGN = """
name: cortex
objective: scvi
data: {{path: {cells}, genes: {{top_variance: 558}}}}
split: {{validation: 0.25, seed: 0}}
metric: {{name: marginal_ll, mode: min}}
search: {{algorithm: tpe, seed: 0, startup: 5}}
budget: {{max_trials: 12}}
fixed: {{max_epochs: 15}}
lease: {{duration_s: 120, renewal_s: 1}}
"""


def test_twelve_trials_whatever_is_killed(
    run_cli: Callable[..., subprocess.CompletedProcess[str]],
    store: MongoStore,
    store_uri: str,
    tmp_path: Path,
    data_folder: Path,
) -> None:
    cells = data_folder / "zeisel_cortex_1464x1000.h5ad"
    (tmp_path / "cortex.yaml").write_text(CAMPAIGN.format(cells=cells))
    with background(tmp_path, store_uri, "launch", "cortex.yaml", "--workers", "2") as launch:
        until(lambda: store.campaigns.find() and store.trials.counts("cortex").get(TrialState.FINISHED, 0) >= 2, 240)
        victim = store.workers.live("cortex")[0]
        os.kill(victim.pid, signal.SIGKILL)
        held = [t.number for t in store.trials.find("cortex", [TrialState.RUNNING]) if t.lease.owner == victim.id]
        for number in held:
            run_out(store, number, "cortex")
        assert launch.wait(400) == 0

    trials = store.trials.find("cortex")
    assert [t.number for t in trials] == list(range(12))
    assert {t.state for t in trials} == {TrialState.FINISHED}
    assert len({t.config_hash for t in trials}) == 12
    lost = [t.number for t in trials for a in t.attempts if a.cause == "lost"]
    assert lost == [t.number for t in trials for a in t.attempts if a.cause is not None and a.owner == victim.id]
    assert set(held) <= set(lost)
    for trial in trials:
        assert trial.score is not None
        assert 500 < trial.score < 5000
        assert 0 < trial.metrics["marginal_ll"]["se"] < 100
        assert trial.metrics["marginal_ll"]["draws"] == 100
        assert 1 <= trial.facts["n_epochs"] <= 15
        assert [r.step for r in store.reports.curve("cortex", trial.number)] == list(range(1, 16))
    report = run_cli("report", "cortex", "--out", "tables")
    assert report.returncode == 0
    header = "marginal_ll,n_layers,n_hidden,n_latent,reconstruction_loss,dropout_rate,lr,n_epochs,n_params,run index"
    assert (tmp_path / "tables" / "ranking.csv").read_text().splitlines()[0] == f"rank,{header}"


BROKEN = """
name: broken
objective: scvi
data: {{path: {cells}}}
split: {{validation: 0.3, seed: 0}}
space: {{lr: {{choice: [1.0e+30, 0.01, 0.005]}}}}
search: {{algorithm: grid}}
budget: {{max_trials: 3}}
fixed: {{max_epochs: 2, n_hidden: 16, marginal_ll_draws: 5}}
"""


def test_losses_that_are_no_numbers_fail_their_trial_alone_and_rank_last(
    run_cli: Callable[..., subprocess.CompletedProcess[str]], store: MongoStore, tmp_path: Path, cells_path: Path
) -> None:
    (tmp_path / "broken.yaml").write_text(BROKEN.format(cells=cells_path))
    launched = run_cli("launch", "broken.yaml", "--workers", "1")
    assert launched.returncode == 0, launched.stderr
    trials = {trial.params["lr"]: trial for trial in store.trials.find("broken")}
    assert {lr: trial.state for lr, trial in trials.items()} == {
        1e30: TrialState.FAILED,
        0.01: TrialState.FINISHED,
        0.005: TrialState.FINISHED,
    }
    assert {attempt.cause for attempt in trials[1e30].attempts} == {"not-a-number"}
    assert run_cli("report", "broken", "--out", "tables").returncode == 0
    with (tmp_path / "tables" / "ranking.csv").open(newline="") as file:
        ranked = [float(row["lr"]) for row in csv.DictReader(file)]
    assert ranked[-1] == 1e30
    assert len(ranked) == 3

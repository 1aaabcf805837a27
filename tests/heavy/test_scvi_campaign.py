"""A real scVI campaign on real cells, through the command line, with a worker killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from autotune.store.mongo import MongoStore
from autotune.trial import TrialState
from tests.acceptance.support import background, until

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
lease: {{duration_s: 4, renewal_s: 1}}
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
        held = [t.number for t in store.trials.find("cortex", [TrialState.RUNNING]) if t.lease.owner == victim.id]
        os.kill(victim.pid, signal.SIGKILL)
        assert launch.wait(400) == 0

    trials = store.trials.find("cortex")
    assert [t.number for t in trials] == list(range(12))
    assert {t.state for t in trials} == {TrialState.FINISHED}
    assert len({t.config_hash for t in trials}) == 12
    lost = [t.number for t in trials for a in t.attempts if a.cause == "lost"]
    assert lost == held
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

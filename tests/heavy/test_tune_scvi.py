"""``autotune.tune_scvi``: from cells to the best model, through a real store and real workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autotune
from autotune.errors import CampaignExistsError, StateError
from autotune.local.follow import Progress
from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState, TrialState
from tests.acceptance.support import until
from workers.workloads.cells.simulate import simulate_cells

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]

Tune = Callable[..., autotune.Tuned]
QUICK: dict[str, Any] = {"max_epochs": 2, "marginal_ll_draws": 5, "n_hidden": 16}


@pytest.fixture
def cells() -> Any:
    """150 simulated cells: counts in a layer, X normalised, and a batch column of numbers."""
    table = simulate_cells(150, 40, 3, seed=7)
    table.layers["raw"] = table.X.copy()
    table.X.data[:] = np.log1p(table.X.data)
    table.obs["run"] = np.arange(150) % 2
    return table


@pytest.fixture
def tune(store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tune:
    """`autotune.tune_scvi` on the test's store, with small models."""
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path / "home"))

    def tuned(*arguments: Any, **changes: Any) -> autotune.Tuned:
        fixed = {**QUICK, **changes.pop("fixed", {})}
        settings: dict[str, Any] = {"devices": "cpu", "slots_per_device": 2, "on_progress": lambda progress: None}
        return autotune.tune_scvi(*arguments, fixed=fixed, store=store_uri, **{**settings, **changes})

    return tuned


def test_from_cells_to_the_best_model(tune: Tune, cells: Any, store: MongoStore, tmp_path: Path) -> None:
    import scvi

    seen: list[Progress] = []
    asked: dict[str, Any] = {"layer": "raw", "batch_key": "run", "n_top_genes": 30, "on_progress": seen.append}
    columns = list(cells.obs.columns)
    tuned = tune(cells, "cortex", 3, **asked)
    model, campaign = tuned
    assert (model, campaign) == (tuned.model, tuned.campaign)
    assert [trial.state for trial in campaign.trials] == [TrialState.FINISHED] * 3
    assert (tuned.trial, tuned.score) == (campaign.best, tuned.trial.score)
    assert seen[-1].counts == {TrialState.FINISHED: 3}
    latent = model.get_latent_representation()
    assert latent.shape == (150, tuned.trial.params["n_latent"])
    assert model.summary_stats["n_batch"] == 2

    variance = np.asarray(cells.layers["raw"].toarray().var(axis=0))
    assert set(tuned.adata.var_names) == set(cells.var_names[np.argsort(-variance, kind="stable")[:30]])
    assert (cells.shape, list(cells.obs.columns)) == ((150, 40), columns), "the user's cells are left alone"
    assert cells.obs["run"].dtype.kind == "i"

    model.save(tmp_path / "model")
    again = scvi.model.SCVI.load(tmp_path / "model", adata=tuned.adata)
    np.testing.assert_array_equal(again.get_latent_representation(), latent)

    repeated = tune(cells, "cortex", 3, **asked)
    assert repeated.campaign.trials == campaign.trials, "a finished campaign is not searched again"
    np.testing.assert_array_equal(repeated.model.get_latent_representation(), latent)

    for others, changes in ((cells[:120], {}), (cells, {"seed": 1}), (cells, {"n_top_genes": 20})):
        with pytest.raises(CampaignExistsError, match="'cortex' is already in this store with other cells or settings"):
            tune(others, "cortex", 3, **{**asked, **changes})
    assert store.trials.find("cortex") == list(campaign.trials)


def test_with_labels_and_the_users_own_cells(tune: Tune, cells: Any) -> None:
    cells.X = cells.layers["raw"].copy()
    tuned = tune(cells, "labelled", 1, labels_key="cell_type", fixed={"model": "SCANVI"})
    assert type(tuned.model).__name__ == "SCANVI"
    assert tuned.adata is cells
    assert set(tuned.model.predict()) <= set(cells.obs["cell_type"])


def test_a_campaign_without_a_model_says_why(tune: Tune, cells: Any) -> None:
    with pytest.raises(StateError, match=r"'broken' is failed .*; the last trial failed with not-a-number: "):
        tune(cells, "broken", 1, layer="raw", fixed={"lr": 1e30})


SCRIPT = """
import anndata, autotune
cells = anndata.read_h5ad("cells.h5ad")
fixed = {"max_epochs": 100, "marginal_ll_draws": 5, "n_hidden": 16, "early_stopping": False}
model, campaign = autotune.tune_scvi(
    cells, "script", max_trials=1, layer="raw", fixed=fixed, devices="cpu", slots_per_device=2
)
print(model.get_latent_representation().shape[0], len(campaign.trials))
"""


@contextmanager
def _script(folder: Path, store_uri: str) -> Iterator[subprocess.Popen[str]]:
    """Run the lines in a process without a file of their own, as a notebook does."""
    process = subprocess.Popen(
        [sys.executable, "-"],
        cwd=folder,
        env={**os.environ, "AUTOTUNE_STORE": store_uri},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin is not None
        process.stdin.write(SCRIPT)
        process.stdin.close()
        process.stdin = None
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_an_interrupt_pauses_and_the_same_lines_go_on(
    cells: Any, store: MongoStore, store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path / "home"))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with _script(tmp_path, store_uri) as first:
        until(lambda: store.campaigns.find() and store.reports.curve("script", 0), 240)
        first.send_signal(signal.SIGINT)
        _, errors = first.communicate(timeout=120)
        assert "KeyboardInterrupt" in errors.splitlines()[-1]
    assert store.campaigns.get("script").state is CampaignState.PAUSED
    assert store.workers.live("script") == []
    with _script(tmp_path, store_uri) as second:
        output, errors = second.communicate(timeout=400)
        assert (second.returncode, output) == (0, "150 1\n"), errors
    [trial] = store.trials.find("script")
    assert trial.state is TrialState.FINISHED
    assert [attempt.cause for attempt in trial.attempts] == ["preempted", None]

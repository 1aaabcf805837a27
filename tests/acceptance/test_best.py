"""``autotune best``, as a user runs it: the best configuration, and its model in a folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from tests.acceptance.support import background, one_line, until

Cli = Callable[..., subprocess.CompletedProcess[str]]

MODULE = '''
"""Trains for nine steps, and says in its model at which step it began."""

import json
import os
import random
import time
from pathlib import Path


def train(trial):
    folder = trial.checkpoint.load()
    state = {"step": 0, "loss": 100 * trial.params["x"] ** 2}
    if folder is not None:
        state = json.loads((folder / "state").read_text())
    began = state["step"]
    for step in range(began + 1, 10):
        state = {"step": step, "loss": state["loss"] / 2 + trial.seed % 7 / 1000}
        trial.report(step, loss=state["loss"])
        if trial.checkpoint.wanted(step):
            trial.checkpoint.save(step, lambda place: (place / "state").write_text(json.dumps(state)))
    return state["loss"], began


def run(trial):
    return train(trial)[0]


def save(trial, folder):
    if Path("broken").exists():
        (folder / "half").touch()
        raise RuntimeError("no luck today")
    while Path("gate").exists():
        Path("saving").touch()
        time.sleep(0.01)
    loss, began = train(trial)
    (folder / "model.json").write_text(json.dumps({"x": trial.params["x"], "began": began}))
    return loss
'''


def _launched(run_cli: Cli, folder: Path, **changes: Any) -> None:
    """Run a campaign of four trials whose objective saves models."""
    (folder / "stepped.py").write_text(MODULE)
    content: dict[str, Any] = {
        "name": "stepped",
        "objective": "stepped:run",
        "metric": {"name": "loss", "mode": "min"},
        "space": {"x": {"float": [-2, 2]}},
        "search": {"algorithm": "random", "seed": 0},
        "budget": {"max_trials": 4},
        **changes,
    }
    (folder / "campaign.json").write_text(json.dumps(content))
    done = run_cli("launch", "campaign.json", "--devices", "cpu")
    assert done.returncode == 0, done.stderr


def _leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_best_prints_the_configuration(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    _launched(run_cli, tmp_path, fixed={"depth": 3})
    best = store.trials.best("stepped", "min")
    assert best is not None
    done = run_cli("best", "stepped")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"best of 'stepped': trial {best.number}, loss {best.score:.6g}",
        f"  x = {best.params['x']:.6g}",
        "  depth = 3 (fixed)",
    ]
    found = json.loads(run_cli("best", "stepped", "--format", "json").stdout)
    assert (found["number"], found["score"], found["params"]) == (best.number, best.score, best.params)
    assert (found["campaign"], found["state"], found["seed"]) == ("stepped", "finished", best.seed)
    assert (found["metric"], found["fixed"]) == ({"name": "loss", "mode": "min"}, {"depth": 3})
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) in ([], ["__pycache__"])


def test_best_saves_the_model_that_had_that_score(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    _launched(run_cli, tmp_path)
    before, best = store.trials.find("stepped"), store.trials.best("stepped", "min")
    assert best is not None
    done = run_cli("best", "stepped", "--save", "models/best")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == [
        f"loss of trial {best.number}: {best.score!r} then, {best.score!r} now",
        "equal within 0 (difference 0)",
        "wrote models/best",
    ]
    model = tmp_path / "models" / "best"
    assert json.loads((model / "model.json").read_text()) == {"x": best.params["x"], "began": 0}
    card = json.loads((model / "autotune.json").read_text())
    assert (card["campaign"], card["number"], card["score"]) == ("stepped", best.number, best.score)
    assert (card["params"], card["seed"]) == (best.params, best.seed)
    assert store.trials.find("stepped") == before, "nothing is written"

    (model / "old").touch()
    done = run_cli("best", "stepped", "--save", "models/best")
    assert done.returncode == 2
    assert "replace it with --force" in one_line(done.stderr)
    assert (model / "old").exists()
    found = json.loads(run_cli("best", "stepped", "--save", "models/best", "--force", "--format", "json").stdout)
    assert not (model / "old").exists()
    assert (found["saved"], found["score"], found["score_now"]) == (str(model), best.score, best.score)
    assert _leftovers(model.parent) == []


def test_the_model_goes_on_from_a_checkpoint_that_was_kept(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    _launched(run_cli, tmp_path, schedule={"algorithm": "asha", "minimum": 3, "maximum": 9, "eta": 3})
    best = store.trials.best("stepped", "min")
    assert best is not None
    assert best.checkpoint is not None
    for place, began in (("kept", 3), ("lost", 0)):
        done = run_cli("best", "stepped", "--save", place)
        assert done.returncode == 0, done.stderr
        assert f"{best.score!r} then, {best.score!r} now" in done.stdout
        assert json.loads((tmp_path / place / "model.json").read_text())["began"] == began
        store.connection.database["artifacts.chunks"].delete_many({})


def test_a_model_that_cannot_be_trained_leaves_nothing(run_cli: Cli, tmp_path: Path) -> None:
    _launched(run_cli, tmp_path)
    (tmp_path / "broken").touch()
    done = run_cli("best", "stepped", "--save", "model")
    assert done.returncode == 1
    assert "failed (error): RuntimeError: no luck today" in one_line(done.stderr)
    assert not (tmp_path / "model").exists()
    assert _leftovers(tmp_path) == []


def test_an_interrupt_leaves_nothing(run_cli: Cli, store_uri: str, tmp_path: Path) -> None:
    _launched(run_cli, tmp_path)
    (tmp_path / "gate").touch()
    with background(tmp_path, store_uri, "best", "stepped", "--save", "model") as saving:
        until(lambda: (tmp_path / "saving").exists())
        assert len(_leftovers(tmp_path)) == 1
        os.kill(saving.pid, signal.SIGINT)
        assert saving.wait(60) == 130
    assert not (tmp_path / "model").exists()
    assert _leftovers(tmp_path) == []


@pytest.mark.parametrize("arguments", [["--force"], ["--devices", "cpu"], ["--threads", "2"]])
def test_what_goes_with_saving_alone(
    run_cli: Cli, make_campaign: Callable[..., CampaignRecord], arguments: list[str]
) -> None:
    make_campaign("demo")
    done = run_cli("best", "demo", *arguments)
    assert done.returncode == 2
    assert "go with --save DIR" in one_line(done.stderr)


def test_wrong_input_is_one_line_and_writes_nothing(
    run_cli: Cli, make_campaign: Callable[..., CampaignRecord], tmp_path: Path
) -> None:
    make_campaign("demo")
    for arguments, code, message in (
        (["dmeo"], 3, "did you mean 'demo'?"),
        (["demo"], 2, "no trial of campaign 'demo' (running) has finished"),
        (["demo", "--save", "model"], 2, "no trial of campaign 'demo' (running) has finished"),
    ):
        done = run_cli("best", *arguments)
        assert (done.returncode, done.stdout) == (code, ""), arguments
        assert message in one_line(done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_where_a_model_cannot_go(run_cli: Cli, tmp_path: Path) -> None:
    _launched(run_cli, tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").touch()
    for place, message in (
        ("thesis", "has files in it that are no model of ours"),
        ("thesis/chapter", "is a file: name a folder"),
        ("thesis/chapter/model", "cannot write the model"),
    ):
        done = run_cli("best", "stepped", "--save", place, "--force")
        assert (done.returncode, message in one_line(done.stderr)) == (2, True), (place, done.stderr)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter"]


def test_objectives_that_save_no_models(run_cli: Cli, tmp_path: Path) -> None:
    _launched(run_cli, tmp_path)
    module = (tmp_path / "stepped.py").read_text()
    (tmp_path / "stepped.py").write_text(module.replace("def save(", "def _save("))
    done = run_cli("best", "stepped", "--save", "model", "--allow-mismatch")
    assert done.returncode == 1
    assert "cannot 'save'" in one_line(done.stderr)
    assert not (tmp_path / "model").exists()
    assert run_cli("best", "stepped").returncode == 0

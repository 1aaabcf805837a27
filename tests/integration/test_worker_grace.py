"""A worker that is asked to end: what finishes within the time of grace, what goes back, and what is left."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.trial import Trial, TrialState
from tests.objectives.support import (
    ENDINGS,
    ROOT,
    coordinating,
    process,
    process_of,
    processes_of,
    wait_for_end,
    wait_until,
    worker_command,
)

Launch = Callable[..., CampaignRecord]


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def launch(make_campaign: Callable[..., CampaignRecord], tmp_path: Path) -> Launch:
    """Writes a campaign whose trials end when they may."""

    def write(**changes: Any) -> CampaignRecord:
        fixed = {"do": "holds", "folder": str(tmp_path)}
        settings = {"objective": f"{ENDINGS}:chosen", "fixed": fixed, "search": {"algorithm": "random", "seed": 0}}
        return make_campaign(**{"max_trials": 10, **settings, **changes})

    return write


def causes(trial: Trial) -> list[str | None]:
    return [a.cause for a in trial.attempts]


def test_running_trials_finish_within_the_grace_and_nothing_new_begins(
    store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path
) -> None:
    launch()
    command = worker_command("--grace", "60", "--slots-per-device", "2")
    with coordinating(store), process(command, store_uri, tmp_path / "log") as worker:
        for number in range(2):
            process_of(tmp_path / f"running-{number}-0")
        worker.send_signal(signal.SIGTERM)
        wait_until(lambda: "worker-ends" in (tmp_path / "log").read_text(), "that it claims no more")
        (tmp_path / "go").touch()
        assert worker.wait(60) == 0
    trials = store.trials.find("demo")
    assert [(t.state, causes(t)) for t in trials[:2]] == [(TrialState.FINISHED, [None])] * 2
    assert {(t.state, t.claims) for t in trials[2:]} <= {(TrialState.QUEUED, 0)}
    assert sorted(f.name for f in tmp_path.glob("running-*")) == ["running-0-0", "running-1-0"]
    assert not list(tmp_path.glob("autotune-worker-*"))


def test_what_does_not_finish_within_the_grace_goes_back(
    store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path
) -> None:
    launch()
    with coordinating(store), process(worker_command("--grace", "1"), store_uri, tmp_path / "log") as worker:
        training = process_of(tmp_path / "running-0-0")
        asked_s = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
        took_s = time.monotonic() - asked_s
        trial = store.trials.get("demo", 0)
        wait_for_end([training])
    assert (trial.state, causes(trial)) == (TrialState.QUEUED, ["preempted"])
    assert trial.ends == {"preempted": 1}
    assert 1.0 <= took_s < 20.0, f"{took_s:.1f} s"


def test_second_signal_within_the_grace_aborts_and_leaves_no_process(
    store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path
) -> None:
    launch()
    with coordinating(store), process(worker_command("--grace", "600"), store_uri, tmp_path / "log") as worker:
        training = process_of(tmp_path / "running-0-0")
        family = processes_of(worker.pid)
        assert training in family
        worker.send_signal(signal.SIGTERM)
        with pytest.raises(Exception, match="timed out"):
            worker.wait(2)  # the grace is long
        worker.send_signal(signal.SIGINT)
        assert worker.wait(10) == 130
        wait_for_end(family)
    assert store.trials.get("demo", 0).state is TrialState.RUNNING

"""Hyperband with TPE, killed at random: its rungs are those of the undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from autotune.planning import members
from autotune.schedule import make_schedule, schedule_of
from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.trial import ACTIVE_STATES, CampaignState, Cause, TrialState
from tests.objectives.support import (
    ENDINGS,
    ROOT,
    SHORT_LEASE,
    coordinating,
    processes_of,
    wait_until,
    worker_command,
    working,
)

TRIALS = 22
VICTIMS = ("training", "worker", "coordinator", "training", "all", "coordinator", "worker", "training")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def _launch(make_campaign: Callable[..., CampaignRecord], name: str, seconds: float) -> CampaignRecord:
    return make_campaign(
        name,
        objective=f"{ENDINGS}:chosen",
        fixed={"do": "resumable", "steps": 9, "seconds": seconds},
        search={"algorithm": "tpe", "seed": 3, "startup": 5},
        schedule={"algorithm": "hyperband", "maximum": 9, "eta": 3},
        checkpoints={"every": 2},
        lease=SHORT_LEASE,
        failures={"max_kills": 50},
        max_trials=TRIALS,
    )


class _Site:
    """One slot and one coordinator, each a process that is started again when it was killed."""

    def __init__(self, store: MongoStore, uri: str, folder: Path) -> None:
        self._store, self._uri, self._folder = store, uri, folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start what does not run; the slot comes back when the trial that it had has been given back."""
        commands = {
            "coordinator": [sys.executable, "-m", "autotune.cli.main", "coordinator", "demo"],
            "worker": worker_command("--campaign", "demo"),
        }
        for name, command in commands.items():
            if name not in self.running or self.running[name].poll() is not None:
                log = open(self._folder / f"{name}.log", "ab")  # noqa: SIM115 - it is the process's
                variables = {**os.environ, "AUTOTUNE_STORE": self._uri}
                if name == "worker":
                    wait_until(lambda: not self._store.trials.heads("demo", states=[TrialState.RUNNING]), "the reaper")
                self.running[name] = subprocess.Popen(command, stdout=log, stderr=log, env=variables)
                log.close()

    def kill(self, victim: str) -> bool:
        """Kill -9; what a dead host leaves in the store runs out at once, so that there is one slot at any time."""
        if victim == "training":
            trainings = processes_of(self.running["worker"].pid)[2:]
            with suppress(ProcessLookupError):
                for pid in trainings:
                    os.kill(pid, signal.SIGKILL)
            return bool(trainings)
        for name in ("worker", "coordinator") if victim == "all" else (victim,):
            self.running[name].kill()
            self.running[name].wait()
        database = self._store.connection.database
        if victim != "worker":
            database["leaders"].delete_many({})
        if victim != "coordinator":
            database["workers"].delete_many({})
        return True

    def end(self) -> None:
        for one in self.running.values():
            one.kill()
            one.wait()


def _tables(store: MongoStore, name: str) -> dict[int, Any]:
    """Return number -> all that the schedule and the search made of a trial."""
    return {
        t.number: (dict(t.params), t.bracket, t.rung, t.rung_scores, t.state, t.score) for t in store.trials.find(name)
    }


def _lost(store: MongoStore, name: str) -> int:
    """Return how many attempts ended because their training or their worker was killed."""
    return sum(t.ends.get(str(Cause.LOST), 0) for t in store.trials.heads(name))


def test_random_kills_leave_the_rungs_of_the_undisturbed_run(
    store: MongoStore, store_uri: str, make_campaign: Callable[..., CampaignRecord], tmp_path: Path
) -> None:
    _launch(make_campaign, "calm", 0.0)
    with coordinating(store, "calm"), working(store, campaigns=["calm"]):
        wait_until(lambda: store.campaigns.get("calm").state is CampaignState.FINISHED, "the undisturbed run", 60)
    expected = _tables(store, "calm")

    record = _launch(make_campaign, "demo", 0.1)
    choose, over = random.Random(11), threading.Event()
    site = _Site(store, store_uri, tmp_path)
    try:
        for victim in VICTIMS:
            site.start()
            wait_until(lambda: processes_of(site.running["worker"].pid)[2:], "a training")
            over.wait(choose.random() * 0.7)
            while not site.kill(victim):  # the training has ended before its kill
                wait_until(lambda: processes_of(site.running["worker"].pid)[2:], "a training")
        site.start()
        while _lost(store, "demo") < 3:  # a kill may come when the training's result is out already
            wait_until(lambda: processes_of(site.running["worker"].pid)[2:], "a training")
            over.wait(choose.random() * 0.1)
            site.kill("training")
            over.wait(0.2)
        wait_until(lambda: store.campaigns.get("demo").state is not CampaignState.RUNNING, "the end", 60)
    finally:
        site.end()
    found = _tables(store, "demo")
    assert found == expected
    trials, lost = store.trials.find("demo"), _lost(store, "demo")
    assert lost >= 3, "the kills hit trainings"
    for trial in trials:
        assert trial.state not in ACTIVE_STATES
        pauses = sum(a.cause == Cause.SCHEDULE for a in trial.attempts)
        assert pauses == len(trial.rung_scores) - (trial.state is TrialState.FINISHED), "no rung twice"
        assert len(trial.rung_scores) == trial.rung + 1, "no rung score is lost, none is there twice"
    schedule = make_schedule(schedule_of(record.spec))
    tables = schedule.tables(members(trials, "min"))
    assert [[r.members for r in b.rungs] for b in tables] == [[9, 3, 1], [5, 1], [3], [5, 1, 1]]

"""Budgets in hours and device hours end a campaign and its trainings; the one in trials stays exact."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.coordinator import Coordinator
from autotune.store.base import CampaignRecord
from autotune.store.campaigns import Extension
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import result
from autotune.trial import CampaignState, TrialState
from tests.objectives.support import (
    ENDINGS,
    ROOT,
    alive,
    assert_exact,
    coordinating,
    process,
    process_of,
    wait_for_end,
    wait_for_state,
    wait_until,
    worker_command,
    working,
)

Launch = Callable[..., CampaignRecord]


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def launch(make_campaign: Callable[..., CampaignRecord], tmp_path: Path) -> Launch:
    """Writes a campaign whose trials all do one of the things in `endings`; budgets are in seconds."""

    def write(do: str, *, trials: int = 100, run_s: float | None = None, device_s: float | None = None) -> None:
        hours = {"max_hours": run_s, "max_device_hours": device_s}
        budget = {"max_trials": trials, **{k: v / 3600 for k, v in hours.items() if v is not None}}
        fixed = {"do": do, "folder": str(tmp_path), "hungry": list(range(100)), "seconds": 0.3}
        settings = {"objective": f"{ENDINGS}:chosen", "fixed": fixed, "search": {"algorithm": "random", "seed": 0}}
        return make_campaign(budget=budget, lease={"duration_s": 60, "renewal_s": 30}, **settings)

    return write


def wait_for_campaign(store: MongoStore, state: CampaignState) -> CampaignRecord:
    wait_until(lambda: store.campaigns.get("demo").state is state, f"campaign {state}", 60)
    return store.campaigns.get("demo")


def leave(store: MongoStore, seconds: float) -> float:
    """Give the campaign so many seconds from now on; return its budget in seconds."""
    budget_s = store.campaigns.get("demo").used_s + seconds
    store.campaigns.extend("demo", Extension(max_hours=budget_s / 3600))
    return budget_s


def device_s(store: MongoStore) -> float:
    """Return the seconds of devices that all attempts used, by the times in the store."""
    attempts = [a for t in store.trials.find("demo") for a in t.attempts]
    assert all(a.started_at and a.ended_at for a in attempts)
    return sum((a.ended_at - a.started_at).total_seconds() * a.share for a in attempts)  # type: ignore[operator]


def test_hours_end_the_campaign_and_what_runs(store: MongoStore, launch: Launch, tmp_path: Path) -> None:
    launch("hangs", run_s=3600.0)
    with coordinating(store) as coordinator, working(store, 2):
        trainings = [process_of(tmp_path / f"running-{number}-0") for number in range(2)]
        budget_s = leave(store, 1.0)
        record = wait_for_campaign(store, CampaignState.FINISHED)
        ended_s = time.monotonic()
        wait_for_end(trainings)
        took_s = time.monotonic() - ended_s
        coordinator.join(10)
        assert not coordinator.is_alive()
    assert record.message == f"the budget of {budget_s / 3600:.4g} hours is used up; 0 of 100 trials finished"
    assert budget_s <= record.used_s < budget_s + 10.0
    assert took_s < 10.0, f"{took_s:.1f} s"
    trials = store.trials.find("demo")
    assert {t.state for t in trials} == {TrialState.CANCELLED}
    assert [a.cause for t in trials for a in t.attempts] == ["stopped", "stopped"]
    assert trials[0].attempts[0].message == record.message


def test_device_hours_count_every_attempt_and_its_share(
    store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path
) -> None:
    """Two slots that share a device use one second of it per second."""
    launch("naps", trials=10_000, device_s=3600.0)
    command = worker_command("--slots-per-device", "2", "--once", "--campaign", "demo")
    with coordinating(store), process(command, store_uri, tmp_path / "log") as worker:
        wait_until(lambda: store.trials.counts("demo").get(TrialState.FINISHED, 0) > 1, "two finished trials")
        used_s = store.campaigns.get("demo").used_s  # from the launch on: one device cannot have been used for longer
        budget_s = used_s + 2.0
        store.campaigns.extend("demo", Extension(max_device_hours=budget_s / 3600))
        record = wait_for_campaign(store, CampaignState.FINISHED)
        assert worker.wait(30) == 0
    trials = store.trials.find("demo")
    finished = sum(t.state is TrialState.FINISHED for t in trials)
    text = f"the budget of {budget_s / 3600:.4g} device hours is used up; {finished} of 10000 trials finished"
    assert record.message == text
    assert finished > 1
    assert {t.state for t in trials} <= {TrialState.FINISHED, TrialState.CANCELLED}
    assert {a.share for t in trials for a in t.attempts} == {0.5}
    assert budget_s <= device_s(store) < budget_s + 10.0
    wait_for_end([process_of(file) for file in tmp_path.glob("running-*")])


def test_what_finishes_while_the_campaign_ends_is_counted(
    store: MongoStore, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look that finds the budget used up and the end of what runs."""
    launch("hangs", run_s=3600.0)
    name, cancel_if = "demo", type(store.trials).cancel_if
    leases = []
    for number in range(2):
        store.trials.propose(name, number, {"x": float(number)}, f"h{number}", seed=0)
        trial = store.trials.claim([name], owner="w", token=f"token {number}", duration_s=60.0)
        assert trial is not None
        leases.append(trial.lease)

    def late(self: Any, campaign: str, message: str, **seen: Any) -> Any:
        self.finish(leases[0], result(1.0))
        return cancel_if(self, campaign, message, **seen)

    monkeypatch.setattr(type(store.trials), "cancel_if", late)
    leave(store, 0.0)
    coordinator = Coordinator(store, name)
    wait_until(lambda: coordinator.step() is CampaignState.FINISHED, "the end of the campaign")
    assert store.campaigns.get(name).message.endswith("is used up; 1 of 100 trials finished")
    assert [t.state for t in store.trials.find(name)] == [TrialState.FINISHED, TrialState.CANCELLED]


def test_pauses_do_not_count(store: MongoStore, launch: Launch, tmp_path: Path) -> None:
    launch("hangs", run_s=3600.0)
    running, paused = CampaignState.RUNNING, CampaignState.PAUSED
    with working(store):
        with coordinating(store):
            training = process_of(tmp_path / "running-0-0")
            store.campaigns.set_state("demo", paused, expected=[running])
            used_s = store.campaigns.get("demo").used_s
            budget_s = leave(store, 2.0)
            began_s = time.monotonic()
            wait_until(lambda: time.monotonic() - began_s > 2.5, "a pause that is longer than what is left")
        assert store.campaigns.get("demo").used_s == used_s
        store.campaigns.set_state("demo", running, expected=[paused])
        assert alive(training)  # a pause lets it go on
        with coordinating(store):
            record = wait_for_campaign(store, CampaignState.FINISHED)
            wait_for_end([training])
    assert budget_s <= record.used_s < budget_s + 10.0
    assert record.message.startswith(f"the budget of {budget_s / 3600:.4g} hours is used up")


def test_killed_coordinator_is_followed_by_one_that_ends_the_campaign(
    store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path
) -> None:
    launch("hangs", run_s=3600.0)
    command = [sys.executable, "-m", "autotune.cli.main", "coordinator", "demo"]
    with working(store):
        with process(command, store_uri, tmp_path / "first.log") as first:
            training = process_of(tmp_path / "running-0-0")
            budget_s = leave(store, 1.0)
            first.kill()
            first.wait()
        store.connection.database["leaders"].delete_many({})  # as if the dead one's lead had run out
        with process(command, store_uri, tmp_path / "second.log") as second:
            record = wait_for_campaign(store, CampaignState.FINISHED)
            assert second.wait(30) == 0
        wait_for_end([training])
    assert record.message.startswith(f"the budget of {budget_s / 3600:.4g} hours is used up")
    assert [t.state for t in store.trials.find("demo")] == [TrialState.CANCELLED]


def test_trials_that_are_tried_again_count_once(store: MongoStore, launch: Launch) -> None:
    launch("hungry_first", trials=4)
    with coordinating(store), working(store, 2):
        wait_for_campaign(store, CampaignState.FINISHED)
    trials = assert_exact(store, 4)
    assert [t.claims for t in trials] == [2] * 4


def test_successor_of_one_that_died_while_it_ended_the_campaign(store: MongoStore, launch: Launch) -> None:
    """Its trials were cancelled already, but the campaign ran on."""
    launch("hangs", run_s=3600.0)
    with coordinating(store), working(store):
        wait_for_state(store, 0, TrialState.RUNNING)
        store.trials.cancel("demo", "the budget is used up")
        budget_s = leave(store, 0.0)
        record = wait_for_campaign(store, CampaignState.FINISHED)
    assert record.message.startswith(f"the budget of {budget_s / 3600:.4g} hours is used up")
    assert {t.state for t in store.trials.find("demo")} == {TrialState.CANCELLED}

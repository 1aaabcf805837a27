"""Workers, coordinators and servers as processes that are killed, stopped and continued while trials run."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autotune.campaign import parse_campaign
from autotune.local.resolve import resolve
from autotune.store import embedded
from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState, TrialState
from tests.objectives.support import (
    ENDINGS,
    QUICK_LEASE,
    ROOT,
    assert_exact,
    coordinating,
    process,
    run_out,
    wait_for_end,
    wait_for_state,
    wait_until,
    worker_command,
    working,
)

Launch = Callable[..., CampaignRecord]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def settings(do: str, folder: Path, **changes: Any) -> dict[str, Any]:
    fixed = {"do": do, "folder": str(folder)}
    search = {"algorithm": "random", "seed": 0}
    return {"objective": f"{ENDINGS}:chosen", "fixed": fixed, "search": search, "lease": QUICK_LEASE, **changes}


@pytest.fixture
def launch(make_campaign: Callable[..., CampaignRecord], tmp_path: Path) -> Launch:
    """Writes a campaign whose trials all do one of the things in `endings`; its leases are short."""
    return lambda do, **changes: make_campaign(**settings(do, tmp_path, **changes))


def process_of(file: Path) -> int:
    """Return the process id that a trial wrote into a file when it began."""
    return int(wait_until(lambda: file.exists() and file.read_text(), f"the file {file.name}"))


def wait_for_trials(store: MongoStore, count: int) -> None:
    wait_until(lambda: len(store.trials.heads("demo")) >= count, f"{count} trials")


def wait_for_finish(store: MongoStore) -> None:
    wait_until(lambda: store.campaigns.get("demo").state is CampaignState.FINISHED, "end of the campaign", 60)


def test_killed_worker_is_replaced(store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path) -> None:
    launch("holds_first", max_trials=8)
    command = worker_command("--once", "--campaign", "demo")
    with coordinating(store):
        with process(command, store_uri, tmp_path / "first.log") as first:
            training = process_of(tmp_path / "running-0-0")
            first.kill()
            first.wait()
        run_out(store, 0)
        with process(command, store_uri, tmp_path / "second.log") as second:
            assert second.wait(60) == 0
    trials = assert_exact(store, 8)
    assert [a.cause for a in trials[0].attempts] == ["lost", None]
    wait_for_end([training])


def test_sigterm_gives_the_trial_back(store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path) -> None:
    launch("hangs")
    with coordinating(store), process(worker_command("--grace", "0"), store_uri, tmp_path / "log") as worker:
        training = process_of(tmp_path / "running-0-0")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
        trial = store.trials.get("demo", 0)
    assert trial.state is TrialState.QUEUED
    assert [a.cause for a in trial.attempts] == ["preempted"]
    wait_for_end([training])
    assert not list(tmp_path.glob("autotune-worker-*"))


def test_sigterm_to_worker_and_training_at_once_is_a_preemption(
    store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path
) -> None:
    """As a cluster does that takes a host back: it signals every process of the job."""
    launch("hangs")
    with coordinating(store), process(worker_command(), store_uri, tmp_path / "log") as worker:
        training = process_of(tmp_path / "running-0-0")
        worker.send_signal(signal.SIGSTOP)  # so that it learns of both at once
        os.kill(training, signal.SIGTERM)
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGCONT)
        assert worker.wait(20) == 0
        trial = store.trials.get("demo", 0)
    assert [a.cause for a in trial.attempts] == ["preempted"]


def test_second_sigterm_ends_the_worker_at_once(
    store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path
) -> None:
    launch("hangs_deaf", lease={"duration_s": 60, "renewal_s": 30})
    log = tmp_path / "log"
    with coordinating(store), process(worker_command(), store_uri, log) as worker:
        training = process_of(tmp_path / "running-0-0")
        worker.send_signal(signal.SIGTERM)

        def ended() -> bool:
            worker.send_signal(signal.SIGTERM)
            return worker.poll() is not None

        wait_until(ended, "end of the worker", 10)
        assert worker.returncode == 130
        assert store.trials.get("demo", 0).state is TrialState.RUNNING
    wait_for_end([training])


def test_worker_that_was_frozen_past_its_lease(
    store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path
) -> None:
    """Its training went on meanwhile: that result comes late; the trial's own result is the other worker's."""
    launch("holds_first", max_trials=4)
    command = worker_command("--once", "--campaign", "demo")
    with coordinating(store), process(command, store_uri, tmp_path / "frozen.log") as frozen:
        training = process_of(tmp_path / "running-0-0")
        frozen.send_signal(signal.SIGSTOP)
        run_out(store, 0)
        (tmp_path / "go").touch()
        wait_for_end([training])
        with process(command, store_uri, tmp_path / "other.log"):
            wait_for_state(store, 0, TrialState.FINISHED)
            frozen.send_signal(signal.SIGCONT)
            wait_for_finish(store)
            assert frozen.wait(20) == 0
    trials = assert_exact(store, 4)
    first, second = trials[0].attempts
    assert (first.cause, second.cause) == ("lost", None)
    assert first.owner != second.owner
    late = store.trials.get("demo", 0).attempts[0].late_result
    assert late is not None
    assert late["score"] == trials[0].score


def test_worker_that_was_frozen_goes_on_alone(
    store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path
) -> None:
    launch("holds_first", max_trials=3)
    command = worker_command("--once", "--campaign", "demo")
    with coordinating(store), process(command, store_uri, tmp_path / "log") as worker:
        training = process_of(tmp_path / "running-0-0")
        worker.send_signal(signal.SIGSTOP)
        run_out(store, 0)
        worker.send_signal(signal.SIGCONT)
        assert worker.wait(30) == 0
    trials = assert_exact(store, 3)
    assert [a.cause for a in trials[0].attempts] == ["lost", None]
    wait_for_end([training])


@pytest.fixture
def own_server(server_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[MongoStore, int]]:
    """A store on a server of its own, and the process id of that server."""
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path / "home"))
    with MongoStore(embedded.start()) as opened:
        yield opened, int(json.loads((tmp_path / "home" / "mongo" / "server.json").read_text())["pid"])
    embedded.stop()


@pytest.mark.parametrize("fault", ["frozen", "killed"])
def test_server_outage_loses_nothing(own_server: tuple[MongoStore, int], tmp_path: Path, fault: str) -> None:
    store, server = own_server
    content = {"name": "demo", "metric": {"name": "loss", "mode": "min"}, "space": {"x": {"float": [-2, 2]}}}
    lease = {"duration_s": 30, "renewal_s": 0.2}
    rest = settings("holds_first", tmp_path, budget={"max_trials": 6}, lease=lease)
    store.campaigns.create(resolve(parse_campaign({**content, **rest})))
    with coordinating(store), working(store, 2):
        training = process_of(tmp_path / "running-0-0")
        wait_for_state(store, 1, TrialState.FINISHED)
        os.kill(server, signal.SIGSTOP if fault == "frozen" else signal.SIGKILL)
        (tmp_path / "go").touch()  # trial 0 ends while the store is away
        wait_for_end([training])
        if fault == "frozen":
            os.kill(server, signal.SIGCONT)
        else:
            wait_for_end([server])
            embedded.start()
        wait_for_finish(store)
    trials = assert_exact(store, 6)
    assert all(len(t.attempts) == 1 for t in trials)


def test_killed_coordinators_keep_the_budget_exact(
    store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path
) -> None:
    launch("reports", max_trials=18)
    command = [sys.executable, "-m", "autotune.cli.main", "coordinator", "demo"]
    choose = random.Random(4)
    with working(store, 2):
        for round_number in range(4):
            with process(command, store_uri, tmp_path / "coordinator.log") as coordinator:
                wait_for_trials(store, min(17, (round_number + 1) * choose.randint(2, 4)))
                coordinator.kill()
                coordinator.wait()
            store.connection.database["leaders"].delete_many({})  # as if the dead one's lead had run out
        with process(command, store_uri, tmp_path / "coordinator.log") as coordinator:
            assert coordinator.wait(60) == 0
    assert store.campaigns.get("demo").state is CampaignState.FINISHED
    assert_exact(store, 18)

"""The store goes away while trials train and end, and their worker too: nothing is lost and nothing is run twice."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from autotune.campaign import parse_campaign
from autotune.local.resolve import resolve
from autotune.store import embedded
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import result
from autotune.testing.servers import fail_point, faulty_server
from autotune.trial import CampaignState, Trial, TrialState
from tests.objectives.support import (
    ENDINGS,
    ROOT,
    assert_exact,
    process,
    process_of,
    wait_for_end,
    wait_for_state,
    wait_until,
    worker_command,
    working,
)

STEPS = list(range(10))


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path / "home"))


class Outage:
    """A store on a server of its own, which dies and comes back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = embedded.launch(folder)
        self.uri = self._server.uri
        self.store = MongoStore(self.uri)

    def begin(self) -> None:
        os.kill(self._server.pid, signal.SIGKILL)
        wait_for_end([self._server.pid])
        self.store.close()

    def freeze(self, number: signal.Signals = signal.SIGSTOP) -> None:
        os.kill(self._server.pid, number)

    def end(self) -> None:
        self._server = embedded.launch(self._folder)
        assert self._server.uri == self.uri
        self.store = MongoStore(self.uri)

    def close(self) -> None:
        self.store.close()
        embedded.end(self._server)


@pytest.fixture
def outage(server_uri: str, tmp_path: Path) -> Iterator[Outage]:
    folder = tmp_path / "mongo"
    folder.mkdir()
    with ExitStack() as stack:
        outage = Outage(folder)
        stack.callback(outage.close)
        yield outage


def launch(store: MongoStore, folder: Path, name: str, lease_s: float, **changes: Any) -> None:
    content = {
        "name": name, "metric": {"name": "loss", "mode": "min"}, "space": {"x": {"float": [-2, 2]}},
        "objective": f"{ENDINGS}:chosen", "fixed": {"do": "reports_at_the_end", "folder": str(folder)},
        "search": {"algorithm": "random", "seed": 0}, "lease": {"duration_s": lease_s, "renewal_s": lease_s / 5},
        "budget": {"max_trials": 2}, **changes,
    }  # fmt: skip
    store.campaigns.create(resolve(parse_campaign(content)))


def propose(store: MongoStore, name: str, count: int) -> None:
    for number in range(count):
        store.trials.propose(name, number, {"x": float(number + 1)}, f"hash-{number}", seed=number)


def journals(folder: Path) -> list[Path]:
    return list((folder / "home").glob("hosts/*/journal/*/*"))


def ends_kept(folder: Path) -> int:
    """Return how many ends of attempts wait in the journal."""
    lines = [line for file in journals(folder) for line in file.read_text().splitlines()]
    return sum("end" in json.loads(line.partition(" ")[2]) for line in lines)


def steps(store: MongoStore, name: str, number: int) -> list[int]:
    return [r.step for r in store.reports.curve(name, number)]


def train_through_the_outage(outage: Outage, folder: Path, count: int) -> None:
    """Take the store away from running trials, let them end, and wait until their results are on disk."""
    trainings = [process_of(folder / name / f"running-{number}-0") for name, number in RUNNING[:count]]
    outage.begin()
    for name, _ in RUNNING[:count]:
        (folder / name / "go").touch()
    wait_for_end(trainings)
    wait_until(lambda: ends_kept(folder) == count, f"{count} results in the journal", 60)


RUNNING = [("long", 0), ("short", 0), ("short", 1)]


def test_killed_worker_leaves_its_results_to_the_next_one(outage: Outage, tmp_path: Path) -> None:
    """One whose trial is still its own, one whose trial was given back, and one whose trial another has begun."""
    for name, lease_s in (("long", 300.0), ("short", 1.0)):
        (tmp_path / name).mkdir()
        launch(outage.store, tmp_path / name, name, lease_s)
        propose(outage.store, name, sum(n == name for n, _ in RUNNING))
    command = worker_command("--slots-per-device", "3", "--allow-mismatch")
    with process(command, outage.uri, tmp_path / "first.log") as worker:
        train_through_the_outage(outage, tmp_path, 3)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    outage.end()
    store = outage.store
    wait_until(lambda: store.trials.reap("short") or store.trials.counts("short").keys() == {TrialState.QUEUED}, "reap")
    other = wait_until(
        lambda: store.trials.claim(["short"], owner="other", token="0123456789", duration_s=300), "claim by another"
    )
    assert other.number == 0
    with process(command, outage.uri, tmp_path / "second.log"):
        wait_until(lambda: not journals(tmp_path), "delivery")
    assert (tmp_path / "short" / "running-1-0").exists()
    assert not list(tmp_path.glob("*/running-*-1"))  # nothing was run again
    for name, number in (("long", 0), ("short", 1)):
        delivered = store.trials.get(name, number)
        assert (delivered.state, delivered.score) == (TrialState.FINISHED, float(number + 1) ** 2)
        assert [a.cause for a in delivered.attempts] == [None]
        assert steps(store, name, number) == STEPS
    begun = store.trials.get("short", 0)
    assert (begun.state, begun.score) == (TrialState.RUNNING, None)
    assert begun.attempts[0].late_result is not None
    assert begun.attempts[0].late_result["score"] == 1.0
    assert begun.attempts[1].late_result is None
    store.trials.finish(other.lease, result(7.0))
    assert store.trials.get("short", 0).score == 7.0


def test_stopped_worker_leaves_its_results_while_a_coordinator_waits(outage: Outage, tmp_path: Path) -> None:
    (tmp_path / "long").mkdir()
    launch(outage.store, tmp_path / "long", "long", 10.0, budget={"max_trials": 3})
    coordinator = [*worker_command()[:2], "autotune.cli.main", "coordinator", "long"]
    with process(coordinator, outage.uri, tmp_path / "coordinator.log"):
        with process(worker_command("--grace", "5", "--allow-mismatch"), outage.uri, tmp_path / "first.log") as worker:
            train_through_the_outage(outage, tmp_path, 1)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0
        assert ends_kept(tmp_path) == 1
        outage.end()
        with process(
            worker_command("--once", "--campaign", "long", "--allow-mismatch"), outage.uri, tmp_path / "second.log"
        ) as worker:
            assert worker.wait(60) == 0
    trials = assert_exact(outage.store, 3, "long")
    assert [[a.cause for a in t.attempts] for t in trials] == [[None]] * 3
    assert not (tmp_path / "long" / "running-0-1").exists()
    for trial in trials:
        assert steps(outage.store, "long", trial.number) == STEPS
    assert outage.store.campaigns.get("long").state is CampaignState.FINISHED
    assert not journals(tmp_path)


def test_result_is_on_disk_while_a_write_hangs(outage: Outage, tmp_path: Path) -> None:
    """The store takes connections and says nothing, as behind a broken network: writes hang for a minute or more."""
    (tmp_path / "long").mkdir()
    launch(outage.store, tmp_path / "long", "long", 300.0, budget={"max_trials": 1})
    propose(outage.store, "long", 1)
    with process(worker_command("--allow-mismatch"), outage.uri, tmp_path / "first.log") as worker:
        training = process_of(tmp_path / "long" / "running-0-0")
        outage.freeze()
        try:
            (tmp_path / "long" / "go").touch()
            wait_for_end([training])
            wait_until(lambda: ends_kept(tmp_path) == 1, "the result on disk")
            worker.kill()
            worker.wait()
        finally:
            outage.freeze(signal.SIGCONT)
    with process(worker_command("--allow-mismatch"), outage.uri, tmp_path / "second.log"):
        wait_until(lambda: not journals(tmp_path), "delivery")
    trial = outage.store.trials.get("long", 0)
    assert (trial.state, trial.claims, trial.score) == (TrialState.FINISHED, 1, 1.0)
    assert steps(outage.store, "long", 0) == STEPS


@pytest.fixture
def faulty(server_uri: str, tmp_path: Path) -> Iterator[MongoStore]:
    folder = tmp_path / "mongo"
    folder.mkdir()
    with faulty_server(folder) as uri, MongoStore(uri) as store:
        yield store


def test_worker_that_lives_on_delivers_and_leaves_nothing_on_disk(faulty: MongoStore, tmp_path: Path) -> None:
    launch(faulty, tmp_path, "demo", 300.0, budget={"max_trials": 1})
    propose(faulty, "demo", 1)
    with working(faulty):
        training = process_of(tmp_path / "running-0-0")
        with fail_point(faulty, ["update"], times=100_000, closeConnection=True):
            (tmp_path / "go").touch()
            wait_for_end([training])
            wait_until(lambda: kept_steps(tmp_path)[-5:] == STEPS[5:], "the last reports in the journal")
        trial: Trial = wait_for_state(faulty, 0, TrialState.FINISHED)
        wait_until(lambda: not journals(tmp_path), "an empty journal", 10)
    assert [a.cause for a in trial.attempts] == [None]
    assert steps(faulty, "demo", 0) == STEPS


def test_worker_stopped_between_the_last_reports_and_the_end(faulty: MongoStore, tmp_path: Path) -> None:
    """The reports that came while a write was failing are on disk with the result, and go with it later."""
    launch(faulty, tmp_path, "demo", 300.0, budget={"max_trials": 1})
    propose(faulty, "demo", 1)
    with ExitStack() as stack:
        with working(faulty):
            process_of(tmp_path / "running-0-0")
            stack.enter_context(fail_point(faulty, ["update"], times=100_000, closeConnection=True))
            (tmp_path / "go").touch()
            wait_until(lambda: ends_kept(tmp_path) == 1, "the result in the journal")
        assert kept_steps(tmp_path)[-5:] == STEPS[5:]
    with working(faulty):
        wait_until(lambda: not journals(tmp_path), "delivery")
    trial = faulty.trials.get("demo", 0)
    assert (trial.state, trial.claims, trial.score) == (TrialState.FINISHED, 1, 1.0)
    assert steps(faulty, "demo", 0) == STEPS


def kept_steps(folder: Path) -> list[int]:
    """Return the steps of the reports in the journal, in the order in which they were kept."""
    lines = [line for file in journals(folder) for line in file.read_text().splitlines()]
    return [value["step"] for value in (json.loads(line.partition(" ")[2]) for line in lines) if "step" in value]

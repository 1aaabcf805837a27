"""What tests of the worker share: waiting for a condition, looking at processes, and agents that run in a thread."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autotune.coordinator import Coordinator
from autotune.store.mongo import MongoStore
from autotune.trial import Trial, TrialState
from workers.agent import Agent
from workers.devices import Slot

ROOT = Path(__file__).resolve().parent.parent.parent
ENDINGS = "tests.objectives.endings"
QUICK_LEASE = {"duration_s": 120.0, "renewal_s": 0.2}
"""Renewed often, so that a worker hears soon of what became of its trial; runs out where a test says so: `run_out`."""
SHORT_LEASE = {"duration_s": 1.0, "renewal_s": 0.2}
"""Runs out by itself, on a busy host also where its worker lives: for tests that allow for that."""


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """Return the first true value of `condition`; fail the test when there is none within `timeout_s` seconds."""
    end_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.01)
    return value


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_for_end(pids: list[int]) -> None:
    """Wait until none of these processes runs."""
    wait_until(lambda: not any(alive(pid) for pid in pids), f"end of the processes {pids}")


def cpu_slots(count: int = 1) -> list[Slot]:
    """Return slots on the CPU."""
    return [Slot(index=i, device="cpu", visible="", threads=1) for i in range(count)]


@contextmanager
def coordinating(store: MongoStore, name: str = "demo") -> Iterator[threading.Thread]:
    """Run a coordinator in a thread."""
    stop = threading.Event()
    thread = threading.Thread(target=Coordinator(store, name).run, args=(stop,), name="coordinator")
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join()


@contextmanager
def working(store: MongoStore, slots: int = 1, **options: Any) -> Iterator[Agent]:
    """Run an agent in a thread; at the end it is stopped and has left nothing behind."""
    agent = Agent(store, cpu_slots(slots), **options)
    stop = threading.Event()
    thread = threading.Thread(target=agent.run, args=(stop,), name="agent")
    thread.start()
    try:
        yield agent
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


def worker_command(*options: str) -> list[str]:
    """Return the command line of a worker on one slot of the CPU."""
    return [sys.executable, "-m", "workers", "--devices", "cpu", *options]


@contextmanager
def process(command: list[str], store_uri: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process of the service; it is killed at the end if it still runs."""
    variables = {**os.environ, "AUTOTUNE_STORE": store_uri, "PYTHONPATH": str(ROOT), **environment}
    with open(log, "ab") as output:
        started = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=variables)
    try:
        yield started
    finally:
        if started.poll() is None:
            started.kill()
        started.wait()


def wait_for_state(store: MongoStore, number: int, state: TrialState, name: str = "demo") -> Trial:
    """Wait until a trial is in a state, and return it whole."""

    def there() -> bool:
        return any(t.number == number and t.state is state for t in store.trials.heads(name))

    wait_until(there, f"trial {number} {state}")
    return store.trials.get(name, number)


def propose_one(store: MongoStore, name: str = "demo") -> None:
    """Let a coordinator propose the first trial of a campaign, which a worker serves, and no more than that."""
    coordinator = Coordinator(store, name)
    wait_until(lambda: coordinator.step() and store.trials.heads(name), "the trial")
    coordinator.resign()


def run_out(store: MongoStore, number: int, name: str = "demo") -> None:
    """Let the lease of a trial run out, whose worker is dead or stands still, and give the trial back."""
    lease = store.trials.get(name, number).lease
    assert lease is not None, f"trial {number} is not held"
    trials, token = store.connection.database["trials"], {"lease.token": lease.token}
    past = [{"$set": {"lease.expires_at": {"$subtract": ["$$NOW", 1_000]}}}]

    def given_back() -> bool:  # again where a renewal was on its way
        trials.update_one({"campaign": name, "number": number, **token}, past)
        store.trials.reap(name)
        return trials.find_one({"campaign": name, "number": number, **token}) is None

    wait_until(given_back, f"trial {number} is given back")


def process_of(file: Path) -> int:
    """Return the process id that a trial wrote into a file when it began."""
    return int(wait_until(lambda: file.exists() and file.read_text(), f"the file {file.name}"))


def processes_of(worker: int) -> list[int]:
    """Return the process ids of a worker and of all that it started, and they."""
    found, new = [], [worker]
    while new:
        found += new
        new = [int(child) for pid in new for child in _children_of(pid)]
    return found


def _children_of(pid: int) -> list[str]:
    try:
        files = [task / "children" for task in Path(f"/proc/{pid}/task").iterdir()]
        return [child for file in files for child in file.read_text().split()]
    except OSError:
        return []


def assert_exact(store: MongoStore, count: int, name: str = "demo") -> list[Trial]:
    """Check that exactly `count` trials finished, with dense numbers and no configuration twice; return them."""
    trials = store.trials.find(name)
    assert [t.number for t in trials] == list(range(count))
    assert {t.state for t in trials} == {TrialState.FINISHED}
    assert len({t.config_hash for t in trials}) == count
    for trial in trials:
        assert [a.cause for a in trial.attempts].count(None) == 1
        assert trial.score == float(trial.params["x"]) ** 2
    return trials

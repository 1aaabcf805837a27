"""Trials in the worker's own process (`isolation: none`), and proposals ahead of free slots."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autotune.coordinator import Coordinator
from autotune.errors import DuplicateError, StoreUnreachableError
from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState, Cause, TrialState
from tests.objectives import inline
from tests.objectives.support import (
    QUICK_LEASE,
    SHORT_LEASE,
    assert_exact,
    coordinating,
    process,
    wait_for_state,
    wait_until,
    worker_command,
    working,
)
from workers import agent as agent_module

Launch = Callable[..., CampaignRecord]


@pytest.fixture
def launch(make_campaign: Callable[..., CampaignRecord]) -> Launch:
    """Writes a campaign whose trials run in the worker's process."""

    def write(do: str, **changes: Any) -> CampaignRecord:
        settings = {"objective": f"tests.objectives.inline:{do}", "search": {"algorithm": "random", "seed": 0}}
        return make_campaign(**{"isolation": "none", **settings, **changes})

    return write


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets the objectives that wait go on; at the end at the latest."""
    inline.GO_ON.clear()
    yield inline.GO_ON
    inline.GO_ON.set()


def finished(store: MongoStore) -> None:
    wait_until(lambda: store.campaigns.get("demo").state is not CampaignState.RUNNING, "the end of the campaign")


@pytest.mark.parametrize("slots", [1, 3])
def test_a_campaign_runs_exactly_in_the_process_of_the_worker(store: MongoStore, launch: Launch, slots: int) -> None:
    launch("reports", max_trials=40)
    with coordinating(store), working(store, slots, once=True, campaigns=["demo"]) as agent:
        finished(store)
    for trial in assert_exact(store, 40):
        assert [r.step for r in store.reports.curve("demo", trial.number)] == [0, 1, 2]
        assert trial.facts["n_pid"] == os.getpid()
        (attempt,) = trial.attempts
        assert attempt.owner == agent.id
        assert {"run_s", "total_s"} == set(attempt.timing)
    assert [t.name for t in threading.enumerate() if t.name.startswith(("slot-", "reports", "fork-server"))] == []


@pytest.mark.parametrize(
    ("do", "cause", "text"),
    [
        ("fails", Cause.ERROR, "ValueError: no such thing"),
        ("leaves", Cause.ERROR, "SystemExit: 3"),
        ("no_number", Cause.NOT_A_NUMBER, "loss is nan"),
        ("no_memory", Cause.OUT_OF_MEMORY, "MemoryError"),
        ("wrong", Cause.ERROR, "the objective returned no metric 'loss'"),
    ],
)
def test_whatever_an_objective_does_is_its_trials_end(
    store: MongoStore, launch: Launch, do: str, cause: Cause, text: str
) -> None:
    launch(do, max_trials=3, failures={"abort_after": 0, "retries": {"out-of-memory": 0}})
    with coordinating(store), working(store, 2):
        finished(store)
    for trial in store.trials.find("demo"):
        found = store.trials.get("demo", trial.number).failure
        assert found is not None
        assert (trial.state, found.cause) == (TrialState.FAILED, cause)
        assert text in found.message
        assert found.traceback
        assert "tests/objectives/inline.py" in found.traceback or do in ("no_number", "wrong")


def test_a_trial_that_is_taken_away_ends_at_its_next_report(
    store: MongoStore, launch: Launch, release: threading.Event
) -> None:
    launch("reports_until_told", max_trials=1, lease=QUICK_LEASE)
    with coordinating(store), working(store):
        wait_for_state(store, 0, TrialState.RUNNING)
        store.campaigns.set_state("demo", CampaignState.CANCELLED, expected=[CampaignState.RUNNING], who="me")
        wait_for_state(store, 0, TrialState.CANCELLED)
        wait_until(lambda: inline.STOPPED.wait(0.1), "the end of the objective")


def test_a_worker_that_is_stopped_gives_a_trial_back_that_does_not_end(
    store: MongoStore, launch: Launch, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "_INLINE_GRACE_S", 0.5)
    launch("waits", max_trials=1)
    with coordinating(store):
        with working(store):
            wait_for_state(store, 0, TrialState.RUNNING)
        trial = store.trials.get("demo", 0)
        assert trial.state is TrialState.QUEUED
        assert trial.attempts[-1].cause == Cause.PREEMPTED
        release.set()
        with working(store):
            finished(store)
    assert_exact(store, 1)


def test_a_killed_worker_loses_nothing(store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path) -> None:
    launch("slow", max_trials=60, lease=SHORT_LEASE)
    command = worker_command("--campaign", "demo", "--slots-per-device", "2")
    with coordinating(store):
        for index in range(3):
            with process(command, store_uri, tmp_path / "log", AUTOTUNE_HOME=str(tmp_path)) as worker:
                goal = 5 * (index + 1)
                wait_until(lambda n=goal: store.trials.counts("demo").get(TrialState.FINISHED, 0) >= n, "some trials")
                worker.send_signal(signal.SIGKILL)
        with process(command, store_uri, tmp_path / "log", AUTOTUNE_HOME=str(tmp_path)):
            finished(store)
    assert_exact(store, 60)


@pytest.mark.parametrize(("settings", "queued"), [({}, 4), ({"ahead": 0}, 0), ({"ahead": 5}, 10)])
def test_so_many_wait_for_each_slot(
    store: MongoStore, launch: Launch, release: threading.Event, settings: dict[str, int], queued: int
) -> None:
    launch("waits", max_trials=40, **settings)

    def there() -> bool:
        counts = store.trials.counts("demo")
        return counts.get(TrialState.RUNNING) == 2 and counts.get(TrialState.QUEUED, 0) == queued

    with coordinating(store), working(store, 2):
        wait_until(there, "two that run and those that wait")
        release.set()
        finished(store)
    assert_exact(store, 40)


def test_the_budget_is_exact_with_proposals_ahead(store: MongoStore, launch: Launch, release: threading.Event) -> None:
    launch("waits", max_trials=3, ahead=50)
    with coordinating(store), working(store, 2):
        wait_until(lambda: sum(store.trials.counts("demo").values()) == 3, "all proposals")
        release.set()
        finished(store)
    assert_exact(store, 3)


def test_many_proposals_are_one_write_and_never_two_of_a_number(store: MongoStore, launch: Launch) -> None:
    launch("reports")

    def proposals(*numbers: int) -> list[dict[str, Any]]:
        return [{"number": n, "params": {"x": float(n)}, "config_hash": f"h{n}", "seed": n} for n in numbers]

    made = store.trials.propose_many("demo", proposals(0, 1, 2))
    assert [t.number for t in made] == [0, 1, 2]
    assert [t.state for t in store.trials.find("demo")] == [TrialState.QUEUED] * 3
    with pytest.raises(DuplicateError, match="trial 2 of campaign 'demo' was proposed already"):
        store.trials.propose_many("demo", proposals(2, 3))
    same = [{**one, "config_hash": "h0"} for one in proposals(4)]
    with pytest.raises(DuplicateError, match="already in the store"):
        store.trials.propose_many("demo", same)
    assert [t.params["x"] for t in store.trials.find("demo")] == [0.0, 1.0, 2.0, 3.0]


def test_a_coordinator_whose_write_failed_asks_its_search_anew(
    store: MongoStore, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not written must not be in the history: the same proposals come again, as from a new coordinator."""
    launch("waits", max_trials=20, search={"algorithm": "tpe", "seed": 4, "startup": 2})
    propose_many, times = type(store.trials).propose_many, []

    def fail_once(self: Any, campaign: str, proposals: Any) -> Any:
        times.append([dict(p["params"]) for p in proposals])
        if len(times) == 1:
            raise StoreUnreachableError("away")
        return propose_many(self, campaign, proposals)

    monkeypatch.setattr(type(store.trials), "propose_many", fail_once)
    coordinator = Coordinator(store, "demo")
    inline.GO_ON.clear()
    with working(store, 2):
        wait_until(lambda: store.workers.live("demo"), "the worker")
        with pytest.raises(StoreUnreachableError):
            coordinator.step()
        coordinator.step()
        inline.GO_ON.set()
    assert times[0] == times[1]


@pytest.mark.parametrize("first", ["train", "not_there"])
def test_a_worker_never_runs_old_code_under_the_name_of_new_code(
    first: str,
    store: MongoStore,
    store_uri: str,
    make_campaign: Callable[..., CampaignRecord],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process imports a module once: after the file has changed, the worker refuses and says what to do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    module, command = tmp_path / "changing.py", worker_command()

    def ended(name: str) -> bool:
        return store.campaigns.get(name).state is CampaignState.FINISHED

    def refused() -> bool:
        return any("loaded another version of 'changing'; restart it" in text for text in refusals("second"))

    def refusals(name: str) -> list[str]:
        return [worker.refusals[name] for worker in store.workers.live() if name in worker.refusals]

    module.write_text("def train(trial):\n    return 1.0\n")
    make_campaign("first", objective=f"changing:{first}", isolation="none", max_trials=2)
    with process(command, store_uri, tmp_path / "log", AUTOTUNE_HOME=str(tmp_path)):
        with coordinating(store, "first"):
            if first == "train":
                wait_until(lambda: ended("first"), "the first campaign")
            else:  # imported, though what the campaign wants is not in it
                wait_until(lambda: bool(store.trials.counts("first").get(TrialState.FAILED)), "a failure")
        module.write_text("def train(trial):\n    return 2.0\n")
        make_campaign("second", objective="changing:train", isolation="none", max_trials=2)
        with coordinating(store, "second"):
            wait_until(refused, "the refusal")
            assert not store.trials.counts("second").get(TrialState.FAILED)
            with process(command, store_uri, tmp_path / "log", AUTOTUNE_HOME=str(tmp_path)):
                wait_until(lambda: ended("second"), "the second campaign")
    assert {t.score for t in store.trials.find("first")} == {1.0 if first == "train" else None}
    assert {t.score for t in store.trials.find("second")} == {2.0}

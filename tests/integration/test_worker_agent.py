"""An agent and a coordinator on a real store: how trials end, and what the store then knows of them."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import NotFoundError, StoreUnreachableError
from autotune.store import watch as watch_module
from autotune.store.base import CampaignRecord, WorkerRecord
from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState, TrialState
from tests.objectives.support import (
    ENDINGS,
    QUICK_LEASE,
    ROOT,
    assert_exact,
    coordinating,
    wait_for_end,
    wait_for_state,
    wait_until,
    working,
)
from workers import lookout as lookout_module
from workers.admission import Admission

Launch = Callable[..., CampaignRecord]


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def launch(make_campaign: Callable[..., CampaignRecord], tmp_path: Path) -> Launch:
    """Writes a campaign whose trials all do one of the things in `endings`."""

    def write(do: str, **changes: Any) -> CampaignRecord:
        fixed = {"do": do, "folder": str(tmp_path)}
        settings = {"objective": f"{ENDINGS}:chosen", "fixed": fixed, "search": {"algorithm": "random", "seed": 0}}
        return make_campaign(**{**settings, **changes})

    return write


def wait_for_campaign(store: MongoStore, state: CampaignState) -> CampaignRecord:
    wait_until(lambda: store.campaigns.get("demo").state is state, f"campaign {state}")
    return store.campaigns.get("demo")


@pytest.mark.parametrize("slots", [1, 2])
def test_campaign_finishes_exactly(store: MongoStore, launch: Launch, tmp_path: Path, slots: int) -> None:
    launch("reports", max_trials=20)
    with coordinating(store), working(store, slots, once=True, campaigns=["demo"]) as agent:
        wait_for_campaign(store, CampaignState.FINISHED)
        wait_until(lambda: not store.workers.live("demo"), "end of the worker")
    trials = assert_exact(store, 20)
    for trial in trials:
        assert [r.step for r in store.reports.curve("demo", trial.number)] == list(range(10))
        (attempt,) = trial.attempts
        assert attempt.owner == agent.id
        assert {"load_s", "run_s", "total_s", "peak_rss_mb"} <= attempt.timing.keys()
    ours = ("slot-", "lookout", "leases", "reports", "fork-server")
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith(ours)], "the end of its threads")
    assert not list(tmp_path.glob("autotune-worker-*"))


def test_failure_is_in_the_store(store: MongoStore, launch: Launch) -> None:
    launch("fails", max_trials=5, failures={"abort_after": 2})
    with coordinating(store), working(store):
        record = wait_for_campaign(store, CampaignState.FAILED)
        wait_until(lambda: store.trials.counts("demo").keys() <= {TrialState.FAILED, TrialState.CANCELLED}, "all ended")
    assert "the first 2 trials all failed (error): ValueError: no such thing" in record.message
    trial = store.trials.get("demo", 0)
    attempt = trial.failure
    assert attempt is not None
    assert (attempt.cause, attempt.message, attempt.exit_code) == ("error", "ValueError: no such thing", 1)
    assert "in fails" in (attempt.traceback or "")
    assert attempt.log_tail == "about to fail"


@pytest.mark.parametrize(
    ("do", "cause", "message", "attempts"),
    [
        ("not_a_number", "not-a-number", "loss is nan", 1),
        ("exits_hard", "error", "code 9 without a result", 1),
        ("segfaults", "error", "SIGSEGV", 1),
        ("huge_fact", "error", "64 bits", 1),
        ("bad_text", "error", "cannot read f?", 1),
        ("killed", "lost", "SIGKILL", 5),
        ("terminated", "lost", "SIGTERM", 5),
    ],
)
def test_causes(
    store: MongoStore, launch: Launch, monkeypatch: pytest.MonkeyPatch, do: str, cause: str, message: str, attempts: int
) -> None:
    for name in ("_POLITE_S", "GRACE_S"):
        monkeypatch.setattr(f"workers.runner.{name}", 0.1)
    launch(do, max_trials=1)
    with coordinating(store), working(store):
        wait_for_campaign(store, CampaignState.FAILED)
    trial = store.trials.get("demo", 0)
    assert trial.state is TrialState.FAILED
    assert len(trial.attempts) == attempts
    for attempt in trial.attempts:
        assert attempt.cause == cause
        assert message in (attempt.message or "")


def test_facts_with_odd_keys_come_back(store: MongoStore, launch: Launch) -> None:
    launch("nested_facts", max_trials=1)
    with coordinating(store), working(store):
        wait_for_campaign(store, CampaignState.FINISHED)
    assert store.trials.get("demo", 0).facts == {"genes": {"AC1.2": 1, "": 2, "é": [1.5, None, True]}}


def test_reports_faster_than_the_store_are_all_kept(store: MongoStore, launch: Launch) -> None:
    launch("burst", max_trials=1)
    with coordinating(store), working(store):
        wait_for_campaign(store, CampaignState.FINISHED)
    assert [r.step for r in store.reports.curve("demo", 0)] == list(range(5_000))


def test_stop_gives_the_trial_back(store: MongoStore, launch: Launch, tmp_path: Path) -> None:
    launch("hangs")
    with coordinating(store):
        with working(store) as agent:
            running = wait_until(lambda: list(tmp_path.glob("running-0-0")), "start of trial 0")
            pid = int(wait_until(running[0].read_text, "its process id"))
        trial = store.trials.get("demo", 0)
        assert trial.state is TrialState.QUEUED
        assert [a.cause for a in trial.attempts] == ["preempted"]
        assert trial.lease is None
        wait_for_end([pid])
    workers = store.connection.database["workers"].find_one({"_id": agent.id})
    assert workers is not None
    assert workers["state"] == "stopped"


def test_stop_lets_a_training_clean_up(
    store: MongoStore, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.runner._POLITE_S", 60.0)
    launch("polite")
    with coordinating(store), working(store):
        wait_until((tmp_path / "running-0-0").exists, "start of trial 0")
    assert (tmp_path / "cleaned").exists()
    assert [a.cause for a in store.trials.get("demo", 0).attempts] == ["preempted"]


def test_stop_while_the_objective_is_loaded(
    store: MongoStore, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOW_IMPORT_FOLDER", str(tmp_path))
    launch("square", objective="tests.objectives.slow_import:square")
    with coordinating(store), working(store, 2):
        wait_until((tmp_path / "loading").exists, "start of the import")
        wait_for_state(store, 1, TrialState.RUNNING)
    for number in range(2):
        trial = store.trials.get("demo", number)
        assert trial.state is TrialState.QUEUED
        assert [a.cause for a in trial.attempts] == ["preempted"]
    wait_for_end([int((tmp_path / "loading").read_text())])


def test_cancelled_campaign_stops_its_training(store: MongoStore, launch: Launch, tmp_path: Path) -> None:
    launch("hangs", lease=QUICK_LEASE)
    launch("square", name="other", max_trials=3)
    with coordinating(store, "demo"), working(store):
        file = tmp_path / "running-0-0"
        pid = int(wait_until(lambda: file.exists() and file.read_text(), "start of trial 0"))
        store.campaigns.set_state("demo", CampaignState.CANCELLED, expected=[CampaignState.RUNNING])
        store.trials.cancel("demo", "no longer wanted")
        wait_for_end([pid])
        with coordinating(store, "other"):
            wait_until(lambda: store.campaigns.get("other").state is CampaignState.FINISHED, "the other campaign")
    assert_exact(store, 3, "other")
    (attempt,) = store.trials.get("demo", 0).attempts
    assert attempt.cause == "stopped"
    assert attempt.message in ("no longer wanted", "the campaign is cancelled")  # the coordinator cleans up, too


@pytest.mark.parametrize("noticed", [False, True])
def test_stolen_lease(
    store: MongoStore, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noticed: bool
) -> None:
    """A result after the lease has gone is kept beside the attempt; a loss that is noticed stops the training."""
    if not noticed:
        monkeypatch.setattr(lookout_module, "_CHECK_S", 1_000.0)
    launch("holds_first", max_trials=3, lease=QUICK_LEASE if noticed else {"duration_s": 60, "renewal_s": 30})
    trials = store.connection.database["trials"]
    with coordinating(store), working(store):
        wait_until((tmp_path / "running-0-0").exists, "start of trial 0")
        mine = wait_for_state(store, 0, TrialState.RUNNING)
        theft = {"token": "thief", "owner": "thief", "duration_s": 60.0, "expires_at": {"$add": ["$$NOW", 60_000]}}
        trials.update_one({"number": 0}, [{"$set": {"lease": theft}}])
        if not noticed:
            (tmp_path / "go").touch()
        wait_for_state(store, 2, TrialState.FINISHED)
        stolen = store.trials.get("demo", 0)
    assert stolen.state is TrialState.RUNNING
    assert stolen.score is None
    assert stolen.lease is not None
    assert stolen.lease.token == "thief"
    late = stolen.attempts[0].late_result
    assert (late is None) is noticed
    if late is not None:
        assert late["score"] == float(mine.params["x"]) ** 2


def test_once_ends_when_nothing_runs(store: MongoStore, launch: Launch) -> None:
    launch("square", max_trials=2)
    store.campaigns.set_state("demo", CampaignState.PAUSED, expected=[CampaignState.RUNNING])
    with working(store, 2, once=True):
        wait_until(lambda: not store.workers.live(), "end of the worker")
    assert store.trials.find("demo") == []


def test_unknown_campaign_is_an_error_and_leaves_nothing(store: MongoStore, launch: Launch, tmp_path: Path) -> None:
    from tests.objectives.support import cpu_slots
    from workers.agent import Agent

    launch("square")
    with pytest.raises(NotFoundError, match="did you mean 'demo'"):
        Agent(store, cpu_slots(), campaigns=["dmeo"]).run(threading.Event())
    assert list(tmp_path.iterdir()) == []
    assert store.workers.live() == []


def test_module_that_appears_while_the_worker_runs(
    store: MongoStore, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    launch("square", objective="not_there_yet:f", max_trials=2)
    store.trials.propose("demo", 0, {"x": 1.0}, "hash", seed=0)  # no coordinator: one would end the campaign
    with working(store, admission=Admission(["not_there_yet"])):
        failed = wait_for_state(store, 0, TrialState.FAILED)
        (tmp_path / "not_there_yet.py").write_text("def f(trial):\n    return 2.0\n")
        assert failed.failure is not None
        assert "cannot import the objective" in (failed.failure.message or "")
        store.connection.database["trials"].update_one({"number": 0}, {"$set": {"state": "queued", "ended_at": None}})
        wait_for_state(store, 0, TrialState.FINISHED)


def test_slot_survives_what_nobody_expected(
    store: MongoStore, launch: Launch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in the worker itself: the trial goes back, the slot goes on, and the log says where the bug is."""
    from workers.claimed import Claimed

    request, raised = Claimed.request, threading.Event()

    def bug(self: Claimed) -> dict[str, Any]:
        if not raised.is_set():
            raised.set()
            raise KeyError("a bug")
        return request(self)

    monkeypatch.setattr(Claimed, "request", bug)
    launch("square", max_trials=2)
    with coordinating(store), working(store):
        wait_for_campaign(store, CampaignState.FINISHED)
    assert_exact(store, 2)
    first = store.trials.get("demo", 0).attempts[0]
    assert first.cause == "lost"
    assert "in bug" in (first.traceback or "")
    assert "in bug" in caplog.text


def test_replies_that_get_lost(store: MongoStore, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server carries each kind of write out, and once the worker does not hear of it."""
    monkeypatch.setattr("workers.agent._BACKOFF_S", 0.05)
    refused: set[str] = set()

    def lose_first_reply(part: object, name: str) -> None:
        real = getattr(part, name)

        def write(*args: Any, **kwargs: Any) -> Any:
            value = real(*args, **kwargs)
            if name not in refused:
                refused.add(name)
                raise StoreUnreachableError("gone")
            return value

        monkeypatch.setattr(part, name, write)

    lose_first_reply(store.reports, "add")
    for name in ("finish", "claim", "renew"):
        lose_first_reply(store.trials, name)
    launch("reports", max_trials=6, lease=QUICK_LEASE)
    with coordinating(store), working(store):
        wait_for_campaign(store, CampaignState.FINISHED)
    trials = assert_exact(store, 6)
    assert {"finish", "claim", "add"} <= refused
    for trial in trials:
        assert [r.step for r in store.reports.curve("demo", trial.number)] == list(range(10))


def test_workers_of_a_large_fleet_ask_instead_of_listening(
    store: MongoStore, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many workers alive nobody opens a change stream; trials are found, and cancelled ones end, all the same."""
    monkeypatch.setattr(lookout_module, "_MOST_STREAMS", 0)

    def refuse(*_: Any) -> Any:
        raise AssertionError("a change stream was opened")

    monkeypatch.setattr(type(store), "watch_work", refuse)
    with working(store, 2):
        wait_until(lambda: store.workers.live("demo"), "the worker")
        launch("reports", max_trials=12)
        with coordinating(store):
            wait_for_campaign(store, CampaignState.FINISHED)
    assert_exact(store, 12)


def test_an_idle_worker_listens_again_when_the_fleet_has_shrunk_and_asks_when_it_has_grown(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for work all the time; how many live is counted again each round."""
    monkeypatch.setattr(lookout_module, "_ROUND_S", 0.2)
    monkeypatch.setattr(lookout_module, "_MOST_STREAMS", 0)
    with working(store) as agent:
        wait_until(lambda: agent._lookout._asks, "asking")
        for most, hears in ((16, True), (0, False), (16, True)):
            monkeypatch.setattr(lookout_module, "_MOST_STREAMS", most)
            wait_until(lambda h=hears: agent._lookout.hears == h and agent._lookout._asks != h, "the other way")


@pytest.mark.parametrize("most_streams", [0, 16])
def test_a_silent_training_is_told_that_its_trial_was_cancelled(
    store: MongoStore, launch: Launch, monkeypatch: pytest.MonkeyPatch, most_streams: int
) -> None:
    """All slots are busy, so no stream is open; the lease is not due for renewal for a long time."""
    monkeypatch.setattr(lookout_module, "_MOST_STREAMS", most_streams)
    launch("hangs", max_trials=1, lease={"duration_s": 120, "renewal_s": 60})
    with coordinating(store), working(store) as agent:
        wait_for_state(store, 0, TrialState.RUNNING)
        time.sleep(lookout_module._LINGER_S + 1.0)
        store.campaigns.set_state("demo", CampaignState.CANCELLED, expected=[CampaignState.RUNNING], who="me")
        wait_for_state(store, 0, TrialState.CANCELLED)
        wait_until(lambda: agent._running == [None], "the end of the training", 10.0)


def test_a_patient_watch_hears_at_once_and_asks_seldom(
    store: MongoStore, make_campaign: Callable[..., CampaignRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_QUIET_AFTER_S", 0.2)
    make_campaign()
    with store.watch_work("w") as watch:
        while watch.wait(0.5):
            pass
        began_s = time.monotonic()
        threading.Timer(2.0, lambda: store.trials.propose("demo", 0, {"x": 1.0}, "h", seed=0)).start()
        assert watch.wait(0.5, patient=True)
        assert 1.0 < time.monotonic() - began_s < 8.0
        assert watch.changed == "trials"
        store.workers.register(WorkerRecord(id="w", host="h", pid=1, slots=1))
        store.workers.stopped("w")
        assert watch.wait(5.0, patient=True)
        assert watch.changed == "workers"
        assert not watch.wait(0.5)

"""Time limits, trainings and agents that stand still, and how fast a cancellation arrives; with real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.store.base import CampaignRecord
from autotune.store.campaigns import Extension
from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState, Trial, TrialState
from tests.objectives.support import (
    ENDINGS,
    QUICK_LEASE,
    ROOT,
    alive,
    assert_exact,
    coordinating,
    process,
    process_of,
    processes_of,
    run_out,
    wait_for_end,
    wait_until,
    worker_command,
    working,
)
from workers.watchdog import Verdict, Watchdog

Launch = Callable[..., CampaignRecord]

LONG_LEASE = {"duration_s": 60.0, "renewal_s": 30.0}


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


class Watched:
    """The watchdogs of all trainings, for which time passes when a test says so."""

    def __init__(self) -> None:
        self.dogs: list[Watchdog] = []
        self.late: list[Watchdog] = []
        self.look = Watchdog.look

    def spy(self, dog: Watchdog, now_s: float, *, stopped: bool) -> Verdict | None:
        if all(dog is not other for other in self.dogs):
            self.dogs.append(dog)
        is_late = any(dog is other for other in self.late)
        return self.look(dog, now_s + 1_000.0 * is_late, stopped=stopped)

    def pass_time(self) -> None:
        """Let a thousand seconds pass for the trainings that are watched now."""
        wait_until(lambda: self.dogs, "a look at the training")
        self.late = list(self.dogs)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched()
    monkeypatch.setattr(Watchdog, "look", lambda *args, **kwargs: watched.spy(*args, **kwargs))
    return watched


@pytest.fixture
def launch(make_campaign: Callable[..., CampaignRecord], tmp_path: Path) -> Launch:
    """Writes a campaign whose trials all do one of the things in `endings`."""

    def write(do: str, **changes: Any) -> CampaignRecord:
        fixed = {"do": do, "folder": str(tmp_path), **changes.pop("fixed", {})}
        settings = {"objective": f"{ENDINGS}:chosen", "fixed": fixed, "search": {"algorithm": "random", "seed": 0}}
        return make_campaign(**{**settings, **changes})

    return write


def wait_for_campaign(store: MongoStore, state: CampaignState) -> CampaignRecord:
    wait_until(lambda: store.campaigns.get("demo").state is state, f"campaign {state}", 60)
    return store.campaigns.get("demo")


def causes(trial: Trial) -> list[str | None]:
    return [a.cause for a in trial.attempts]


def test_trial_limit_ends_the_training_and_all_that_it_started(
    store: MongoStore, launch: Launch, tmp_path: Path, watched: Watched
) -> None:
    launch("family", max_trials=1, limits={"trial_s": 600.0})
    with coordinating(store), working(store):
        training = process_of(tmp_path / "running-0-0")
        family = [int(pid) for pid in (tmp_path / "family").read_text().split()]
        watched.pass_time()
        wait_for_campaign(store, CampaignState.FAILED)
        wait_for_end([training, *family])
    trial = store.trials.get("demo", 0)
    (attempt,) = trial.attempts
    assert (attempt.cause, attempt.message) == ("timeout", "it ran 600 s (limits.trial_s)")
    for line in ("most recent call first", "in hangs", "in family", "in chosen"):
        assert line in (attempt.log_tail or "")


def test_trial_that_is_out_of_time_again_fails(store: MongoStore, launch: Launch, tmp_path: Path) -> None:
    launch("hangs", max_trials=1, limits={"trial_s": 1.0}, failures={"retries": {"timeout": 1}})
    with coordinating(store), working(store):
        wait_for_campaign(store, CampaignState.FAILED)
    trial = store.trials.get("demo", 0)
    assert causes(trial) == ["timeout", "timeout"]
    assert trial.ends == {"timeout": 2}
    assert all(attempt.timing["total_s"] >= 1.0 for attempt in trial.attempts)
    wait_for_end([process_of(file) for file in tmp_path.glob("running-0-*")])


def test_second_try_after_a_time_out_can_finish(
    store: MongoStore, launch: Launch, tmp_path: Path, watched: Watched
) -> None:
    launch("holds_first", max_trials=2, limits={"trial_s": 600.0}, failures={"retries": {"timeout": 1}})
    with coordinating(store), working(store):
        process_of(tmp_path / "running-0-0")
        watched.pass_time()
        wait_for_campaign(store, CampaignState.FINISHED)
    assert [causes(t) for t in assert_exact(store, 2)] == [["timeout", None], [None]]


def test_silence_ends_a_training_and_talk_does_not(store: MongoStore, launch: Launch, tmp_path: Path) -> None:
    """Trial 1 takes longer than a silence may, but reports; trial 0 falls silent."""
    launch("stalls_first", max_trials=2, limits={"silent_s": 8.0}, fixed={"steps": 45})
    with coordinating(store), working(store, 2):
        record = wait_for_campaign(store, CampaignState.FINISHED)
    assert record.message == "1 of 2 trials failed"
    silent, talking = (store.trials.get("demo", n) for n in range(2))
    assert (silent.state, causes(silent)) == (TrialState.FAILED, ["timeout"])
    assert silent.attempts[0].message == "it sent no report for 8 s (limits.silent_s)"
    assert "in stalls_first" in (silent.attempts[0].log_tail or "")
    assert [r.step for r in store.reports.curve("demo", 0)] == [0, 1, 2]
    assert talking.state is TrialState.FINISHED
    assert talking.attempts[0].timing["run_s"] > 8.0
    wait_for_end([process_of(tmp_path / "running-0-0")])


def test_frozen_trainer_is_told_from_a_lost_worker(
    store: MongoStore, launch: Launch, tmp_path: Path, watched: Watched
) -> None:
    launch("holds_first", max_trials=2, lease=LONG_LEASE)
    with coordinating(store), working(store):
        training = process_of(tmp_path / "running-0-0")
        os.kill(training, signal.SIGSTOP)
        wait_until(lambda: any(dog._stopped_s is not None for dog in watched.dogs), "the worker sees it")
        watched.pass_time()
        wait_for_campaign(store, CampaignState.FINISHED)
        wait_for_end([training])
    first, second = assert_exact(store, 2)[0].attempts
    assert (first.cause, second.cause) == ("lost", None)
    assert first.message == "the training process was stopped by a signal for 60 s while its worker went on"
    assert first.owner == second.owner
    assert store.trials.get("demo", 0).ends == {"lost": 1, "killed": 1}


def test_result_of_a_frozen_agent_counts_while_nobody_has_begun(
    store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path
) -> None:
    """Its training ends while the agent stands still and the trial is given back: all that it sent is taken."""
    launch("reports_at_the_end", max_trials=3, lease=QUICK_LEASE)
    with coordinating(store), process(worker_command(), store_uri, tmp_path / "log") as worker:
        training = process_of(tmp_path / "running-0-0")
        worker.send_signal(signal.SIGSTOP)
        run_out(store, 0)
        (tmp_path / "go").touch()
        wait_for_end([training])
        worker.send_signal(signal.SIGCONT)
        wait_for_campaign(store, CampaignState.FINISHED)
        assert worker.poll() is None
    trials = assert_exact(store, 3)
    assert [causes(t) for t in trials] == [[None], [None], [None]]
    assert {a.owner for t in trials for a in t.attempts} == {trials[0].attempts[0].owner}
    for trial in trials:
        assert [r.step for r in store.reports.curve("demo", trial.number)] == list(range(10))


def test_frozen_agent_lives_on_and_its_late_result_is_kept(
    store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path
) -> None:
    launch("holds_first", max_trials=1, lease=QUICK_LEASE)
    with process(worker_command(), store_uri, tmp_path / "frozen.log") as frozen:
        with coordinating(store):
            training = process_of(tmp_path / "running-0-0")
            frozen.send_signal(signal.SIGSTOP)
            run_out(store, 0)
            (tmp_path / "go").touch()
            wait_for_end([training])
            with process(worker_command("--once", "--campaign", "demo"), store_uri, tmp_path / "other.log") as other:
                assert other.wait(60) == 0
        frozen.send_signal(signal.SIGCONT)
        wait_until(lambda: store.trials.get("demo", 0).attempts[0].late_result, "the late result")
        store.campaigns.extend("demo", Extension(max_trials=5))
        with coordinating(store):
            wait_for_campaign(store, CampaignState.FINISHED)
        assert frozen.poll() is None
    trials = assert_exact(store, 5)
    first, second = store.trials.get("demo", 0).attempts
    assert (first.cause, second.cause) == ("lost", None)
    assert first.late_result is not None
    assert first.late_result["score"] == trials[0].score
    assert {first.owner} == {t.attempts[-1].owner for t in trials[1:]}


def test_cancellation_arrives_long_before_the_next_renewal(
    store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path
) -> None:
    launch("hangs", lease=LONG_LEASE)
    with coordinating(store), process(worker_command(), store_uri, tmp_path / "log") as worker:
        training = process_of(tmp_path / "running-0-0")
        assert training in processes_of(worker.pid)
        store.campaigns.set_state("demo", CampaignState.CANCELLED, expected=[CampaignState.RUNNING])
        store.trials.cancel("demo", "no longer wanted")
        cancelled_s = time.monotonic()
        wait_until(lambda: not alive(training), "end of the training", 15)
        took_s = time.monotonic() - cancelled_s
        assert worker.poll() is None
    assert took_s < 10.0, f"{took_s:.1f} s"
    assert causes(store.trials.get("demo", 0)) == ["stopped"]

"""The storm in its short form, and that its audit sees what it looks for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import failure
from autotune.trial import Attempt, CampaignState, Cause, Report, Result, Trial, TrialState
from benchmarks.chaos import audit as auditing
from benchmarks.chaos import objectives, storm
from benchmarks.chaos.faults import Injected, pid_of
from benchmarks.chaos.proc import deliver, processes_of
from benchmarks.chaos.processes import ROOT, Fleet
from tests.objectives.support import wait_until
from workers import reporting

FIXED = {"least_s": 0.0, "most_s": 0.0}
PARAMS = {"x": 0.5, "rate": 0.01, "layers": 2}


def test_storm_loses_nothing(server_uri: str) -> None:
    outcome = storm.run(short=True, seed=1)
    assert outcome.problems == [], outcome.rows


@pytest.fixture
def finished(store: MongoStore, make_campaign: Callable[..., CampaignRecord]) -> MongoStore:
    """A store with a campaign of two trials, both as a campaign without faults leaves them."""
    make_campaign(
        "demo", max_trials=2, objective="benchmarks.chaos.objectives:descent", space=objectives.SPACE, fixed=FIXED
    )
    for number in range(2):
        run_by_hand(store, number)
    end(store)
    return store


def run_by_hand(store: MongoStore, number: int, *, off: float = 0.0, steps: int = objectives.STEPS) -> None:
    """Propose, claim, report and finish one trial.

    Args:
        store: The store.
        number: Number of the trial.
        off: So far off is the score that is written.
        steps: So many of its reports are written.
    """
    params = {**PARAMS, "x": number / 10}
    store.trials.propose("demo", number, params, f"hash-{number}", seed=number)
    trial = store.trials.claim(["demo"], owner="h-1-a", token=f"{number:08x}", duration_s=60)
    assert trial is not None
    assert trial.lease is not None
    reports: list[Report] = []
    score = objectives.descent(
        reporting.Trial(
            params={**params, **FIXED}, seed=number, send=lambda s, m: reports.append(Report(step=s, metrics=dict(m)))
        )
    )["loss"]
    store.reports.add(trial.lease, reports[:steps])
    store.trials.finish(trial.lease, Result(score=score + off, metrics={}))


def end(store: MongoStore) -> None:
    store.campaigns.set_state("demo", CampaignState.FINISHED, expected=[CampaignState.RUNNING])


def problems(store: MongoStore, budget: int = 2) -> list[str]:
    return auditing.audit(store, "demo", budget, objectives.descent).problems


def test_audit_of_a_good_campaign_finds_nothing(finished: MongoStore) -> None:
    assert problems(finished) == []


def test_audit_sees_a_trial_too_few(finished: MongoStore) -> None:
    found = auditing.audit(finished, "demo", 3, objectives.descent)
    assert found.lost == 1
    assert any("1 trials of the budget are not finished: [2]" in p for p in found.problems)


def change(store: MongoStore, **fields: Any) -> None:
    """Change the document of trial 0 behind the service's back."""
    store.connection.database.command("collMod", "trials", validationLevel="off")
    store.connection.database["trials"].update_one({"campaign": "demo", "number": 0}, {"$set": fields})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"state": "running"}, "neither ended"),
        ({"state": "failed"}, "not finished: [0]"),
        ({"score": 17.0}, "trial 0: 17.0, again"),
        ({"attempts.0.cause": "lost"}, "0 attempts that ended with a result"),
        ({"attempts.0.ended_at": None}, "no end"),
        ({"number": 7}, "numbers are not"),
        ({"config_hash": "hash-1"}, "configuration more than once"),
    ],
)
def test_audit_sees_a_wrong_document(finished: MongoStore, fields: dict[str, Any], problem: str) -> None:
    for name in finished.connection.database["trials"].index_information():
        if name != "_id_":
            finished.connection.database["trials"].drop_index(name)
    change(finished, **fields)
    assert any(problem in p for p in problems(finished)), problems(finished)


def test_audit_sees_a_second_result(finished: MongoStore) -> None:
    again = finished.connection.database["trials"].find_one({"campaign": "demo", "number": 0})
    assert again is not None
    change(finished, attempts=[{**again["attempts"][0], "token": "ffffffff"}, *again["attempts"]])
    found = auditing.audit(finished, "demo", 2, objectives.descent)
    assert found.doubled == 1
    assert "trial 0 has 2 attempts that ended with a result" in found.problems


def test_audit_sees_a_report_twice_and_one_too_few(finished: MongoStore) -> None:
    reports = finished.connection.database["reports"]
    for name in reports.index_information():
        if name != "_id_":
            reports.drop_index(name)
    twice = reports.find_one({"campaign": "demo", "number": 0, "step": 3}, {"_id": 0})
    assert twice is not None
    reports.insert_one(twice)
    reports.delete_one({"campaign": "demo", "number": 1, "step": 5})
    found = auditing.audit(finished, "demo", 2, objectives.descent)
    assert found.doubled == 1
    assert any("reports more than once" in p for p in found.problems)
    assert any("the curve of trial 1 is not whole" in p for p in found.problems)


def test_audit_sees_a_cause_that_no_fault_explains(
    store: MongoStore, make_campaign: Callable[..., CampaignRecord]
) -> None:
    make_campaign(
        "demo", max_trials=1, objective="benchmarks.chaos.objectives:descent", space=objectives.SPACE, fixed=FIXED
    )
    store.trials.propose("demo", 0, PARAMS, "hash", seed=0)
    trial = store.trials.claim(["demo"], owner="h-1-a", token="0000000a", duration_s=60)
    assert trial is not None
    assert trial.lease is not None
    store.trials.end_attempt(trial.lease, failure(Cause.ERROR))
    end(store)
    assert any("ended with error: it broke" in p for p in problems(store, 1))


def test_fleet_finds_what_is_left(tmp_path: Path) -> None:
    fleet = Fleet(folder=tmp_path, store_uri="", campaign="demo")
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=fleet.environment)
    (tmp_path / "tmp" / "left").touch()
    try:
        wait_until(lambda: fleet.leaks(0.0), "a leak")
        assert str(sleeper.pid) in fleet.leaks(0.0)[0]
        assert fleet.temporary_files() == ["left"]
    finally:
        fleet.kill()
        sleeper.communicate()
    assert fleet.leaks(0.0) == []
    assert sleeper.returncode == -signal.SIGKILL


def test_only_a_signal_that_arrives_counts() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert deliver(process.pid, signal.SIGKILL)
    wait_until(lambda: not deliver(process.pid, signal.SIGKILL), "a zombie")
    process.communicate()
    assert not deliver(process.pid, signal.SIGKILL)


def test_attempts_are_laid_to_the_fault_that_ended_them() -> None:
    start = datetime.now(UTC)

    def at(seconds: float) -> datetime:
        return start + timedelta(seconds=seconds)

    killed = Attempt(
        token="a", owner="h-12-x", started_at=at(0), ended_at=at(2), cause="lost", message="killed by SIGKILL"
    )
    gone = Attempt(token="b", owner="h-13-x", started_at=at(3), ended_at=at(8), cause="lost", message="not heard of")
    other = Attempt(token="c", owner="h-14-x", started_at=at(9), ended_at=at(12), cause="lost", message="not heard of")
    young = Attempt(
        token="e", owner="h-15-x", started_at=at(20), ended_at=at(20.2), cause="lost", message="killed by SIGKILL"
    )
    won = Attempt(token="d", owner="h-14-y", started_at=at(23), ended_at=at(24))
    trial = Trial(
        campaign="demo", number=4, params={}, config_hash="", state=TrialState.FINISHED,
        attempts=(killed, gone, other, young, won),
    )  # fmt: skip
    training, agent = "SIGKILL of a training", "SIGKILL of an agent"
    faults = [
        Injected(kind=training, at=at(1), pid=99, trial=(4, 0)),
        Injected(kind=training, at=at(4), pid=98, trial=(5, 1)),
        Injected(kind=agent, at=at(5), pid=13),
        Injected(kind=agent, at=at(8.5), pid=14),
        Injected(kind=training, at=at(20.1), pid=97),
    ]
    shares = storm.attribute(faults, [trial])
    assert {kind: [e.attempt.token for e in ended] for kind, ended in shares.items()} == {
        training: ["a", "e"], agent: ["b"], "": ["c"],
    }  # fmt: skip
    assert storm.back_s(shares[agent]) == [3.0]


def test_take_over_is_counted_with_and_without_outages() -> None:
    start = datetime.now(UTC)

    def at(seconds: float) -> datetime:
        return start + timedelta(seconds=seconds)

    leads = storm.LeadWatch(uri="", campaign="demo", seen=[(at(0), 7), (at(9), 8), (at(30), 9)])
    kill = Injected(kind="SIGKILL of a coordinator", at=at(1), pid=7, led=True)
    assert leads.take_over_s(kill) == 8.0
    assert leads.take_over_s(kill, [(at(-5), at(2)), (at(4), at(6)), (at(8), at(40)), (at(50), at(60))]) == 4.0
    assert leads.take_over_s(Injected(kind="", at=at(31), pid=9)) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_scenario_leaves_no_process(server_uri: str, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "benchmarks.chaos", "soak", "--short"]
    with open(tmp_path / "log", "wb") as log:
        scenario = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=log, stderr=log
        )
    wait_until(lambda: list(tmp_path.glob("autotune-chaos-*/children/*")), "the first trial", 60)
    scenario.send_signal(number)
    assert scenario.wait(60) != 0
    assert processes_of(tmp_path) == {}
    assert list(tmp_path.glob("autotune-chaos-*")) == []


@pytest.mark.parametrize(
    ("owner", "pid"), [("my-host-12-abc", 12), ("my-host:13:abcd", 13), (None, None), ("odd", None)]
)
def test_process_id_of_an_owner(owner: str | None, pid: int | None) -> None:
    assert pid_of(owner) == pid


def test_tracebacks_in_logs_are_seen(tmp_path: Path) -> None:
    log = tmp_path / "worker-0.log"
    log.write_text("all well\nTraceback (most recent call last):\n  File x\nKeyError: 'y'\nall well\n")
    assert auditing.tracebacks([log]) == ["unforeseen error in a log, 1 times: KeyError: 'y' (worker)"]

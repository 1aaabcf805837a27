"""A store that an older version wrote is refused in one line, then brought to this version without a loss."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from autotune.campaign import parse_campaign
from autotune.errors import StoreSetupError
from autotune.lifecycle import KILLED
from autotune.local.resolve import resolve
from autotune.store.mongo import MongoStore, open_store
from autotune.store.schema import INDEXES, MAX_ATTEMPTS, SCHEMA_VERSION, VALIDATORS
from autotune.testing.helpers import failure, result
from autotune.trial import CampaignState, Cause, Lease, Origin, Report, TrialState
from tests.acceptance.support import OBJECTIVES

Cli = Callable[..., subprocess.CompletedProcess[str]]

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NEW_IN_2 = {
    "campaigns": {"environment", "max_hours", "max_device_hours", "revision", "ran_s", "running_since"},
    "trials": {"claims", "ends", "alone", "origin"},
    "workers": {"refusals"},
}
NEW_IN_3 = {"campaigns": {"unsealed_at"}}
SPEC_KEYS = {
    "name", "objective", "data", "split", "metric", "space", "search", "schedule", "budget", "fixed", "lease",
    "failures", "description",
}  # fmt: skip
CONTENT: dict[str, Any] = {
    "name": "old",
    "objective": "objectives:sine",
    "metric": {"name": "loss", "mode": "min"},
    "space": {"x": {"float": [-2, 2]}},
    "search": {"algorithm": "random", "seed": 0},
    "budget": {"max_trials": 8},
}


def validator_1(name: str) -> dict[str, Any]:
    """Return a validator of schema 1: today's without what came later."""
    validator = copy.deepcopy(VALIDATORS[name])
    properties = validator["$jsonSchema"]["properties"]
    for key in NEW_IN_2.get(name, set()) | NEW_IN_3.get(name, set()):
        del properties[key]
    if name == "trials":
        del properties["attempts"]["maxItems"]
    return validator


def campaign_1(name: str, state: str = "running", **changes: Any) -> dict[str, Any]:
    """Return a campaign as schema 1 had it."""
    record = resolve(parse_campaign({**CONTENT, "name": name}))
    spec = {k: v for k, v in record.spec.items() if k in SPEC_KEYS}
    spec["budget"] = {"max_trials": 8}
    spec["lease"] = {"duration_s": 30.0, "renewal_s": 10.0}
    spec["failures"] = {"abort_after": 10}
    return {
        "_id": name, "schema_version": 1, "state": state, "message": "", "spec": spec, "spec_hash": "one",
        "space": dict(record.space), "metric": dict(record.metric), "facts": {}, "paths": [], "max_trials": 8,
        "created_at": T0, "ended_at": None, **changes,
    }  # fmt: skip


def attempt_1(token: str, **changes: Any) -> dict[str, Any]:
    return {"token": token, "owner": "w", "host": "h", "device": "cpu", "started_at": T0, **changes}


def ended_1(token: str, cause: str, state: str, **changes: Any) -> dict[str, Any]:
    """Return an attempt that its holder ended."""
    return attempt_1(token, ended_at=T0, cause=cause, message="it broke", ended_by_holder=state, **changes)


def trial_1(number: int, state: str, attempts: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Return a trial as schema 1 had it; one that runs has a lease of its last attempt."""
    lease = None
    if state == "running":
        lease = {"owner": "w", "token": attempts[-1]["token"], "duration_s": 30.0,
                 "expires_at": datetime.now(UTC) + timedelta(hours=1)}  # fmt: skip
    return {
        "schema_version": 1, "campaign": "old", "number": number, "fold": 0, "replicate": 0, "seed": number,
        "params": {"x": number / 8}, "config_hash": f"hash-{number}", "state": state, "lease": lease,
        "attempts": attempts, "score": None, "metrics": {}, "facts": {}, "proposed_at": T0,
        "started_at": T0 if attempts else None, "ended_at": None, **changes,
    }  # fmt: skip


KILLS = [ended_1(f"kill-{n}", "lost", "queued", process_killed=True) for n in range(4)]
MANY = [ended_1(f"many-{n}", "preempted", "queued") for n in range(200)]
TRIALS = [
    trial_1(0, "finished", [attempt_1("t0", ended_at=T0)], score=0.25, ended_at=T0, facts={"epochs": 3},
            metrics={"loss": {"value": 0.25, "split": "valid"}}),
    trial_1(1, "running", [attempt_1("t1-lost", ended_at=T0, cause="lost"), attempt_1("t1")]),
    trial_1(2, "running", [*MANY, attempt_1("t2")]),
    trial_1(3, "queued", KILLS),
    trial_1(4, "failed", [ended_1("t4", "out-of-memory", "failed")], ended_at=T0),
    trial_1(5, "queued", []),
]  # fmt: skip


@pytest.fixture
def old_store(store_uri: str) -> Iterator[MongoStore]:
    """A store that schema 1 wrote, with validators, opened without preparing it; closed with the test."""
    store = MongoStore(store_uri, prepare=False)
    database = store.connection.database
    for name in VALIDATORS:
        database.create_collection(name, validator=validator_1(name))
        if INDEXES[name]:
            database[name].create_indexes(INDEXES[name])
    database["meta"].insert_one({"_id": "schema", "version": 1})
    campaigns = [
        campaign_1("old"),
        campaign_1("done", "finished", ended_at=T0 + timedelta(hours=2)),
        campaign_1("waiting", "paused"),
    ]
    database["campaigns"].insert_many(campaigns)
    database["trials"].insert_many(copy.deepcopy(TRIALS))
    database["reports"].insert_one(
        {"schema_version": 1, "campaign": "old", "number": 2, "step": 1, "attempt": 199, "metrics": {"loss": 1.0}}
    )
    database["events"].insert_one({"schema_version": 1, "campaign": "old", "action": "create", "who": "ann", "at": T0})
    database["workers"].insert_one(
        {"_id": "w", "schema_version": 1, "host": "h", "pid": 1, "slots": 1, "state": "stopped", "seen_at": T0}
    )
    yield store
    store.close()


@pytest.fixture
def upgraded(old_store: MongoStore) -> MongoStore:
    old_store.upgrade()
    return old_store


def contents(store: MongoStore) -> dict[str, list[dict[str, Any]]]:
    """Return every document of the store."""
    return {name: list(store.connection.database[name].find().sort("_id", 1)) for name in [*VALIDATORS, "meta"]}


def lease_of(store: MongoStore, number: int) -> Lease:
    lease = store.trials.get("old", number).lease
    assert lease is not None
    return lease


def test_an_old_store_is_refused_in_one_line_that_says_what_to_do(
    old_store: MongoStore, store_uri: str, run_cli: Cli
) -> None:
    before = contents(old_store)
    with pytest.raises(
        StoreSetupError, match=r"older autotune \(schema 1, this one writes 3\).*autotune store upgrade"
    ):
        open_store(store_uri)
    done = run_cli("campaigns")
    assert done.returncode == 5
    assert "autotune store upgrade" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert contents(old_store) == before, "a refusal changes nothing"


def test_the_command_upgrades(old_store: MongoStore, store_uri: str, run_cli: Cli) -> None:
    assert run_cli("store", "upgrade").returncode == 0
    assert run_cli("campaigns").returncode == 0
    with open_store(store_uri) as store:
        assert {c.name for c in store.campaigns.find()} == {"old", "done", "waiting"}


def test_every_document_has_the_new_version_and_passes_the_new_validators(upgraded: MongoStore) -> None:
    database = upgraded.connection.database
    for name, validator in VALIDATORS.items():
        versions = {d["schema_version"] for d in database[name].find()}
        assert versions <= {SCHEMA_VERSION}, name
        assert database[name].count_documents({"$nor": [validator]}) == 0, name
        assert database[name].options()["validator"] == validator
    assert database["meta"].find_one({"_id": "schema"}) == {"_id": "schema", "version": SCHEMA_VERSION}


def test_trials_keep_what_they_were_and_get_what_is_new(upgraded: MongoStore) -> None:
    trials = upgraded.trials.find("old")
    assert [str(t.state) for t in trials] == [t["state"] for t in TRIALS]
    assert [t.params for t in trials] == [t["params"] for t in TRIALS]
    assert [t.claims for t in trials] == [1, 2, 201, 4, 1, 0]
    assert [t.ends.get(KILLED, 0) for t in trials] == [0, 0, 0, 4, 0, 0]
    assert {t.alone for t in trials} == {False}
    assert {t.origin for t in trials} == {Origin.SEARCH}
    assert (trials[0].score, trials[0].facts, trials[0].ended_at) == (0.25, {"epochs": 3}, T0)
    kept = [a["token"] for a in [*MANY, attempt_1("t2")]][-MAX_ATTEMPTS:]
    assert [a.token for a in trials[2].attempts] == kept
    assert [a.share for a in trials[0].attempts] == [1.0]


def test_running_trials_go_on(upgraded: MongoStore) -> None:
    first, many = lease_of(upgraded, 1), lease_of(upgraded, 2)
    assert (first.token, first.attempt) == ("t1", 1)
    assert (many.token, many.attempt) == ("t2", 200)
    assert upgraded.trials.renew([first, many]) == {"t1", "t2"}
    upgraded.reports.add(many, [Report(step=1, metrics={"loss": 0.5})])
    assert [(r.step, r.attempt) for r in upgraded.reports.curve("old", 2)] == [(1, 200)]
    upgraded.trials.finish(first, result(0.1))
    assert upgraded.trials.end_attempt(many, failure(Cause.OUT_OF_MEMORY)) is TrialState.QUEUED
    assert upgraded.trials.get("old", 1).score == 0.1
    assert upgraded.trials.get("old", 2).alone


def test_earlier_kills_still_count(upgraded: MongoStore) -> None:
    trial = upgraded.trials.claim(["old"], owner="w", token="again", duration_s=600.0)
    assert trial is not None
    assert trial.lease is not None
    assert trial.number == 3
    killed = failure(Cause.LOST, "killed by SIGKILL")
    assert upgraded.trials.end_attempt(trial.lease, killed, process_killed=True) is TrialState.FAILED
    assert upgraded.trials.retry("old", [3, 4]) == [3, 4]


def test_campaigns_keep_what_they_were_and_get_what_is_new(upgraded: MongoStore) -> None:
    old, done, waiting = (upgraded.campaigns.get(name) for name in ("old", "done", "waiting"))
    assert [c.state for c in (old, done, waiting)] == [
        CampaignState.RUNNING, CampaignState.FINISHED, CampaignState.PAUSED,
    ]  # fmt: skip
    assert {(c.revision, c.max_hours, c.max_device_hours) for c in (old, done, waiting)} == {(0, None, None)}
    assert done.used_s == 2 * 3600
    age_s = (datetime.now(UTC) - T0).total_seconds()
    assert old.used_s == pytest.approx(age_s, abs=120)
    assert waiting.used_s == upgraded.campaigns.get("waiting").used_s, "a paused one counts no time"
    assert upgraded.campaigns.events("old")[0]["who"] == "ann"


def test_a_store_of_schema_2_gets_a_seal_that_is_closed(upgraded: MongoStore) -> None:
    database = upgraded.connection.database
    before = {d["_id"]: d for d in database["trials"].find()}
    for name in VALIDATORS:
        validator = copy.deepcopy(VALIDATORS[name])
        for key in NEW_IN_3.get(name, ()):
            del validator["$jsonSchema"]["properties"][key]
        database.command("collMod", name, validator=validator)
        old: dict[str, Any] = {"$set": {"schema_version": 2}}
        if name in NEW_IN_3:
            old["$unset"] = dict.fromkeys(NEW_IN_3[name], "")
        database[name].update_many({}, old)
    database["meta"].update_one({"_id": "schema"}, {"$set": {"version": 2}})
    database["trials"].update_one({"number": 4}, {"$set": {"ends": {"error": 2}, "alone": True}})
    ran = upgraded.campaigns.get("done").used_s
    upgraded.upgrade()
    assert {d["unsealed_at"] for d in database["campaigns"].find()} == {None}
    for name in VALIDATORS:
        assert {d["schema_version"] for d in database[name].find()} <= {SCHEMA_VERSION}, name
    after = {d["_id"]: d for d in database["trials"].find()}
    changed = next(d["_id"] for d in before.values() if d["number"] == 4)
    before[changed] |= {"ends": {"error": 2}, "alone": True}
    assert after == before, "what schema 2 wrote is not touched"
    assert upgraded.campaigns.get("done").used_s == ran
    assert upgraded.campaigns.unseal("done")
    upgraded.upgrade()
    assert upgraded.campaigns.get("done").unsealed_at is not None, "an upgrade never closes a seal"


def test_an_upgrade_is_safe_to_repeat_and_to_break_off(old_store: MongoStore) -> None:
    old_store.upgrade()
    once = contents(old_store)
    old_store.upgrade()
    assert contents(old_store) == once
    database = old_store.connection.database
    database["meta"].update_one({"_id": "schema"}, {"$set": {"version": 1}})
    database["trials"].delete_one({"number": 3})
    database.command("collMod", "trials", validator=validator_1("trials"))
    database["trials"].insert_one({**copy.deepcopy(TRIALS[3]), "_id": once["trials"][3]["_id"]})
    old_store.upgrade()
    assert contents(old_store) == once, "what was broken off in the middle is done again"


def test_a_newer_store_is_not_touched(old_store: MongoStore, store_uri: str) -> None:
    old_store.connection.database["meta"].update_one({"_id": "schema"}, {"$set": {"version": SCHEMA_VERSION + 1}})
    before = contents(old_store)
    with pytest.raises(StoreSetupError, match="newer autotune"):
        open_store(store_uri)
    with pytest.raises(StoreSetupError, match="upgrade this installation"):
        old_store.upgrade()
    assert contents(old_store) == before


def test_a_campaign_that_was_half_done_finishes(
    old_store: MongoStore, store_uri: str, run_cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "objectives.py").write_text(OBJECTIVES)
    past = datetime.now(UTC) - timedelta(minutes=5)
    database = old_store.connection.database
    database["trials"].update_many({"state": "running"}, {"$set": {"lease.expires_at": past}})
    assert run_cli("store", "upgrade").returncode == 0
    done = run_cli("resume", "old", "--workers", "1")
    assert done.returncode == 0, done.stderr
    with open_store(store_uri) as store:
        assert store.campaigns.get("old").state is CampaignState.FINISHED
        assert store.trials.counts("old") == {TrialState.FINISHED: 7, TrialState.FAILED: 1}
        trials = store.trials.find("old")
    assert [t.number for t in trials] == list(range(8))
    assert [t.claims for t in trials] == [1, 3, 202, 5, 1, 1, 1, 1]
    assert trials[0].score == 0.25

"""`autotune store check` names what is wrong, and finds nothing in a healthy store; hot queries use their indexes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pymongo.monitoring import CommandListener, CommandStartedEvent

from autotune.store.check import check, summary
from autotune.store.mongo import MongoStore
from autotune.store.schema import INDEXES, SCHEMA_VERSION, VALIDATORS
from autotune.testing.helpers import (
    CAMPAIGN,
    campaign_record,
    expire,
    failure,
    propose,
    result,
    running,
    worker_record,
)
from autotune.trial import Cause, Report, TrialState

SECRET_FREE_KEYS = {"uri", "version", "state", "replica_set", "campaigns", "trials", "workers"}


@pytest.fixture
def healthy(store: MongoStore) -> MongoStore:
    """A store with a campaign that has a coordinator, a worker, and trials."""
    store.campaigns.create(campaign_record())
    store.leaders.lead(CAMPAIGN, "coordinator", 600)
    store.workers.register(worker_record("w"))
    store.trials.finish(running(store, 0), result(1.0))
    running(store, 1)
    propose(store, 2)
    return store


def problems(store: MongoStore) -> list[str]:
    """Return the texts of what is not as it should be."""
    return [finding.text for finding in check(store) if not finding.ok]


def test_a_healthy_store_has_no_problem(healthy: MongoStore) -> None:
    findings = check(healthy)
    assert [f.text for f in findings if not f.ok] == []
    assert len(findings) >= 4


def test_an_empty_store_has_no_problem(store: MongoStore) -> None:
    assert problems(store) == []


def test_a_summary_says_what_is_there(healthy: MongoStore) -> None:
    found = summary(healthy)
    assert set(found) == SECRET_FREE_KEYS
    assert (found["state"], found["campaigns"], found["trials"], found["workers"]) == ("up", 1, 3, 1)


@pytest.mark.parametrize("name", [(c, i.document["name"]) for c, indexes in INDEXES.items() for i in indexes])
def test_a_missing_index_is_named_and_put_back(healthy: MongoStore, name: tuple[str, str]) -> None:
    collection, index = name
    healthy.connection.database[collection].drop_index(index)
    (problem,) = problems(healthy)
    assert collection in problem
    assert index in problem
    assert "store upgrade" in problem
    healthy.upgrade()
    assert problems(healthy) == []


@pytest.mark.parametrize("name", sorted(VALIDATORS))
def test_a_missing_validator_is_named_and_put_back(healthy: MongoStore, name: str) -> None:
    healthy.connection.database.command("collMod", name, validator={})
    (problem,) = problems(healthy)
    assert f"'{name}'" in problem
    assert "validator" in problem
    healthy.upgrade()
    assert problems(healthy) == []


def test_a_missing_collection_is_named(healthy: MongoStore) -> None:
    healthy.connection.database.drop_collection("reports")
    (problem,) = problems(healthy)
    assert "collection 'reports' is missing" in problem


def test_a_campaign_without_coordinator_is_named(healthy: MongoStore) -> None:
    healthy.leaders.resign(CAMPAIGN, "coordinator")
    (problem,) = problems(healthy)
    assert f"'{CAMPAIGN}' runs without a coordinator" in problem


def test_a_campaign_without_workers_is_named(healthy: MongoStore) -> None:
    healthy.workers.stopped("w")
    (problem,) = problems(healthy)
    assert f"'{CAMPAIGN}' runs without workers" in problem


def test_leases_that_ran_out_are_counted(healthy: MongoStore) -> None:
    lease = healthy.trials.get(CAMPAIGN, 1).lease
    assert lease is not None
    expire(healthy, lease)
    (problem,) = problems(healthy)
    assert "1 running trials whose lease ran out" in problem


def test_gaps_in_the_numbers_are_named(healthy: MongoStore) -> None:
    healthy.connection.database["trials"].delete_one({"campaign": CAMPAIGN, "number": 0})
    (problem,) = problems(healthy)
    assert "gaps: 2 trials numbered up to 2" in problem


def test_another_schema_version_is_named(healthy: MongoStore) -> None:
    healthy.connection.database["meta"].update_one({"_id": "schema"}, {"$set": {"version": SCHEMA_VERSION + 1}})
    assert f"schema {SCHEMA_VERSION + 1}" in problems(healthy)[0]


def test_a_database_that_was_never_opened_is_named(store_uri: str) -> None:
    with MongoStore(store_uri, prepare=False) as unprepared:
        assert "not prepared" in problems(unprepared)[0]


class Commands(CommandListener):
    """Keeps the reads and writes that a client sends."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name in ("find", "findAndModify", "update", "aggregate"):
            self.sent.append(
                {
                    k: v
                    for k, v in event.command.items()
                    if k not in ("lsid", "txnNumber", "$db", "$clusterTime", "writeConcern")
                }
            )

    def succeeded(self, event: Any) -> None:
        """Nothing to do."""

    def failed(self, event: Any) -> None:
        """Nothing to do."""


HOT: dict[str, Callable[[MongoStore], object]] = {
    "claim": lambda s: s.trials.claim([CAMPAIGN], owner="w", token="t", duration_s=60),
    "claim nothing": lambda s: s.trials.claim(["none"], owner="w", token="t", duration_s=60),
    "renew": lambda s: s.trials.renew([lease for t in s.trials.find(CAMPAIGN) if (lease := t.lease)]),
    "reap": lambda s: s.trials.reap(CAMPAIGN),
    "finish": lambda s: s.trials.finish(s.trials.get(CAMPAIGN, 1).lease, result(1.0)),  # type: ignore[arg-type]
    "report": lambda s: s.reports.add(
        s.trials.get(CAMPAIGN, 1).lease,  # type: ignore[arg-type]
        [Report(step=1, metrics={"loss": 1.0})],
    ),
    "best min": lambda s: s.trials.best(CAMPAIGN, "min"),
    "best max": lambda s: s.trials.best(CAMPAIGN, "max"),
    "curve": lambda s: s.reports.curve(CAMPAIGN, 0),
    "heads by state": lambda s: s.trials.heads(CAMPAIGN, states=[TrialState.QUEUED, TrialState.RUNNING]),
    "heads by number": lambda s: s.trials.heads(CAMPAIGN, numbers=[0, 2]),
    "counts": lambda s: s.trials.counts(CAMPAIGN),
    "running by owner": lambda s: s.trials.running_by_owner(["w"]),
    "live workers": lambda s: s.workers.live(CAMPAIGN),
    "events": lambda s: s.campaigns.events(CAMPAIGN),
    "running campaigns": lambda s: s.campaigns.find([campaign_record().state]),
}


@pytest.mark.parametrize("name", sorted(HOT))
def test_hot_queries_use_an_index(
    healthy: MongoStore, store_uri: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = Commands()
    import pymongo

    client = pymongo.MongoClient
    monkeypatch.setattr(pymongo, "MongoClient", lambda *a, **k: client(*a, event_listeners=[commands], **k))
    with MongoStore(store_uri) as watched:
        commands.sent.clear()
        HOT[name](watched)
    assert commands.sent
    for command in commands.sent:
        plan = str(healthy.connection.database.command("explain", command, verbosity="queryPlanner"))
        assert "COLLSCAN" not in plan, command
        assert "IXSCAN" in plan or "IDHACK" in plan or "EOF" in plan or "COUNT_SCAN" in plan or "DISTINCT_SCAN" in plan


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_is_found_without_reading_the_others(
    store: MongoStore, store_uri: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where many are equal, and where most have failed."""
    import pymongo

    store.campaigns.create(campaign_record(max_trials=60))
    for number in range(40):
        held = running(store, number)
        if number % 2:
            store.trials.finish(held, result(float(number // 4)))
        else:
            store.trials.end_attempt(held, failure(Cause.ERROR))
    commands, client = Commands(), pymongo.MongoClient
    monkeypatch.setattr(pymongo, "MongoClient", lambda *a, **k: client(*a, event_listeners=[commands], **k))
    with MongoStore(store_uri) as watched:
        commands.sent.clear()
        best = watched.trials.best(CAMPAIGN, mode)
    assert best is not None
    assert best.number == (1 if mode == "min" else 37)
    examined = 0
    for command in commands.sent:
        plan = store.connection.database.command("explain", command, verbosity="executionStats")
        examined += plan["executionStats"]["totalDocsExamined"]
    assert 0 < examined <= 5

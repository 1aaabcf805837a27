"""Mutants of documents in the store, written behind its validators: readers say in one line that they are damaged.

A document that somebody damaged must not take down a coordinator or a worker that serves other campaigns.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from bson.errors import BSONError
from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from autotune import history
from autotune.cli.status import _status
from autotune.coordinator import Coordinator
from autotune.report import Report as Tables
from autotune.store.base import CampaignRecord
from autotune.store.check import check, summary
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import claim, expire, failure, propose, result, worker_record
from autotune.trial import Cause, Report
from tests.fuzz.mutants import STORED, Jury, reshape
from tests.objectives.support import cpu_slots
from workers.agent import Agent

MUTANTS = 25
"""Of each collection; of trials and campaigns three times as many."""
COLLECTIONS = ("campaigns", "trials", "reports", "workers", "leaders", "events")
SLOW_EVERY = 4
"""So many mutants of one that the slow readers see."""


@pytest.fixture
def filled(store: MongoStore, make_campaign: Callable[..., CampaignRecord]) -> MongoStore:
    """A store with a campaign that is half done, and all that belongs to it."""
    make_campaign(max_trials=8, space={"x": {"float": [-2, 2]}, "m": {"choice": [{"k": 1}, {"k": 2}]}})
    for number in range(5):
        propose(store, number, "demo", {"x": number / 4, "m": {"k": 1}})
    for number in range(4):
        lease = claim(store, "demo", owner="w")
        store.reports.add(lease, [Report(step=s, metrics={"loss": 1.0}) for s in range(2)])
        if number < 2:
            store.trials.finish(lease, result(number + 0.5, cells=12))
        elif number == 2:
            store.trials.end_attempt(lease, failure(Cause.ERROR))
        else:
            expire(store, lease)
    store.workers.register(worker_record("w"))
    store.leaders.lead("demo", "another", 600)
    return store


class Documents:
    """The documents of a store, which can be damaged one at a time and put back."""

    def __init__(self, store: MongoStore) -> None:
        name = store.connection.database.name
        self._database = store.connection.client.get_database(name, write_concern=WriteConcern(w=1, j=False))
        self._kept = {c: list(self._database[c].find()) for c in COLLECTIONS}

    def damage(self, collection: str, chance: random.Random) -> dict[str, Any] | None:
        """Replace a document by a mutant; return that, or None where the server refused to hold it."""
        original = chance.choice(self._kept[collection])
        mutant = reshape({k: v for k, v in original.items() if k != "_id"}, chance, STORED)
        places = self._database[collection]
        try:
            places.replace_one({"_id": original["_id"]}, mutant, bypass_document_validation=True)
        except (PyMongoError, BSONError, OverflowError, ValueError, TypeError):
            return None
        return {"_id": original["_id"], **mutant}

    def put_back(self) -> None:
        """Make the store as it was."""
        for collection, documents in self._kept.items():
            self._database[collection].delete_many({})
            self._database[collection].insert_many(documents)


def _step(store: MongoStore, campaign: str) -> None:
    store.connection.database["leaders"].delete_many({})
    Coordinator(store, campaign).step()


def _claim(store: MongoStore) -> None:
    agent, [slot] = Agent(store, cpu_slots()), cpu_slots()
    trial = agent._claim(slot, agent._running_campaigns())
    if trial is not None and trial.lease is not None:
        store.trials.renew([trial.lease])


def _frame(store: MongoStore) -> None:
    found = store.trials.find("demo")
    table = history.frame(found, "loss")
    history.query(table, history.parse_where(["state=finished"]), sort="loss", metric="loss")
    history.records(found)
    history.storable(table)


def _report(store: MongoStore) -> None:
    tables = Tables(campaign=store.campaigns.get("demo"), trials=tuple(store.trials.find("demo")))
    tables.to_markdown()


READERS: dict[str, Callable[[MongoStore], object]] = {
    "campaigns.find": lambda s: s.campaigns.find(),
    "campaigns.get": lambda s: s.campaigns.get("demo"),
    "campaigns.events": lambda s: s.campaigns.events("demo"),
    "trials.find": lambda s: s.trials.find("demo"),
    "trials.get": lambda s: [s.trials.get("demo", n) for n in range(3)],
    "trials.heads": lambda s: s.trials.heads("demo"),
    "trials.best": lambda s: s.trials.best("demo", "min"),
    "trials.counts": lambda s: s.trials.counts("demo"),
    "reports.curve": lambda s: [s.reports.curve("demo", n) for n in range(2)],
    "workers.live": lambda s: s.workers.live("demo"),
    "leaders.leader": lambda s: s.leaders.leader("demo"),
    "status": lambda s: _status(s, "demo"),
    "store check": check,
    "store status": summary,
}
SLOW: dict[str, Callable[[MongoStore], object]] = {"history": _frame, "report": _report}
WRITERS: dict[str, Callable[[MongoStore], object]] = {
    "reap": lambda s: s.trials.reap("demo"),
    "coordinator": lambda s: _step(s, "demo"),
    "claim": _claim,
    "cancel": lambda s: s.trials.cancel("demo"),
}


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_changed_documents(filled: MongoStore, collection: str) -> None:
    chance, documents, made = random.Random(f"documents {collection}"), Documents(filled), 0
    wanted = MUTANTS * (3 if collection in ("campaigns", "trials") else 1)
    with Jury() as jury:
        while made < wanted:
            mutant = documents.damage(collection, chance)
            if mutant is None:
                continue
            made += 1
            for name, run in {**READERS, **(SLOW if made % SLOW_EVERY == 0 else {}), **WRITERS}.items():
                jury.judge(lambda run=run: run(filled), (name, mutant))
            documents.put_back()


def test_the_original_is_read(filled: MongoStore) -> None:
    with Jury() as jury:
        for name, run in {**READERS, **SLOW, **WRITERS}.items():
            assert jury.judge(lambda run=run: run(filled), name), name

"""What the server does for each call of a campaign, read from its own profile: which index, how many documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState
from tests.objectives.support import coordinating, wait_until, working

TRIALS = 120
IN_FLIGHT = 12
"""More than are queued or run at a time: two slots, two proposals ahead for each, two campaigns."""
Operation = Mapping[str, Any]


@contextmanager
def profiled(store: MongoStore) -> Iterator[list[Operation]]:
    """Fill the list, at the end, with what the server has done in the database meanwhile."""
    database, found = store.connection.database, []
    database.create_collection("system.profile", capped=True, size=64 * 2**20)
    database.command("profile", 2)
    try:
        yield found
    finally:
        database.command("profile", 0)
    mine = {f"{database.name}.{name}" for name in ("campaigns", "trials", "reports", "workers", "leaders", "events")}
    found.extend(d for d in database["system.profile"].find() if d["ns"] in mine)


def text(operation: Operation) -> str:
    command = {k: v for k, v in operation["command"].items() if k not in ("lsid", "$clusterTime", "txnNumber")}
    return f"{operation['ns']} {operation.get('planSummary')} {operation.get('docsExamined')} {command}"[:600]


def touched(operation: Operation) -> int:
    return sum(int(operation.get(k, 0)) for k in ("nreturned", "nModified", "nMatched", "ninserted", "ndeleted"))


@pytest.fixture
def operations(store: MongoStore, make_campaign: Callable[..., CampaignRecord]) -> list[Operation]:
    """What the server did for two campaigns from their first trial to their last."""
    names = ("one", "two")
    for name in names:
        make_campaign(
            name, max_trials=TRIALS, objective="tests.objectives.inline:reports", isolation="none",
            search={"algorithm": "random", "seed": 0},
        )  # fmt: skip
    with (
        profiled(store) as found,
        coordinating(store, "one"),
        coordinating(store, "two"),
        working(store, 2, once=True, campaigns=list(names)),
    ):
        wait_until(lambda: not store.campaigns.find([CampaignState.RUNNING]), "the end of both campaigns", 120)
    assert all(len(store.trials.find(name)) == TRIALS for name in names)
    return found


def test_each_call_uses_an_index_and_reads_no_more_than_it_needs(operations: list[Operation]) -> None:
    assert len(operations) > 2 * TRIALS * 3
    assert not [text(o) for o in operations if "COLLSCAN" in o.get("planSummary", "")]
    assert not [text(o) for o in operations if o.get("docsExamined", 0) > touched(o) + IN_FLIGHT]


def test_a_claim_and_a_finish_are_one_round_trip(operations: list[Operation]) -> None:
    on_trials = [o for o in operations if o["ns"].endswith(".trials")]
    claims = [o for o in on_trials if o["command"].get("findAndModify") and "queued" in str(o["command"]["query"])]
    taken = [o for o in claims if o.get("nModified")]
    assert len(taken) == 2 * TRIALS
    assert all(o["planSummary"] == "IXSCAN { campaign: 1, state: 1, number: 1 }" for o in claims)
    finishes = [o for o in on_trials if o["op"] == "update" and "finished" in str(o["command"].get("u"))]
    assert len(finishes) == 2 * TRIALS
    assert all(o.get("docsExamined") == 1 for o in finishes)

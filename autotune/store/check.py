"""Says in words what a store is and what is wrong with it. Reads only, but for one write to see that writes work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pymongo import errors as driver

from autotune.store.connection import map_error
from autotune.store.exposure import ask, exposure, outside_hosts
from autotune.store.expressions import expired
from autotune.store.mongo import MongoStore
from autotune.store.schema import INDEXES, SCHEMA_VERSION, VALIDATORS

OLDEST_SERVER = (6, 0)
_NOT_ALLOWED = 13
_REPAIR = "put it back with: autotune store upgrade"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        ok: Whether it is as it should be.
        warning: Whether it is good enough to work with, but not as safe as it could be.
        text: What was found; for a problem also what to do.
    """

    ok: bool
    warning: bool = False
    text: str


def summary(store: MongoStore) -> dict[str, Any]:
    """Return address, version and contents of a store: ``uri`` (no password), ``version``, ``state``, counts."""
    with store.connection.mapped():
        database, client = store.connection.database, store.connection.client
        version = client.server_info()["version"]
        return {
            "uri": store.address,
            "version": version,
            "state": "up",
            "replica_set": client.admin.command("hello").get("setName"),
            "campaigns": database["campaigns"].estimated_document_count(),
            "trials": database["trials"].estimated_document_count(),
            "workers": len(store.workers.live()),
        }


def check(store: MongoStore) -> list[Finding]:
    """Return what is right and wrong with a store.

    Raises:
        StoreUnreachableError: If it does not answer at all.
    """
    with store.connection.mapped():
        return [finding for part in _PARTS for finding in part(store)]


def _server(store: MongoStore) -> Iterator[Finding]:
    info = store.connection.client.server_info()
    version = tuple(info["versionArray"][:2])
    if version < OLDEST_SERVER:
        yield Finding(
            ok=False, text=f"MongoDB {info['version']} is too old; use {OLDEST_SERVER[0]}.{OLDEST_SERVER[1]} or newer"
        )
    else:
        yield Finding(ok=True, text=f"MongoDB {info['version']} answers at {store.address}")
    hello = store.connection.client.admin.command("hello")
    if "setName" not in hello:
        yield Finding(
            ok=False,
            text="the server is not a replica set: no change streams and no safe retries; start mongod with --replSet "
            "and run rs.initiate() (one member is enough)",
        )
    else:
        yield Finding(
            ok=True, text=f"replica set {hello['setName']} with {len(hello['hosts'])} member(s) has a primary"
        )


def _security(store: MongoStore) -> Iterator[Finding]:
    target = store.connection.target
    outside, settings = outside_hosts(target.hosts), ask(store.connection)
    why = exposure(target, outside, settings)
    if why is not None:
        yield Finding(ok=False, text=f"the store is open to anybody: {why}; give it users: docs/security.md")
    elif target.authenticated and (settings is None or settings.authorization):
        yield Finding(ok=True, text="the server asks for a name and a password")
    else:
        yield Finding(
            ok=True, text="the server asks for no password; only this machine reaches it, but every user of it does"
        )
    if outside and not target.tls:
        text = "the connection leaves this machine without TLS: whoever listens on the network reads everything"
        yield Finding(ok=True, warning=True, text=f"{text}; add tls=true to the URI (docs/security.md)")


def _writes(store: MongoStore) -> Iterator[Finding]:
    try:
        store.connection.database["meta"].update_one({"_id": "check"}, {"$currentDate": {"at": True}}, upsert=True)
    except driver.PyMongoError as error:
        if isinstance(error, driver.OperationFailure) and error.code == _NOT_ALLOWED:
            yield Finding(ok=True, text="this user is not the store's owner: that writes work was not tried")
            return
        yield Finding(ok=False, text=f"a write with majority and journal failed: {map_error(error, store.address)}")
    else:
        yield Finding(ok=True, text="writes with majority and journal work")


def _schema(store: MongoStore) -> Iterator[Finding]:
    database = store.connection.database
    version = database["meta"].find_one({"_id": "schema"})
    if version is None:
        yield Finding(
            ok=False,
            text="the collections are not prepared; any command that opens the store prepares them: autotune campaigns",
        )
        return
    if version["version"] != SCHEMA_VERSION:
        text = f"the documents have schema {version['version']}, this autotune writes {SCHEMA_VERSION}; use one version"
        yield Finding(ok=False, text=text)
    there = {c["name"]: c for c in database.list_collections()}
    problems = 0
    for name, validator in VALIDATORS.items():
        if name not in there:
            problems += 1
            yield Finding(ok=False, text=f"collection '{name}' is missing; its documents are gone: restore a backup")
            continue
        if there[name].get("options", {}).get("validator") != validator:
            problems += 1
            yield Finding(ok=False, text=f"collection '{name}' has not the validator of this version; {_REPAIR}")
        wanted = {index.document["name"] for index in INDEXES[name]}
        missing = sorted(wanted - set(database[name].index_information()))
        if missing:
            problems += 1
            yield Finding(
                ok=False,
                text=f"collection '{name}' lacks the index {', '.join(missing)}: queries are slow; {_REPAIR}",
            )
    if not problems:
        yield Finding(
            ok=True, text=f"{len(VALIDATORS)} collections with their validators and indexes, schema {SCHEMA_VERSION}"
        )


def _campaigns(store: MongoStore) -> Iterator[Finding]:
    database = store.connection.database
    for document in database["campaigns"].find({"state": "running"}, {"_id": 1}):
        name = document["_id"]
        if store.leaders.leader(name) is None:
            yield Finding(
                ok=False, text=f"campaign '{name}' runs without a coordinator; start one: autotune resume {name}"
            )
        if not store.workers.live(name):
            yield Finding(
                ok=False, text=f"campaign '{name}' runs without workers; start one: autotune worker --campaign {name}"
            )
        late = database["trials"].count_documents({"campaign": name, "state": "running", **expired("lease.expires_at")})
        if late:
            yield Finding(
                ok=False,
                text=f"campaign '{name}' has {late} running trials whose lease ran out; a coordinator gives them back",
            )
    for row in database["trials"].aggregate(
        [
            {"$match": {"number": {"$type": "number", "$not": {"$type": "array"}}}},
            {"$group": {"_id": "$campaign", "n": {"$sum": 1}, "top": {"$max": "$number"}}},
        ]
    ):
        if row["top"] + 1 != row["n"]:
            yield Finding(
                ok=False, text=f"campaign '{row['_id']}' has gaps: {row['n']} trials numbered up to {row['top']}"
            )


_PARTS: tuple[Callable[[MongoStore], Iterator[Finding]], ...] = (
    _server,
    _security,
    _writes,
    _schema,
    _campaigns,
)

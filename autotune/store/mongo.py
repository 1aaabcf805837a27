"""The trial store on MongoDB: opens it, prepares its collections, and hands out its parts."""

from __future__ import annotations

from typing import Self

from pymongo.errors import CollectionInvalid, OperationFailure

from autotune.errors import StoreSetupError
from autotune.store import embedded, shelf_grid
from autotune.store.campaigns import Campaigns
from autotune.store.connection import CONNECT_TIMEOUT_S, Connection, lacks_right, named_uri
from autotune.store.connection import URI_VARIABLE as URI_VARIABLE
from autotune.store.datasets import Datasets
from autotune.store.exposure import guard, outside_hosts
from autotune.store.migrations import migrate
from autotune.store.reports import Reports
from autotune.store.schema import INDEXES, SCHEMA_VERSION, VALIDATORS
from autotune.store.trials import Trials
from autotune.store.watch import StreamWatch, progress_of, work_of
from autotune.store.workers import Leaders, Workers

_NAMESPACE_EXISTS = 48


class MongoStore:
    """A store, open. Its parts are `campaigns`, `trials`, `reports`, `workers`, `leaders` and `datasets`.

    Safe to share between threads; not between processes: after a fork, open another one.

    Args:
        uri: ``mongodb://...`` of the server.
        timeout_s: How long to look for the server before giving up, seconds.
        prepare: Whether to create what is missing of collections, validators and indexes.

    Raises:
        StoreUnreachableError: If the server does not answer within `timeout_s`.
        StoreSetupError: If the store was written by a newer version, or the user may not use it.
    """

    def __init__(self, uri: str, timeout_s: float = CONNECT_TIMEOUT_S, *, prepare: bool = True) -> None:
        self.uri = uri
        self.connection = Connection(uri, timeout_s)
        self.address = self.connection.address
        self.campaigns = Campaigns(self.connection)
        self.trials = Trials(self.connection)
        self.reports = Reports(self.connection)
        self.workers = Workers(self.connection)
        self.leaders = Leaders(self.connection)
        self.datasets = Datasets(self.connection)
        if prepare:
            try:
                self._prepare()
            except BaseException:
                self.close()
                raise

    def __repr__(self) -> str:
        return f"MongoStore({self.address})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    @property
    def is_local(self) -> bool:
        """Whether all its servers are on this machine, by their addresses."""
        return not outside_hosts(self.connection.target.hosts)

    def watch_work(self, worker_id: str | None = None) -> StreamWatch:
        """Return a watch for queued trials and changed campaigns: what a worker waits for.

        Args:
            worker_id: Its id; that it signs off counts as a change, too.
        """
        return StreamWatch(self.connection, work_of(worker_id))

    def watch_progress(self, campaign: str) -> StreamWatch:
        """Return a watch for ended trials, workers that come or go, and the campaign: what a coordinator waits for."""
        return StreamWatch(self.connection, progress_of(campaign))

    def _prepare(self) -> None:
        database = self.connection.database
        with self.connection.mapped():
            version = database["meta"].find_one({"_id": "schema"})
            if version is not None:
                if version["version"] > SCHEMA_VERSION:
                    raise StoreSetupError(
                        f"the store at {self.address} was written by a newer autotune (schema {version['version']}, "
                        f"this one knows {SCHEMA_VERSION}); upgrade this installation"
                    )
                if version["version"] < SCHEMA_VERSION:
                    raise StoreSetupError(
                        f"the store at {self.address} was written by an older autotune (schema {version['version']}, "
                        f"this one writes {SCHEMA_VERSION}); end its workers and coordinators, then run: "
                        "autotune store upgrade"
                    )
                return
        self.upgrade()

    def upgrade(self) -> None:
        """Create what is missing of collections, validators and indexes, and bring documents to this version.

        Safe to repeat; safe while others of this version work.

        Raises:
            StoreSetupError: If the store was written by a newer version.
        """
        database = self.connection.database
        with self.connection.mapped():
            version = database["meta"].find_one({"_id": "schema"})
            if version is not None and version["version"] > SCHEMA_VERSION:
                raise StoreSetupError(
                    f"the store at {self.address} has schema {version['version']}, this autotune knows "
                    f"{SCHEMA_VERSION}; upgrade this installation"
                )
            migrate(database)
            for name, validator in VALIDATORS.items():
                try:
                    database.create_collection(name, validator=validator)
                except (CollectionInvalid, OperationFailure) as error:
                    if isinstance(error, OperationFailure) and error.code != _NAMESPACE_EXISTS:
                        raise
                    database.command("collMod", name, validator=validator)
                if INDEXES[name]:
                    database[name].create_indexes(INDEXES[name])
            for name, indexes in shelf_grid.INDEXES.items():
                database[name].create_indexes(indexes)
            database["meta"].update_one({"_id": "schema"}, {"$set": {"version": SCHEMA_VERSION}}, upsert=True)


def open_store(uri: str | None = None, timeout_s: float = CONNECT_TIMEOUT_S, *, prepare: bool = True) -> MongoStore:
    """Open a store: the one at `uri`, else the one that the environment names, else the embedded one, started.

    The environment names it by ``AUTOTUNE_STORE``, or by ``AUTOTUNE_STORE_FILE``, the path of a file with the URI.

    Args:
        uri: ``mongodb://...`` of the server.
        timeout_s: How long to look for the server before giving up, seconds.
        prepare: As for `MongoStore`.

    Raises:
        InputError: If it is not a URI of MongoDB.
        StoreUnreachableError: If the server does not answer within `timeout_s` seconds.
        StoreSetupError: If the embedded server cannot be started; if others can reach the store without a password and
            ``AUTOTUNE_INSECURE`` is not 1; if the user may not use it, or not prepare it. Says what to do.
    """
    named = named_uri(uri)
    store = MongoStore(named or embedded.start(), timeout_s, prepare=False)
    try:
        if named is not None:
            guard(store.connection)
        if prepare:
            store._prepare()
    except BaseException as error:
        store.close()
        if lacks_right(error):
            raise StoreSetupError(
                f"the store at {store.address} is not prepared, and this user may not do it; let its owner run: "
                "autotune store upgrade"
            ) from error
        raise
    return store

"""Backups: campaigns with all that belongs to them, as of one moment, in one file.

The file is a ZIP archive. Each collection is a member ``NAME.bson``: its documents as the server sent them, one after
the other. The last member, ``manifest.json``, says what the others hold, with a SHA-256 of each. Workers and leaders
stay behind: they say who lives now, not what happened. `autotune.store.restore` reads the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import IO, Any

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.client_session import ClientSession
from pymongo.errors import ConfigurationError, OperationFailure

from autotune.clock import SystemClock
from autotune.errors import InputError, StoreSetupError
from autotune.store.history_window import long_history
from autotune.store.mongo import MongoStore
from autotune.store.schema import SCHEMA_VERSION

FORMAT = "autotune-backup"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
COLLECTIONS = ("trials", "reports", "events", "campaigns")
"""In this order: a campaign is written last at a restore, so one that is there is whole."""
DATASETS = ("datasets.chunks", "datasets.files")
"""The datasets that ``autotune data push`` put into the store; a file's own document comes last, too."""

_NO_SNAPSHOT = {
    20: "the server is not a replica set",
    72: "the server has none",
    115: "the server has none",
    123: "the server is not a replica set",
    239: "it expired before all was read",
    246: "the server does not have it",
}
_UNAVAILABLE = 246
_TRIES = 5
_PAUSE_S = 0.5
_LEVEL = 4
_BATCH = 500
_REPORT_EVERY = 200
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)

Progress = Callable[[str, int, int], None]
"""Called with (what is done, how much of it is done, how much there is)."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One collection in a backup.

    Attributes:
        collection: Its name; the member is ``NAME.bson``.
        documents: Number of documents.
        size: Bytes, before compression.
        sha256: Of these bytes.
    """

    collection: str
    documents: int
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a backup holds.

    Attributes:
        id: Random text that names this backup.
        taken_at: The moment that it shows, on the database's clock, ISO 8601, UTC.
        schema_version: Of its documents.
        autotune: Version that wrote it.
        store: Address of the store, without user and password.
        consistent: Whether all parts show that one moment.
        campaigns: Names of the campaigns.
        parts: The collections.
    """

    id: str
    taken_at: str
    schema_version: int
    autotune: str
    store: str
    consistent: bool
    campaigns: tuple[str, ...]
    parts: tuple[Part, ...]

    def count(self, collection: str) -> int:
        """Return the number of documents of a collection."""
        return sum(part.documents for part in self.parts if part.collection == collection)


def backup(
    store: MongoStore,
    path: Path,
    *,
    campaigns: Sequence[str] = (),
    datasets: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> Manifest:
    """Write campaigns to a file, as of one moment, while they may run. Needs memory for a few batches only.

    The file appears under its name when it is whole; nobody but its owner may read it.

    Args:
        store: An open store; `prepare` is not needed.
        path: The file.
        campaigns: Names; empty: all of them.
        datasets: Whether datasets in the store go in; with `campaigns`, only theirs.
        overwrite: Whether a file of that name may be replaced.
        progress: Called now and then.
        warn: Called with one line where the backup could not show one moment.

    Raises:
        NotFoundError: If there is no campaign of such a name.
        InputError: If the file cannot be written.
        StoreError: If the store fails; then there is no file.
    """
    if path.is_dir() or (path.exists() and not overwrite):
        raise InputError(f"{path} is there already; choose another name, or replace it with --overwrite")
    version = _stored_version(store)
    for name in campaigns:
        store.campaigns.get(name)
    source = _Source(store, tuple(campaigns), datasets=datasets, all_datasets=not campaigns, progress=progress)
    with _published(path) as file, store.connection.mapped(), long_history(store.connection.client):
        reason = ""
        for _ in range(_TRIES):
            try:
                return _write(file, source, version, snapshot=True)
            except _SnapshotError as error:
                reason = str(error)
                if not error.passing:
                    break
                SystemClock().wait(threading.Event(), _PAUSE_S)
        if warn is not None:
            warn(
                f"no snapshot to read from ({reason}): the backup shows its collections as of different moments; "
                "for one moment, pause the campaigns and take it again"
            )
        return _write(file, source, version, snapshot=False)


class _SnapshotError(Exception):
    """The server cannot read as of one moment, or not any more.

    Args:
        error: What it said.
    """

    def __init__(self, error: OperationFailure | ConfigurationError) -> None:
        code = error.code if isinstance(error, OperationFailure) else None
        super().__init__(_NO_SNAPSHOT.get(code or 0, "the server is older than MongoDB 5"))
        self.passing = code == _UNAVAILABLE


@dataclass(frozen=True)
class _Source:
    """Reads what goes into a backup: what belongs to `campaigns`."""

    store: MongoStore
    campaigns: tuple[str, ...]
    datasets: bool
    all_datasets: bool
    progress: Progress | None

    def names(self, session: ClientSession) -> tuple[str, ...]:
        """Return the names of these campaigns that are there, or of all where none is named."""
        query = {"_id": {"$in": list(self.campaigns)}} if self.campaigns else {}
        found = self.store.connection.database["campaigns"].find(query, {"_id": 1}, session=session)
        return tuple(sorted(str(document["_id"]) for document in found))

    def documents(self, collection: str, session: ClientSession) -> Iterator[RawBSONDocument]:
        """Yield the documents of a collection."""
        found = self.store.connection.database.get_collection(collection, codec_options=_RAW)
        size = _BATCH // 30 if collection == "datasets.chunks" else _BATCH
        with found.find(self._query(collection, session), session=session, batch_size=size) as cursor:
            yield from cursor

    def total(self) -> int:
        """Return about how many documents there are."""
        database = self.store.connection.database
        return sum(database[name].estimated_document_count() for name in self.collections)

    @property
    def collections(self) -> tuple[str, ...]:
        """Names of the collections, in the order of the file."""
        return (*(DATASETS if self.datasets else ()), *COLLECTIONS)

    def _query(self, collection: str, session: ClientSession) -> dict[str, Any]:
        names = {"$in": list(self.campaigns)}
        if collection not in DATASETS:
            return {"_id" if collection == "campaigns" else "campaign": names}
        database, query = self.store.connection.database, dict[str, Any]()
        if not self.all_datasets:
            wanted = database["campaigns"].distinct("spec.data.sha256", {"_id": names}, session=session)
            query = {"metadata.sha256": {"$in": wanted}}
        if collection == "datasets.files":
            return query
        whole = database["datasets.files"].find(query, {"_id": 1}, session=session)  # not pushes that have not ended
        return {"files_id": {"$in": [file["_id"] for file in whole]}}


def _write(file: IO[bytes], source: _Source, version: int, *, snapshot: bool) -> Manifest:
    """Write the whole archive from the beginning of `file`."""
    file.seek(0)
    file.truncate()
    store = source.store
    with store.connection.client.start_session(snapshot=snapshot) as session:
        try:
            names = source.names(session)
            source = replace(source, campaigns=names)
            taken_at = store.connection.client.admin.command("hello")["localTime"].astimezone(UTC)
            done, total, parts = 0, source.total(), []
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
                for name in source.collections:
                    shown = _counted(source.documents(name, session), source.progress, done, total)
                    parts.append(_write_part(archive, name, shown))
                    done += parts[-1].documents
                manifest = Manifest(
                    id=secrets.token_hex(16), taken_at=taken_at.isoformat(), schema_version=version,
                    autotune=_own_version(), store=store.address, consistent=snapshot, campaigns=names,
                    parts=tuple(parts),
                )  # fmt: skip
                content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
                archive.writestr(MANIFEST, json.dumps(content, indent=2))
        except ConfigurationError as error:
            raise _SnapshotError(error) from None
        except OperationFailure as error:
            if snapshot and error.code in _NO_SNAPSHOT:
                raise _SnapshotError(error) from None
            raise
    return manifest


def _write_part(archive: zipfile.ZipFile, collection: str, documents: Iterator[RawBSONDocument]) -> Part:
    digest, count, size = hashlib.sha256(), 0, 0
    with archive.open(f"{collection}.bson", "w", force_zip64=True) as member:
        for document in documents:
            member.write(document.raw)
            digest.update(document.raw)
            count += 1
            size += len(document.raw)
    return Part(collection=collection, documents=count, size=size, sha256=digest.hexdigest())


def _counted(
    documents: Iterator[RawBSONDocument], progress: Progress | None, done: int, total: int
) -> Iterator[RawBSONDocument]:
    for index, document in enumerate(documents):
        if progress is not None and index % _REPORT_EVERY == 0:
            progress("reading", done + index, max(total, done + index))
        yield document


def _stored_version(store: MongoStore) -> int:
    """Return the version of the documents in a store; refuse those of a newer autotune, which this one may not know."""
    with store.connection.mapped():
        found = store.connection.database["meta"].find_one({"_id": "schema"})
    version = SCHEMA_VERSION if found is None else int(found["version"])
    if version > SCHEMA_VERSION:
        raise StoreSetupError(
            f"the store at {store.address} was written by a newer autotune (schema {version}, this one knows "
            f"{SCHEMA_VERSION}); upgrade this installation"
        )
    return version


@contextmanager
def _published(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file beside `path`, for its owner alone; it takes that name when all went well, else it is gone."""
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(partial)


def _own_version() -> str:
    try:
        return installed_version("autotune")
    except PackageNotFoundError:
        return "unknown"

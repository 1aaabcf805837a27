"""Datasets: data files that people put into the store, kept in GridFS under the SHA-256 of their bytes.

``datasets.files`` and ``datasets.chunks`` are laid out as GridFS wants it, so any MongoDB tool reads them. A push that
has not ended has a document in ``datasets.pushes`` (``_id`` = hash, ``files_id``, ``touched_at`` on the database's
clock) and chunks, but no file document. Its end turns the one document into the other in one transaction: nobody sees
half a file, and a cleaner that drops a push that was given up never drops chunks of a published file.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from bson import ObjectId
from pymongo import ASCENDING, DESCENDING, IndexModel, ReplaceOne, ReturnDocument
from pymongo.client_session import ClientSession
from pymongo.errors import BulkWriteError, DuplicateKeyError
from pymongo.read_concern import ReadConcern

from autotune.errors import DataError, InputError, NotFoundError, StateError, StoreError, StoreUnreachableError, nearest
from autotune.store.connection import Connection, mapped
from autotune.store.schema import SCHEMA_VERSION
from autotune.trial import CampaignState

CHUNK_BYTES = 1 << 20
BATCH = 4
"""Chunks in one message: 4 MB, which passes a slow line well within the socket's time limit."""
FORGOTTEN_S = 24 * 3600.0
"""A push that nobody went on with for so long is dropped."""

_DUPLICATE_KEY = 11000
_TRIES = 5
_TOUCH_EVERY = 64  # batches: 256 MB
_DROP_AT_ONCE = 256  # chunks: a removal of 20 GB must not be one command, which would outlast the socket's time limit
_SHORTEST_HASH = 6
_INDEXES = {
    "datasets.files": [
        IndexModel([("metadata.sha256", ASCENDING)], name="sha256", unique=True),
        IndexModel([("filename", ASCENDING), ("uploadDate", ASCENDING)], name="filename_1_uploadDate_1"),
    ],
    "datasets.chunks": [IndexModel([("files_id", ASCENDING), ("n", ASCENDING)], name="files_id_1_n_1", unique=True)],
}

OnProgress = Callable[[str, int, int], object]
"""Called with what is being done, bytes done, bytes in all."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A file in the store, whole.

    Attributes:
        id: Its id in GridFS.
        sha256: Of its bytes, 64 hexadecimal digits: the ``data.sha256`` of campaigns that use it.
        name: Name of the file that was pushed.
        size: Bytes.
        chunk_size: Bytes of each chunk but the last.
        pushed_at: When it was whole, on the database's clock.
    """

    id: Any
    sha256: str
    name: str
    size: int
    chunk_size: int
    pushed_at: datetime | None = None

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return -(-self.size // self.chunk_size)

    def length(self, number: int) -> int:
        """Return the bytes of chunk `number`."""
        return min(self.chunk_size, self.size - number * self.chunk_size)


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push did: the file in the store, whether it is `new` there by this push, and how many chunks it `sent`."""

    dataset: Dataset
    new: bool
    sent: int


class Datasets:
    """The collections ``datasets.files``, ``datasets.chunks`` and ``datasets.pushes``."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._files = connection.database["datasets.files"]
        self._pushes = connection.database["datasets.pushes"]
        self._chunks = connection.database["datasets.chunks"]
        self._safe_chunks = self._chunks.with_options(read_concern=ReadConcern("majority"))
        self._campaigns = connection.database["campaigns"]

    @mapped
    def find(self, sha256: str) -> Dataset | None:
        """Return the dataset of a content, or None when the store does not have it whole."""
        document = self._files.find_one({"metadata.sha256": sha256})
        return None if document is None else _dataset(document)

    @mapped
    def all(self) -> list[Dataset]:
        """Return all datasets, newest first."""
        return [_dataset(d) for d in self._files.find().sort([("uploadDate", DESCENDING), ("_id", ASCENDING)])]

    def get(self, text: str) -> Dataset:
        """Return the dataset that a person means.

        Args:
            text: Its name, its hash, or at least the first 6 digits of its hash.

        Raises:
            NotFoundError: If there is none; names the nearest.
            InputError: If there are several.
        """
        known = self.all()
        start = text.lower() if re.fullmatch(rf"[0-9a-fA-F]{{{_SHORTEST_HASH},64}}", text) else None
        found = [d for d in known if d.name == text or (start is not None and d.sha256.startswith(start))]
        if len(found) > 1:
            hashes = ", ".join(d.sha256[:12] for d in found)
            raise InputError(f"{len(found)} datasets are '{text}': say which by its hash: {hashes}")
        if not found:
            hint = nearest(text, {d.name for d in known}) or "; it has no datasets"
            raise NotFoundError(f"there is no dataset '{text}' in the store at {self.connection.address}{hint}")
        return found[0]

    @mapped
    def users(self, sha256: str) -> Mapping[str, CampaignState]:
        """Return the campaigns whose data have this hash: name -> state, newest first."""
        found = self._campaigns.find({"spec.data.sha256": sha256}, {"state": 1}).sort("created_at", DESCENDING)
        return {d["_id"]: CampaignState(d["state"]) for d in found}

    @mapped
    def read(self, dataset: Dataset, first: int, count: int = BATCH) -> list[bytes]:
        """Return chunks of a dataset, in order, from number `first` on; at most `count` of them, fewer at its end.

        Their content is not checked: check the hash of the whole.

        Raises:
            DataError: If a chunk is missing or has another length.
        """
        numbers = range(first, min(first + count, dataset.n_chunks))
        stored = self._stored(dataset.id, numbers)
        for number in numbers:
            if len(stored.get(number, b"")) != dataset.length(number):
                raise self.damaged(dataset)
        return [stored[number] for number in numbers]

    def damaged(self, dataset: Dataset) -> DataError:
        """Return the error for a dataset whose copy in the store is not what it must be."""
        what = f"dataset {dataset.name} ({dataset.sha256[:12]}) in the store at {self.connection.address}"
        return DataError(f"{what} is damaged: mend it with `autotune data push FILE --check`")

    def push(
        self, file: Path, *, name: str | None = None, check: bool = False, progress: OnProgress = lambda *_: None
    ) -> Pushed:
        """Put a file into the store, in chunks; a push that was interrupted goes on where it stopped.

        Each chunk is read back and compared, and the hash of the whole checked, before anybody can see the file. Memory
        does not depend on its size. Any number of pushes of one content may run at a time.

        Args:
            file: The file; it must not change meanwhile.
            name: Its name in the store; default: the name of the file.
            check: Whether a copy that is there already is compared, and mended where it differs.
            progress: Called now and then.

        Raises:
            DataError: If there is no such file, it is empty, cannot be read, or changed meanwhile.
            StoreUnreachableError: If the store went away; pushing again goes on.
        """
        try:
            with self.connection.mapped(), _opened(file) as source:
                return self._push(source, name or file.name, check, progress)
        except StoreUnreachableError as error:
            raise StoreUnreachableError(f"{error}; push again to go on where it stopped") from error

    def _push(self, source: BinaryIO, name: str, check: bool, progress: OnProgress) -> Pushed:
        size, stamp = _stamp(source)
        sha256 = _hash(source, size, progress)
        self._prepare()
        sent = 0
        for _ in range(_TRIES):
            self.clean()
            there = self.find(sha256)
            if there is not None:
                if check or not self._has_all_chunks(there):
                    sent += self._fill(there, source, stamp, progress)
                return Pushed(dataset=there, new=False, sent=sent)
            begun = self._begin(sha256, name, size)
            sent += self._fill(begun, source, stamp, progress)
            published = self._publish(begun)
            if published is not None:
                return Pushed(dataset=published, new=True, sent=sent)
        raise StoreError(f"the push of {source.name} was taken away by others {_TRIES} times; push it again")

    @mapped
    def remove(self, dataset: Dataset) -> None:
        """Remove a dataset. Copies in the caches of workers stay.

        Raises:
            StateError: If a running or paused campaign uses it.
        """
        active = (CampaignState.RUNNING, CampaignState.PAUSED)
        users = [f"{name} ({state})" for name, state in self.users(dataset.sha256).items() if state in active]
        if users:
            what = f"dataset {dataset.name} ({dataset.sha256[:12]}) is used by {', '.join(users)}"
            raise StateError(f"{what}: cancel them, or wait for their end")
        self._files.delete_one({"_id": dataset.id})
        self._drop(dataset.id)

    @mapped
    def clean(self) -> int:
        """Drop what pushes and removals left that never ended; return the number of files that were dropped.

        A push counts as given up a day after it was last gone on with, on the database's clock. Chunks that belong to
        nothing, as those of a removal that was killed or of a restore that goes on, are dropped a day after they were
        first seen so.
        """
        forgotten = {"$expr": {"$lt": ["$touched_at", {"$subtract": ["$$NOW", int(FORGOTTEN_S * 1000)]}]}}
        given_up = set()
        for push in list(self._pushes.find(forgotten)):
            key = {"_id": push["_id"], "files_id": push["files_id"]}
            if self._pushes.delete_one({**key, **forgotten}).deleted_count:
                given_up.add(push["files_id"])
        # In this order: a push has its document before its first chunk, and leaves it only for one in `files`.
        orphans = set(self._chunks.distinct("files_id"))
        orphans -= {d["files_id"] for d in self._pushes.find({}, {"files_id": 1})}
        orphans -= {d["_id"] for d in self._files.find({}, {"_id": 1})}
        for files_id in orphans & given_up:
            self._drop(files_id)
        for files_id in orphans - given_up:
            self._touch(f"orphan {files_id}", {"files_id": files_id})
        return len(orphans & given_up)

    def _prepare(self) -> None:
        for name, indexes in _INDEXES.items():
            collection = self.connection.database[name]
            if not {i.document["name"] for i in indexes} <= set(collection.index_information()):
                collection.create_indexes(indexes)

    def _begin(self, sha256: str, name: str, size: int) -> Dataset:
        """Return the push of a content: one that others began, or that was interrupted, or a new one."""
        fields = {"files_id": ObjectId(), "name": name, "size": size, "chunk_size": CHUNK_BYTES}
        begun = self._touch(sha256, fields)
        return Dataset(id=begun["files_id"], sha256=sha256, name=name, size=size, chunk_size=begun["chunk_size"])

    def _touch(self, key: str, fields: Mapping[str, Any]) -> Any:
        """Say that a push goes on, on the database's clock; return its document, which is new if there was none."""
        return self._pushes.find_one_and_update(
            {"_id": key},
            {"$setOnInsert": {"schema_version": SCHEMA_VERSION, **fields}, "$currentDate": {"touched_at": True}},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )

    def _fill(self, dataset: Dataset, source: BinaryIO, stamp: int, progress: OnProgress) -> int:
        """Make the chunks of a dataset equal to a file that must not have changed; return how many were sent."""
        digest, sent, n_chunks = hashlib.sha256(), 0, dataset.n_chunks
        source.seek(0)
        for turn, first in enumerate(range(0, n_chunks, BATCH)):
            numbers = range(first, min(first + BATCH, n_chunks))
            wanted = {n: source.read(dataset.length(n)) for n in numbers}
            if _stamp(source) != (dataset.size, stamp):  # looked at before anything of it is sent
                break
            sent += self._settle(dataset, wanted)
            for data in wanted.values():
                digest.update(data)
            progress("pushing", source.tell(), dataset.size)
            if turn % _TOUCH_EVERY == _TOUCH_EVERY - 1:
                same = {"_id": dataset.sha256, "files_id": dataset.id}
                self._pushes.update_one(same, {"$currentDate": {"touched_at": True}})
        if digest.hexdigest() != dataset.sha256:
            raise DataError(f"{source.name} changed while it was pushed; push it again")
        return sent

    def _settle(self, dataset: Dataset, wanted: Mapping[int, bytes]) -> int:
        """Send what the store has not, until it gives back each of these chunks as it is; return how many were sent."""
        sent: set[int] = set()
        for _ in range(_TRIES):
            stored = self._stored(dataset.id, wanted)
            wrong = [n for n in wanted if stored.get(n) != wanted[n]]
            if not wrong:
                return len(sent)
            self._send(dataset.id, {n: wanted[n] for n in wrong})
            sent.update(wrong)
        raise StoreError(f"the store at {self.connection.address} does not give back what was written; check its disk")

    def _stored(self, files_id: Any, numbers: Mapping[int, bytes] | range) -> dict[int, bytes]:
        query = {"files_id": files_id, "n": {"$gte": min(numbers), "$lte": max(numbers)}}
        found = self._safe_chunks.find(query, {"_id": 0, "n": 1, "data": 1})
        return {d["n"]: bytes(d["data"]) for d in found}

    def _send(self, files_id: Any, chunks: Mapping[int, bytes]) -> None:
        keys = {n: {"files_id": files_id, "n": n} for n in chunks}
        writes = [ReplaceOne(keys[n], {**keys[n], "data": data}, upsert=True) for n, data in chunks.items()]
        try:
            self._chunks.bulk_write(writes, ordered=False)
        except BulkWriteError as error:  # a duplicate: another push of this content was faster
            others = [e for e in error.details["writeErrors"] if e["code"] != _DUPLICATE_KEY]
            if others or error.details["writeConcernErrors"]:
                raise

    def _publish(self, dataset: Dataset) -> Dataset | None:
        """Make a filled push visible; return None when it is not there any more, or another was faster."""
        document = {
            "_id": dataset.id,
            "length": dataset.size,
            "chunkSize": dataset.chunk_size,
            "uploadDate": self.connection.client.admin.command("hello")["localTime"],
            "filename": dataset.name,
            "metadata": {"sha256": dataset.sha256, "schema_version": SCHEMA_VERSION},
        }

        def move(session: ClientSession) -> bool:
            push = {"_id": dataset.sha256, "files_id": dataset.id}
            if not self._pushes.delete_one(push, session=session).deleted_count:
                return False
            self._files.insert_one(document, session=session)
            return True

        try:
            published = self.connection.transaction(move)
        except DuplicateKeyError:  # another push of this content was published under another id
            self._pushes.delete_one({"_id": dataset.sha256, "files_id": dataset.id})
            published = False
        if published:
            return _dataset(document)
        if self._files.find_one({"_id": dataset.id}, {"_id": 1}) is None:
            self._drop(dataset.id)
        return None

    def _has_all_chunks(self, dataset: Dataset) -> bool:
        query = {"files_id": dataset.id, "n": {"$lt": dataset.n_chunks}}
        return self._chunks.count_documents(query) == dataset.n_chunks

    def _drop(self, files_id: Any) -> None:
        last = self._chunks.find_one({"files_id": files_id}, {"n": 1}, sort=[("n", DESCENDING)])
        for first in range(0, last["n"] + 1 if last else 0, _DROP_AT_ONCE):
            self._chunks.delete_many({"files_id": files_id, "n": {"$gte": first, "$lt": first + _DROP_AT_ONCE}})


def _dataset(document: Mapping[str, Any]) -> Dataset:
    return Dataset(
        id=document["_id"],
        sha256=document["metadata"]["sha256"],
        name=document["filename"],
        size=int(document["length"]),
        chunk_size=int(document["chunkSize"]),
        pushed_at=document["uploadDate"],
    )


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    """Open a data file to push; what goes wrong with it leaves as a `DataError`."""
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DataError(
                f"{file} is {'a folder' if file.is_dir() else 'no regular file'}: name one data file (.h5ad)"
            )
        if not found.st_size:
            raise DataError(f"{file} is empty: there is nothing to push")
        with file.open("rb") as source:
            yield source
    except FileNotFoundError:
        raise DataError(f"there is no file {file}") from None
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error


def _hash(source: BinaryIO, size: int, progress: OnProgress) -> str:
    digest = hashlib.sha256()
    while data := source.read(BATCH * CHUNK_BYTES):
        digest.update(data)
        progress("hashing", min(source.tell(), size), size)
    return digest.hexdigest()


def _stamp(source: BinaryIO) -> tuple[int, int]:
    """Return size and time of change of an open file."""
    found = os.fstat(source.fileno())
    return found.st_size, found.st_mtime_ns

"""A shelf in the store's GridFS."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

from bson import ObjectId
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.client_session import ClientSession
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern

from autotune.errors import StoreError
from autotune.store.archives import PIECE, Archive
from autotune.store.connection import Connection
from autotune.store.schema import SCHEMA_VERSION
from autotune.store.shelf import SUFFIX, hash_of, missing

INDEXES = {
    "artifacts.files": [
        IndexModel([("metadata.campaign", ASCENDING), ("metadata.sha256", ASCENDING)], name="content", unique=True),
        IndexModel([("filename", ASCENDING), ("uploadDate", ASCENDING)], name="filename_1_uploadDate_1"),
    ],
    "artifacts.chunks": [IndexModel([("files_id", ASCENDING), ("n", ASCENDING)], name="files_id_1_n_1", unique=True)],
}
"""Indexes of the collections; a worker's user cannot make them, so `autotune store upgrade` should."""

ABANDONED_S = 600.0
"""A write that was not heard of for so long, of any campaign, was given up; a writer is heard of with each piece."""
_DROP_AT_ONCE = 256  # chunks
_BATCH = 4


class GridShelf:
    """Archives in the GridFS collections ``artifacts.files`` and ``artifacts.chunks``.

    An archive that is being written or removed has a document in ``artifacts.pushes`` (``_id`` = its id in GridFS,
    ``touched_at`` on the database's clock). The end of a write turns that document into the file's, in one transaction.
    """

    def __init__(self, connection: Connection, campaign: str) -> None:
        self._connection = connection
        self._campaign = campaign
        self._files = connection.database["artifacts.files"]
        self._chunks = connection.database["artifacts.chunks"]
        self._pushes = connection.database["artifacts.pushes"]
        self._safe_chunks = self._chunks.with_options(read_concern=ReadConcern("majority"))

    def touch(self, sha256: str, size: int) -> bool:
        """Return whether an archive is there; its time of grace begins anew."""
        found = self._files.update_one(
            {**self._key(sha256), "length": size}, {"$currentDate": {"metadata.touched_at": True}}
        )
        return found.matched_count == 1

    def write(self, archive: Archive) -> None:
        """Write the chunks, read them back, then publish.

        Raises:
            StoreError: If the server gives back other bytes, or others took the push away while it was written.
        """
        self._prepare()
        files_id = ObjectId()
        self._touch_push(files_id)
        for first, pieces in _batches(archive):
            self._chunks.insert_many([{"files_id": files_id, "n": first + i, "data": d} for i, d in enumerate(pieces)])
        if hash_of(self._pieces(files_id, archive.size)) != archive.sha256:
            raise StoreError(f"the store at {self._connection.address} does not give back what was written")
        self._publish(files_id, archive)

    def read(self, sha256: str) -> Iterator[bytes]:
        """Yield the bytes of an archive; raises `NotFoundError`."""
        found = self._files.find_one(self._key(sha256))
        if found is None:
            raise missing(sha256, f"the store at {self._connection.address}")
        yield from self._pieces(found["_id"], found["length"])

    def sizes(self) -> dict[str, int]:
        """Return the archives that are there: hash -> bytes."""
        mine = self._files.find({"metadata.campaign": self._campaign}, {"metadata.sha256": 1, "length": 1})
        return {d["metadata"]["sha256"]: int(d["length"]) for d in mine}

    def collect(self, keep: Set[str], grace_s: float) -> list[str]:
        """Remove archives that are not in `keep`; those of writers that gave up, of any campaign, too."""
        forgotten = _older("$metadata.touched_at", grace_s)
        removed = []
        for found in list(self._files.find({"metadata.campaign": self._campaign, **forgotten}, {"metadata": 1})):
            if found["metadata"]["sha256"] in keep:
                continue
            self._touch_push(found["_id"])  # so that the chunks are found again if this ends in between
            if self._files.delete_one({"_id": found["_id"], **forgotten}).deleted_count:
                removed.append(found["metadata"]["sha256"])
                self._drop(found["_id"])
            self._pushes.delete_one({"_id": found["_id"]})
        abandoned = _older("$touched_at", max(grace_s, ABANDONED_S))
        for push in list(self._pushes.find(abandoned)):
            if self._pushes.delete_one({"_id": push["_id"], **abandoned}).deleted_count:
                self._clear(push["_id"])
        return removed

    def _clear(self, files_id: Any) -> None:
        """Drop chunks of which no push tells any more, unless they are those of a published archive."""
        if self._files.find_one({"_id": files_id}, {"_id": 1}) is None:
            self._drop(files_id)

    def _publish(self, files_id: ObjectId, archive: Archive) -> None:
        now = self._connection.client.admin.command("hello")["localTime"]
        document = {
            "_id": files_id,
            "length": archive.size,
            "chunkSize": PIECE,
            "uploadDate": now,
            "filename": f"{self._campaign}/{archive.sha256}{SUFFIX}",
            "metadata": {
                "schema_version": SCHEMA_VERSION,
                "campaign": self._campaign,
                "sha256": archive.sha256,
                "touched_at": now,
            },
        }

        def move(session: ClientSession) -> bool:
            if not self._pushes.delete_one({"_id": files_id}, session=session).deleted_count:
                return False
            self._files.insert_one(document, session=session)
            return True

        try:
            if self._connection.transaction(move):
                return
        except DuplicateKeyError:  # another writer of this content was faster; the collector drops these chunks
            if self.touch(archive.sha256, archive.size):
                return
        raise StoreError("a checkpoint was taken for abandoned while it was written; write it again")

    def _key(self, sha256: str) -> dict[str, Any]:
        return {"metadata.campaign": self._campaign, "metadata.sha256": sha256}

    def _touch_push(self, files_id: Any) -> None:
        self._pushes.update_one(
            {"_id": files_id},
            {"$setOnInsert": {"schema_version": SCHEMA_VERSION}, "$currentDate": {"touched_at": True}},
            upsert=True,
        )

    def _pieces(self, files_id: Any, size: int) -> Iterator[bytes]:
        """Yield the chunks that are there, in order; the reader's hash tells whether it is all."""
        for first in range(0, -(-size // PIECE), _BATCH):
            query = {"files_id": files_id, "n": {"$gte": first, "$lt": first + _BATCH}}
            for chunk in self._safe_chunks.find(query, {"data": 1}).sort("n", ASCENDING):
                yield bytes(chunk["data"])

    def _drop(self, files_id: Any) -> None:
        last = self._chunks.find_one({"files_id": files_id}, {"n": 1}, sort=[("n", DESCENDING)])
        for first in range(0, last["n"] + 1 if last else 0, _DROP_AT_ONCE):
            self._chunks.delete_many({"files_id": files_id, "n": {"$gte": first, "$lt": first + _DROP_AT_ONCE}})

    def _prepare(self) -> None:
        for name, indexes in INDEXES.items():
            collection = self._connection.database[name]
            if not {i.document["name"] for i in indexes} <= set(collection.index_information()):
                collection.create_indexes(indexes)


def _batches(archive: Archive) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (number of the first chunk, chunks)."""
    first, batch = 0, list[bytes]()
    for piece in archive.pieces():
        batch.append(piece)
        if len(batch) == _BATCH:
            yield first, batch
            first, batch = first + _BATCH, []
    if batch:
        yield first, batch


def _older(field: str, age_s: float) -> dict[str, Any]:
    return {"$expr": {"$lte": [field, {"$subtract": ["$$NOW", int(age_s * 1000)]}]}}

"""Restoring a backup: all of it is checked before the first write, and a campaign appears when it is whole."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bson
from bson.raw_bson import RawBSONDocument
from pymongo import ASCENDING
from pymongo.errors import BulkWriteError

from autotune.clock import SystemClock
from autotune.errors import CampaignExistsError, NotFoundError, StateError, StoreError, nearest
from autotune.store.backup import COLLECTIONS, DATASETS, Manifest, Part, Progress
from autotune.store.backup_file import BackupFile
from autotune.store.mongo import MongoStore
from autotune.store.schema import SCHEMA_VERSION

ACTION = "restore"
"""The event that says which backup a campaign came from."""
_BATCH_DOCUMENTS = 1_000
_BATCH_BYTES = 8_000_000
_DUPLICATE_KEY = 11_000
_LOCK = ":restore"
_LOCK_S = 60.0
_LOCK_WAIT_S = 90.0
_LOCK_STEP_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What a restore did.

    Attributes:
        manifest: What the backup says of itself.
        campaigns: Names of the campaigns that were written.
        already: Names of those that an earlier restore of the same backup had written.
        trials: Number of trials written.
        datasets: Number of datasets written.
    """

    manifest: Manifest
    campaigns: tuple[str, ...]
    already: tuple[str, ...]
    trials: int
    datasets: int


def restore(
    store: MongoStore,
    path: Path,
    *,
    campaigns: Sequence[str] = (),
    who: str = "",
    progress: Progress | None = None,
) -> Restored:
    """Write the campaigns of a backup into a store that has none of their names.

    Safe to repeat: where it was interrupted, the same call completes it. Running trials come back with their leases,
    which run out, so a coordinator gives them back. The time between backup and restore is not charged to a
    campaign's budget.

    Args:
        store: An open store.
        path: The backup.
        campaigns: Names; empty: all of the backup.
        who: Who does it, for the audit.
        progress: Called now and then.

    Raises:
        InputError: If the file is damaged, cut short or no backup; then nothing was written.
        NotFoundError: If the backup has no campaign of such a name.
        CampaignExistsError: If the store has a campaign of such a name that is not from this backup.
        StateError: If another restore is under way.
        StoreError: If the store fails; run it again.
    """
    with BackupFile(path) as file:
        names = _chosen(file.manifest, campaigns)
        total = 2 * sum(part.size for part in file.manifest.parts)
        tell = _teller(progress, total)
        file.verify(lambda done: tell("checking", done))
        store.upgrade()
        with store.connection.mapped():
            job = _Job(store, file, who, lambda done: tell("writing", total // 2 + done))
            try:
                return job.run(names)
            finally:
                job.unlock()


def _chosen(manifest: Manifest, campaigns: Sequence[str]) -> list[str]:
    for name in campaigns:
        if name not in manifest.campaigns:
            hint = nearest(name, manifest.campaigns) if manifest.campaigns else "; it holds no campaigns"
            raise NotFoundError(f"there is no campaign '{name}' in the backup{hint}")
    return [name for name in manifest.campaigns if not campaigns or name in campaigns]


def _teller(progress: Progress | None, total: int) -> Callable[[str, int], None]:
    def tell(what: str, done: int) -> None:
        if progress is not None:
            progress(what, done, total)

    return tell


class _Job:
    """One restore. Holds a lock in the store, so that two do not mix."""

    def __init__(self, store: MongoStore, file: BackupFile, who: str, tell: Callable[[int], None]) -> None:
        self._store = store
        self._database = store.connection.database
        self._file = file
        self._who = who
        self._tell = tell
        self._owner = secrets.token_hex(8)
        self._written = 0

    def run(self, names: list[str]) -> Restored:
        """Write what is missing of these campaigns."""
        self._lock()
        already = [name for name in names if self._is_there(name)]
        missing = [name for name in names if name not in already]
        datasets, trials = self._datasets(missing), 0
        if missing:
            self._sweep(missing)
            parts = {part.collection: part for part in self._file.manifest.parts}
            for collection in COLLECTIONS[:-1]:
                count = self._copy(parts[collection], lambda d: d["campaign"] in missing)
                trials += count if collection == "trials" else 0
            self._migrate()
            self._campaigns(parts["campaigns"], missing)
            self._migrate()
        return Restored(
            manifest=self._file.manifest,
            campaigns=tuple(missing),
            already=tuple(already),
            trials=trials,
            datasets=datasets,
        )

    def unlock(self) -> None:
        """Let another restore begin."""
        self._store.leaders.resign(_LOCK, self._owner)

    def _lock(self) -> None:
        clock = SystemClock()
        end_s = clock.monotonic_s() + _LOCK_WAIT_S
        while not self._store.leaders.lead(_LOCK, self._owner, _LOCK_S):
            if clock.monotonic_s() > end_s:
                raise StateError("another restore into this store is under way; wait until it has ended")
            clock.wait(threading.Event(), _LOCK_STEP_S)

    def _is_there(self, name: str) -> bool:
        """Return whether this backup's campaign is in the store, whole.

        Raises:
            CampaignExistsError: If another one has its name.
        """
        if self._database["campaigns"].find_one({"_id": name}, {"_id": 1}) is None:
            return False
        ours = {"campaign": name, "action": ACTION, "detail.backup": self._file.manifest.id}
        if self._database["events"].find_one(ours, {"_id": 1}) is None:
            raise CampaignExistsError(
                f"campaign '{name}' is already in this store, and not from this backup; nothing was written: restore "
                "into an empty store (--store), or only other campaigns (--campaign NAME)"
            )
        return True

    def _sweep(self, names: list[str]) -> None:
        """Remove what an interrupted restore left of campaigns that are not there."""
        for collection in COLLECTIONS[:-1]:
            self._database[collection].delete_many({"campaign": {"$in": names}})

    def _copy(self, part: Part, wanted: Callable[[RawBSONDocument], bool]) -> int:
        """Write the wanted documents of a part as they are; return how many."""
        older = self._file.manifest.schema_version < SCHEMA_VERSION
        collection, count = self._database[part.collection], 0
        for batch in self._batches(part, wanted):
            self._keep_lock()
            try:
                collection.insert_many(batch, ordered=False, bypass_document_validation=older)
            except BulkWriteError as error:
                others = [e for e in error.details["writeErrors"] if e["code"] != _DUPLICATE_KEY]
                if others or part.collection not in DATASETS:
                    said = [*others, *error.details["writeErrors"], {"errmsg": str(error)}][0]["errmsg"]
                    raise StoreError(
                        f"the store at {self._store.address} refused a document of {part.collection} from the backup: "
                        f"{said[:200]}"
                    ) from None
            count += len(batch)
        return count

    def _batches(self, part: Part, wanted: Callable[[RawBSONDocument], bool]) -> Iterator[list[RawBSONDocument]]:
        batch: list[RawBSONDocument] = []
        size = 0
        for document in self._file.documents(part):
            self._written += len(document.raw)
            if wanted(document):
                batch.append(document)
                size += len(document.raw)
            if len(batch) >= _BATCH_DOCUMENTS or size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
                self._tell(self._written)
        if batch:
            yield batch
        self._tell(self._written)

    def _keep_lock(self) -> None:
        if not self._store.leaders.lead(_LOCK, self._owner, _LOCK_S):
            raise StateError("another restore into this store began meanwhile; run this one again when it has ended")

    def _campaigns(self, part: Part, names: list[str]) -> None:
        """Write the campaigns themselves, each after the event that says where it came from."""
        manifest = self._file.manifest
        detail = {"backup": manifest.id, "taken_at": manifest.taken_at, "store": manifest.store}
        for document in self._file.documents(part):
            name = str(document["_id"])
            if name in names:
                self._keep_lock()
                self._store.campaigns.audit(name, ACTION, self._who, detail)
                content = self._with_its_time(bson.decode(document.raw))
                self._database["campaigns"].insert_one(
                    content, bypass_document_validation=manifest.schema_version < SCHEMA_VERSION
                )
            self._written += len(document.raw)
            self._tell(self._written)

    def _with_its_time(self, campaign: dict[str, Any]) -> dict[str, Any]:
        """Return a campaign whose running time stands still between backup and restore."""
        since, ran = campaign.get("running_since"), campaign.get("ran_s", 0.0)
        if isinstance(since, datetime) and isinstance(ran, int | float):  # else the store refuses it
            taken_at = datetime.fromisoformat(self._file.manifest.taken_at)
            ran_s = (taken_at - since.replace(tzinfo=UTC)).total_seconds()
            now = self._store.connection.client.admin.command("hello")["localTime"]
            campaign.update(ran_s=float(ran) + max(0.0, ran_s), running_since=now)
        return campaign

    def _migrate(self) -> None:
        """Bring documents of an older schema to this one."""
        if self._file.manifest.schema_version < SCHEMA_VERSION:
            self._store.upgrade()

    def _datasets(self, names: list[str]) -> int:
        """Write the datasets that the store lacks; each is there when its own document is."""
        parts = {part.collection: part for part in self._file.manifest.parts if part.collection in DATASETS}
        if not parts or not names:
            return 0
        files = [bson.decode(d.raw) for d in self._file.documents(parts["datasets.files"])]
        lacking = {f["_id"] for f in files if not self._has_dataset(f)}
        self._database["datasets.chunks"].create_index([("files_id", ASCENDING), ("n", ASCENDING)], unique=True)
        self._database["datasets.files"].create_index([("filename", ASCENDING), ("uploadDate", ASCENDING)])
        self._copy(parts["datasets.chunks"], lambda d: d["files_id"] in lacking)
        return self._copy(parts["datasets.files"], lambda d: d["_id"] in lacking)

    def _has_dataset(self, file: dict[str, Any]) -> bool:
        same = {"$or": [{"_id": file["_id"]}, {"metadata.sha256": file["metadata"]["sha256"]}]}
        return self._database["datasets.files"].find_one(same, {"_id": 1}) is not None

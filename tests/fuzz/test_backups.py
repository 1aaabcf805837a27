"""Mutants of backups: restored whole, or one clear line and nothing in the store."""

from __future__ import annotations

import hashlib
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bson
import pytest

from autotune.store.backup import COLLECTIONS, MANIFEST, backup
from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.store.restore import restore
from autotune.testing.helpers import claim, propose, result
from autotune.trial import Report
from tests.fuzz.mutants import PLAIN, STORED, Jury, cut_up_bytes, reshape

MUTANTS = 100


@pytest.fixture
def members(store: MongoStore, make_campaign: Callable[..., CampaignRecord], tmp_path: Path) -> dict[str, bytes]:
    """The members of a backup; the store is empty again."""
    make_campaign(max_trials=8)
    for number in range(4):
        propose(store, number, "demo")
    lease = claim(store, "demo")
    store.reports.add(lease, [Report(step=1, metrics={"loss": 1.0})])
    store.trials.finish(lease, result(1.0))
    backup(store, tmp_path / "original")
    empty(store)
    with zipfile.ZipFile(tmp_path / "original") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def empty(store: MongoStore) -> None:
    """Remove all campaigns and what belongs to them."""
    for name in COLLECTIONS:
        store.connection.database[name].delete_many({})


def write(file: Path, members: dict[str, bytes]) -> None:
    """Write an archive."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def judge(jury: Jury, store: MongoStore, file: Path, mutant: object) -> None:
    """Restore a mutant; a campaign that is refused is not in the store."""
    if jury.judge(lambda: restore(store, file), mutant):
        empty(store)
    elif store.connection.database["campaigns"].count_documents({}):
        jury.failures.append(f"- refused, but there is a campaign: {mutant!r:.300}")
        empty(store)


def test_changed_bytes(store: MongoStore, members: dict[str, bytes], tmp_path: Path) -> None:
    chance, file = random.Random("bytes"), tmp_path / "mutant"
    original = (tmp_path / "original").read_bytes()
    with Jury() as jury:
        for _ in range(MUTANTS):
            mutant = cut_up_bytes(original, chance)
            file.write_bytes(mutant)
            judge(jury, store, file, mutant)
        assert jury.refused > MUTANTS / 2


def test_changed_manifests(store: MongoStore, members: dict[str, bytes], tmp_path: Path) -> None:
    chance, file = random.Random("manifests"), tmp_path / "mutant"
    with Jury() as jury:
        for _ in range(MUTANTS):
            mutant = reshape(json.loads(members[MANIFEST]), chance, PLAIN)
            write(file, {**members, MANIFEST: json.dumps(mutant).encode()})
            judge(jury, store, file, mutant)
        assert jury.refused > MUTANTS / 4


def _with_part(members: dict[str, bytes], collection: str, data: bytes, count: int) -> dict[str, bytes]:
    """Return a backup with other documents, and a manifest that agrees with them."""
    manifest: dict[str, Any] = json.loads(members[MANIFEST])
    for part in manifest["parts"]:
        if part["collection"] == collection:
            part.update(documents=count, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    return {**members, f"{collection}.bson": data, MANIFEST: json.dumps(manifest).encode()}


def test_changed_documents(store: MongoStore, members: dict[str, bytes], tmp_path: Path) -> None:
    """Forged, with right sums: what the manifest cannot tell, the validators do."""
    chance, file = random.Random("documents"), tmp_path / "mutant"
    with Jury() as jury:
        while jury.judged < MUTANTS:
            collection = chance.choice(COLLECTIONS)
            documents = bson.decode_all(members[f"{collection}.bson"])
            at = chance.randrange(len(documents))
            documents[at] = reshape(documents[at], chance, STORED)
            try:
                data = b"".join(bson.encode(d) for d in documents)
            except (bson.errors.BSONError, OverflowError, ValueError, TypeError):
                continue
            write(file, _with_part(members, collection, data, len(documents)))
            judge(jury, store, file, (collection, documents[at]))


def test_changed_bytes_of_documents(store: MongoStore, members: dict[str, bytes], tmp_path: Path) -> None:
    chance, file = random.Random("bson"), tmp_path / "mutant"
    with Jury() as jury:
        for _ in range(MUTANTS):
            collection = chance.choice(COLLECTIONS)
            data = cut_up_bytes(members[f"{collection}.bson"], chance)
            write(file, _with_part(members, collection, data, len(bson.decode_all(members[f"{collection}.bson"]))))
            judge(jury, store, file, (collection, data))

"""Backup and restore: whole, as of one moment, checked before the first write, completed after an interruption."""

from __future__ import annotations

import json
import os
import secrets
import signal
import stat
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gridfs import GridFS
from pymongo.errors import OperationFailure

from autotune.errors import AutotuneError, CampaignExistsError, InputError, NotFoundError, StateError, StoreSetupError
from autotune.store import backup as backup_module
from autotune.store import history_window
from autotune.store import restore as restore_module
from autotune.store.backup import COLLECTIONS, DATASETS, MANIFEST, backup
from autotune.store.base import CampaignRecord
from autotune.store.check import check
from autotune.store.datasets import Datasets
from autotune.store.mongo import MongoStore
from autotune.store.restore import restore
from autotune.store.schema import SCHEMA_VERSION, VALIDATORS
from autotune.testing.helpers import claim, expire, failure, propose, result
from autotune.trial import CampaignState, Cause, Report, TrialState
from tests.objectives.support import ENDINGS, QUICK_LEASE, ROOT, assert_exact, coordinating, wait_until, working

Make = Callable[..., CampaignRecord]


@pytest.fixture
def target(server_uri: str) -> Iterator[MongoStore]:
    """Another store, open and empty."""
    name = f"test_{secrets.token_hex(6)}"
    with MongoStore(server_uri.replace("/autotune?", f"/{name}?")) as opened:
        yield opened
        opened.connection.client.drop_database(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where backups go."""
    return tmp_path / "store.backup"


def fill(store: MongoStore, name: str, ended: int = 5) -> None:
    """Give a campaign `ended` finished trials with reports, a failed one, a running one and a queued one."""
    for number in range(ended + 3):
        propose(store, number, name)
    for number in range(ended + 2):
        lease = claim(store, name)
        store.reports.add(lease, [Report(step=s, metrics={"loss": 1.0 / (s + 1)}) for s in range(3)])
        if number < ended:
            store.trials.finish(lease, result(float(number)))
        elif number == ended:
            store.trials.end_attempt(lease, failure(Cause.ERROR))


def contents(store: MongoStore, name: str) -> dict[str, list[Any]]:
    """Return all documents of a campaign, but for the event of its restore."""
    database, found = store.connection.database, {}
    for collection in COLLECTIONS:
        key = "_id" if collection == "campaigns" else "campaign"
        query = {key: name, "action": {"$ne": "restore"}}
        found[collection] = list(database[collection].find(query).sort("_id", 1))
    for campaign in found["campaigns"]:
        campaign.pop("ran_s", None)
        campaign.pop("running_since", None)
    return found


def empty(store: MongoStore) -> bool:
    """Return whether no campaign, and nothing of one, is in a store."""
    return not any(store.connection.database[name].count_documents({}) for name in COLLECTIONS)


def test_every_collection_is_backed_up_or_left_out_on_purpose() -> None:
    assert set(VALIDATORS) - set(COLLECTIONS) == {"workers", "leaders"}


def test_what_comes_back_is_what_went_in(
    store: MongoStore, target: MongoStore, make_campaign: Make, file: Path
) -> None:
    for name in ("one", "two"):
        make_campaign(name, max_trials=20)
        fill(store, name)
    done = backup(store, file)
    assert (done.campaigns, done.consistent, done.schema_version) == (("one", "two"), True, SCHEMA_VERSION)
    assert (done.count("trials"), done.count("reports")) == (16, 42)
    restored = restore(target, file, who="ann")
    assert (restored.campaigns, restored.already, restored.trials) == (("one", "two"), (), 16)
    for name in ("one", "two"):
        assert contents(target, name) == contents(store, name)
        last = target.campaigns.events(name)[-1]
        assert (last["action"], last["who"], last["detail"]["backup"]) == ("restore", "ann", done.id)
    assert [f.text for f in check(target) if not f.ok and "without" not in f.text] == []


def test_the_file_is_private_and_says_what_it_holds(store: MongoStore, make_campaign: Make, file: Path) -> None:
    make_campaign()
    backup(store, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read(MANIFEST))
    assert manifest["format"] == "autotune-backup"
    assert {part["collection"] for part in manifest["parts"]} == set(COLLECTIONS)
    assert all(len(part["sha256"]) == 64 for part in manifest["parts"])


def test_no_password_is_in_the_file(store: MongoStore, make_campaign: Make, file: Path) -> None:
    make_campaign()
    admin = store.connection.client
    database = store.connection.database.name
    admin[database].command("createUser", "carol", pwd="s3cret-word", roles=["readWrite"])
    try:
        uri = store.uri.replace("mongodb://", "mongodb://carol:s3cret-word@").replace("?", f"?authSource={database}&")
        with MongoStore(uri, prepare=False) as opened:
            backup(opened, file)
    finally:
        admin[database].command("dropUser", "carol")
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            assert b"s3cret" not in archive.read(name)
            assert b"carol" not in archive.read(name)


def test_only_the_named_campaigns(store: MongoStore, target: MongoStore, make_campaign: Make, file: Path) -> None:
    for name in ("one", "two", "three"):
        make_campaign(name)
        fill(store, name, ended=1)
    done = backup(store, file, campaigns=["two", "three"])
    assert done.campaigns == ("three", "two")
    assert restore(target, file, campaigns=["two"]).campaigns == ("two",)
    assert [c.name for c in target.campaigns.find()] == ["two"]
    assert target.trials.find("three") == []
    assert contents(target, "two") == contents(store, "two")
    with pytest.raises(NotFoundError, match="did you mean 'two'"):
        restore(target, file, campaigns=["twoo"])
    with pytest.raises(NotFoundError, match="did you mean 'one'"):
        backup(store, file.with_suffix(".2"), campaigns=["onee"])
    assert not file.with_suffix(".2").exists()


def test_an_empty_store(store: MongoStore, target: MongoStore, file: Path) -> None:
    assert backup(store, file).campaigns == ()
    assert restore(target, file).campaigns == ()


def test_one_moment_while_trials_are_written(
    store: MongoStore, target: MongoStore, make_campaign: Make, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that ends and a report that comes while the backup reads are in it whole or not at all."""
    make_campaign(max_trials=2_000)
    fill(store, "demo", ended=3)
    write_part, states = backup_module._write_part, []

    def write_slowly(archive: Any, collection: str, documents: Any) -> Any:
        part = write_part(archive, collection, documents)
        if collection == "trials":
            for number in range(100, 130):
                propose(store, number, "demo")
                lease = store.trials.claim(["demo"], owner="w", token=secrets.token_hex(8), duration_s=60)
                assert lease is not None
                assert lease.lease is not None
                store.reports.add(lease.lease, [Report(step=1, metrics={"loss": 1.0})])
            store.campaigns.set_state("demo", CampaignState.PAUSED, expected=[CampaignState.RUNNING])
            states.append(store.campaigns.get("demo").state)
        return part

    monkeypatch.setattr(backup_module, "_write_part", write_slowly)
    before = contents(store, "demo")
    assert backup(store, file).consistent
    assert states == [CampaignState.PAUSED]
    restore(target, file)
    assert contents(target, "demo") == before


def test_a_server_without_snapshots_is_said_and_read_all_the_same(
    store: MongoStore, target: MongoStore, make_campaign: Make, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_campaign()
    fill(store, "demo")
    write, warnings = backup_module._write, []

    def expire_snapshot(out: Any, source: Any, version: int, *, snapshot: bool) -> Any:
        if snapshot:
            write(out, source, version, snapshot=True)
            raise backup_module._SnapshotError(OperationFailure("too old", 239))
        return write(out, source, version, snapshot=False)

    monkeypatch.setattr(backup_module, "_write", expire_snapshot)
    assert not backup(store, file, warn=warnings.append).consistent
    [warning] = warnings
    assert "it expired" in warning
    assert "pause the campaigns" in warning
    restore(target, file)
    assert contents(target, "demo") == contents(store, "demo")


@pytest.mark.parametrize("longer_s", [0, history_window.RAISED_S])
def test_a_server_that_keeps_no_history_keeps_it_for_a_backup(
    store: MongoStore, make_campaign: Make, file: Path, monkeypatch: pytest.MonkeyPatch, longer_s: int
) -> None:
    """As the embedded one; without that, what is overwritten meanwhile can no longer be read as it was."""
    make_campaign()
    fill(store, "demo")
    write_part, admin = backup_module._write_part, store.connection.client.admin
    windows: list[int] = []

    def window() -> int:
        return int(admin.command({"getParameter": 1, history_window.PARAMETER: 1})[history_window.PARAMETER])

    def write_slowly(archive: Any, name: str, documents: Any) -> Any:
        if name == "reports":
            windows.append(window())
            for _ in range(30):
                store.connection.database["reports"].update_many({}, {"$set": {"metrics.loss": 7.0}})
                store.connection.database["reports"].update_many({}, {"$set": {"metrics.loss": 8.0}})
                time.sleep(0.05)
        return write_part(archive, name, documents)

    monkeypatch.setattr(backup_module, "_write_part", write_slowly)
    monkeypatch.setattr(history_window, "RAISED_S", longer_s)
    before_s = window()
    admin.command({"setParameter": 1, history_window.PARAMETER: 0})
    try:
        assert backup(store, file).consistent == (longer_s > 0)
        assert window() == 0
    finally:
        admin.command({"setParameter": 1, history_window.PARAMETER: before_s})
    assert windows[0] == longer_s


@pytest.mark.parametrize(("found_s", "left_s"), [(10, 10), (history_window.RAISED_S, 0), (7200, 7200)])
def test_the_history_of_a_server_is_left_as_it_should_be(
    store: MongoStore, make_campaign: Make, file: Path, found_s: int, left_s: int
) -> None:
    """A longer one stays; what a backup left that was killed becomes what the embedded server was started with."""
    make_campaign()
    admin = store.connection.client.admin

    def window() -> int:
        return int(admin.command({"getParameter": 1, history_window.PARAMETER: 1})[history_window.PARAMETER])

    before_s = window()
    admin.command({"setParameter": 1, history_window.PARAMETER: found_s})
    try:
        assert backup(store, file).consistent
        assert window() == left_s
    finally:
        admin.command({"setParameter": 1, history_window.PARAMETER: before_s})


def test_a_name_that_is_taken_is_left_as_it_is(store: MongoStore, make_campaign: Make, file: Path) -> None:
    make_campaign("one")
    make_campaign("two")
    backup(store, file)
    before = {name: contents(store, name) for name in ("one", "two")}
    with pytest.raises(CampaignExistsError, match="'one' is already in this store"):
        restore(store, file)
    assert {name: contents(store, name) for name in ("one", "two")} == before


def test_a_restore_is_done_once(store: MongoStore, target: MongoStore, make_campaign: Make, file: Path) -> None:
    make_campaign(max_trials=20)
    fill(store, "demo")
    backup(store, file)
    restore(target, file)
    target.campaigns.set_state("demo", CampaignState.PAUSED, expected=[CampaignState.RUNNING])
    before = contents(target, "demo")
    again = restore(target, file)
    assert (again.campaigns, again.already, again.trials) == ((), ("demo",), 0)
    assert contents(target, "demo") == before


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5, 6])
def test_an_interrupted_restore_is_completed(
    store: MongoStore, target: MongoStore, make_campaign: Make, file: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    for name in ("one", "two"):
        make_campaign(name, max_trials=20)
        fill(store, name)
    backup(store, file)
    keep, calls = restore_module._Job._keep_lock, 0

    def die(self: Any) -> None:
        nonlocal calls
        calls += 1
        keep(self)
        if calls == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(restore_module, "_BATCH_DOCUMENTS", 10)
        patched.setattr(restore_module._Job, "_keep_lock", die)
        with pytest.raises(KeyboardInterrupt):
            restore(target, file)
    assert {c.name for c in target.campaigns.find()} < {"one", "two"}
    done = restore(target, file)
    assert sorted(done.campaigns + done.already) == ["one", "two"]
    for name in ("one", "two"):
        assert contents(target, name) == contents(store, name)


def test_what_another_backup_left_does_not_mix_in(
    store: MongoStore, target: MongoStore, make_campaign: Make, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Monday's restore is killed; Tuesday's backup, in which trials have moved on, is restored whole."""
    make_campaign(max_trials=20)
    fill(store, "demo")
    monday = file.with_suffix(".monday")
    backup(store, monday)
    store.trials.finish(claim(store, "demo"), result(9.0))
    backup(store, file)

    def die(self: Any, part: Any, names: list[str]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(restore_module._Job, "_campaigns", die)
        with pytest.raises(KeyboardInterrupt):
            restore(target, monday)
    assert target.campaigns.find() == []
    restore(target, file)
    assert contents(target, "demo") == contents(store, "demo")


def test_two_restores_at_once_do_not_mix(
    store: MongoStore, target: MongoStore, make_campaign: Make, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_campaign(max_trials=20)
    fill(store, "demo")
    backup(store, file)
    assert target.leaders.lead(restore_module._LOCK, "another", 600)
    monkeypatch.setattr(restore_module, "_LOCK_WAIT_S", 0.1)
    with pytest.raises(StateError, match="another restore"):
        restore(target, file)
    assert empty(target)
    target.leaders.resign(restore_module._LOCK, "another")
    assert restore(target, file).campaigns == ("demo",)


def rewrite(file: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Change the members of a backup."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def _manifest(**changes: Any) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        members[MANIFEST] = json.dumps({**json.loads(members[MANIFEST]), **changes}).encode()

    return change


def _flip(members: dict[str, bytes]) -> None:
    data = bytearray(members["trials.bson"])
    data[len(data) // 2] ^= 1
    members["trials.bson"] = bytes(data)


def _shorten(members: dict[str, bytes]) -> None:
    members["trials.bson"] = members["trials.bson"][:-3]


def _lose(members: dict[str, bytes]) -> None:
    del members["reports.bson"]


def _another(members: dict[str, bytes]) -> None:
    members["trials.bson"] = members["reports.bson"]


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda f: f.write_bytes(b""),
    "text": lambda f: f.write_text("name: demo\n" * 50),
    "another archive": lambda f: rewrite(f, lambda m: m.clear() or m.update({"a.txt": b"a"})),  # type: ignore[func-returns-value]
    "cut": lambda f: f.write_bytes(f.read_bytes()[:-100]),
    "half": lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
    "byte": lambda f: f.write_bytes(f.read_bytes()[:900] + b"?" + f.read_bytes()[901:]),
    "flipped": lambda f: rewrite(f, _flip),
    "shortened": lambda f: rewrite(f, _shorten),
    "lost member": lambda f: rewrite(f, _lose),
    "another member": lambda f: rewrite(f, _another),
    "manifest of another": lambda f: rewrite(f, _manifest(format="tar")),
    "manifest is a list": lambda f: rewrite(f, lambda m: m.update({MANIFEST: b"[1]"})),
    "manifest is no JSON": lambda f: rewrite(f, lambda m: m.update({MANIFEST: b"{"})),
    "no parts": lambda f: rewrite(f, _manifest(parts=[])),
    "odd parts": lambda f: rewrite(f, _manifest(parts=[1, {"a": 2}])),
    "odd time": lambda f: rewrite(f, _manifest(taken_at="noon")),
    "other campaigns": lambda f: rewrite(f, _manifest(campaigns=["other"])),
    "number as version": lambda f: rewrite(f, _manifest(schema_version="new")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_writes_nothing(
    store: MongoStore, target: MongoStore, make_campaign: Make, file: Path, damage: Callable[[Path], Any]
) -> None:
    make_campaign(max_trials=20)
    fill(store, "demo")
    backup(store, file)
    damage(file)
    with pytest.raises(InputError, match="is not a backup of autotune, or is damaged or cut short") as raised:
        restore(target, file)
    assert "\n" not in str(raised.value)
    assert empty(target)


@pytest.mark.parametrize("changes", [{"schema_version": SCHEMA_VERSION + 1}, {"format_version": 2}])
def test_a_backup_of_a_newer_version_is_refused(
    store: MongoStore, target: MongoStore, make_campaign: Make, file: Path, changes: dict[str, int]
) -> None:
    make_campaign()
    backup(store, file)
    rewrite(file, _manifest(**changes))
    with pytest.raises(StoreSetupError, match="written by a newer autotune"):
        restore(target, file)
    assert empty(target)


def test_a_store_of_a_newer_version_is_refused(store: MongoStore, file: Path) -> None:
    store.connection.database["meta"].update_one({"_id": "schema"}, {"$set": {"version": SCHEMA_VERSION + 1}})
    with pytest.raises(StoreSetupError, match="newer autotune"):
        backup(store, file)
    assert not file.exists()


def test_validators_and_indexes_are_put_back(
    store: MongoStore, target: MongoStore, make_campaign: Make, file: Path
) -> None:
    make_campaign(max_trials=20)
    fill(store, "demo")
    backup(store, file)
    for name in VALIDATORS:
        target.connection.database.drop_collection(name)
    restore(target, file)
    assert [f.text for f in check(target) if not f.ok and "without" not in f.text] == []


def test_what_cannot_be_written_or_read_is_one_line(store: MongoStore, make_campaign: Make, tmp_path: Path) -> None:
    make_campaign()
    (tmp_path / "there").write_text("mine")
    for path in (tmp_path / "there", tmp_path, tmp_path / "no folder" / "file"):
        with pytest.raises(InputError):
            backup(store, path)
    assert (tmp_path / "there").read_text() == "mine"
    assert backup(store, tmp_path / "there", overwrite=True).campaigns == ("demo",)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there"]
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            restore(store, path)


def test_a_failure_leaves_no_file(
    store: MongoStore, make_campaign: Make, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_campaign()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup_module, "_write_part", full)
    with pytest.raises(InputError, match="No space left"):
        backup(store, file)
    assert list(file.parent.iterdir()) == []


def push(store: MongoStore, folder: Path, name: str, data: bytes) -> str:
    """Put a dataset into the store; return its hash."""
    (folder / name).write_bytes(data)
    return Datasets(store.connection).push(folder / name).dataset.sha256


def pulled(store: MongoStore, sha256: str) -> bytes:
    """Return the content of a dataset in the store, read as any tool for GridFS would."""
    [found] = GridFS(store.connection.database, "datasets").find({"metadata.sha256": sha256})
    content: bytes = found.read()
    return content


def test_datasets_go_in_when_asked_for(
    store: MongoStore, target: MongoStore, make_campaign: Make, file: Path, tmp_path: Path
) -> None:
    make_campaign()
    data = os.urandom(2_700_000)
    sha256 = push(store, tmp_path, "cells.h5ad", data)
    store.connection.database["datasets.chunks"].insert_one({"files_id": "not whole", "n": 0, "data": b"?"})
    assert backup(store, file).count("datasets.files") == 0
    done = backup(store, file, datasets=True, overwrite=True)
    assert (done.count("datasets.files"), done.count("datasets.chunks")) == (1, 3)
    assert {part.collection for part in done.parts} == {*COLLECTIONS, *DATASETS}
    assert restore(target, file).datasets == 1
    assert pulled(target, sha256) == data
    assert not Datasets(target.connection).push(tmp_path / "cells.h5ad").new


def test_datasets_that_are_there_are_left(
    store: MongoStore, target: MongoStore, make_campaign: Make, file: Path, tmp_path: Path
) -> None:
    make_campaign()
    sha256 = push(store, tmp_path, "cells.h5ad", b"cells")
    push(target, tmp_path, "same.h5ad", b"cells")
    backup(store, file, datasets=True)
    assert restore(target, file).datasets == 0
    assert pulled(target, sha256) == b"cells"
    assert target.connection.database["datasets.chunks"].count_documents({}) == 1


def test_datasets_of_the_named_campaigns_only(
    store: MongoStore, target: MongoStore, make_campaign: Make, file: Path, tmp_path: Path
) -> None:
    for name, data in (("one", b"a" * 10), ("two", b"b" * 10)):
        make_campaign(name)
        sha256 = push(store, tmp_path, f"{name}.h5ad", data)
        store.connection.database["campaigns"].update_one(
            {"_id": name}, {"$set": {"spec.data": {"path": "x", "sha256": sha256}}}
        )
    assert backup(store, file, campaigns=["two"], datasets=True).count("datasets.chunks") == 1
    assert restore(target, file).datasets == 1
    assert pulled(target, sha256) == b"b" * 10


def test_a_backup_of_an_older_schema_is_brought_to_this_one(
    store: MongoStore, target: MongoStore, make_campaign: Make, file: Path
) -> None:
    make_campaign(max_trials=20)
    fill(store, "demo")
    database = store.connection.database
    new = {"claims": 1, "ends": 1, "alone": 1, "origin": 1, "revision": 1, "ran_s": 1, "running_since": 1}
    for collection in COLLECTIONS:
        database[collection].update_many(
            {}, {"$set": {"schema_version": 1}, "$unset": new}, bypass_document_validation=True
        )
    database["meta"].update_one({"_id": "schema"}, {"$set": {"version": 1}})
    with MongoStore(store.uri, prepare=False) as opened:
        assert backup(opened, file).schema_version == 1
    restore(target, file)
    versions = {d["schema_version"] for c in COLLECTIONS for d in target.connection.database[c].find()}
    assert versions == {SCHEMA_VERSION}
    assert [t.claims for t in target.trials.find("demo")] == [1, 1, 1, 1, 1, 1, 1, 0]


def test_the_clock_of_a_campaign_stands_still_between(
    store: MongoStore, target: MongoStore, make_campaign: Make, file: Path
) -> None:
    """The time between backup and restore is not charged to a budget in hours."""
    make_campaign()
    database = store.connection.database["campaigns"]
    database.update_one({"_id": "demo"}, [{"$set": {"ran_s": 100.0, "running_since": {"$add": ["$$NOW", -50_000]}}}])
    backup(store, file)
    rewrite(file, _manifest())
    restore(target, file)
    found = target.connection.database["campaigns"].find_one({"_id": "demo"})
    original = database.find_one({"_id": "demo"})
    assert found is not None
    assert original is not None
    assert 149 < found["ran_s"] < 200
    assert found["running_since"] > original["running_since"]


def test_a_restored_campaign_finishes_to_exactly_its_budget(
    store: MongoStore, target: MongoStore, make_campaign: Make, file: Path, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Half done, two of its trials run: they come back when their leases run out, and none is trained too often."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make_campaign(
        max_trials=12, objective=f"{ENDINGS}:chosen", fixed={"do": "square", "folder": str(tmp_path)},
        lease=QUICK_LEASE, search={"algorithm": "random", "seed": 0},
    )  # fmt: skip
    with coordinating(store), working(store, 2):
        wait_until(lambda: store.trials.counts("demo").get(TrialState.FINISHED, 0) >= 4, "four trials")
    held = [t for _ in range(2) if (t := store.trials.claim(["demo"], owner="w", token=secrets.token_hex(8),
                                                            duration_s=60))]  # fmt: skip
    backup(store, file)
    restore(target, file)
    assert [t.number for t in target.trials.find("demo", states=[TrialState.RUNNING])] == [t.number for t in held]
    for trial in held:
        assert trial.lease is not None
        expire(target, trial.lease)
    assert target.trials.reap("demo") == [t.number for t in held]
    with coordinating(target), working(target, 2):
        wait_until(lambda: target.campaigns.get("demo").state is CampaignState.FINISHED, "the end of the campaign")
    trials = assert_exact(target, 12)
    before = {t.number: t for t in store.trials.find("demo", states=[TrialState.FINISHED])}
    assert len(before) >= 4
    assert all(trials[number].ended_at == trial.ended_at for number, trial in before.items())
    assert {n for n, t in enumerate(trials) if "lost" in [a.cause for a in t.attempts]} == {t.number for t in held}


def test_memory_is_bounded(store: MongoStore, target: MongoStore, make_campaign: Make, file: Path) -> None:
    """60 MB of reports need far less memory, in both directions."""
    make_campaign()
    text = {f"m{i}": os.urandom(500).hex() for i in range(10)}
    reports = store.connection.database["reports"]
    for start in range(0, 6_000, 500):
        reports.insert_many(
            [{"schema_version": 2, "campaign": "demo", "number": n, "step": 1, "attempt": 0, "metrics": text}
             for n in range(start, start + 500)]
        )  # fmt: skip
    tracemalloc.start()
    try:
        size = next(p.size for p in backup(store, file).parts if p.collection == "reports")
        restore(target, file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 60_000_000
    assert peak < size // 2
    assert target.connection.database["reports"].count_documents({}) == 6_000


COMMAND = """
from autotune.cli import backup, main
for command in (backup.backup, backup.restore):
    main._COMMANDS[command.name] = (f"autotune.cli.backup:{command.name}", "")
main.main()
"""


def command(store_uri: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one of the commands in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments, "--store", store_uri],
        capture_output=True, text=True, timeout=120, check=False, **options,
    )  # fmt: skip


def test_the_commands(store: MongoStore, target: MongoStore, make_campaign: Make, file: Path) -> None:
    make_campaign(max_trials=20)
    fill(store, "demo")
    done = command(store.uri, "backup", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 campaigns" in done.stdout
    assert "8 trials" in done.stdout
    done = command(target.uri, "restore", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert "go on with: autotune resume demo" in done.stdout
    assert contents(target, "demo") == contents(store, "demo")
    again = command(store.uri, "backup", str(file))
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    file.write_bytes(file.read_bytes()[:-10])
    broken = command(target.uri, "restore", str(file))
    assert broken.returncode == 2
    assert len(broken.stderr.splitlines()) == 1


def test_json(store: MongoStore, target: MongoStore, make_campaign: Make, file: Path) -> None:
    make_campaign()
    found = json.loads(command(store.uri, "backup", str(file), "--format", "json").stdout)
    assert (found["campaigns"], found["consistent"]) == (["demo"], True)
    found = json.loads(command(target.uri, "restore", str(file), "--format", "json").stdout)
    assert (found["campaigns"], found["already"]) == (["demo"], [])


def test_a_killed_backup_leaves_no_file_under_its_name(store: MongoStore, make_campaign: Make, file: Path) -> None:
    make_campaign()
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from autotune.store import backup as b; from autotune.store.mongo import MongoStore\n"
        "b._write_part = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "b.backup(MongoStore(sys.argv[1], prepare=False), Path(sys.argv[2]))"
    )
    done = subprocess.run([sys.executable, "-c", code, store.uri, str(file)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not file.exists()
    assert backup(store, file).campaigns == ("demo",)


def test_progress_is_told(store: MongoStore, target: MongoStore, make_campaign: Make, file: Path) -> None:
    make_campaign(max_trials=20)
    fill(store, "demo")
    told: list[tuple[str, int, int]] = []
    backup(store, file, progress=lambda *said: told.append(said))
    restore(target, file, progress=lambda *said: told.append(said))
    assert {what for what, _, _ in told} == {"reading", "checking", "writing"}
    assert all(0 <= done <= total for _, done, total in told)
    what, done, total = told[-1]
    assert (what, done) == ("writing", total)


def test_a_store_that_goes_away_is_one_clear_error(
    store: MongoStore, make_campaign: Make, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_campaign()
    source_names = backup_module._Source.names

    def lose(self: Any, session: Any) -> Any:
        found = source_names(self, session)
        self.store.connection.client.close()
        return found

    monkeypatch.setattr(backup_module._Source, "names", lose)
    with MongoStore(store.uri) as opened, pytest.raises(AutotuneError) as raised:
        backup(opened, file)
    assert "\n" not in str(raised.value)
    assert list(file.parent.iterdir()) == []

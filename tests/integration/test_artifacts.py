"""Checkpoints in the store, in a folder and behind a URL: what is referred to is there, whole, whoever is killed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import secrets
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gridfs
import pytest

from autotune.errors import DataError, InputError, NotFoundError, StoreError, StoreSetupError, StoreUnreachableError
from autotune.store import shelf_grid
from autotune.store.archives import PIECE, packed, unpack
from autotune.store.artifacts import (
    Artifacts,
    Holder,
    Pressure,
    Reference,
    place_of,
    pressure,
    references_to_keep,
    shelf_at,
)
from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import until
from autotune.testing.servers import fail_point, faulty_server
from workers.checkpoints.carrier import Carrier
from workers.checkpoints.folder import verified
from workers.checkpoints.keeper import Keeper

ROOT = Path(__file__).parents[2]
Make = Callable[..., Artifacts]


@pytest.fixture(params=["gridfs", "file", "fsspec"])
def make(request: pytest.FixtureRequest, store: MongoStore, tmp_path: Path) -> Make:
    """Makes artifacts of a campaign on one kind of shelf."""
    url = None
    if request.param == "file":
        (tmp_path / "shared").mkdir()
        url = (tmp_path / "shared").as_uri()
    elif request.param == "fsspec":
        pytest.importorskip("fsspec")
        url = f"memory://{secrets.token_hex(6)}"
    return lambda campaign="demo-1": Artifacts(store.connection, campaign=campaign, url=url)


def folder_of(parent: Path, size: int = 1000, name: str = "state") -> Path:
    """Write a folder with two files, one of random bytes."""
    folder = parent / f"from-{secrets.token_hex(4)}"
    (folder / "deep").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "deep" / name).write_bytes(os.urandom(size))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder: name -> bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("size", [0, 1, PIECE, 5 * PIECE + 17])
def test_what_is_put_is_what_is_fetched(make: Make, tmp_path: Path, size: int) -> None:
    artifacts, folder = make(), folder_of(tmp_path, size)
    reference = artifacts.put(folder, step=7)
    assert (reference.step, reference.url) == (7, artifacts.url)
    assert artifacts.usage() == reference.size > size
    assert artifacts.missing([reference]) == []
    assert Reference.of(reference.document()) == reference
    artifacts.fetch(reference, tmp_path / "to" / "here")
    assert content(tmp_path / "to" / "here") == content(folder)
    assert sorted(p.name for p in (tmp_path / "to").iterdir()) == ["here"]


def test_the_same_files_are_one_archive(make: Make, tmp_path: Path) -> None:
    artifacts, folder = make(), folder_of(tmp_path)
    first = artifacts.put(folder, step=1)
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    assert artifacts.put(folder, step=1) == first
    assert artifacts.usage() == first.size


def test_campaigns_do_not_see_each_other(make: Make, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    reference = make("demo-1").put(folder, step=1)
    other = make("demo-2")
    assert other.usage() == 0
    with pytest.raises(NotFoundError, match="begins anew"):
        other.fetch(reference, tmp_path / "to")
    other.put(folder, step=1)
    assert other.collect([], grace_s=0) == [reference.sha256]
    make("demo-1").fetch(reference, tmp_path / "to")


def test_collection_spares_what_is_referred_to_and_what_is_young(make: Make, tmp_path: Path) -> None:
    artifacts = make()
    kept, garbage = (artifacts.put(folder_of(tmp_path), step=1) for _ in range(2))
    assert artifacts.collect([kept.sha256]) == []
    assert artifacts.collect([kept.sha256], grace_s=0) == [garbage.sha256]
    assert artifacts.missing([kept, garbage]) == [garbage]
    assert (artifacts.touch(kept), artifacts.touch(garbage)) == (True, False)
    with pytest.raises(NotFoundError):
        artifacts.fetch(garbage, tmp_path / "to")
    assert not (tmp_path / "to").exists()
    artifacts.fetch(kept, tmp_path / "to")


@pytest.fixture(params=["gridfs", "file"])
def aged(request: pytest.FixtureRequest, store: MongoStore, tmp_path: Path) -> tuple[Artifacts, Callable[[], None]]:
    """Artifacts, and what makes all of them old."""
    if request.param == "gridfs":
        files = store.connection.database["artifacts.files"]
        old = {"$set": {"metadata.touched_at": datetime(2020, 1, 1, tzinfo=UTC)}}
        return Artifacts(store.connection, campaign="demo"), lambda: files.update_many({}, old) and None
    (tmp_path / "shared").mkdir()

    def age() -> None:
        for file in tmp_path.glob("shared/demo/*.tar"):
            with contextlib.suppress(FileNotFoundError):
                os.utime(file, (1, 1))

    return Artifacts(store.connection, campaign="demo", url=(tmp_path / "shared").as_uri()), age


def test_grace_begins_anew_with_each_touch(aged: tuple[Artifacts, Callable[[], None]], tmp_path: Path) -> None:
    artifacts, age = aged
    folder = folder_of(tmp_path)
    reference = artifacts.put(folder, step=1)
    age()
    assert artifacts.touch(reference)
    assert artifacts.collect([]) == []
    age()
    artifacts.put(folder, step=1)
    assert artifacts.collect([]) == []
    age()
    assert artifacts.collect([]) == [reference.sha256]


def test_collectors_and_writers_at_once_never_lose_what_was_promised(
    aged: tuple[Artifacts, Callable[[], None]], tmp_path: Path
) -> None:
    """Writers put what collectors are about to remove; what `put` promised is there until its time of grace ends."""
    artifacts, age = aged
    folder, stop, removed, errors = folder_of(tmp_path), threading.Event(), list[str](), list[Exception]()

    def collect() -> None:
        try:
            while not stop.is_set():
                removed.extend(artifacts.collect([], grace_s=120))
        except Exception as error:  # noqa: BLE001 - shown by the test
            errors.append(error)

    threads = [threading.Thread(target=collect) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(2_000):
            reference = artifacts.put(folder, step=1)
            artifacts.fetch(reference, tmp_path / "to" / str(number))
            age()
            if number >= 20 and (removed or errors):
                break
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert errors == []
    assert removed  # else nothing was tried


def test_writers_in_lockstep_make_one_archive(make: Make, store: MongoStore, tmp_path: Path) -> None:
    folder, barrier = folder_of(tmp_path, 3 * PIECE), threading.Barrier(4)
    references, errors = list[Reference](), list[Exception]()

    def put() -> None:
        try:
            artifacts = make()
            shelf = artifacts._shelf
            write = shelf.write

            def together(archive: Any) -> None:
                barrier.wait(30)
                write(archive)

            shelf.write = together  # type: ignore[method-assign]
            references.append(artifacts.put(folder, step=1))
        except Exception as error:  # noqa: BLE001 - shown by the test
            errors.append(error)

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(set(references)) == 1
    artifacts = make()
    artifacts.fetch(references[0], tmp_path / "to")
    assert artifacts.usage() == references[0].size
    artifacts.collect([references[0].sha256], grace_s=0)
    if artifacts.url is None:
        assert store.connection.database["artifacts.pushes"].count_documents({}) == 0
        assert len(store.connection.database["artifacts.chunks"].distinct("files_id")) == 1
    artifacts.fetch(references[0], tmp_path / "again")


KILLED = """
import sys
from pathlib import Path
from autotune.store.archives import Archive
from autotune.store.artifacts import Artifacts
from autotune.store.connection import Connection
uri, url, folder = sys.argv[1:]
artifacts = Artifacts(Connection(uri), campaign="demo-1", url=url or None)
pieces = Archive.pieces
def half(archive, *length):
    for number, piece in enumerate(pieces(archive, *length)):
        if number == 32:
            print("half", flush=True)
            sys.stdin.readline()
        yield piece
Archive.pieces = half
artifacts.put(Path(folder), step=1)
print("done", flush=True)
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_grid, "ABANDONED_S", 0.0)


def test_a_write_that_goes_on_is_not_taken_for_abandoned(
    store: MongoStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf_grid, "ABANDONED_S", 600.0)
    artifacts, other = (Artifacts(store.connection, campaign=name) for name in ("demo", "other"))
    publish = shelf_grid.GridShelf._publish

    def after_a_collection(self: Any, *arguments: Any) -> None:
        other.collect([], grace_s=0)
        publish(self, *arguments)

    monkeypatch.setattr(shelf_grid.GridShelf, "_publish", after_a_collection)
    reference = artifacts.put(folder_of(tmp_path), step=1)
    artifacts.fetch(reference, tmp_path / "to")


@pytest.mark.parametrize("kind", ["gridfs", "file"])
def test_a_killed_writer_leaves_nothing_that_can_be_referred_to(store: MongoStore, tmp_path: Path, kind: str) -> None:
    (tmp_path / "shared").mkdir()
    url = None if kind == "gridfs" else (tmp_path / "shared").as_uri()
    artifacts = Artifacts(store.connection, campaign="demo-1", url=url)
    folder = folder_of(tmp_path, 64 * PIECE)
    chunks = store.connection.database["artifacts.chunks"]

    def begun() -> bool:
        if kind == "gridfs":
            return chunks.estimated_document_count() >= 4
        return any(path.stat().st_size for path in tmp_path.glob("shared/*/.part-*"))

    command = [sys.executable, "-c", KILLED, store.uri, url or "", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        try:
            assert writer.stdout.readline() == "half\n"
            assert begun()
            writer.send_signal(signal.SIGKILL)
        finally:
            writer.kill()
        assert "done" not in writer.stdout.read()
    assert artifacts.usage() == 0
    artifacts.collect([], grace_s=0)
    assert chunks.count_documents({}) == 0
    assert store.connection.database["artifacts.pushes"].count_documents({}) == 0
    assert list(tmp_path.glob("shared/*/*")) == list(tmp_path.glob("shared/*/.*")) == []
    reference = artifacts.put(folder, step=1)
    artifacts.fetch(reference, tmp_path / "to")
    assert content(tmp_path / "to") == content(folder)


def test_a_push_that_was_taken_for_abandoned_says_so(
    store: MongoStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = Artifacts(store.connection, campaign="demo")
    publish = shelf_grid.GridShelf._publish

    def late(self: Any, *arguments: Any) -> None:
        artifacts.collect([], grace_s=0)
        publish(self, *arguments)

    monkeypatch.setattr(shelf_grid.GridShelf, "_publish", late)
    with pytest.raises(StoreError, match="write it again"):
        artifacts.put(folder_of(tmp_path), step=1)
    assert artifacts.usage() == 0


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoStore]:
    """A store on a server that fails when it is told to."""
    with faulty_server(tmp_path_factory.mktemp("faulty")) as uri, MongoStore(uri) as opened:
        yield opened


@pytest.mark.parametrize("command", ["update", "insert", "find", "delete", "commitTransaction"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_cut_connection_loses_nothing(faulty: MongoStore, tmp_path: Path, command: str, times: int) -> None:
    artifacts = Artifacts(faulty.connection, campaign=f"{command}-{times}")
    folder = folder_of(tmp_path, 3 * PIECE)
    with fail_point(faulty, [command], times=times, closeConnection=True):
        try:
            reference = artifacts.put(folder, step=1)
        except StoreUnreachableError:
            assert times == 2
            reference = artifacts.put(folder, step=1)
    artifacts.fetch(reference, tmp_path / "to")
    assert content(tmp_path / "to") == content(folder)
    artifacts.collect([reference.sha256], grace_s=0)
    assert artifacts.missing([reference]) == []
    assert faulty.connection.database["artifacts.pushes"].count_documents({}) == 0


def test_any_gridfs_client_reads_a_checkpoint(store: MongoStore, tmp_path: Path) -> None:
    reference = Artifacts(store.connection, campaign="demo").put(folder_of(tmp_path, 3 * PIECE), step=1)
    bucket = gridfs.GridFSBucket(store.connection.database, "artifacts")
    data = bucket.open_download_stream_by_name(f"demo/{reference.sha256}.tar").read()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["deep", "deep/state", "manifest.json"]


@pytest.mark.parametrize("damage", ["changed", "shortened"])
def test_damage_is_seen(make: Make, store: MongoStore, tmp_path: Path, damage: str) -> None:
    artifacts = make()
    reference = artifacts.put(folder_of(tmp_path, 2 * PIECE), step=1)
    if artifacts.url is None:
        chunks = store.connection.database["artifacts.chunks"]
        chunks.update_one({"n": 1}, {"$set": {"data": b"\0" * (PIECE if damage == "changed" else 7)}})
    elif artifacts.url.startswith("file:"):
        [file] = tmp_path.glob("shared/*/*.tar")
        data = file.read_bytes()
        file.write_bytes(data[:-1] + (b"x" if damage == "changed" else b""))
    else:
        fs, path = artifacts._shelf._fs, artifacts._shelf._path(reference.sha256)  # type: ignore[attr-defined]
        data = fs.cat_file(path)
        fs.pipe_file(path, data[:-1] + (b"x" if damage == "changed" else b""))
    with pytest.raises(DataError, match="is damaged"):
        artifacts.fetch(reference, tmp_path / "to" / "here")
    assert list((tmp_path / "to").iterdir()) == []


def write_step(keeper: Keeper, step: int) -> None:
    """Save a small checkpoint."""
    keeper.save(step, lambda folder: (folder / "state").write_text(f"{step}") and None)


def test_a_trial_goes_on_where_it_was_carried(make: Make, tmp_path: Path) -> None:
    artifacts = make()
    first = Carrier(artifacts, tmp_path / "first")
    assert (first.bring(), first.carry()) == (None, None)
    keeper = Keeper(first.own)
    write_step(keeper, 4)
    reference = first.carry()
    assert reference is not None
    assert (reference.step, first.carry(), first.is_there()) == (4, None, True)
    write_step(keeper, 6)
    reference = first.carry()
    assert reference is not None
    assert reference.step == 6
    first.close()
    assert not (tmp_path / "first").exists()

    second = Carrier(artifacts, tmp_path / "second", reference)
    assert second.carry() is None
    loaded = Keeper(second.own, earlier=second.bring()).load()
    assert loaded is not None
    assert (loaded / "state").read_text() == "6"
    second.close()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "shared") == []


def test_a_reference_without_data_begins_anew_and_is_replaced(make: Make, tmp_path: Path) -> None:
    artifacts = make()
    carrier = Carrier(artifacts, tmp_path / "a")
    write_step(Keeper(carrier.own), 9)
    reference = carrier.carry()
    assert reference is not None
    artifacts.collect([], grace_s=0)
    assert not carrier.is_there()
    assert carrier.carry() == reference  # the folder is still here
    artifacts.collect([], grace_s=0)
    other = Carrier(artifacts, tmp_path / "b", reference)
    assert (other.bring(), other.reference) == (None, None)
    write_step(Keeper(other.own), 2)
    replaced = other.carry()
    assert replaced is not None
    assert replaced.step == 2


def test_a_training_that_saves_while_it_is_carried_gives_whole_checkpoints(make: Make, tmp_path: Path) -> None:
    artifacts, stop = make(), threading.Event()
    carrier = Carrier(artifacts, tmp_path / "a")
    keeper = Keeper(carrier.own)

    def write(folder: Path) -> None:
        for name in range(30):
            (folder / str(name)).write_text(secrets.token_hex(100))

    def train() -> None:
        step = 0
        while not stop.is_set():
            step += 1
            keeper.save(step, write)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        until(lambda: any(carrier.own.glob("step-*")), 60)
        carried = [reference for _ in range(20) if (reference := carrier.carry()) is not None]
    finally:
        stop.set()
        thread.join(60)
    last = carrier.carry()
    carried += [last] if last is not None else []
    assert carried
    for number, reference in enumerate(carried):
        artifacts.fetch(reference, tmp_path / "to" / str(number))
        assert verified(tmp_path / "to" / str(number)).step == reference.step


def test_a_host_that_cannot_see_the_folder_does_not_begin_anew(store: MongoStore, tmp_path: Path) -> None:
    reference = Reference(sha256="0" * 64, size=1, step=1)
    artifacts = Artifacts(store.connection, campaign="demo", url=(tmp_path / "not mounted").as_uri())
    with pytest.raises(StoreSetupError, match="mount it"):
        Carrier(artifacts, tmp_path / "a", reference).bring()


@pytest.mark.parametrize("name", ["/etc/cron.d/x", "../x", "a/../../x", "a\\..\\x", "."])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"leads out|no plain file"):
        unpacked(tmp_path, tarfile.TarInfo(name))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE]
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    entry = tarfile.TarInfo("state")
    entry.type, entry.linkname = kind, "/etc/hostname"
    if kind == tarfile.CONTTYPE:
        unpacked(tmp_path, entry)  # an old word for a plain file
        assert (tmp_path / "to" / "state").read_bytes() == b""
        return
    with pytest.raises(DataError, match="no plain file"):
        unpacked(tmp_path, entry)
    assert not (tmp_path / "to").exists()


def test_a_name_twice_or_a_file_as_a_folder_is_refused(tmp_path: Path) -> None:
    for names in (["a", "a"], ["a", "a/b"]):
        with pytest.raises(DataError, match="no archive of ours"):
            unpacked(tmp_path, *(tarfile.TarInfo(name) for name in names))


def test_no_archive_at_all_is_refused(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(5000)
    with pytest.raises(DataError, match="no archive"):
        unpack([data], _sha256(data), len(data), tmp_path / "to")
    assert list(tmp_path.iterdir()) == []


def unpacked(tmp_path: Path, *entries: tarfile.TarInfo) -> None:
    """Unpack an archive of these members, which its hash vouches for."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for entry in entries:
            tar.addfile(entry)
    unpack([file.getvalue()], _sha256(file.getvalue()), len(file.getvalue()), tmp_path / "to")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_links_are_not_packed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match="no regular file"), packed(folder):
        pass


def test_a_folder_that_is_not_mounted_is_one_line(store: MongoStore, tmp_path: Path) -> None:
    artifacts = Artifacts(store.connection, campaign="demo", url=(tmp_path / "absent").as_uri())
    assert artifacts.usage() == 0
    assert artifacts.collect([], grace_s=0) == []
    with pytest.raises(StoreSetupError, match="mount it, or create it"):
        artifacts.put(folder_of(tmp_path), step=1)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("url", ["file://shared/checkpoints", "file:shared", "nonsense://x"])
def test_unusable_urls_are_one_line(store: MongoStore, url: str) -> None:
    with pytest.raises(InputError, match=r"checkpoints\.url"):
        shelf_at(url, store.connection, "demo")


def test_without_fsspec_other_urls_say_what_to_install(store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(StoreSetupError, match="pip install fsspec"):
        shelf_at("s3://bucket/x", store.connection, "demo")


def test_place_of_a_campaign_is_its_own(make_campaign: Callable[..., CampaignRecord]) -> None:
    places = {place_of(make_campaign(name)) for name in ("a", "b")}
    assert len(places) == 2
    assert all("/" not in place for place in places)


@pytest.mark.parametrize("sha256", [None, "", "../../x", "A" * 64, "0" * 63])
def test_a_reference_is_a_hash(sha256: Any) -> None:
    with pytest.raises(DataError, match="no SHA-256"):
        Reference.of({"sha256": sha256, "size": 1, "step": 1})


def _holder(number: int, *, resumable: bool = False, loss: float | None = None) -> Holder:
    return Holder(number=number, resumable=resumable, loss=loss, sha256=f"{number}")


def test_retention_keeps_what_may_go_on_and_the_best() -> None:
    holders = [
        _holder(0, loss=3.0),
        _holder(1, loss=1.0),
        _holder(2, resumable=True, loss=99.0),
        _holder(3, loss=None),
        _holder(4, loss=1.0),
        _holder(5, loss=2.0),
        _holder(6, resumable=True),
    ]
    assert references_to_keep(holders) == {"2", "6"}
    assert references_to_keep(holders, top=1) == {"2", "6", "1"}
    assert references_to_keep(holders, top=3) == {"2", "6", "1", "4", "5"}
    assert references_to_keep(reversed(holders), top=1) == {"2", "6", "1"}
    assert references_to_keep([], top=5) == frozenset()


@pytest.mark.parametrize(
    ("used", "quota", "wanted"),
    [
        (10**12, None, Pressure.NONE),
        (79, 100, Pressure.NONE),
        (80, 100, Pressure.COLLECT),
        (99, 100, Pressure.COLLECT),
        (100, 100, Pressure.HOLD),
        (0, 0, Pressure.HOLD),
    ],
)
def test_pressure(used: int, quota: int | None, wanted: Pressure) -> None:
    assert pressure(used, quota) is wanted

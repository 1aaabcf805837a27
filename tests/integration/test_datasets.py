"""Datasets in a real store: pushed whole or not at all, whoever is killed, and found damaged where they are."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gridfs
import pytest

from autotune.errors import DataError, InputError, NotFoundError, StateError
from autotune.store.datasets import BATCH, CHUNK_BYTES, Dataset, Datasets
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import campaign_record
from autotune.trial import CampaignState

MB = 1 << 20


@pytest.fixture
def datasets(store: MongoStore) -> Datasets:
    """The datasets of an empty store."""
    return Datasets(store.connection)


def write(file: Path, size: int) -> Path:
    """Write a file of random bytes."""
    with file.open("wb") as target:
        for start in range(0, size, MB):
            target.write(os.urandom(min(MB, size - start)))
    return file


def sha256(file: Path) -> str:
    """Return the hash that a file must be known by."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def start_push(store: MongoStore, file: Path) -> subprocess.Popen[str]:
    """Start the command in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "autotune.cli.main", "data", "push", str(file), "--store", store.uri],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


HALF = """
import sys
from pathlib import Path
from autotune.store.datasets import Datasets
from autotune.store.mongo import MongoStore
uri, file = sys.argv[1:]
def hold(phase, done, size):
    if phase == "pushing" and done >= 32 << 20:
        print("half", flush=True)
        sys.stdin.readline()
Datasets(MongoStore(uri).connection).push(Path(file), progress=hold)
"""
"""Pushes a file, and hangs when 32 chunks are there."""


def chunks(store: MongoStore) -> Any:
    """Return the collection of chunks."""
    return store.connection.database["datasets.chunks"]


def content(store: MongoStore, dataset: Dataset) -> bytes:
    """Return what any GridFS client reads."""
    bucket = gridfs.GridFSBucket(store.connection.database, "datasets")
    data: bytes = bucket.open_download_stream(dataset.id).read()
    return data


@pytest.mark.parametrize("size", [1, CHUNK_BYTES, CHUNK_BYTES + 1, (2 * BATCH + 1) * CHUNK_BYTES + 17])
def test_what_is_pushed_is_what_any_gridfs_client_reads(
    store: MongoStore, datasets: Datasets, tmp_path: Path, size: int
) -> None:
    file = write(tmp_path / "cells.h5ad", size)
    done: list[tuple[str, int, int]] = []
    pushed = datasets.push(file, progress=lambda *p: done.append(p))
    assert pushed.new
    assert pushed.sent == pushed.dataset.n_chunks
    assert done[-1] == ("pushing", size, size)
    found = datasets.find(sha256(file))
    assert found is not None
    assert (found.name, found.size, found.id) == ("cells.h5ad", size, pushed.dataset.id)
    assert content(store, found) == file.read_bytes()
    assert b"".join(datasets.read(found, 0, found.n_chunks)) == file.read_bytes()
    assert store.connection.database["datasets.pushes"].count_documents({}) == 0


def test_a_second_push_of_the_content_sends_nothing(datasets: Datasets, tmp_path: Path) -> None:
    file = write(tmp_path / "a.h5ad", 3 * MB)
    first = datasets.push(file)
    again = datasets.push(file.rename(tmp_path / "b.h5ad"))
    assert (again.new, again.sent, again.dataset.id) == (False, 0, first.dataset.id)
    assert [d.name for d in datasets.all()] == ["a.h5ad"]


def test_a_killed_push_is_invisible_and_goes_on(store: MongoStore, datasets: Datasets, tmp_path: Path) -> None:
    file = write(tmp_path / "cells.h5ad", 96 * MB)
    command = [sys.executable, "-c", HALF, store.uri, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as push:
        assert push.stdout is not None
        try:
            assert push.stdout.readline() == "half\n"
        finally:
            push.kill()
    assert datasets.find(sha256(file)) is None
    assert datasets.all() == []
    there = chunks(store).count_documents({})
    assert 32 <= there < 96
    chunks(store).update_one({"n": 5}, {"$set": {"data": b"\0" * CHUNK_BYTES}})
    chunks(store).update_one({"n": 6}, {"$set": {"data": b"short"}})
    pushed = datasets.push(file)
    assert (pushed.new, pushed.sent) == (True, 96 - there + 2)
    assert hashlib.sha256(content(store, pushed.dataset)).hexdigest() == sha256(file)


def test_two_pushes_at_once_end_with_one_good_file(store: MongoStore, datasets: Datasets, tmp_path: Path) -> None:
    file = write(tmp_path / "cells.h5ad", 24 * MB)
    both = [start_push(store, file) for _ in range(2)]
    outputs = [push.communicate(timeout=120) for push in both]
    assert [push.returncode for push in both] == [0, 0], outputs
    [dataset] = datasets.all()
    assert content(store, dataset) == file.read_bytes()
    datasets.clean()
    assert chunks(store).count_documents({}) == 24
    assert chunks(store).distinct("files_id") == [dataset.id]


def test_pushes_in_lockstep_make_one_file(store: MongoStore, datasets: Datasets, tmp_path: Path) -> None:
    file = write(tmp_path / "cells.h5ad", 12 * MB)
    barrier = threading.Barrier(4)
    done = []

    def push() -> None:
        def wait_once(phase: str, *_: int) -> None:
            if phase == "hashing":
                return
            if waiting.pop("first", False):
                barrier.wait(30)

        waiting = {"first": True}
        done.append(datasets.push(file, progress=wait_once))

    threads = [threading.Thread(target=push) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(p.new for p in done) == [False, False, False, True]
    assert len({p.dataset.id for p in done}) == 1
    assert content(store, done[0].dataset) == file.read_bytes()
    assert chunks(store).count_documents({}) == 12


def test_a_push_that_is_cleaned_away_meanwhile_starts_anew(
    store: MongoStore, datasets: Datasets, tmp_path: Path
) -> None:
    file = write(tmp_path / "cells.h5ad", 10 * MB)
    away: list[int] = []

    def clean_once(phase: str, done: int, total: int) -> None:
        if phase == "pushing" and not away:
            forget(store)
            away.append(Datasets(store.connection).clean())

    pushed = datasets.push(file, progress=clean_once)
    assert away == [1]
    assert pushed.new
    assert content(store, pushed.dataset) == file.read_bytes()


def forget(store: MongoStore) -> None:
    """Make all pushes ones that nobody went on with for more than a day."""
    back = [{"$set": {"touched_at": {"$subtract": ["$touched_at", 25 * 3600 * 1000]}}}]
    store.connection.database["datasets.pushes"].update_many({}, back)


def test_what_a_push_left_is_dropped_after_a_day(store: MongoStore, datasets: Datasets, tmp_path: Path) -> None:
    kept = datasets.push(write(tmp_path / "kept.h5ad", 2 * MB)).dataset

    def give_up(phase: str, done: int, total: int) -> None:
        if phase == "pushing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        datasets.push(write(tmp_path / "given-up.h5ad", 9 * MB), progress=give_up)
    assert chunks(store).count_documents({}) == 2 + BATCH
    assert datasets.clean() == 0
    assert chunks(store).count_documents({}) == 2 + BATCH
    forget(store)
    datasets.push(write(tmp_path / "other.h5ad", 1 * MB))
    assert chunks(store).count_documents({}) == 3
    assert content(store, kept) == (tmp_path / "kept.h5ad").read_bytes()


def test_chunks_of_nothing_are_dropped_a_day_after_they_were_seen(
    store: MongoStore, datasets: Datasets, tmp_path: Path
) -> None:
    dataset = datasets.push(write(tmp_path / "cells.h5ad", 2 * MB)).dataset
    files = store.connection.database["datasets.files"]
    document = files.find_one_and_delete({})
    assert datasets.clean() == 0
    forget(store)
    files.insert_one(document)  # as a restore does, which writes the chunks first
    assert datasets.clean() == 0
    assert content(store, dataset) == (tmp_path / "cells.h5ad").read_bytes()
    files.delete_one({})
    assert datasets.clean() == 0
    forget(store)
    assert datasets.clean() == 1
    assert chunks(store).count_documents({}) == 0


def test_a_damaged_copy_is_noticed_and_mended(store: MongoStore, datasets: Datasets, tmp_path: Path) -> None:
    file = write(tmp_path / "cells.h5ad", 6 * MB)
    dataset = datasets.push(file).dataset
    chunks(store).update_one({"n": 2}, {"$set": {"data": os.urandom(CHUNK_BYTES)}})
    assert datasets.push(file, check=True).sent == 1
    assert content(store, dataset) == file.read_bytes()
    assert datasets.push(file, check=True).sent == 0
    chunks(store).delete_one({"n": 3})
    with pytest.raises(DataError, match=r"is damaged: mend it with `autotune data push FILE --check`"):
        datasets.read(dataset, 0)
    again = datasets.push(file)
    assert (again.new, again.sent) == (False, 1)
    assert content(store, dataset) == file.read_bytes()


def test_a_file_that_changes_meanwhile_is_not_published(store: MongoStore, datasets: Datasets, tmp_path: Path) -> None:
    file = write(tmp_path / "cells.h5ad", 10 * MB)

    def change(phase: str, done: int, total: int) -> None:
        if phase == "pushing" and done == BATCH * CHUNK_BYTES:
            with file.open("r+b") as target:
                target.seek(8 * MB)
                target.write(b"changed")

    with pytest.raises(DataError, match="changed while it was pushed; push it again"):
        datasets.push(file, progress=change)
    assert datasets.all() == []
    assert chunks(store).count_documents({}) == BATCH


def test_a_dataset_in_use_is_not_removed(store: MongoStore, datasets: Datasets, tmp_path: Path) -> None:
    file = write(tmp_path / "cells.h5ad", 300 * 1000)
    dataset = datasets.push(file).dataset
    data = {"path": str(file), "sha256": dataset.sha256}
    store.campaigns.create(campaign_record("one", spec={"name": "one", "objective": "math:fsum", "data": data}))
    for state in (CampaignState.RUNNING, CampaignState.PAUSED):
        if state is CampaignState.PAUSED:
            store.campaigns.set_state("one", state, expected=[CampaignState.RUNNING])
        with pytest.raises(StateError, match=rf"cells.h5ad .* is used by one \({state}\): cancel them"):
            datasets.remove(dataset)
    store.campaigns.set_state("one", CampaignState.CANCELLED, expected=[CampaignState.PAUSED])
    datasets.remove(dataset)
    assert datasets.all() == []
    assert chunks(store).count_documents({}) == 0
    assert datasets.push(file).new


def test_datasets_are_named_by_name_hash_or_its_beginning(datasets: Datasets, tmp_path: Path) -> None:
    one = datasets.push(write(tmp_path / "one.h5ad", 100)).dataset
    two = datasets.push(write(tmp_path / "two.h5ad", 100), name="one.h5ad").dataset
    assert [datasets.get(d.sha256[:n]).id for d in (one, two) for n in (64, 12)] == [one.id, one.id, two.id, two.id]
    assert datasets.get(one.sha256.upper()).id == one.id
    with pytest.raises(InputError, match=r"2 datasets are 'one.h5ad': say which by its hash"):
        datasets.get("one.h5ad")
    with pytest.raises(NotFoundError, match=r"no dataset 'one.h5' in the store at .*; did you mean 'one.h5ad'"):
        datasets.get("one.h5")


def test_wrong_files_are_refused_in_one_line(datasets: Datasets, tmp_path: Path) -> None:
    (tmp_path / "empty.h5ad").touch()
    os.mkfifo(tmp_path / "pipe")
    cases = {
        "nowhere.h5ad": "there is no file",
        "": "is a folder",
        "empty.h5ad": "is empty",
        "pipe": "is no regular file",
        "empty.h5ad/x": "cannot read",
    }
    for name, message in cases.items():
        with pytest.raises(DataError, match=message) as caught:
            datasets.push(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert datasets.all() == []


UNREADABLE = """
import os, sys
from pathlib import Path
from autotune.errors import DataError
from autotune.store.datasets import Datasets
from autotune.store.mongo import MongoStore
with MongoStore(sys.argv[1]) as store:
    datasets = Datasets(store.connection)
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        datasets.push(Path(sys.argv[2]))
    except DataError as error:
        sys.stdout.write(str(error))
"""


def test_an_unreadable_file_is_refused_in_one_line(store: MongoStore) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        file = write(Path(folder) / "cells.h5ad", 100)
        file.chmod(0)
        done = run(UNREADABLE, store.uri, str(file))
    assert done.stdout == f"cannot read {file}: Permission denied", done.stderr


MEASURED = """
import resource, sys
from pathlib import Path
from autotune.store.datasets import Datasets
from autotune.store.mongo import MongoStore
with MongoStore(sys.argv[1]) as store:
    datasets = Datasets(store.connection)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    datasets.push(Path(sys.argv[2]))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(str(after - before))
"""


def test_memory_is_bounded_whatever_the_size(store: MongoStore, tmp_path: Path) -> None:
    grown = {}
    for size in (40, 200):
        done = run(MEASURED, store.uri, str(write(tmp_path / f"{size}.h5ad", size * MB)))
        grown[size] = int(done.stdout) / 1024
    assert grown[200] < 80, grown
    assert grown[200] < grown[40] + 30, grown


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_lost_reply_does_no_harm(faulty: Callable[..., Any], tmp_path: Path) -> None:
    """Each kind of command loses a reply in the middle of a push; it ends well, or pushing again does."""
    file = write(tmp_path / "cells.h5ad", 5 * MB)
    for command in ("find", "update", "insert", "findAndModify", "commitTransaction", "delete"):
        with faulty(command) as store:
            datasets = Datasets(store.connection)
            pushed = datasets.push(file)
            assert content(store, pushed.dataset) == file.read_bytes()
            assert len(datasets.all()) == 1
            datasets.remove(pushed.dataset)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, server_uri: str) -> Any:
    """Opens a store on a server of its own of which one command of a kind loses its connection, then mends it."""
    from contextlib import contextmanager

    from autotune.testing.servers import fail_point, faulty_server

    @contextmanager
    def broken(command: str) -> Any:
        with MongoStore(uri) as store:
            Datasets(store.connection)._prepare()
            with fail_point(store, [command], closeConnection=True):
                yield store

    with faulty_server(tmp_path_factory.mktemp("faulty")) as uri:
        yield broken

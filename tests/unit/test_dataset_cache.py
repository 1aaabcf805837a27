"""The cache of data files: one download per host, nothing damaged, nothing evicted that is in use, always bounded."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from autotune.errors import DataError, InputError, WorkerError
from autotune.store.datasets import CHUNK_BYTES, Dataset, Datasets
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import until
from autotune.testing.servers import faulty_server
from workers.datasets import DatasetCache

MB = 1 << 20
GO = threading.Event()
"""Never set: a worker that is not stopped."""


class Counted(Datasets):
    """Datasets that note which chunks were read, and call a function before each read."""

    def __init__(self, store: MongoStore, before: Callable[[int], object] = lambda _: None) -> None:
        super().__init__(store.connection)
        self.read_chunks: list[int] = []
        self._before = before

    def read(self, dataset: Dataset, first: int, count: int = 4) -> list[bytes]:
        """Read, and note it."""
        self._before(first)
        found = super().read(dataset, first, count)
        self.read_chunks += range(first, first + len(found))
        return found


class Holder(NamedTuple):
    """What a cache needs of a store."""

    datasets: Datasets


class Host:
    """A host without data files: its cache's folder, and a store."""

    def __init__(self, store: MongoStore, folder: Path) -> None:
        self.store, self.root, self.folder = store, folder, folder / "cache"
        self.datasets = Counted(store)

    def push(self, size: int, name: str = "cells.h5ad") -> tuple[dict[str, Any], bytes]:
        """Put random bytes into the store; return the spec of a campaign that uses them, and the bytes."""
        data = os.urandom(size)
        file = self.root / name
        file.write_bytes(data)
        dataset = self.datasets.push(file).dataset
        file.unlink()
        return {"name": name, "data": {"path": f"/nowhere/{name}", "sha256": dataset.sha256, "layer": "x"}}, data

    @contextmanager
    def cache(self, max_bytes: int | None = None, datasets: Datasets | None = None) -> Iterator[DatasetCache]:
        """Open the cache as a worker does."""
        with DatasetCache(Holder(datasets or self.datasets), self.folder, max_bytes) as opened:
            yield opened

    def files(self) -> list[str]:
        """Return the names of data in the cache."""
        return sorted(f.name for f in self.folder.iterdir() if f.suffix in (".h5ad", ".part"))

    def fetch(self, spec: dict[str, Any], max_bytes: int | None = None) -> Path:
        """Fetch and let go."""
        with self.cache(max_bytes) as cache:
            return path_of(cache.localise(spec, GO))

    def used(self, spec: dict[str, Any], at_s: float) -> None:
        """Set when a content was last used."""
        os.utime(self.folder / f"{spec['data']['sha256']}.use", (at_s, at_s))


def path_of(spec: Any) -> Path:
    """Return where a localised campaign's data are."""
    return Path(spec["data"]["path"])


@pytest.fixture
def host(store: MongoStore, tmp_path: Path) -> Host:
    """A host without data files."""
    return Host(store, tmp_path)


def test_what_the_host_lacks_is_fetched_once(host: Host) -> None:
    spec, data = host.push(9 * MB + 5)
    with host.cache() as cache:
        found = cache.localise(spec, GO)
        assert path_of(found).read_bytes() == data
        assert found["data"] | {"path": ""} == spec["data"] | {"path": "", "name": "cells"}
        assert spec["data"]["path"] == "/nowhere/cells.h5ad"
        assert cache.localise(spec, GO) == found
        assert cache.localise(found, GO) is found
    with host.cache() as other:
        assert other.localise(spec, GO) == found
    assert host.datasets.read_chunks == list(range(10))
    assert host.files() == [f"{spec['data']['sha256']}.h5ad"]


def test_campaigns_without_data_or_hash_are_left_alone(host: Host) -> None:
    with host.cache() as cache:
        for spec in ({"name": "a"}, {"name": "a", "data": None}, {"name": "a", "data": {"path": "/nowhere"}}):
            assert cache.localise(spec, GO) is spec
    assert not host.folder.exists()


def test_a_file_of_the_host_is_used_where_it_is_right(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    spec, data = host.push(1000)
    local = host.root / "local.h5ad"
    spec["data"]["path"] = str(local)
    for content in (data, data[:-1], bytes(1000)):
        local.write_bytes(content)
        with host.cache() as cache:
            found = cache.localise(spec, GO)
        assert (found is spec) == (content == data)
        assert path_of(found).read_bytes() == data
    assert caplog.text.count("differs from the campaign's data") == 2
    assert local.read_bytes() == bytes(1000)


def test_a_file_with_another_content_is_left_to_the_loader_where_the_store_has_none(host: Host) -> None:
    local = host.root / "local.h5ad"
    local.write_bytes(b"other")
    spec = {"name": "a", "data": {"path": str(local), "sha256": "0" * 64}}
    with host.cache() as cache:
        assert cache.localise(spec, GO) is spec


def test_data_that_are_nowhere_are_said_in_one_line(host: Host) -> None:
    spec = {"name": "a", "data": {"path": str(host.root), "sha256": "ab" * 32}}
    text = (
        r"has no readable data file .*, and the store at mongodb://.* has no dataset abababababab: `autotune data push"
    )
    with host.cache() as cache, pytest.raises(DataError, match=text):
        cache.localise(spec, GO)
    for wrong in ("../../etc/passwd", "ab", "g" * 64):
        spec["data"] = {"path": "/nowhere", "sha256": wrong}
        with host.cache() as cache, pytest.raises(DataError, match="must be 64 hexadecimal digits"):
            cache.localise(spec, GO)


def test_a_damaged_file_in_the_cache_is_fetched_again(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    spec, data = host.push(5 * MB)
    file = host.fetch(spec)
    file.chmod(0o600)
    with file.open("r+b") as target:
        target.seek(3 * MB)
        target.write(b"damage")
    assert host.fetch(spec).read_bytes() == data
    assert "is damaged; it is fetched again" in caplog.text


def test_a_damaged_copy_in_the_store_is_not_used(host: Host) -> None:
    spec, _ = host.push(5 * MB)
    chunks = host.store.connection.database["datasets.chunks"]
    chunks.update_one({"n": 1}, {"$set": {"data": bytes(CHUNK_BYTES)}})
    with host.cache() as cache, pytest.raises(DataError, match="is damaged: mend it with"):
        cache.localise(spec, GO)
    assert host.files() == []


def test_a_stopped_fetch_goes_on_where_it_stopped(host: Host) -> None:
    spec, data = host.push(20 * MB)
    stop = threading.Event()
    stopping = Counted(host.store, lambda first: stop.set() if first >= 8 else None)
    with host.cache(datasets=stopping) as cache, pytest.raises(WorkerError, match="the worker was stopped"):
        cache.localise(spec, stop)
    [part] = host.files()
    assert part == f"{spec['data']['sha256']}.{20 * MB}.part"
    with (host.folder / part).open("ab") as target:
        target.write(b"half a chunk")
    assert host.fetch(spec).read_bytes() == data
    assert host.datasets.read_chunks == list(range(12, 20))


def test_a_damaged_part_is_fetched_anew(host: Host) -> None:
    spec, data = host.push(6 * MB)
    host.folder.mkdir()
    (host.folder / f"{spec['data']['sha256']}.{6 * MB}.part").write_bytes(bytes(3 * MB))
    assert host.fetch(spec).read_bytes() == data


def test_waiting_for_another_fetch_ends_when_the_worker_is_stopped(host: Host) -> None:
    spec, _ = host.push(2 * MB)
    entered, leave, stop = threading.Event(), threading.Event(), threading.Event()
    slow = Counted(host.store, lambda _: (entered.set(), leave.wait(30)))
    with host.cache(datasets=slow) as first, host.cache() as second:
        fetching = threading.Thread(target=first.localise, args=(spec, GO))
        fetching.start()
        assert entered.wait(30)
        threading.Timer(0.3, stop.set).start()
        with pytest.raises(WorkerError, match="the worker was stopped"):
            second.localise(spec, stop)
        leave.set()
        fetching.join(30)
        second.localise(spec, GO)
    assert host.datasets.read_chunks == []
    assert slow.read_chunks == [0, 1]


def test_the_longest_unused_is_evicted_first(host: Host) -> None:
    specs = [host.push(MB, f"{name}.h5ad")[0] for name in "abcd"]
    bound = 3 * MB + MB // 2
    for at_s, number in enumerate((0, 1, 2)):
        host.fetch(specs[number], bound)
        host.used(specs[number], 1000 + at_s)
    host.fetch(specs[0], bound)  # now `b` is the longest unused
    host.fetch(specs[3], bound)
    assert host.files() == sorted(f"{specs[n]['data']['sha256']}.h5ad" for n in (0, 2, 3))


def test_what_a_campaign_of_this_worker_uses_is_never_evicted(host: Host) -> None:
    first, second = host.push(MB, "a.h5ad")[0], host.push(MB, "b.h5ad")[0]
    same = {**first, "name": "another campaign"}
    bound = MB + MB // 2
    with host.cache(bound) as cache:
        cache.localise(first, GO)
        cache.localise(same, GO)
        cache.release(first)
        with pytest.raises(
            DataError, match=r"bounded to 1.57 MB, of which 1.05 MB are in use: set AUTOTUNE_CACHE_BYTES"
        ):
            cache.localise(second, GO)
        assert host.files() == [f"{first['data']['sha256']}.h5ad"]
        cache.release(same)
        cache.release(same)
        cache.localise(second, GO)
    assert host.files() == [f"{second['data']['sha256']}.h5ad"]


WORKER = """
import json, logging, sys, threading, time
from pathlib import Path
from autotune.store.datasets import Datasets
from autotune.store.mongo import MongoStore
from workers.datasets import DatasetCache

class Holder:
    def __init__(self, datasets):
        self.datasets = datasets

uri, folder, bound, go, spec = sys.argv[1:]
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
with MongoStore(uri) as store:
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    while not Path(go).exists():
        time.sleep(0.005)
    cache = DatasetCache(Holder(Datasets(store.connection)), Path(folder), int(bound))
    found = cache.localise(json.loads(spec), threading.Event())
    sys.stdout.write(found["data"]["path"] + "\\n")
    sys.stdout.flush()
    sys.stdin.read()
"""


@contextmanager
def worker(host: Host, spec: dict[str, Any], bound: int = 10**9) -> Iterator[subprocess.Popen[str]]:
    """Run a process that fetches when the file ``go`` is there, prints the path, and keeps it until its input ends."""
    arguments = [host.store.uri, str(host.folder), str(bound), str(host.root / "go"), json.dumps(spec)]
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_processes_that_need_the_same_share_one_download(host: Host) -> None:
    spec, data = host.push(24 * MB)
    with worker(host, spec) as one, worker(host, spec) as two, worker(host, spec) as three:
        processes = (one, two, three)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        (host.root / "go").touch()
        done = [process.communicate(timeout=60) for process in processes]
    assert [Path(out.strip()).read_bytes() == data for out, _ in done] == [True] * 3
    assert "".join(log for _, log in done).count("fetches cells.h5ad from the store") == 1


def test_what_a_live_process_uses_is_never_evicted(host: Host) -> None:
    used, wanted = host.push(MB, "used.h5ad")[0], host.push(MB, "wanted.h5ad")[0]
    bound = MB + MB // 2
    (host.root / "go").touch()
    with worker(host, used, bound) as process:
        assert process.stdout is not None
        process.stdout.readline()
        file = Path(process.stdout.readline().strip())
        with pytest.raises(DataError, match="are in use"):
            host.fetch(wanted, bound)
        assert file.exists()
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        host.fetch(wanted, bound)
    assert host.files() == [f"{wanted['data']['sha256']}.h5ad"]


def test_a_killed_fetch_blocks_nobody_and_is_gone_on_with(host: Host) -> None:
    spec, data = host.push(64 * MB)
    part = host.folder / f"{spec['data']['sha256']}.{64 * MB}.part"
    (host.root / "go").touch()
    with worker(host, spec) as process:
        until(lambda: part.exists() and part.stat().st_size >= 8 * MB, 60)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    there = part.stat().st_size // MB
    assert 8 <= there < 64
    assert host.fetch(spec).read_bytes() == data
    assert host.datasets.read_chunks == list(range(there, 64))


def test_bounds_that_are_too_small_are_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, _ = host.push(2 * MB)
    kept, _ = host.push(MB, "kept.h5ad")
    host.fetch(kept)
    with pytest.raises(DataError, match=r"has 2.1 MB and the cache in .* is bounded to 1 MB: set AUTOTUNE_CACHE_BYTES"):
        host.fetch(spec, 10**6)
    free = shutil._ntuple_diskusage(10**9, 10**9, 500_000)  # type: ignore[attr-defined]
    monkeypatch.setattr("workers.datasets.shutil.disk_usage", lambda _: free)
    with pytest.raises(DataError, match=r"needs 2.1 MB and the disk of .* has 0.5 MB left: free disk space, or set"):
        host.fetch(spec)
    assert host.files() == [f"{kept['data']['sha256']}.h5ad"], "nothing is evicted where that is of no use"


FULL = """
import json, resource, sys, threading
from pathlib import Path
from autotune.errors import DataError
from autotune.store.datasets import Datasets
from autotune.store.mongo import MongoStore
from workers.datasets import DatasetCache

class Holder:
    def __init__(self, datasets):
        self.datasets = datasets

with MongoStore(sys.argv[1]) as store:
    cache = DatasetCache(Holder(Datasets(store.connection)), Path(sys.argv[2]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
    try:
        cache.localise(json.loads(sys.argv[3]), threading.Event())
    except DataError as error:
        sys.stdout.write(str(error))
"""


def test_a_disk_that_fills_up_is_said_and_left_clean(host: Host) -> None:
    spec, _ = host.push(8 * MB)
    command = [sys.executable, "-c", FULL, host.store.uri, str(host.folder), json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "cannot write" in done.stdout, done.stderr
    assert "free disk space, or set AUTOTUNE_CACHE to a folder on a larger disk" in done.stdout
    assert host.files() == []


def test_parts_that_nobody_fetches_are_evicted_too(host: Host) -> None:
    spec, _ = host.push(MB)
    host.folder.mkdir()
    (host.folder / f"{'a' * 64}.{5 * MB}.part").write_bytes(b"a little")
    (host.folder / "a note of a person.txt").write_text("stays")
    host.fetch(spec, 2 * MB)
    assert host.files() == [f"{spec['data']['sha256']}.h5ad"]
    assert (host.folder / "a note of a person.txt").exists()


def test_settings_come_from_the_environment(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, _ = host.push(MB)
    monkeypatch.setenv("AUTOTUNE_CACHE", str(host.folder / "elsewhere"))
    monkeypatch.setenv("AUTOTUNE_CACHE_BYTES", "1000")
    with DatasetCache(Holder(host.datasets)) as cache, pytest.raises(DataError, match=r"bounded to 0.001 MB"):
        cache.localise(spec, GO)
    monkeypatch.setenv("AUTOTUNE_CACHE_BYTES", "2000000")
    with DatasetCache(Holder(host.datasets)) as cache:
        assert path_of(cache.localise(spec, GO)).parent == host.folder / "elsewhere"
    for wrong in ("20 GB", "-1", "1e9"):
        monkeypatch.setenv("AUTOTUNE_CACHE_BYTES", wrong)
        with pytest.raises(InputError, match="must be a number of bytes"):
            DatasetCache(Holder(host.datasets))
    (host.root / "file").touch()
    monkeypatch.delenv("AUTOTUNE_CACHE_BYTES")
    monkeypatch.setenv("AUTOTUNE_CACHE", str(host.root / "file" / "cache"))
    with DatasetCache(Holder(host.datasets)) as cache, pytest.raises(DataError, match="set AUTOTUNE_CACHE to a folder"):
        cache.localise(spec, GO)


def test_threads_of_a_worker_share_one_download(host: Host) -> None:
    spec, data = host.push(6 * MB)
    found: list[Path] = []
    with host.cache() as cache:
        threads = [threading.Thread(target=lambda: found.append(path_of(cache.localise(spec, GO)))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert [hashlib.sha256(f.read_bytes()).digest() for f in found] == [hashlib.sha256(data).digest()] * 8
    assert sorted(host.datasets.read_chunks) == list(range(6))


def test_a_store_that_goes_away_is_waited_for(
    server_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "db").mkdir()
    with faulty_server(tmp_path / "db") as uri, MongoStore(uri) as store:
        host = Host(store, tmp_path)
        spec, data = host.push(12 * MB)
        cuts = [6]

        def cut(first: int) -> None:
            """Let the connection break six times in the middle of the fetch."""
            if first == 4 and cuts:
                fault = {"failCommands": ["find"], "closeConnection": True, "appName": "autotune"}
                fail = {"configureFailPoint": "failCommand", "mode": {"times": cuts.pop()}, "data": fault}
                store.connection.client.admin.command(fail)

        with caplog.at_level(logging.WARNING), host.cache(datasets=Counted(store, cut)) as cache:
            assert path_of(cache.localise(spec, GO)).read_bytes() == data
        assert "no answer from the store" in caplog.text

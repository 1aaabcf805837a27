"""Processes as ``/proc`` shows them: who runs, whose children they are, and signals that never hit another one."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    return _state(pid) not in ("", "Z", "X")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def handles(pid: int, number: signal.Signals) -> bool:
    """Return whether a process has a handler of its own for a signal."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    caught = next((line.split()[1] for line in lines if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)


def deliver(pid: int, number: signal.Signals) -> bool:
    """Send a signal to a process that runs; return whether it got it. A reused process id is never hit.

    Args:
        pid: A process that was seen a moment ago.
        number: The signal.
    """
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not alive(pid):
            return False
        signal.pidfd_send_signal(handle, number)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def children(pid: int) -> list[int]:
    """Return the process ids of the children of a process, of all its threads."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in file.read_text().split()]
    return found


def command_line(pid: int) -> str:
    """Return the command line of a process, or nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def fork_servers(agent: int) -> list[int]:
    """Return the fork servers of an agent."""
    return [pid for pid in children(agent) if "workers.forkserver" in command_line(pid)]


def trainings(agent: int) -> list[int]:
    """Return the processes of the trials that an agent runs."""
    return [pid for server in fork_servers(agent) for pid in children(server) if alive(pid)]


def processes_of(folder: Path) -> dict[int, str]:
    """Return process id -> command line of every live process that has `folder` in its environment or command line.

    The caller's own process and its parents are left out.
    """
    wanted = str(folder).encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) in _ourselves():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if (wanted in environment or wanted in command) and alive(int(entry.name)):
            found[int(entry.name)] = command_line(int(entry.name))
    return found


def _ourselves() -> set[int]:
    pids, pid = set(), os.getpid()
    while pid > 1:
        pids.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return pids

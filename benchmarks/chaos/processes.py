"""The service's processes of one run: started by the real command line, watched, killed, started again, looked for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from autotune.store import embedded
from benchmarks.chaos.proc import alive, deliver, handles, processes_of

__all__ = ["ROOT", "Exit", "Fleet", "Member", "StoreServer", "alive", "deliver"]

ROOT = Path(__file__).resolve().parents[2]
RESTART_S = 0.3
"""A process that ended is started again after so many seconds, as systemd would."""
_TEND_S = 0.05
_STOP_S = 40.0
_GONE_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How a process ended.

    Attributes:
        role: What it was.
        pid: Its process id.
        code: Its exit code, negative for a signal.
        killed: Whether we had killed it.
        early: Whether we had asked it to end while it was still starting: before it listens, a signal ends it.
    """

    role: str
    pid: int
    code: int
    killed: bool
    early: bool


@dataclass(kw_only=True)
class Member:
    """One process that is started again when it ends.

    Attributes:
        role: ``worker-0``, ``coordinator-1``, ...
        command: What to run.
        process: The process, while it runs.
        due_s: When to start it again, monotonic seconds.
    """

    role: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    due_s: float = 0.0

    @property
    def is_worker(self) -> bool:
        """Whether it is an agent and not a coordinator."""
        return self.role.startswith("worker")


@dataclass(kw_only=True)
class Fleet:
    """The agents and coordinators of one campaign, in a folder of their own: home, temporary files and logs.

    Attributes:
        folder: Where everything lies; its name in their environment tells the processes from all others.
        store_uri: The store.
        campaign: Name of the campaign.
        members: The processes.
        exits: How those that ended did.
    """

    folder: Path
    store_uri: str
    campaign: str
    members: list[Member] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    _killed: set[int] = field(default_factory=set)
    _asked: set[int] = field(default_factory=set)
    _early: set[int] = field(default_factory=set)
    _restarts: bool = True
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        for name in ("home", "tmp", "logs", "children"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of all its processes."""
        return {
            **os.environ,
            "AUTOTUNE_STORE": self.store_uri,
            "AUTOTUNE_HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONPATH": str(ROOT),
        }

    def start(self, *, workers: int, slots: int, coordinators: int, worker_options: tuple[str, ...] = ()) -> None:
        """Start the processes, and from now on start again what ends.

        Args:
            workers: Number of agents.
            slots: Slots of each.
            coordinators: Number of coordinators.
            worker_options: More options of ``autotune worker``.
        """
        autotune = [sys.executable, "-m", "autotune.cli.main"]
        agent = [*autotune, "worker", "--campaign", self.campaign, "--devices", "cpu"]
        agent += ["--slots-per-device", str(slots), *worker_options]
        with self._lock:
            for index in range(coordinators):
                self._add(f"coordinator-{index}", [*autotune, "coordinator", self.campaign])
            for index in range(workers):
                self._add(f"worker-{index}", agent)
        self._thread = threading.Thread(target=self._tend_on, name="fleet", daemon=True)
        self._thread.start()

    def _add(self, role: str, command: list[str]) -> None:
        member = Member(role=role, command=command)
        self.members.append(member)
        self._run(member)

    def _run(self, member: Member) -> None:
        with open(self.log(member.role), "ab") as log:
            member.process = subprocess.Popen(
                member.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, cwd=ROOT,
                start_new_session=True,
            )  # fmt: skip

    def log(self, role: str) -> Path:
        """Return the log of a process."""
        return self.folder / "logs" / f"{role}.log"

    def _tend_on(self) -> None:
        while not self._stop.wait(_TEND_S):
            self.tend()

    def tend(self) -> None:
        """Note what ended, and start it again when it is time; a coordinator that ended in good order stays ended."""
        with self._lock:
            for member in self.members:
                if member.process is not None and member.process.poll() is not None:
                    self._note_end(member, member.process)
                again = member.due_s and time.monotonic() >= member.due_s
                if member.process is None and again and self._restarts:
                    self._run(member)

    def _note_end(self, member: Member, process: subprocess.Popen[bytes]) -> None:
        pid, code = process.pid, process.returncode
        killed, early = pid in self._killed, pid in self._early
        self.exits.append(Exit(role=member.role, pid=pid, code=code, killed=killed, early=early))
        member.process = None
        done = process.returncode == 0 and not member.is_worker
        member.due_s = 0.0 if done else time.monotonic() + RESTART_S

    def running(self, kind: str) -> list[Member]:
        """Return the members that run now, in order; `kind` is ``worker`` or ``coordinator``."""
        with self._lock:
            return [m for m in self.members if m.role.startswith(kind) and m.process and m.process.poll() is None]

    def signal(self, member: Member, number: signal.Signals) -> int | None:
        """Send a signal to a member; return the process id that got it, or None when it does not run.

        It is asked to end once only: asking twice means at once.
        """
        with self._lock:
            process = member.process
            if process is not None and number is signal.SIGTERM and process.pid in self._asked:
                return None
            if process is None or process.poll() is not None:
                return None
            if number is signal.SIGTERM and not handles(process.pid, number):
                self._early.add(process.pid)
            if not deliver(process.pid, number):
                return None
            if number is signal.SIGKILL:
                self._killed.add(process.pid)
            if number is signal.SIGTERM:
                self._asked.add(process.pid)
            return process.pid

    def stop(self, timeout_s: float = _STOP_S) -> list[str]:
        """Ask the agents to end in good order and wait; return what did not end within `timeout_s` seconds.

        To be called when the campaign has ended: the coordinators then end by themselves.
        """
        with self._lock:
            self._restarts = False
            for member in self.running("worker"):
                self.signal(member, signal.SIGTERM)
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s and any(m.process for m in self.members):
            self.tend()
            time.sleep(_TEND_S)
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        return [f"{m.role} did not end within {timeout_s:g} s of the campaign's end" for m in self.members if m.process]

    def leaks(self, timeout_s: float = _GONE_S) -> list[str]:
        """Return the processes of this run that are still there after `timeout_s` seconds; call it after `stop`."""
        end_s = time.monotonic() + timeout_s
        while (left := self._others()) and time.monotonic() < end_s:
            time.sleep(0.1)
        return [f"process {pid} is left: {command[:120]}" for pid, command in left.items()]

    def _others(self) -> dict[int, str]:
        return {p: c for p, c in processes_of(self.folder).items() if "--dbpath" not in c}

    def temporary_files(self) -> list[str]:
        """Return what lies in the temporary folder of the processes."""
        return sorted(str(p.relative_to(self.folder / "tmp")) for p in (self.folder / "tmp").rglob("*"))

    def kill(self) -> None:
        """Kill every process of this run, the store's too; for the very end, and for Ctrl-C."""
        self._restarts = False
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        end_s = time.monotonic() + _GONE_S
        while (left := processes_of(self.folder)) and time.monotonic() < end_s:
            for pid in left:
                deliver(pid, signal.SIGKILL)
            time.sleep(0.05)
        for member in self.members:
            if member.process is not None:
                member.process.wait()


@dataclass(kw_only=True)
class StoreServer:
    """A mongod with fail points that can be killed and started again on its data and port.

    Attributes:
        folder: Where its data are.
        server: The process.
    """

    folder: Path
    server: embedded.Server

    @classmethod
    @contextlib.contextmanager
    def running(cls, folder: Path) -> Iterator[StoreServer]:
        """Run one; it is gone at the end.

        Raises:
            StoreSetupError: If there is no ``mongod``, or it does not start.
        """
        folder.mkdir(parents=True, exist_ok=True)
        started = cls(folder=folder, server=_launch(folder))
        try:
            yield started
        finally:
            started.kill()

    @property
    def uri(self) -> str:
        """Its address; the same after a restart."""
        return self.server.uri

    def kill(self) -> bool:
        """Kill it with SIGKILL and wait until it is gone; return whether it ran."""
        delivered = self.server.alive and deliver(self.server.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.server.pid, 0)
        return delivered

    def restart(self) -> None:
        """Start it again on the same data; returns when it takes writes.

        Raises:
            StoreSetupError: If it does not start.
            RuntimeError: If its port was taken meanwhile: then nobody would find it.
        """
        port = self.server.port
        self.server = _launch(self.folder)
        if self.server.port != port:
            raise RuntimeError(f"port {port} of the store was taken by another program; run it again")


def _launch(folder: Path) -> embedded.Server:
    return embedded.launch(folder, "--setParameter", "enableTestCommands=1")

"""The local processes of a campaign: a coordinator and workers, started, watched, started again, and stopped."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from autotune import home
from autotune.clock import SystemClock
from autotune.errors import InputError, StoreUnreachableError, WorkerError
from autotune.store.base import CampaignRecord
from autotune.store.mongo import URI_VARIABLE, MongoStore
from autotune.trial import CampaignState

MAX_STARTS = 5
STEADY_S = 300.0
"""A process that ran so long before it ended starts with a clean record."""
DEVICES = re.compile(r"^(auto|cpu|[0-9A-Za-z-]+(,[0-9A-Za-z-]+)*)$")
STOP_TIMEOUT_S = 30.0
START_TIMEOUT_S = 30.0
SETTLED_S = 2.0
"""A worker that is known refuses a campaign soon, or never."""
GRACE_S = 1.0
"""So long running trials may go on when the local workers are asked to end."""


_CLOCK = SystemClock()


@dataclass(kw_only=True)
class Member:
    """One process of the crew.

    Attributes:
        role: What it is called in messages and in the name of its log.
        command: What to run.
        log: Where its log goes.
        process: The process, once started.
        starts: How often it was started in a short time.
        started_s: When it was started last, monotonic seconds.
    """

    role: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    started_s: float = 0.0

    def last_words(self) -> str:
        """Return the last line of its log."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it left no log"


@dataclass(kw_only=True)
class Crew:
    """A coordinator and workers of one campaign on this machine.

    The store's address reaches them by environment, so that no password shows in a list of processes.

    Attributes:
        store_uri: The store.
        campaign: Name of the campaign.
        workers: Number of workers; they divide this machine's devices and cores.
        devices: As `autotune worker --devices`.
        slots_per_device: As `autotune worker --slots-per-device`.
        allow_mismatch: As `autotune worker --allow-mismatch`.
        allowed: As `autotune worker --allow-objective`.
        trusted: Whether the workers may import the campaign's objective from where the store says: the campaign was
            launched by this process, or the store is on this machine.
        detached: Whether the processes outlive this one.
        members: The processes.
        asked_to_stop: Whether they were asked to end.

    Raises:
        InputError: If a number or the devices are not possible.
    """

    store_uri: str = field(repr=False)
    campaign: str
    workers: int = 1
    devices: str = "auto"
    slots_per_device: int = 1
    allow_mismatch: bool = False
    allowed: tuple[str, ...] = ()
    trusted: bool = True
    detached: bool = False
    members: list[Member] = field(default_factory=list)
    asked_to_stop: bool = False
    _paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise InputError(f"--workers must be 0 or more, not {self.workers}")
        if self.slots_per_device < 1:
            raise InputError(f"--slots-per-device must be 1 or more, not {self.slots_per_device}")
        if not DEVICES.match(self.devices):
            raise InputError(f"--devices takes auto, cpu or GPU numbers such as 0,1, not '{self.devices}'")

    def release(self) -> None:
        """Let the processes outlive this one on purpose, without a warning about children that still run."""
        for member in self.members:
            if member.process is not None and member.process.poll() is None:
                member.process.returncode = 0

    def start(self, record: CampaignRecord) -> None:
        """Start the coordinator and the workers.

        Args:
            record: The campaign: where its objective lies.

        Raises:
            WorkerError: If a process cannot be started.
        """
        module, _, function = str(record.spec["objective"]).partition(":")
        allowed = [*self.allowed, *([module] if self.trusted and function else [])]
        self._paths = tuple(path for path in record.paths if self.trusted and os.path.isdir(path))
        parent = [] if self.detached else ["--with-parent", str(os.getpid())]
        coordinator = [sys.executable, "-m", "autotune.cli.main", "coordinator", self.campaign, *parent]
        self._add("coordinator", coordinator)
        for index in range(self.workers):
            worker = [sys.executable, "-m", "workers", "--campaign", self.campaign, "--once", "--devices", self.devices]
            worker += ["--slots-per-device", str(self.slots_per_device), "--share", f"{index}/{self.workers}", *parent]
            worker += ["--grace", str(GRACE_S), *(part for name in allowed for part in ("--allow-objective", name))]
            worker += ["--allow-mismatch"] if self.allow_mismatch else []
            self._add(f"worker-{index}", worker)

    def _add(self, role: str, command: list[str]) -> None:
        member = Member(role=role, command=command, log=home.log_file(f"{self.campaign}-{role}"))
        self.members.append(member)
        self._start(member)

    def _start(self, member: Member) -> None:
        paths = [*self._paths, os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, URI_VARIABLE: self.store_uri, "PYTHONPATH": os.pathsep.join(paths)}
        now_s = _CLOCK.monotonic_s()
        member.starts = 1 if now_s - member.started_s > STEADY_S else member.starts + 1
        member.started_s = now_s
        try:
            with open(member.log, "ab") as log:
                member.process = subprocess.Popen(
                    member.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                    start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise WorkerError(f"cannot start the {member.role}: {error}") from None

    def tend(self) -> None:
        """Start again what ended, in whatever way; to be called only while the campaign runs.

        Raises:
            WorkerError: If a process ended `MAX_STARTS` times; says its last words.
        """
        for member in self.members:
            if member.process is None or member.process.poll() is None:
                continue
            if member.starts >= MAX_STARTS:
                raise WorkerError(
                    f"the {member.role} ended {member.starts} times (exit code {member.process.returncode}): "
                    f"{member.last_words()} (log: {member.log})"
                )
            self._start(member)

    def working(self) -> bool:
        """Return whether a worker of this crew still runs: after a pause they end with their running trials."""
        workers = [m for m in self.members if m.role != "coordinator"]
        return any(m.process is not None and m.process.poll() is None for m in workers)

    def failed_at_start(self, store: MongoStore, timeout_s: float = START_TIMEOUT_S) -> Member | None:
        """Wait whether a process ends with an error before all are at work, or soon after; return it, or None.

        Args:
            store: Where they say that they are at work.
            timeout_s: So long they may take for it.
        """
        end_s, all_there = _CLOCK.monotonic_s() + timeout_s, False
        while _CLOCK.monotonic_s() < end_s:
            for member in self.members:
                if member.process is not None and member.process.poll():
                    return member
            if not all_there and self._at_work(store):
                all_there = True
                end_s = _CLOCK.monotonic_s() + SETTLED_S
            _CLOCK.wait(threading.Event(), 0.1)
        return None

    def _at_work(self, store: MongoStore) -> bool:
        """Return whether somebody leads the campaign and each worker is known, or has ended well."""
        processes = [m.process for m in self.members if m.role != "coordinator" and m.process is not None]
        try:
            known = {(w.host, w.pid) for w in store.workers.live(self.campaign)}
            if not all((socket.gethostname(), p.pid) in known or p.poll() == 0 for p in processes):
                return False
            if store.leaders.leader(self.campaign) is not None:
                return True
            return store.campaigns.get(self.campaign).state is not CampaignState.RUNNING
        except StoreUnreachableError:
            return False

    def ask_to_stop(self) -> None:
        """Ask all to end in good order: workers give their trials back. Once only: asking twice means at once."""
        if not self.asked_to_stop:
            self.asked_to_stop = True
            self._signal(signal.SIGTERM)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End all: in good order within `timeout_s` seconds, else by force."""
        self.ask_to_stop()
        for member in self.members:
            if member.process is None:
                continue
            try:
                member.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()

    def kill(self) -> None:
        """End all at once; leases run out by themselves."""
        self._signal(signal.SIGKILL)
        for member in self.members:
            if member.process is not None:
                member.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for member in self.members:
            if member.process is not None and member.process.poll() is None:
                member.process.send_signal(number)

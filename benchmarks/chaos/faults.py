"""The faults of the storm, and the book of those that were really delivered."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from autotune.errors import StoreError
from autotune.store.mongo import MongoStore
from benchmarks.chaos import proc
from benchmarks.chaos.processes import Fleet, Member, StoreServer

_SOCKET = {"code": 9001, "errmsg": "socket exception"}
_RETRYABLE = ["RetryableWriteError"]
REPLIES: dict[str, list[dict[str, Any]]] = {
    "connection closed before a write": [{"closeConnection": True}],
    "write refused with an error code": [{"errorCode": code, "errorLabels": _RETRYABLE} for code in (6, 89, 262, 9001)],
    "write done, its reply lost": [
        {"writeConcernError": {**_SOCKET, "errorLabels": _RETRYABLE}},
        {"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}},
    ],
}
"""Kind -> what ``failCommand`` is told; each write that it hits counts as one fault.

Codes by which a server says that it is no primary any more are left to the failover scenario: a driver that is told so
by a server that stays primary waits for up to ten seconds for the next word of it.
"""
WRITES = ("findAndModify", "update", "insert")
_REPLY_S = 1.0
_FROZEN_LEASES = (0.2, 2.0)
"""A training stays frozen for so many leases: after one its agent ends it."""


@dataclass(kw_only=True)
class Injected:
    """One fault that was delivered.

    Attributes:
        kind: Its kind, a key of `Faults.kinds`.
        at: When, on this machine's clock, which is the store's too.
        until: When it was over, for those that last.
        pid: The process that got it, or None.
        trial: (number, attempt) of a training that got it, where that was known.
        led: Whether a coordinator that was killed was the one that led.
        count: How many faults it stands for: of lost replies, the commands that were hit.
    """

    kind: str
    at: datetime
    until: datetime | None = None
    pid: int | None = None
    trial: tuple[int, int] | None = None
    led: bool = False
    count: int = 1


@dataclass(kw_only=True)
class Faults:
    """Delivers faults to the processes of a campaign, and writes down what was delivered.

    Attributes:
        fleet: Agents and coordinators.
        server: The store's process.
        store: The store, open; for fail points and to see who leads.
        draw: Random numbers: the same seed gives the same sequence of faults.
        lease_s: Length of a lease, seconds.
        outage_s: Longest time between the death of the store and its restart, seconds.
        injected: What was delivered.
    """

    fleet: Fleet
    server: StoreServer
    store: MongoStore
    draw: random.Random
    lease_s: float
    outage_s: float
    injected: list[Injected] = field(default_factory=list)
    _later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _armed: Callable[[], None] | None = None

    @property
    def kinds(self) -> dict[str, tuple[int, Callable[[], Injected | None]]]:
        """Kind -> (weight in the draw, what delivers one)."""
        kinds: dict[str, tuple[int, Callable[[], Injected | None]]] = {
            "SIGKILL of a training": (6, self._kill_training),
            "SIGKILL of a fork server": (2, self._kill_fork_server),
            "SIGKILL of an agent": (3, self._kill_agent),
            "SIGTERM to an agent": (1, self._stop_agent),
            "SIGKILL of a coordinator": (3, self._kill_coordinator),
            "SIGSTOP of an agent past its lease": (2, self._freeze_agent),
            "SIGSTOP of a training": (3, self._freeze_training),
            "kill -9 of mongod": (2, self._kill_store),
        }
        for reply in REPLIES:
            kinds[reply] = (2, lambda reply=reply: self._lose_replies(reply))  # type: ignore[misc]
        return kinds

    def inject(self, kind: str) -> bool:
        """Deliver one fault of a kind; return whether it was delivered."""
        done = self.kinds[kind][1]()
        if done is not None:
            self.injected.append(done)
        return done is not None

    def choose(self) -> str:
        """Return a kind at random."""
        names = list(self.kinds)
        return self.draw.choices(names, [self.kinds[n][0] for n in names])[0]

    def missing(self, order: Sequence[str]) -> str | None:
        """Return the first kind of `order` of which none was delivered yet, or None."""
        armed = self.injected[-1].kind if self._armed and self.injected else None
        return next((k for k in order if k != armed and not self.count(k)), None)

    def go_on(self) -> None:
        """End what is due to end: frozen processes continue, fail points are switched off."""
        now_s = time.monotonic()
        due = [act for at_s, act in self._later if at_s <= now_s]
        self._later = [(at_s, act) for at_s, act in self._later if at_s > now_s]
        for act in due:
            act()

    def end(self) -> None:
        """End all that lasts, at once."""
        for _, act in self._later:
            act()
        self._later.clear()
        self._disarm()

    def count(self, kind: str) -> int:
        """Return how many faults of a kind were delivered."""
        return sum(i.count for i in self.injected if i.kind == kind)

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, act))

    def _some_agent(self) -> Member | None:
        agents = self.fleet.running("worker")
        return self.draw.choice(agents) if agents else None

    def _some_training(self) -> int | None:
        agents = self.fleet.running("worker")
        found = [pid for a in agents if a.process for pid in proc.trainings(a.process.pid)]
        return self.draw.choice(sorted(found)) if found else None

    def _trial_of(self, pid: int) -> tuple[int, int] | None:
        """Return (number, attempt) of a training, once its objective has begun."""
        with contextlib.suppress(OSError, ValueError):
            number, attempt = (self.fleet.folder / "children" / str(pid)).read_text().split()
            return int(number), int(attempt)
        return None

    def _kill_training(self) -> Injected | None:
        pid = self._some_training()
        if pid is None:
            return None
        trial, at = self._trial_of(pid), now()
        if not proc.deliver(pid, signal.SIGKILL):
            return None
        return Injected(kind="SIGKILL of a training", at=at, pid=pid, trial=trial)

    def _kill_fork_server(self) -> Injected | None:
        agent = self._some_agent()
        servers = proc.fork_servers(agent.process.pid) if agent and agent.process else []
        at = now()
        if not agent or not agent.process or not servers or not proc.deliver(servers[0], signal.SIGKILL):
            return None
        return Injected(kind="SIGKILL of a fork server", at=at, pid=agent.process.pid)

    def _signal_agent(self, kind: str, number: signal.Signals) -> Injected | None:
        agent, at = self._some_agent(), now()
        pid = None if agent is None else self.fleet.signal(agent, number)
        return None if pid is None else Injected(kind=kind, at=at, pid=pid)

    def _kill_agent(self) -> Injected | None:
        return self._signal_agent("SIGKILL of an agent", signal.SIGKILL)

    def _stop_agent(self) -> Injected | None:
        return self._signal_agent("SIGTERM to an agent", signal.SIGTERM)

    def _freeze_agent(self) -> Injected | None:
        done = self._signal_agent("SIGSTOP of an agent past its lease", signal.SIGSTOP)
        if done is not None:
            self._after(self.lease_s + self.draw.uniform(1.0, 3.0), lambda: self._thaw(done))
        return done

    def _freeze_training(self) -> Injected | None:
        pid = self._some_training()
        if pid is None:
            return None
        trial, at = self._trial_of(pid), now()
        if not proc.deliver(pid, signal.SIGSTOP):
            return None
        done = Injected(kind="SIGSTOP of a training", at=at, pid=pid, trial=trial)
        self._after(self.lease_s * self.draw.uniform(*_FROZEN_LEASES), lambda: self._thaw(done))
        return done

    def _thaw(self, frozen: Injected) -> None:
        """Continue a frozen process, if nothing killed it meanwhile."""
        if frozen.pid is not None and str(self.fleet.folder) in _environment(frozen.pid):
            proc.deliver(frozen.pid, signal.SIGCONT)
        frozen.until = now()
        if frozen.kind.endswith("lease") and (frozen.until - frozen.at).total_seconds() < self.lease_s:
            frozen.count = 0  # the campaign ended before the lease did

    def _kill_coordinator(self) -> Injected | None:
        coordinators = self.fleet.running("coordinator")
        if not coordinators:
            return None
        leader = self._leader_pid()
        leading = [m for m in coordinators if m.process and m.process.pid == leader]
        chosen = self.draw.choice(coordinators + leading)  # the one that leads twice as often as another
        at = now()
        pid = self.fleet.signal(chosen, signal.SIGKILL)
        return None if pid is None else Injected(kind="SIGKILL of a coordinator", at=at, pid=pid, led=pid == leader)

    def _leader_pid(self) -> int | None:
        try:
            return pid_of(self.store.leaders.leader(self.fleet.campaign))
        except StoreError:
            return None

    def _kill_store(self) -> Injected | None:
        self._disarm()
        at = now()
        if not self.server.kill():
            return None
        time.sleep(self.draw.uniform(0.0, self.outage_s))
        self.server.restart()
        return Injected(kind="kill -9 of mongod", at=at, until=now())

    def _lose_replies(self, kind: str) -> Injected | None:
        """Arm the fail point for a while; how many commands it hit is asked when it is switched off."""
        self._disarm()
        data = {"failCommands": list(WRITES), "appName": "autotune", **self.draw.choice(REPLIES[kind])}
        armed = Injected(kind=kind, at=now(), count=0)
        try:
            before = self._fail_point({"times": self.draw.randint(1, 6)}, data)
        except StoreError:
            return None
        self._armed = lambda: self._switch_off(armed, before)
        self._after(_REPLY_S, self._disarm)
        return armed

    def _disarm(self) -> None:
        switch_off, self._armed = self._armed, None
        if switch_off is not None:
            switch_off()

    def _switch_off(self, armed: Injected, before: int) -> None:
        with contextlib.suppress(StoreError):  # counts nothing where the server cannot be asked
            armed.count = self._fail_point("off") - before
        armed.until = now()

    def _fail_point(self, mode: Any, data: dict[str, Any] | None = None) -> int:
        """Set the fail point; return how many commands it has hit since the server was started."""
        command = {"configureFailPoint": "failCommand", "mode": mode, **({"data": data} if data else {})}
        with self.store.connection.mapped():
            return int(self.store.connection.client.admin.command(command).get("count", 0))


def now() -> datetime:
    """Return the time on this machine's clock."""
    return datetime.now(UTC)


def pid_of(owner: str | None) -> int | None:
    """Return the process id in the id of a coordinator (``host:pid:...``) or a worker (``host-pid-...``)."""
    if owner is None:
        return None
    parts = owner.split(":") if owner.count(":") >= 2 else owner.rsplit("-", 2)
    return int(parts[-2]) if len(parts) >= 3 and parts[-2].isdecimal() else None


def _environment(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""

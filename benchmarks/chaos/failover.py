"""Failover: a replica set of three on loopback whose primary is killed again and again while a campaign runs."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymongo
from pymongo import errors as driver

from autotune.campaign import parse_campaign
from autotune.errors import StoreError
from autotune.local.resolve import resolve
from autotune.store.mongo import MongoStore
from autotune.store.mongod import find_binary, free_port
from autotune.trial import CampaignState
from benchmarks.chaos import objectives
from benchmarks.chaos.audit import Outcome, audit, audit_processes, spread, summary
from benchmarks.chaos.proc import deliver
from benchmarks.chaos.processes import Fleet
from benchmarks.chaos.storm import campaign

NAME = "failover"
_SET = "chaos"
_ELECTION_MS = 2000
_WAIT_S = 60.0
_DEADLINE_S = 900.0
_STEP_S = 0.05


@dataclass(kw_only=True)
class Mongod:
    """One member of the set: its folder, its port, its process."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """Its name in the set."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; it joins by itself."""
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        command = [
            str(find_binary()), "--dbpath", str(data), "--port", str(self.port), "--bind_ip", "127.0.0.1",
            "--replSet", _SET, "--oplogSize", "100", "--wiredTigerCacheSizeGB", "0.25", "--nounixsocket",
            "--logpath", str(self.folder / "mongod.log"), "--logappend",
            "--setParameter", "diagnosticDataCollectionEnabled=false",
        ]  # fmt: skip
        with open(self.folder / "mongod.out", "ab") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def kill(self) -> bool:
        """Kill it with SIGKILL; return whether it ran."""
        if self.process is None:
            return False
        delivered = self.process.poll() is None and deliver(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return delivered

    def hello(self) -> dict[str, Any]:
        """Return what it says of itself; empty when it does not answer."""
        with contextlib.suppress(driver.PyMongoError), self.client() as client:
            return client.admin.command("hello")
        return {}

    def client(self) -> pymongo.MongoClient[dict[str, Any]]:
        """Return a client of this member alone."""
        return pymongo.MongoClient(self.host, directConnection=True, serverSelectionTimeoutMS=500)


@dataclass(kw_only=True)
class ReplicaSet:
    """Three members on loopback."""

    members: list[Mongod] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def running(cls, folder: Path) -> Iterator[ReplicaSet]:
        """Run one that has a primary; it is gone at the end."""
        found = cls()
        try:
            for index in range(3):
                member = Mongod(folder=folder / f"store-{index}", port=free_port(0))
                member.start()
                found.members.append(member)
            found._initiate()
            yield found
        finally:
            for member in found.members:
                member.kill()

    @property
    def uri(self) -> str:
        """Its address."""
        return f"mongodb://{','.join(m.host for m in self.members)}/autotune?replicaSet={_SET}"

    def _initiate(self) -> None:
        hosts = [{"_id": index, "host": member.host} for index, member in enumerate(self.members)]
        settings = {"electionTimeoutMillis": _ELECTION_MS}
        for member in self.members:
            until(lambda member=member: bool(member.hello()), f"answer of {member.host}")  # type: ignore[misc]
        with self.members[0].client() as client:
            client.admin.command("replSetInitiate", {"_id": _SET, "members": hosts, "settings": settings})
        until(lambda: self.primary() is not None, "primary")
        for member in self.members:
            self.wait_for(member)

    def primary(self) -> Mongod | None:
        """Return the member that takes writes, or None."""
        return next((m for m in self.members if m.hello().get("isWritablePrimary")), None)

    def wait_for(self, member: Mongod) -> None:
        """Wait until a member is primary or secondary."""

        def serves() -> bool:
            said = member.hello()
            return bool(said.get("isWritablePrimary") or said.get("secondary"))

        until(serves, f"{member.host} as secondary")


def until(condition: Callable[[], bool], what: str, timeout_s: float = _WAIT_S) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: If it does not hold within `timeout_s` seconds.
    """
    end_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(_STEP_S)


def run(*, short: bool = False, seed: int = 0) -> Outcome:
    """Run a campaign while the primary dies; return what was found. No process is left, however it ends.

    Args:
        short: Two kills; else ten.
        seed: Seed of the search.
    """
    kills, trials, most_s = (2, 40, 2.0) if short else (10, 300, 3.0)
    with tempfile.TemporaryDirectory(prefix="autotune-chaos-") as place:
        folder = Path(place)
        with ReplicaSet.running(folder) as members, MongoStore(members.uri) as store:
            content = campaign(NAME, trials, folder / "children", 0.5, most_s, seed)
            store.campaigns.create(resolve(parse_campaign(content)))
            fleet = Fleet(folder=folder, store_uri=members.uri, campaign=NAME)
            try:
                started_s = time.monotonic()
                fleet.start(workers=2, slots=2, coordinators=1)
                away_s = _kill_primaries(members, store, kills)
                until(lambda: not _runs(store), "end of the campaign", _DEADLINE_S)
                lasted_s = time.monotonic() - started_s
                found = audit(store, NAME, trials, objectives.descent)
                audit_processes(found, fleet)
            finally:
                fleet.kill()
    found.check(len(away_s) == kills, f"only {len(away_s)} of {kills} primaries were killed before the campaign ended")
    again = sum(len(t.attempts) - 1 for t in found.trials)
    columns = ["fault", "delivered", "attempts ended", "new primary after, median s", "worst s", "lost", "twice"]
    rows = [["kill -9 of the primary", len(away_s), again, *spread(away_s), found.lost, found.doubled]]
    figures = {
        "trials": trials, "primaries_killed": len(away_s), "lasted_s": round(lasted_s, 1),
        "new_primary_s": summary(away_s), "attempts_ended": again, "lost": found.lost, "doubled": found.doubled,
        "late_results_kept": found.late, "problems": found.problems,
    }  # fmt: skip
    return Outcome(name=NAME, columns=columns, rows=rows, figures=figures, problems=found.problems)


def _kill_primaries(members: ReplicaSet, store: MongoStore, kills: int) -> list[float]:
    """Kill the primary so often while trials finish; return after how many seconds there was another, each time."""
    away_s: list[float] = []
    for _ in range(kills):
        before = _finished(store)
        until(lambda before=before: _finished(store) > before or not _runs(store), "a finished trial")  # type: ignore[misc]
        primary = members.primary()
        if not _runs(store) or primary is None:
            break
        killed_s = time.monotonic()
        if not primary.kill():
            break
        until(lambda: members.primary() is not None, "another primary")
        away_s.append(time.monotonic() - killed_s)
        primary.start()
        members.wait_for(primary)
    return away_s


def _finished(store: MongoStore) -> int:
    with contextlib.suppress(StoreError):
        return sum(count for state, count in store.trials.counts(NAME).items() if state == "finished")
    return -1


def _runs(store: MongoStore) -> bool:
    """Return whether the campaign runs; True while the store cannot say."""
    with contextlib.suppress(StoreError):
        return store.campaigns.get(NAME).state is CampaignState.RUNNING
    return True

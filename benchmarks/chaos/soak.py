"""Soak: very many short trials through one agent; nothing may grow that should not."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune.campaign import parse_campaign
from autotune.local.resolve import resolve
from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState
from benchmarks.chaos import objectives
from benchmarks.chaos.audit import Outcome, audit, audit_processes
from benchmarks.chaos.proc import children, fork_servers
from benchmarks.chaos.processes import Fleet, StoreServer
from benchmarks.chaos.storm import campaign

NAME = "soak"
SLOTS = 2
LIMITS = {
    "agent_rss_mb": 4.0, "server_rss_mb": 1.0, "agent_fds": 4.0, "server_fds": 2.0, "sockets": 4.0,
    "threads": 2.0, "processes": 1.0, "temporary_files": 2.0,
}  # fmt: skip
"""Quantity -> how much its straight line may rise from the end of the warm-up to the end of the campaign."""
SHORT_LIMITS = {**dict.fromkeys(LIMITS, 6.0), "agent_rss_mb": 24.0, "server_rss_mb": 8.0}
"""The same for the short form: few samples of numbers that go up and down, and memory that has hardly settled."""
_EVERY_S = 0.2
_DEADLINE_S = 1800.0
_FEWEST = 5


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What agent and fork server hold at one moment.

    Attributes:
        ended: Number of trials that have ended.
        agent_rss_mb: Resident memory of the agent, MiB.
        server_rss_mb: Resident memory of the fork server, MiB.
        agent_fds: Open file descriptors of the agent.
        server_fds: Open file descriptors of the fork server.
        sockets: Sockets among them.
        threads: Threads of the agent.
        processes: Children of the fork server.
        temporary_files: Files and folders below the temporary folder.
    """

    ended: int
    agent_rss_mb: float
    server_rss_mb: float
    agent_fds: int
    server_fds: int
    sockets: int
    threads: int
    processes: int
    temporary_files: int


def run(*, short: bool = False, seed: int = 0) -> Outcome:
    """Run the soak and return what grew. No process is left, however it ends.

    Args:
        short: 150 trials; else 2,000.
        seed: Seed of the search.
    """
    trials, warm_up = (150, 40) if short else (2000, 500)
    limits = SHORT_LIMITS if short else LIMITS
    with tempfile.TemporaryDirectory(prefix="autotune-chaos-") as place:
        folder = Path(place)
        with StoreServer.running(folder / "store") as server, MongoStore(server.uri) as store:
            content = campaign(NAME, trials, folder / "children", 0.0, 0.02, seed)
            content["search"] = {"algorithm": "random", "seed": seed}
            store.campaigns.create(resolve(parse_campaign(content)))
            fleet = Fleet(folder=folder, store_uri=server.uri, campaign=NAME)
            try:
                started_s = time.monotonic()
                fleet.start(workers=1, slots=SLOTS, coordinators=1)
                samples = _watch(store, fleet)
                lasted_s = time.monotonic() - started_s
                found = audit(store, NAME, trials, objectives.descent, causes=frozenset())
                audit_processes(found, fleet)
            finally:
                fleet.kill()
    warm = [s for s in samples if warm_up <= s.ended < trials - SLOTS]
    found.check(len(warm) >= _FEWEST, f"only {len(warm)} samples after the warm-up")
    found.check(all(e.code == 0 for e in fleet.exits), f"a process ended early: {fleet.exits}")
    rows, grown = [], {}
    for quantity, limit in limits.items():
        values = [float(getattr(s, quantity)) for s in warm]
        grown[quantity] = round(rise([s.ended for s in warm], values), 2)
        found.check(grown[quantity] <= limit, f"{quantity} grew by {grown[quantity]:g}; at most {limit:g} is allowed")
        rows.append([quantity, *(f"{v:.1f}" for v in (values[0], values[-1], max(values))), grown[quantity], limit])
    figures = {
        "trials": trials, "warm_up": warm_up, "lasted_s": round(lasted_s, 1), "grown": grown, "limits": limits,
        "agent_rss_mb_by_trials": {s.ended: round(s.agent_rss_mb, 2) for s in warm[:: max(1, len(warm) // 12)]},
        "first": asdict(warm[0]), "last": asdict(warm[-1]), "lost": found.lost, "doubled": found.doubled,
        "problems": found.problems,
    }  # fmt: skip
    columns = ["quantity", "after warm-up", "at the end", "largest", "grown (straight line)", "allowed"]
    return Outcome(name=NAME, columns=columns, rows=rows, figures=figures, problems=found.problems)


def rise(ended: Sequence[float], values: Sequence[float]) -> float:
    """Return how much the least-squares line through (ended, value) rises from the first point to the last."""
    n = len(values)
    if n < 2 or ended[-1] == ended[0]:
        return 0.0
    mean_x, mean_y = sum(ended) / n, sum(values) / n
    above = sum((x - mean_x) * (y - mean_y) for x, y in zip(ended, values, strict=True))
    below = sum((x - mean_x) ** 2 for x in ended)
    return above / below * (ended[-1] - ended[0])


def _watch(store: MongoStore, fleet: Fleet) -> list[Sample]:
    """Take samples until the campaign has ended.

    Raises:
        TimeoutError: If it does not end.
    """
    samples = []
    end_s = time.monotonic() + _DEADLINE_S
    while store.campaigns.get(NAME).state is CampaignState.RUNNING:
        if time.monotonic() > end_s:
            raise TimeoutError(f"the campaign did not end within {_DEADLINE_S:g} s")
        for agent in fleet.running("worker"):
            sample = _sample(store, fleet, agent.process.pid) if agent.process else None
            samples += [] if sample is None else [sample]
        time.sleep(_EVERY_S)
    return samples


def _sample(store: MongoStore, fleet: Fleet, agent: int) -> Sample | None:
    """Return a sample, or None while the agent is starting or ending."""
    servers = fork_servers(agent)
    counts = store.trials.counts(NAME)
    if not servers:
        return None
    agent_fds, server_fds = _descriptors(agent), _descriptors(servers[0])
    with contextlib.suppress(OSError):
        return Sample(
            ended=sum(count for state, count in counts.items() if state == "finished"),
            agent_rss_mb=_status(agent, "VmRSS") / 1024,
            server_rss_mb=_status(servers[0], "VmRSS") / 1024,
            agent_fds=len(agent_fds),
            server_fds=len(server_fds),
            sockets=sum(name.startswith("socket:") for name in agent_fds + server_fds),
            threads=_status(agent, "Threads"),
            processes=len(children(servers[0])),
            temporary_files=len(fleet.temporary_files()),
        )
    return None


def _status(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    return 0


def _descriptors(pid: int) -> list[str]:
    found: list[Any] = []
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(os.readlink(entry))
    return found

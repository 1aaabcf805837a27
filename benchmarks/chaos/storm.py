"""Storm: a campaign under faults of every kind, at random moments, for as long as it runs."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from autotune.campaign import parse_campaign
from autotune.errors import StoreError
from autotune.local.resolve import resolve
from autotune.store.mongo import MongoStore
from autotune.trial import Attempt, CampaignState, Trial
from benchmarks.chaos import objectives
from benchmarks.chaos.audit import Audit, Outcome, audit, audit_processes, spread, summary
from benchmarks.chaos.faults import Faults, Injected, now, pid_of
from benchmarks.chaos.processes import Fleet, StoreServer

NAME = "storm"
LEASE = {"duration_s": 3.0, "renewal_s": 1.0}
_POLL_S = 0.05
_SOON_S = 0.5
"""A training that was killed before it said which trial it is ended its attempt within this time."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a run is.

    Attributes:
        trials: The budget.
        agents: Number of agents.
        slots: Slots of each.
        least_s: Shortest training, seconds.
        most_s: Longest training, seconds.
        first_s: Mean time between two faults until there was one of each kind, seconds.
        gap_s: Mean time between two faults after that, seconds.
        outage_s: Longest outage of the store, seconds, its start not counted.
        deadline_s: The campaign must be over by then.
    """

    trials: int
    agents: int
    slots: int
    least_s: float
    most_s: float
    first_s: float
    gap_s: float
    outage_s: float
    deadline_s: float


LONG = Size(
    trials=500, agents=4, slots=5, least_s=1.0, most_s=4.0, first_s=1.0, gap_s=1.0, outage_s=4.0, deadline_s=1800.0
)
SHORT = Size(
    trials=40, agents=2, slots=2, least_s=0.5, most_s=1.2, first_s=0.5, gap_s=2.5, outage_s=1.5, deadline_s=120.0
)


def campaign(name: str, trials: int, folder: Path, least_s: float, most_s: float, seed: int) -> dict[str, Any]:
    """Return a campaign file of the chaos objective.

    Args:
        name: Name of the campaign.
        trials: The budget.
        folder: Where its trainings write which trial they are.
        least_s: Shortest training, seconds.
        most_s: Longest training, seconds.
        seed: Seed of the search.
    """
    return {
        "name": name,
        "objective": "benchmarks.chaos.objectives:descent",
        "metric": {"name": "loss", "mode": "min"},
        "space": objectives.SPACE,
        "search": {"algorithm": "tpe", "seed": seed},
        "budget": {"max_trials": trials},
        "fixed": {"folder": str(folder), "least_s": least_s, "most_s": most_s},
        "lease": LEASE,
    }


@dataclass(kw_only=True)
class LeadWatch:
    """Watches who leads a campaign, in a thread of its own.

    Attributes:
        uri: The store.
        campaign: The campaign.
        seen: (when, process id) each time that another coordinator was first seen to lead.
    """

    uri: str
    campaign: str
    seen: list[tuple[datetime, int]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> LeadWatch:
        self._thread = threading.Thread(target=self._run, name="lead-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        with MongoStore(self.uri, 1.0, prepare=False) as store:
            while not self._stop.wait(_POLL_S):
                try:
                    leader = pid_of(store.leaders.leader(self.campaign))
                except StoreError:
                    continue
                if leader is not None and (not self.seen or self.seen[-1][1] != leader):
                    self.seen.append((now(), leader))

    def take_over_s(self, kill: Injected, outages: Iterable[tuple[datetime, datetime]] = ()) -> float | None:
        """Return the seconds from the kill of a leading coordinator to the lead of another, or None if none came.

        Args:
            kill: The kill.
            outages: (from, to): time in these is not counted.
        """
        at = next((at for at, pid in self.seen if at > kill.at and pid != kill.pid), None)
        if at is None:
            return None
        without_s = [(min(at, end) - max(kill.at, start)).total_seconds() for start, end in outages]
        return (at - kill.at).total_seconds() - sum(max(0.0, s) for s in without_s)


def run(*, short: bool = False, seed: int = 0) -> Outcome:
    """Run the storm and return what it found. No process is left, however it ends.

    Args:
        short: 40 trials on 4 slots, each kind of fault at least once, in well under a minute; else 500 on 20.
        seed: Seed of the faults and of the search.
    """
    size = SHORT if short else LONG
    with tempfile.TemporaryDirectory(prefix="autotune-chaos-") as place:
        folder = Path(place)
        with StoreServer.running(folder / "store") as server, MongoStore(server.uri) as store:
            children = folder / "children"
            content = campaign(NAME, size.trials, children, size.least_s, size.most_s, seed)
            store.campaigns.create(resolve(parse_campaign(content)))
            fleet = Fleet(folder=folder, store_uri=server.uri, campaign=NAME)
            faults = Faults(
                fleet=fleet,
                server=server,
                store=store,
                draw=random.Random(seed),
                lease_s=LEASE["duration_s"],
                outage_s=size.outage_s,
            )
            try:
                with LeadWatch(uri=server.uri, campaign=NAME) as leads:
                    fleet.start(workers=size.agents, slots=size.slots, coordinators=2)
                    lasted_s = _blow(faults, size)
                    faults.end()
                found = audit(store, NAME, size.trials, objectives.descent)
                audit_processes(found, fleet)
            finally:
                fleet.kill()
    return _outcome(found, faults, leads, size, lasted_s)


def _blow(faults: Faults, size: Size) -> float:
    """Deliver faults until the campaign has ended; each kind once at first, then at random. Return how long it took.

    Raises:
        TimeoutError: If the campaign does not end.
    """
    started_s = time.monotonic()
    order = sorted(faults.kinds)
    faults.draw.shuffle(order)
    due_s = 0.0
    while not _ended(faults):
        lasted_s = time.monotonic() - started_s
        if lasted_s > size.deadline_s:
            raise TimeoutError(f"the campaign did not end within {size.deadline_s:g} s under faults")
        faults.go_on()
        if _claimed(faults) and time.monotonic() >= due_s:
            missing = faults.missing(order)
            faults.inject(missing or faults.choose())
            due_s = time.monotonic() + faults.draw.expovariate(1 / (size.first_s if missing else size.gap_s))
        time.sleep(_POLL_S)
    return time.monotonic() - started_s


def _ended(faults: Faults) -> bool:
    try:
        return faults.store.campaigns.get(faults.fleet.campaign).state is not CampaignState.RUNNING
    except StoreError:
        return False


def _claimed(faults: Faults) -> bool:
    """Return whether the campaign's first trials have begun: before that there is nothing to disturb."""
    return any((faults.fleet.folder / "children").iterdir())


def _outcome(found: Audit, faults: Faults, leads: LeadWatch, size: Size, lasted_s: float) -> Outcome:
    missing = [kind for kind in faults.kinds if not faults.count(kind)]
    problems = [*found.problems, *(f"no fault of the kind '{kind}' was delivered" for kind in missing)]
    shares = attribute(faults.injected, found.trials)
    rows: list[list[Any]] = []
    for kind in faults.kinds:
        ended = shares.get(kind, [])
        rows.append([kind, faults.count(kind), len(ended), *(spread(back_s(ended)))])
    rows.append(["(none that explains it)", "", len(shares.get("", [])), "", ""])
    injected = sum(faults.count(kind) for kind in faults.kinds)
    attempts = sum(len(t.attempts) for t in found.trials)
    causes = dict(Counter(str(a.cause) for t in found.trials for a in t.attempts if a.cause is not None))
    back = [s for ended in shares.values() for s in back_s(ended)]
    rows.append(["all", injected, sum(map(len, shares.values())), *spread(back)])
    kills = [i for i in faults.injected if i.kind == "SIGKILL of a coordinator" and i.led]
    took_s = [s for s in map(leads.take_over_s, kills) if s is not None]
    outages = [(i.at, i.until) for i in faults.injected if i.kind == "kill -9 of mongod" and i.until is not None]
    up_s = [s for s in (leads.take_over_s(kill, outages) for kill in kills) if s is not None]
    rows.append(["(lead taken over from a killed coordinator)", len(kills), "", *spread(took_s)])
    rows.append(["(the same, without the time in which there was no store)", len(kills), "", *spread(up_s)])
    figures = {
        "trials": size.trials, "slots": size.agents * size.slots, "lasted_s": round(lasted_s, 1),
        "faults": {kind: faults.count(kind) for kind in faults.kinds}, "attempts": attempts, "causes": causes,
        "lost": found.lost, "doubled": found.doubled, "late_results_kept": found.late,
        "requeue_s": summary(back),
        "take_over_s": summary(took_s), "take_over_store_up_s": summary(up_s), "leaders_killed": len(kills),
        "problems": problems,
        "unexplained": [f"{e.attempt.cause}: {e.attempt.message}" for e in shares.get("", [])],
    }  # fmt: skip
    columns = ["fault", "delivered", "attempts ended", "requeued after, median s", "worst s"]
    return Outcome(name=NAME, columns=columns, rows=rows, figures=figures, problems=problems)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """An attempt that a fault ended, and when that fault was delivered (None: not known)."""

    attempt: Attempt
    at: datetime | None


def attribute(injected: Iterable[Injected], trials: Iterable[Trial]) -> dict[str, list[Ended]]:
    """Return kind of fault -> attempts that it ended, as far as process and time tell; ``""``: no fault explains it.

    A fault that hit the attempt's own process counts before one that hit the store while the attempt ran.
    """
    newest = sorted(injected, key=lambda i: i.at, reverse=True)
    shares: dict[str, list[Ended]] = {}
    for trial in trials:
        for index, attempt in enumerate(trial.attempts):
            if attempt.cause is None or attempt.ended_at is None:
                continue
            by = next((f for f in newest if _hit(f, trial.number, index, attempt)), None)
            by = by or next((f for f in newest if _cut_off(f, attempt)), None)
            ended = Ended(attempt=attempt, at=None if by is None or by.pid is None else by.at)
            shares.setdefault("" if by is None else by.kind, []).append(ended)
    return shares


def _hit(fault: Injected, number: int, index: int, attempt: Attempt) -> bool:
    """Return whether a fault to a process ended this attempt."""
    if attempt.ended_at is None or attempt.started_at is None or not attempt.started_at <= fault.at <= attempt.ended_at:
        return False
    if fault.kind.endswith("training"):
        words = "by SIGKILL" if "SIGKILL" in fault.kind else "stopped by a signal"
        soon = (attempt.ended_at - fault.at).total_seconds() < _SOON_S
        mine = soon if fault.trial is None else fault.trial == (number, index)
        return mine and words in (attempt.message or "")
    if fault.kind.endswith("fork server"):
        return pid_of(attempt.owner) == fault.pid and "fork server" in (attempt.message or "")
    return fault.pid is not None and pid_of(attempt.owner) == fault.pid


def _cut_off(fault: Injected, attempt: Attempt) -> bool:
    """Return whether the store was away, or lost replies, at some moment of this attempt."""
    if fault.pid is not None or not fault.count or attempt.ended_at is None or attempt.started_at is None:
        return False
    return attempt.started_at <= (fault.until or fault.at) and fault.at <= attempt.ended_at


def back_s(ended: Iterable[Ended]) -> list[float]:
    """Return the seconds from each fault to the return of its trial to the queue."""
    return [
        (e.attempt.ended_at - e.at).total_seconds()
        for e in ended
        if e.at is not None and e.attempt.ended_at is not None
    ]

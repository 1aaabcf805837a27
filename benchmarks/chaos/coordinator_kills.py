"""Coordinators killed with -9 at random points of campaigns with one slot, while another one stands by.

What must come out is what an undisturbed run proposes: the same numbers, configurations and seeds, none twice. Several
campaigns run side by side, since each take-over waits for the dead one's lead to run out.

    python -m benchmarks.chaos.coordinator_kills [--short] [--seed N]
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from autotune.campaign import parse_campaign
from autotune.local.resolve import resolve
from autotune.store.base import WorkerRecord
from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState, Cause, Failure, Result, Trial, TrialState
from benchmarks.chaos.namespaces import wait_until
from benchmarks.chaos.partition import script
from benchmarks.chaos.processes import ROOT, StoreServer

TAKE_OVER_S = 10.0  # a standby must have taken over by then
_SPACE = {"x": {"float": [-2, 2]}, "rate": {"log_float": [1e-4, 1]}, "kind": {"choice": ["a", "b", "c"]}}
_POINTS = {"start": 0.25, "lead": 0.2, "propose": 0.25, "any": 0.2, "both": 0.1}
"""When to kill, with weights: a standby while it starts; a leader just after it took the lead, just after it proposed,
or any time; leader and standby at the same moment."""
_LINE = re.compile(r" action=(\S+)(?:.* number=(\d+))?")
_TRIAL_S = 0.15
_LEASE_S = 600.0
_SEEN_S = 5.0
_POLL_S = 0.02


def result_of(params: dict[str, Any]) -> float | None:
    """Return the score of a configuration, or None where it has none: one in eight fails, always the same ones."""
    if params["x"] > 1.5:
        return None
    return float(params["x"] ** 2 + math.log10(params["rate"] / 0.01) ** 2 + "abc".index(params["kind"]))


class Slot:
    """The only slot of a campaign: takes its trials and ends them, no further than it is allowed to."""

    def __init__(self, store: MongoStore, campaign: str, seed: int) -> None:
        self.allowed = 0
        self.done = 0
        self._store = store
        self._campaign = campaign
        self._id = f"slot-{campaign}"
        self._draw = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self._id, daemon=True)

    def __enter__(self) -> Slot:
        record = WorkerRecord(id=self._id, host="chaos", pid=os.getpid(), slots=1, campaigns=(self._campaign,))
        self._store.workers.register(record)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._store.workers.stopped(self._id)

    def _run(self) -> None:
        seen_s = time.monotonic()
        while not self._stop.wait(_POLL_S):
            if time.monotonic() - seen_s > _SEEN_S:
                self._store.workers.seen(self._id)
                seen_s = time.monotonic()
            if self.done < self.allowed:
                token = secrets.token_hex(16)
                trial = self._store.trials.claim([self._campaign], owner=self._id, token=token, duration_s=_LEASE_S)
                if trial is not None:
                    self._end(trial)

    def _end(self, trial: Trial) -> None:
        self._stop.wait(self._draw.uniform(0, _TRIAL_S))
        score = result_of(dict(trial.params))
        if trial.lease is None:
            return
        if score is None:
            self._store.trials.end_attempt(trial.lease, Failure(cause=Cause.NOT_A_NUMBER, message="the score is NaN"))
        else:
            self._store.trials.finish(trial.lease, Result(score=score, metrics={"loss": {"value": score}}))
        self.done += 1


class Line(NamedTuple):
    """A line of a coordinator's log: when it was read (monotonic seconds), what was done, and to which trial."""

    at_s: float
    action: str
    number: int | None


class Watched:
    """A coordinator process whose log is read as it comes."""

    def __init__(self, store_uri: str, campaign: str) -> None:
        command = [sys.executable, "-m", "autotune.cli.main", "coordinator", campaign, "--with-parent"]
        self.lines: list[Line] = []
        self.other_text: list[str] = []
        self.process = subprocess.Popen(
            [*command, str(os.getpid())], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, cwd=ROOT, env={**os.environ, "AUTOTUNE_STORE": store_uri, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, name="log", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self.process.stderr or contextlib.nullcontext(()) as log:
            for line in log:
                if found := _LINE.search(line):
                    number = None if found[2] is None else int(found[2])
                    self.lines.append(Line(at_s=time.monotonic(), action=found[1], number=number))
                else:
                    self.other_text.append(line.rstrip())

    def first(self, action: str, after_s: float = -math.inf) -> Line | None:
        """Return its first line of an action after a time."""
        return next((line for line in list(self.lines) if line.action == action and line.at_s > after_s), None)

    def stands_by(self) -> bool:
        """Return whether it has come as far as its connections to the store."""
        with contextlib.suppress(OSError):
            links = [os.readlink(file) for file in Path(f"/proc/{self.process.pid}/fd").iterdir()]
            return sum(link.startswith("socket:") for link in links) >= 3  # two watch the server, one sends commands
        return False

    def led_s(self) -> float:
        """Return when it last took the lead, or minus infinity."""
        return max((line.at_s for line in list(self.lines) if line.action == "lead"), default=-math.inf)

    def kill(self) -> float:
        """Kill it with SIGKILL; return the time of that."""
        killed_s = time.monotonic()
        self.process.kill()
        self.wait()
        return killed_s

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for its end and the end of its log; return its exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join()
        return code


@dataclass(kw_only=True)
class Pair:
    """The coordinators of one campaign: one leads, one stands by; who is killed is replaced.

    Attributes:
        store_uri: The store.
        campaign: Name of the campaign.
        live: Those that run.
        all: All that ever ran.
    """

    store_uri: str
    campaign: str
    live: list[Watched] = field(default_factory=list)
    all: list[Watched] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def running(cls, store_uri: str, campaign: str) -> Iterator[Pair]:
        """Start both; all are gone at the end."""
        pair = cls(store_uri=store_uri, campaign=campaign)
        try:
            pair.start()
            pair.start()
            yield pair
        finally:
            for one in pair.live:
                one.kill()

    def start(self) -> Watched:
        """Start one more."""
        one = Watched(self.store_uri, self.campaign)
        self.live.append(one)
        self.all.append(one)
        return one

    def kill(self, one: Watched) -> float:
        """Kill one; return the time of that."""
        self.live.remove(one)
        return one.kill()

    def leader(self, after: Watched | None = None) -> tuple[Watched, float]:
        """Wait until one that lives leads, and took the lead after `after` did; return it, and when it took it.

        On a busy machine a leader may lose its lead alive: the standby has led for a while then.
        """
        since_s = -math.inf if after is None else after.led_s()
        wait_until(lambda: any(w.led_s() > since_s for w in self.live), f"a leader of {self.campaign}")
        newest = max(self.live, key=Watched.led_s)
        return newest, newest.led_s()

    def proposed(self, after_s: float) -> Line:
        """Wait until one that lives proposes after a time; return its line."""
        return wait_until(
            lambda: next((line for w in self.live if (line := w.first("propose", after_s))), None),
            f"a proposal for {self.campaign}",
        )


@dataclass(kw_only=True)
class Figures:
    """Kills by point, and seconds from a leader's death to the lead of the standby, and to its next proposal.

    `cold_after_s` is that to the next proposal where no standby lived, or it was still starting.
    """

    kills: Counter[str] = field(default_factory=Counter)
    leads_after_s: list[float] = field(default_factory=list)
    proposes_after_s: list[float] = field(default_factory=list)
    cold_after_s: list[float] = field(default_factory=list)


def kill_often(pair: Pair, slot: Slot, kills: int, trials: int, draw: random.Random) -> Figures:
    """Kill coordinators of a campaign so often, spread over its trials; then let it go on to its end."""
    figures = Figures()
    points = draw.choices(list(_POINTS), list(_POINTS.values()), k=kills)
    pair.leader()
    for number, (point, following) in enumerate(zip(points, [*points[1:], ""], strict=True), start=1):
        slot.allowed = trials * number // (kills + 1)
        figures.kills[point] += 1
        leader, _ = pair.leader()
        if point == "start":
            pair.kill(next(w for w in pair.live if w is not leader))
            figures.kills["standby"] += 1
            young = pair.start()
            time.sleep(draw.uniform(0.0, 1.5))
            pair.kill(young)
            pair.start()
            continue
        _wait_for_point(pair, leader, point, draw)
        if point != "both" and not figures.proposes_after_s:  # one take-over at least is measured, however slow we are
            wait_until(lambda one=leader: any(w.stands_by() for w in pair.live if w is not one), "a standby")
        cold = point == "both" or not any(w.stands_by() for w in pair.live if w is not leader)
        killed_s = pair.kill(leader)
        if point == "both":
            pair.kill(pair.live[0])
            figures.kills["standby"] += 1
            pair.start()
        pair.start()
        slot.allowed = min(trials - 1, slot.allowed + 1)  # so that there is something to propose
        _, led_s = pair.leader(after=leader)
        if not cold:
            figures.leads_after_s.append(max(0.0, led_s - killed_s))
        if following != "lead":  # else it may not live to propose
            proposed_s = pair.proposed(killed_s).at_s - killed_s
            (figures.cold_after_s if cold else figures.proposes_after_s).append(proposed_s)
    slot.allowed = trials
    return figures


def _wait_for_point(pair: Pair, leader: Watched, point: str, draw: random.Random) -> None:
    if point == "propose":
        last = len(leader.lines)
        with contextlib.suppress(TimeoutError):  # it may have proposed all that it may
            wait_until(lambda: len(leader.lines) > last, "the next line", draw.uniform(0.0, 0.5))
        time.sleep(draw.uniform(0.0, 0.02))
    else:
        time.sleep(draw.uniform(0.0, 0.1 if point == "lead" else 1.5))


def campaign(store: MongoStore, name: str, search: dict[str, Any], trials: int) -> None:
    """Write a campaign."""
    content = {
        "name": name, "objective": "math:fsum", "metric": {"name": "loss", "mode": "min"}, "space": _SPACE,
        "search": search, "budget": {"max_trials": trials}, "failures": {"abort_after": 0},
    }  # fmt: skip
    store.campaigns.create(resolve(parse_campaign(content)))


def proposals(store: MongoStore, name: str) -> list[tuple[int, Any, int]]:
    """Return (number, configuration, seed) of all trials of a campaign."""
    return [(t.number, dict(t.params), t.seed) for t in store.trials.find(name)]


def undisturbed(store: MongoStore, name: str, search: dict[str, Any], trials: int) -> list[tuple[int, Any, int]]:
    """Run a campaign with one coordinator that nobody kills; return its proposals."""
    campaign(store, name, search, trials)
    with Slot(store, name, 0) as slot:
        slot.allowed = trials
        one = Watched(store.uri, name)
        try:
            one.wait(120)
        finally:
            one.kill()
    return proposals(store, name)


def disturbed(store: MongoStore, algorithm: str, seed: int, *, kills: int, trials: int) -> tuple[Figures, list[str]]:
    """Run a campaign undisturbed and once more with kills; return the figures and what was lost."""
    search = {"algorithm": algorithm, "seed": seed, **({"startup": trials // 4} if algorithm == "tpe" else {})}
    name = f"killed-{algorithm}-{seed}"
    expected = undisturbed(store, f"whole-{algorithm}-{seed}", search, trials)
    campaign(store, name, search, trials)
    with Slot(store, name, seed) as slot, Pair.running(store.uri, name) as pair:
        try:
            figures = kill_often(pair, slot, kills, trials, random.Random(seed))
            codes = [one.wait() for one in list(pair.live)]
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            return Figures(), [f"{name}: {error}"]
    losses = [] if codes == [0] * len(codes) else [f"the last coordinators ended with codes {codes}"]
    losses += audit(store, name, expected, trials)
    said = Counter(line.number for one in pair.all for line in one.lines if line.action == "propose")
    losses += [f"trial {number} was proposed {count} times" for number, count in said.items() if count > 1]
    losses += [f"a coordinator said: {one.other_text[-1]}" for one in pair.all if one.other_text]
    return figures, [f"{name}: {loss}" for loss in losses]


def audit(store: MongoStore, name: str, expected: list[tuple[int, Any, int]], trials: int) -> list[str]:
    """Return what is wrong with a campaign, against the proposals of an undisturbed one."""
    losses = []
    record, found = store.campaigns.get(name), store.trials.find(name)
    if record.state is not CampaignState.FINISHED:
        losses.append(f"the campaign is {record.state}")
    if [t.number for t in found] != list(range(trials)):
        losses.append(f"it has {len(found)} trials; the budget is {trials}")
    if len({t.config_hash for t in found}) != len(found):
        losses.append("a configuration was proposed twice")
    for trial in found:
        state = TrialState.FAILED if result_of(dict(trial.params)) is None else TrialState.FINISHED
        if trial.state is not state or len(trial.attempts) != 1:
            losses.append(f"trial {trial.number} is {trial.state} after {len(trial.attempts)} attempts")
    pairs = zip(expected, proposals(store, name), strict=False)
    other = next((number for number, (a, b) in enumerate(pairs) if a != b), None)
    if other is not None or len(expected) != trials:
        losses.append(f"from trial {other} on the proposals are not those of the undisturbed run")
    return losses


def run(folder: Path, *, short: bool, seed: int) -> dict[str, Any]:
    """Kill coordinators of several campaigns side by side; return the figures, and ``losses``.

    Args:
        folder: An empty folder.
        short: 12 kills of leaders and standbys in place of 200.
        seed: Of the campaigns, and of the points of the kills.
    """
    campaigns, kills, trials = (4, 3, 16) if short else (4, 45, 120)
    with StoreServer.running(folder / "store") as server, MongoStore(server.uri) as store:
        with ThreadPoolExecutor(campaigns) as pool:
            jobs = [
                pool.submit(disturbed, store, ("tpe", "random")[i % 2], 100 * seed + i, kills=kills, trials=trials)
                for i in range(campaigns)
            ]
        done = [job.result() for job in jobs]
    figures = [f for f, _ in done]
    losses = [loss for _, lost in done for loss in lost]
    by_point = sum((f.kills for f in figures), Counter[str]())
    proposes_s = [s for f in figures for s in f.proposes_after_s]
    limit_s = 3 * TAKE_OVER_S if short else TAKE_OVER_S  # tests share their machine
    losses += [f"a take-over took {s:.1f} s" for s in proposes_s if s > limit_s]
    return {
        "campaigns": campaigns,
        "trials_of_each": trials,
        "kills": by_point.total(),
        "kills_by_point": dict(by_point),
        "load_average_15_min": round(os.getloadavg()[2], 1),
        "standby_leads_after_s": _spread([s for f in figures for s in f.leads_after_s]),
        "standby_proposes_after_s": _spread(proposes_s),
        "without_standby_proposes_after_s": _spread([s for f in figures for s in f.cold_after_s]),
        "losses": losses,
    }


def _spread(values: list[float]) -> dict[str, float]:
    """Return number, median and worst."""
    if not values:
        return {"number": 0}
    return {"number": len(values), "median": round(statistics.median(values), 2), "worst": round(max(values), 2)}


def main() -> None:
    """Run the scenario; write ``results/coordinator_kills.json`` unless it is the short form."""
    script(__doc__ or "", "coordinator_kills", run)


if __name__ == "__main__":
    main()

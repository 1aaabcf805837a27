"""Partition: a worker's link to the store is cut while a trial trains, for longer than its lease, and mended.

Store, coordinator and worker are three hosts (network namespaces). Where those cannot be made, and besides, the
worker reaches the store through a proxy that stops forwarding and closes nothing.

    python -m benchmarks.chaos.partition [--short] [--seed N]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.campaign import parse_campaign
from autotune.local.resolve import resolve
from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState, Trial, TrialState
from benchmarks.chaos.namespaces import (
    NamespacesUnavailableError,
    Site,
    namespaces_site,
    process,
    proxy_site,
    wait_until,
)
from benchmarks.chaos.processes import alive

LEASE = {"duration_s": 3.0, "renewal_s": 1.0}
PATIENT_LEASE = {"duration_s": 9.0, "renewal_s": 1.0}
"""For the short cuts of the short form, which runs beside other work: a worker may be held up for seconds there."""
_TRIALS = 5
_LISTENING = "0A"
_AUTOTUNE = [sys.executable, "-m", "autotune.cli.main"]


def train(trial: Any) -> float:
    """Report until the file of this attempt, or the one for all, is there; return x squared."""
    folder = Path(trial.params["folder"])
    (folder / f"running-{trial.number}-{trial.attempt}").write_text(str(os.getpid()))
    step = 0
    while not ((folder / "open").exists() or (folder / f"open-{trial.number}-{trial.attempt}").exists()):
        time.sleep(0.1)
        step += 1
        trial.report(step, loss=1.0 / step)
    return float(trial.params["x"]) ** 2


def connections(pid: int) -> tuple[set[str], int]:
    """Return (addresses ``host:port`` that the namespace of a process has IPv4 connections to, listening sockets)."""
    remote, listening = set(), 0
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, _, other, state = line.split()[:4]
            if state == _LISTENING or (table.startswith("udp") and int(other.rpartition(":")[2], 16) == 0):
                listening += 1
            else:
                address, _, port = other.partition(":")
                host = socket.inet_ntoa(bytes.fromhex(address)[::-1]) if len(address) == 8 else address
                remote.add(f"{host}:{int(port, 16)}")
    return remote, listening


@dataclass(kw_only=True)
class Case:
    """One campaign on a site, with a coordinator near the store.

    Attributes:
        site: Where.
        folder: Logs, and the files that let trials end.
        name: Of campaign and database.
        lease: The campaign's.
        store: The store, open, as seen from near.
        stack: Ends all processes.
        figures: What was measured.
    """

    site: Site
    folder: Path
    name: str
    lease: Mapping[str, float]
    store: MongoStore
    stack: contextlib.ExitStack
    figures: dict[str, Any] = field(default_factory=dict)
    losses: list[str] = field(default_factory=list)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    doors: set[str] = field(default_factory=set)
    _cut_s: float = 0.0

    @classmethod
    @contextlib.contextmanager
    def opened(cls, site: Site, folder: Path, name: str, lease: Mapping[str, float] = LEASE) -> Iterator[Case]:
        """Create the campaign and start its coordinator; all processes are gone at the end."""
        folder.mkdir(parents=True)
        with site.near(), contextlib.ExitStack() as stack:
            store = stack.enter_context(MongoStore(site.near_uri.format(name)))
            content = {
                "name": name, "objective": "benchmarks.chaos.partition:train",
                "metric": {"name": "loss", "mode": "min"}, "space": {"x": {"float": [-2, 2]}},
                "search": {"algorithm": "random", "seed": 0}, "budget": {"max_trials": _TRIALS},
                "lease": dict(lease), "fixed": {"folder": str(folder)},
            }  # fmt: skip
            store.campaigns.create(resolve(parse_campaign(content)))
            case = cls(site=site, folder=folder, name=name, lease=lease, store=store, stack=stack)
            uri = site.near_uri.format(name)
            stack.enter_context(
                process([*_AUTOTUNE, "coordinator", name], folder, "coordinator.log", AUTOTUNE_STORE=uri)
            )
            try:
                yield case
            finally:
                site.mend()

    def worker(self, place: str) -> subprocess.Popen[bytes]:
        """Start a worker with one slot, ``near`` or ``far``."""
        uri = (self.site.near_uri if place == "near" else self.site.far_uri).format(self.name)
        command = [*_AUTOTUNE, "worker", "--campaign", self.name, "--devices", "cpu", "--threads", "1"]
        with self.site.near() if place == "near" else self.site.far():
            started = self.stack.enter_context(process(command, self.folder, f"{place}.log", AUTOTUNE_STORE=uri))
        self.workers.append(started)
        if place == "far" and self.site.only_door:
            seen = threading.Event()
            thread = threading.Thread(target=self._look_at_doors, args=(started.pid, seen), daemon=True)
            thread.start()
            self.stack.callback(thread.join)
            self.stack.callback(seen.set)
        return started

    def _look_at_doors(self, pid: int, end: threading.Event) -> None:
        while not end.wait(0.1):
            with contextlib.suppress(OSError):
                remote, listening = connections(pid)
                self.doors |= remote
                if listening:
                    self.doors.add(f"{listening} listening sockets")

    def began(self, number: int, attempt: int) -> int:
        """Wait until an attempt trains; return its process id."""
        file = self.folder / f"running-{number}-{attempt}"
        return int(wait_until(lambda: file.exists() and file.read_text(), f"attempt {attempt} of trial {number}"))

    def let_end(self, number: int, attempt: int) -> None:
        """Let an attempt end."""
        (self.folder / f"open-{number}-{attempt}").touch()

    def wait_for(self, number: int, state: TrialState) -> Trial:
        """Wait until a trial is in a state."""

        def there() -> Trial | None:
            trial = self.store.trials.get(self.name, number)
            return trial if trial.state is state else None

        return wait_until(there, f"trial {number} {state}")

    def cut(self) -> None:
        """Cut the link."""
        self.site.cut()
        self._cut_s = time.monotonic()

    def since_cut_s(self) -> float:
        """Return the seconds since the link was cut."""
        return round(time.monotonic() - self._cut_s, 2)

    def mend_after(self, cut_s: float) -> float:
        """Mend the link when it was cut for so many seconds; return the time of that."""
        time.sleep(max(0.0, self._cut_s + cut_s - time.monotonic()))
        self.figures["cut_s"] = self.since_cut_s()
        self.site.mend()
        return time.monotonic()

    def expect(self, holds: object, otherwise: str) -> None:
        """Note a loss unless something holds."""
        if not holds:
            self.losses.append(f"{self.site.name} {self.name}: {otherwise}")

    def finish(self) -> None:
        """Let all trials end, wait for the end of the campaign, and check it."""
        (self.folder / "open").touch()
        wait_until(
            lambda: self.store.campaigns.get(self.name).state is not CampaignState.RUNNING, "end of the campaign"
        )
        trials = self.store.trials.find(self.name)
        self.expect([t.number for t in trials] == list(range(_TRIALS)), "numbers are not 0, 1, 2, ...")
        for trial in trials:
            self._check(trial)
        self.expect(all(w.poll() is None for w in self.workers), "a worker died")
        if self.site.only_door:
            self.figures["connections_of_the_worker"] = sorted(self.doors)
            self.expect(self.doors == {self.site.only_door}, f"the worker used more than one door: {self.doors}")

    def _check(self, trial: Trial) -> None:
        accepted = [a for a in trial.attempts if a.cause is None]
        self.expect(trial.state is TrialState.FINISHED, f"trial {trial.number} is {trial.state}")
        self.expect(len(accepted) == 1, f"trial {trial.number} has {len(accepted)} accepted results")
        self.expect(trial.score == float(trial.params["x"]) ** 2, f"trial {trial.number} has another's score")
        reports = self.store.reports.curve(self.name, trial.number)
        steps = [r.step for r in reports]
        self.expect(steps == sorted(set(steps)), f"trial {trial.number} has reports twice")


def taken_over(case: Case, cut_s: float, *, ends_while_cut: bool) -> None:
    """Another worker takes the trial over; the training behind the cut ends meanwhile, or goes on past the mending."""
    case.worker("far")
    training = case.began(0, 0)
    case.cut()
    far_id = case.store.trials.get(case.name, 0).attempts[0].owner
    case.wait_for(0, TrialState.QUEUED)
    case.figures["requeued_after_s"] = case.since_cut_s()
    case.worker("near")
    case.began(0, 1)
    if ends_while_cut:
        case.let_end(0, 0)
        wait_until(lambda: not alive(training), "end of the training behind the cut")
        case.let_end(0, 1)
        case.wait_for(0, TrialState.FINISHED)
    mended_s = case.mend_after(cut_s)
    if ends_while_cut:
        wait_until(lambda: case.store.trials.get(case.name, 0).attempts[0].late_result, "the late result")
    else:
        wait_until(lambda: not alive(training), "end of the training that lost its lease")
        case.let_end(0, 1)
    case.figures["settled_after_mending_s"] = round(time.monotonic() - mended_s, 2)

    def goes_on() -> bool:
        return any(t.lease and t.lease.owner == far_id for t in case.store.trials.heads(case.name) if t.number > 0)

    wait_until(goes_on, "another trial on the worker that was cut off")
    case.finish()
    first, second = case.store.trials.get(case.name, 0).attempts
    case.expect((first.cause, second.cause) == ("lost", None), f"causes are {first.cause}, {second.cause}")
    case.expect(bool(first.late_result) == ends_while_cut, f"late result: {first.late_result}")
    case.figures["late_results"] = int(bool(first.late_result))


def alone(case: Case, cut_s: float) -> None:
    """No other worker: the training ends while its link is cut, and its result is delivered."""
    case.worker("far")
    training = case.began(0, 0)
    case.cut()
    case.wait_for(0, TrialState.QUEUED)
    case.figures["requeued_after_s"] = case.since_cut_s()
    case.let_end(0, 0)
    wait_until(lambda: not alive(training), "end of the training behind the cut")
    mended_s = case.mend_after(cut_s)
    trial = case.wait_for(0, TrialState.FINISHED)
    case.figures["settled_after_mending_s"] = round(time.monotonic() - mended_s, 2)
    case.expect(len(trial.attempts) == 1, f"the trial took {len(trial.attempts)} attempts")
    case.finish()


def short_cuts(case: Case, cuts_s: list[float], draw: random.Random) -> None:
    """Cuts shorter than the lease cost no attempt, whenever they begin."""
    case.worker("far")
    case.began(0, 0)
    recovered = []
    for cut_s in cuts_s:
        time.sleep(draw.uniform(0.0, case.lease["renewal_s"]))
        before = len(case.store.trials.get(case.name, 0).attempts)
        case.cut()
        mended_s = case.mend_after(cut_s)
        lease = case.store.trials.get(case.name, 0).lease
        attempts = _renewed(case, lease.expires_at if lease else None)
        recovered.append(round(time.monotonic() - mended_s, 2))
        case.expect(attempts == before, f"a cut of {cut_s:.1f} s cost an attempt")
    case.figures |= {"cuts_s": [round(c, 2) for c in cuts_s], "renewed_after_mending_s": recovered}
    case.figures.pop("cut_s")
    case.finish()


def _renewed(case: Case, expires_at: Any) -> int:
    """Wait until trial 0 has a lease that runs longer; return the number of its attempts."""

    def longer() -> int | None:
        trial = case.store.trials.get(case.name, 0)
        later = trial.lease and trial.lease.expires_at and (not expires_at or trial.lease.expires_at > expires_at)
        return len(trial.attempts) if later else None

    return int(wait_until(longer, "a renewal after the cut"))


Play = Callable[[Case], None]


def plays(*, short: bool, draw: random.Random) -> dict[str, Play]:
    """Return name -> case."""
    cut_s = 5.0 if short else 15.0
    lease = lease_of("short-cuts", short=short)
    tolerated_s = lease["duration_s"] - lease["renewal_s"]  # so long a cut, whenever it begins, leaves time to renew
    cuts_s = [draw.uniform(0.3, 0.6) * tolerated_s for _ in range(2 if short else 10)]
    return {
        "taken-over": lambda c: taken_over(c, cut_s, ends_while_cut=True),
        "outlasting": lambda c: taken_over(c, cut_s, ends_while_cut=False),
        "alone": lambda c: alone(c, cut_s),
        "short-cuts": lambda c: short_cuts(c, cuts_s, draw),
    }


def lease_of(name: str, *, short: bool) -> Mapping[str, float]:
    """Return the lease of a case's campaign."""
    return PATIENT_LEASE if short and name == "short-cuts" else LEASE


def play(site: Site, folder: Path, name: str, act: Play, *, short: bool) -> dict[str, Any]:
    """Carry one case out; return its figures, with ``losses``."""
    with Case.opened(site, folder / name, name, lease_of(name, short=short)) as case:
        try:
            act(case)
        except TimeoutError as error:
            case.expect(False, str(error))
        return {**case.figures, "losses": case.losses}


def run(folder: Path, *, short: bool, seed: int) -> dict[str, Any]:
    """Carry out all cases on all sites; return the figures of each, and all ``losses``.

    Args:
        folder: An empty folder.
        short: The short form, about a minute.
        seed: Of the lengths and beginnings of short cuts.
    """
    draw = random.Random(seed)
    figures: dict[str, Any] = {"lease": LEASE}
    sites: dict[str, Callable[[Path], AbstractContextManager[Site]]] = {"namespaces": namespaces_site}
    if not short:
        sites["namespaces-carrier"] = lambda f: namespaces_site(f, "carrier")
    sites["proxy"] = proxy_site
    for name, make in sites.items():
        try:
            with make(folder / name) as site:
                cases = plays(short=short, draw=draw)
                figures[name] = {c: play(site, folder / name, c, a, short=short) for c, a in cases.items()}
        except NamespacesUnavailableError as error:
            figures[name] = {"not run": str(error)}
    cases = [c for site in figures.values() for c in site.values() if isinstance(c, dict)]
    figures["losses"] = [loss for case in cases for loss in case.pop("losses")]
    return figures


def main() -> None:
    """Run the scenario; write ``results/partition.json`` unless it is the short form."""
    script(__doc__ or "", "partition", run)


def script(text: str, name: str, scenario: Callable[..., dict[str, Any]]) -> None:
    """Run one scenario from the command line; exit code 1 when something was lost."""
    from benchmarks import common

    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the short form; writes no results")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = scenario(Path(folder), short=options.short, seed=options.seed)
    for key, value in figures.items():
        print(key, value)
    if not options.short:
        command = f"python -m benchmarks.chaos.{name} --seed {options.seed}"
        print(common.write(name, command, figures, common.versions("autotune", "pymongo")))
    sys.exit(1 if figures["losses"] else 0)


if __name__ == "__main__":
    main()

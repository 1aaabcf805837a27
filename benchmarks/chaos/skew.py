"""Clock skew: workers and a coordinator whose clocks are an hour off, beside others whose clocks are right.

Trials last longer than a lease, so that each lives by its renewals. The store's server has the right clock. Only the
time of day is off, as on real machines: where libfaketime moves the clock for durations too, each timed wait of Python
lasts an hour, since it does not see those waits.

    python -m benchmarks.chaos.skew [--short] [--seed N]
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from autotune.campaign import parse_campaign
from autotune.local.resolve import resolve
from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState, Trial, TrialState
from benchmarks.chaos.namespaces import process, wait_until
from benchmarks.chaos.partition import script
from benchmarks.chaos.processes import StoreServer

LEASE = {"duration_s": 3.0, "renewal_s": 1.0}
TRIAL_S = 5.0
HOUR_S = 3600
_AUTOTUNE = [sys.executable, "-m", "autotune.cli.main"]
_REQUEUE_S = LEASE["duration_s"] + 2.0
"""A dead worker's trial is back by then: its lease, and the coordinator's pace."""


class FaketimeMissingError(Exception):
    """There is no libfaketime; the text says how to get it."""


def train(trial: Any) -> dict[str, float]:
    """Report every half second; return x squared, and what this process takes for the time."""
    for step in range(int(TRIAL_S * 2)):
        time.sleep(0.5)
        trial.report(step, loss=1.0 / (step + 1))
    return {"loss": float(trial.params["x"]) ** 2, "clock": time.time()}


def skewed(offset_s: int) -> dict[str, str]:
    """Return the environment of a process whose clock is off.

    Args:
        offset_s: Positive: ahead. 0: nothing is changed.

    Raises:
        FaketimeMissingError: If libfaketime is not installed.
    """
    if offset_s == 0:
        return {}
    found = importlib.util.find_spec("libfaketime")
    library = Path(found.origin or "").parent / "vendor/libfaketime/src/libfaketime.so.1" if found else None
    if library is None or not library.exists():
        raise FaketimeMissingError("libfaketime is not installed: pip install libfaketime")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{offset_s:+d}s",
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def play(uri: str, folder: Path, name: str, offsets_s: dict[str, int], *, trials: int, kill: bool) -> dict[str, Any]:
    """Run one campaign with processes of the given clocks; return its figures, with ``losses``.

    Args:
        uri: The store, with ``{}`` for the database.
        folder: For logs.
        name: Of campaign and database.
        offsets_s: Process -> how far its clock is ahead, seconds; ``coordinator`` and any number of workers.
        trials: The budget.
        kill: Whether the first skewed worker is killed in its second trial, so that its lease must run out in time.
    """
    folder.mkdir(parents=True)
    content = {
        "name": name, "objective": "benchmarks.chaos.skew:train", "metric": {"name": "loss", "mode": "min"},
        "space": {"x": {"float": [-2, 2]}}, "search": {"algorithm": "random", "seed": 0}, "lease": LEASE,
        "budget": {"max_trials": trials},
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(MongoStore(uri.format(name)))
        store.campaigns.create(resolve(parse_campaign(content)))
        workers = {}
        for role, offset_s in offsets_s.items():
            options = [role, name] if role == "coordinator" else ["worker", "--campaign", name, "--devices", "cpu"]
            variables = {"AUTOTUNE_STORE": uri.format(name), **skewed(offset_s)}
            running = stack.enter_context(process([*_AUTOTUNE, *options], folder, f"{role}.log", **variables))
            if role != "coordinator":
                workers[running.pid] = (role, running)
        figures: dict[str, Any] = {"offsets_s": offsets_s}
        victim = None
        if kill:
            pid = next(p for p, (role, _) in workers.items() if offsets_s[role])
            victim, figures["requeued_after_s"] = _kill(store, name, pid)
        wait_until(
            lambda: store.campaigns.get(name).state is not CampaignState.RUNNING, f"end of {name}", trials * 2 * TRIAL_S
        )
        found = [store.trials.get(name, t.number) for t in store.trials.find(name)]
        roles = {pid: role for pid, (role, _) in workers.items()}
        losses = audit(found, {pid: offsets_s[role] for pid, role in roles.items()}, trials, victim)
        owners = [roles[_pid(a.owner)] for t in found for a in t.attempts]
        figures["attempts_by_worker"] = {role: owners.count(role) for role in roles.values()}
        losses += [f"worker {role} ran no trial" for role, count in figures["attempts_by_worker"].items() if not count]
        if kill and figures["requeued_after_s"] > _REQUEUE_S:
            losses.append(f"a lost trial came back only after {figures['requeued_after_s']} s")
        return {**figures, "losses": [f"{name}: {loss}" for loss in losses]}


def _kill(store: MongoStore, name: str, pid: int) -> tuple[int, float]:
    """Kill a worker in its second trial; return (number of that trial, seconds until it was queued again)."""

    def second() -> Trial | None:
        mine = [t for t in store.trials.find(name) if any(_pid(a.owner) == pid for a in t.attempts)]
        running = [t for t in mine if t.state is TrialState.RUNNING]
        return running[0] if len(mine) > 1 and running else None

    trial = wait_until(second, "the second trial of the worker to kill")
    os.kill(pid, signal.SIGKILL)
    killed_s = time.monotonic()
    wait_until(lambda: store.trials.get(name, trial.number).attempts[0].cause, "the killed worker's trial back")
    return trial.number, round(time.monotonic() - killed_s, 2)


def audit(trials: list[Trial], offset_of: dict[int, int], budget: int, victim: int | None) -> list[str]:
    """Return what is wrong with the trials of a campaign.

    Args:
        trials: All of them, whole.
        offset_of: Process id of a worker -> how far its clock is ahead, seconds.
        budget: The campaign's.
        victim: Number of the trial whose worker was killed, or None.
    """
    losses = []
    if [t.number for t in trials] != list(range(budget)):
        losses.append(f"the numbers are {[t.number for t in trials]}")
    for trial in trials:
        causes = [a.cause for a in trial.attempts]
        if trial.state is not TrialState.FINISHED or causes != [*(["lost"] * (trial.number == victim)), None]:
            losses.append(f"trial {trial.number} is {trial.state}; causes of end: {causes}")
            continue
        last = trial.attempts[-1]
        if last.late_result or trial.ended_at is None or last.started_at is None:
            losses.append(f"trial {trial.number} has a late result or no times")
            continue
        ahead_s = float(trial.metrics["clock"]["value"]) - trial.ended_at.timestamp()
        if abs(ahead_s - offset_of[_pid(last.owner)]) > 60:
            losses.append(f"the clock of trial {trial.number} was {ahead_s:.0f} s ahead: this run shows nothing")
        if (trial.ended_at - last.started_at).total_seconds() < TRIAL_S:
            losses.append(f"trial {trial.number} has times of a wrong clock")
    return losses


def _pid(owner: str) -> int:
    """Return the process id in a worker's id (``host-pid-random``)."""
    return int(owner.rsplit("-", 2)[1])


def run(folder: Path, *, short: bool, seed: int) -> dict[str, Any]:
    """Run campaigns whose processes have clocks that are off in different ways; return figures and ``losses``.

    Args:
        folder: An empty folder.
        short: One campaign of 6 trials in place of three of 12, the last of them with a killed worker.
        seed: Not used; the clocks are what they are.
    """
    workers = {"ahead": HOUR_S, "behind": -HOUR_S, "right": 0}
    coordinators = {"skew-ahead": HOUR_S, "skew-behind": -HOUR_S, "skew-killed": HOUR_S}
    names = list(coordinators)[: 1 if short else None]
    figures: dict[str, Any] = {"lease": LEASE, "trial_s": TRIAL_S, "campaigns": []}
    with StoreServer.running(folder / "store") as server:
        uri = server.uri.replace("/autotune?", "/{}?")
        for name in names:
            offsets_s = {"coordinator": coordinators[name], **workers}
            kill, trials = name == "skew-killed", 6 if short else 12
            figures["campaigns"].append(play(uri, folder / name, name, offsets_s, trials=trials, kill=kill))
    figures["losses"] = [loss for campaign in figures["campaigns"] for loss in campaign.pop("losses")]
    return figures


def main() -> None:
    """Run the scenario; write ``results/skew.json`` unless it is the short form."""
    script(__doc__ or "", "skew", run)


if __name__ == "__main__":
    main()

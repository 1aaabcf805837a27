"""The reckoning at the end of a campaign: what was lost, doubled, left over, or is not what a rerun gives."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM
from typing import Any

from autotune.store.mongo import MongoStore
from autotune.trial import ACTIVE_STATES, CampaignState, Cause, Trial, TrialState
from benchmarks.chaos.processes import Fleet
from workers import reporting

PLAUSIBLE = frozenset({Cause.LOST, Cause.PREEMPTED})
"""Causes that faults from outside may give to an attempt; the objective itself never fails."""
_JOURNAL_S = 40.0
_STARTED_WITHOUT_STORE = 4
"""Exit code of a process that found no store when it started; it is started again."""


@dataclass(kw_only=True)
class Outcome:
    """What a scenario found.

    Attributes:
        name: The scenario.
        columns: Heads of its table.
        rows: Its table.
        figures: What goes into the file of results.
        problems: What is not as it must be; empty when it passed.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    figures: dict[str, Any]
    problems: list[str]


@dataclass(kw_only=True)
class Audit:
    """What a campaign left in the store and on the machine.

    Attributes:
        trials: All its trials.
        lost: Trials of the budget that have no result.
        doubled: Results, numbers, configurations or reports that are there more than once.
        late: Results that came when another attempt had the trial: kept beside it, not used.
        problems: Everything that is not as it must be, one line each.
    """

    trials: list[Trial] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0
    late: int = 0
    problems: list[str] = field(default_factory=list)

    def check(self, ok: bool, problem: str) -> bool:
        """Note a problem unless `ok`; return `ok`."""
        if not ok:
            self.problems.append(problem)
        return ok


def audit(
    store: MongoStore, name: str, budget: int, objective: Callable[[Any], Any], causes: frozenset[Cause] = PLAUSIBLE
) -> Audit:
    """Check everything that the store has of a campaign that should have finished.

    Args:
        store: The store, open.
        name: The campaign.
        budget: Number of trials it must have.
        objective: Its objective; each trial is run again by hand, without its pauses.
        causes: Causes that its attempts may have.
    """
    found = Audit(trials=store.trials.find(name))
    record = store.campaigns.get(name)
    found.check(record.state is CampaignState.FINISHED, f"the campaign is {record.state}: {record.message}")
    _states(found, budget)
    _attempts(found, causes)
    _reports(found, store, name)
    for trial in found.trials:
        _rerun(found, store, trial, objective, record.spec.get("fixed") or {})
        if len(trial.attempts) > 1:
            found.late += sum(a.late_result is not None for a in store.trials.get(name, trial.number).attempts)
    return found


def _states(found: Audit, budget: int) -> None:
    numbers = [t.number for t in found.trials]
    finished = {t.number for t in found.trials if t.state is TrialState.FINISHED}
    missing = sorted(set(range(budget)) - finished)
    found.lost = len(missing)
    found.check(not missing, f"{len(missing)} trials of the budget are not finished: {missing[:10]}")
    found.check(sorted(set(numbers)) == list(range(budget)), f"numbers are not 0..{budget - 1}: {len(numbers)} trials")
    for what, values in (("number", numbers), ("configuration", [t.config_hash for t in found.trials])):
        twice = [value for value, count in Counter(values).items() if count > 1]
        found.doubled += len(twice)
        found.check(not twice, f"{what} more than once: {twice[:10]}")
    orphans = [t.number for t in found.trials if t.state in ACTIVE_STATES or t.lease is not None]
    found.check(not orphans, f"trials that are neither ended nor free of a lease: {orphans[:10]}")


def _attempts(found: Audit, causes: frozenset[Cause]) -> None:
    for trial in found.trials:
        won = [a for a in trial.attempts if a.cause is None]
        found.doubled += max(0, len(won) - 1)
        found.check(len(won) == 1, f"trial {trial.number} has {len(won)} attempts that ended with a result")
        tokens = {a.token for a in trial.attempts}
        found.check(len(tokens) == len(trial.attempts), f"trial {trial.number} has a lease token twice")
        for attempt in trial.attempts:
            found.check(attempt.ended_at is not None, f"an attempt at trial {trial.number} has no end")
            if attempt.cause is not None and attempt.cause not in causes:
                found.check(False, f"trial {trial.number}: an attempt ended with {attempt.cause}: {attempt.message}")


def _reports(found: Audit, store: MongoStore, name: str) -> None:
    with store.connection.mapped():
        stages: list[dict[str, Any]] = [
            {"$match": {"campaign": name}},
            {"$group": {"_id": {"number": "$number", "step": "$step"}, "n": {"$sum": 1}}},
            {"$match": {"n": {"$gt": 1}}},
        ]
        twice = [row["_id"] for row in store.connection.database["reports"].aggregate(stages)]
    found.doubled += len(twice)
    found.check(not twice, f"{len(twice)} reports more than once, for example {twice[:1]}")


def _rerun(found: Audit, store: MongoStore, trial: Trial, objective: Callable[[Any], Any], fixed: Any) -> None:
    """Compare a trial's score and curve with a run of its configuration and seed by hand."""
    if trial.state is not TrialState.FINISHED:
        return
    steps: list[tuple[int, dict[str, float]]] = []
    params = {**trial.params, **fixed, "folder": None, "least_s": 0.0, "most_s": 0.0}
    again = objective(
        reporting.Trial(
            params=params, number=trial.number, seed=trial.seed, send=lambda s, m: steps.append((s, dict(m)))
        )
    )
    if not found.check(trial.score == again["loss"], f"trial {trial.number}: {trial.score}, again {again['loss']}"):
        return
    curve = [(r.step, dict(r.metrics)) for r in store.reports.curve(trial.campaign, trial.number)]
    found.check(curve == steps, f"the curve of trial {trial.number} is not whole: {[s for s, _ in curve]}")


def audit_processes(found: Audit, fleet: Fleet) -> None:
    """Stop the processes, and check how they ended and what they left. The store must still run."""
    end_s = time.monotonic() + _JOURNAL_S
    while _journals(fleet) and time.monotonic() < end_s:
        time.sleep(0.1)
    journals = _journals(fleet)
    found.check(not journals, f"{len(journals)} files are left in the journal: {journals[:3]}")
    found.problems += fleet.stop()
    found.problems += fleet.leaks()
    for gone in fleet.exits:
        expected = gone.killed or gone.code in (0, _STARTED_WITHOUT_STORE) or (gone.early and gone.code == -SIGTERM)
        found.check(expected, f"{gone.role} (process {gone.pid}) ended with exit code {gone.code}")
    left = fleet.temporary_files()
    found.check(not left, f"{len(left)} temporary files are left, for example {left[:3]}")
    found.problems += tracebacks(sorted((fleet.folder / "logs").glob("*.log")))


def _journals(fleet: Fleet) -> list[str]:
    """Return the files of the journals: what a killed agent left is delivered by the next one before long."""
    return sorted(path.name for path in (fleet.folder / "home").rglob("*.journal"))


def tracebacks(logs: Sequence[Path]) -> list[str]:
    """Return what the logs say of errors that nobody foresaw, one line for each kind."""
    kinds: Counter[str] = Counter()
    for log in logs:
        inside = False
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("Traceback "):
                inside = True
            elif inside and line and not line.startswith((" ", "\t")):
                kinds[f"{line[:160]} ({log.name.partition('-')[0]})"] += 1
                inside = False
    return [f"unforeseen error in a log, {n} times: {kind}" for kind, n in kinds.items()]


def spread(values: Sequence[float]) -> tuple[str, str]:
    """Return (median, worst) as text."""
    return (f"{statistics.median(values):.2f}", f"{max(values):.2f}") if values else ("", "")


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return median, worst and number of some seconds."""
    if not values:
        return {"n": 0}
    return {"median": round(statistics.median(values), 2), "worst": round(max(values), 2), "n": len(values)}

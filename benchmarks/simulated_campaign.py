"""Simulated campaigns: how well schedules keep slots at work, and what they find for how many epochs.

Decisions come from `autotune.schedule`, through the same call as in a live campaign; only workers and time are
simulated. Without options all figures are measured and ``results/simulated_campaign.json`` is written.

    python -m benchmarks.simulated_campaign
    python -m benchmarks.simulated_campaign --algorithm hyperband --slots 64 --trials 1000 [--curves FILE] [--rough]
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click

from autotune.schedule import Promote, Propose, make_schedule
from benchmarks import common
from benchmarks.simulation import curves as learning
from benchmarks.simulation import textbook
from benchmarks.simulation.pool import Outcome, Pool
from benchmarks.simulation.record import CURVES

MAXIMUM, ETA = 81, 3
ALGORITHMS = ("none", "asha", "hyperband")
FAULTS = {"quiet": learning.QUIET, "rough": learning.ROUGH}


def source(path: Path | None, trials: int, seed: int) -> Any:
    """Return the curves of a campaign: recorded ones of a file, or made up ones."""
    if path is None:
        return learning.synthetic(trials, MAXIMUM, seed)
    return learning.recorded(path, trials, MAXIMUM, seed)


def run(
    algorithm: str, *, slots: int, trials: int, faults: learning.Faults, path: Path | None, seed: int = 0
) -> tuple[Outcome, dict[str, Any]]:
    """Simulate one campaign; return it and its figures."""
    table = source(path, trials, seed)
    settings: dict[str, Any] = {"algorithm": algorithm, "maximum": MAXIMUM}
    pool = Pool(make_schedule(settings), learning.trainings(table, faults, seed), slots=slots, faults=faults, seed=seed)
    started_s = time.monotonic()
    outcome = pool.run()
    took_s = time.monotonic() - started_s
    return outcome, figures(outcome, slots, trials, took_s, float(min(v for v in table[:, -1] if not math.isnan(v))))


def figures(outcome: Outcome, slots: int, trials: int, took_s: float, best: float) -> dict[str, Any]:
    """Return what is reported of a campaign."""
    whole_s = slots * outcome.span_s - outcome.down_s
    states = Counter(str(m.state) for m in outcome.members)
    promotions = Counter(a.rung for a in outcome.log if isinstance(a, Promote))
    return {
        "slots": slots,
        "trials": trials,
        "utilisation_while_work_exists": round(outcome.busy_s / (outcome.busy_s + outcome.idle_work_s), 5),
        "utilisation_whole_campaign": round(outcome.busy_s / whole_s, 4),
        "idle_in_tail": round(outcome.idle_tail_s / whole_s, 4),
        "idle_in_tail_while_winners_waited": round(outcome.idle_waiting_s / whole_s, 4),
        "tail_share_of_time": round(1 - outcome.last_proposal_s / outcome.span_s, 4),
        "hours": round(outcome.span_s / 3600, 2),
        "epochs": outcome.epochs,
        "share_of_full_epochs": round(outcome.epochs / (trials * MAXIMUM), 4),
        "epochs_lost": outcome.lost_epochs,
        "attempts_lost": outcome.lost,
        "states": dict(sorted(states.items())),
        "promotions_to_rung": {str(k): promotions[k] for k in sorted(promotions)},
        "best_found_above_best_there_is": round(outcome.found[-1][1] - best, 4) if outcome.found else None,
        "decisions": outcome.decisions,
        "simulated_in_s": round(took_s, 1),
        "ms_per_decision": round(1000 * took_s / outcome.decisions, 3),
    }


def follows_textbook(algorithm: str, path: Path | None) -> dict[str, Any]:
    """Compare one slot with the textbook, step by step."""
    trials = 2 * 143
    table = learning.trainings(source(path, trials, 0), learning.Faults(), 0)
    table = [t for t in table if not any(math.isnan(v) for v in t.losses)]
    table = (table * 2)[:trials]
    schedule = make_schedule({"algorithm": algorithm, "maximum": MAXIMUM})
    outcome = Pool(schedule, table, slots=1, faults=learning.Faults()).run()
    steps: list[textbook.Step] = []
    proposed = 0
    for action in outcome.log:
        if isinstance(action, Propose):
            steps.append(("propose", proposed, int(action.resource or 0)))
            proposed += 1
        elif isinstance(action, Promote):
            steps.append(("promote", action.number, int(action.resource or 0)))
    expected = getattr(textbook, algorithm)(table, MAXIMUM, ETA)
    return {"steps": len(expected), "equal": steps == expected}


def found_at(outcome: Outcome, epochs: int) -> float | None:
    """Return the best loss of a finished trial when so many epochs had been spent."""
    return min((loss for spent, loss in outcome.found if spent <= epochs), default=None)


def found_over_epochs(path: Path | None, *, slots: int, seeds: int) -> dict[str, Any]:
    """Return the loss above the best there is, per schedule and epochs spent: medians over seeds."""
    trials = {"none": 100, "median": 300, "asha": 2000, "hyperband": 1000}
    at = [500, 1000, 2000, 4000, 8000]
    result: dict[str, Any] = {"epochs": at, "slots": slots, "seeds": seeds}
    for algorithm, count in trials.items():
        rows: list[list[float | None]] = []
        for seed in range(seeds):
            table = source(path, 2000, seed)
            best = float(min(v for v in table[:, -1] if not math.isnan(v)))
            made = learning.trainings(table[:count], learning.ROUGH, seed)
            schedule = make_schedule({"algorithm": algorithm, "maximum": MAXIMUM})
            outcome = Pool(schedule, made, slots=slots, faults=learning.ROUGH, seed=seed).run()
            rows.append([None if (v := found_at(outcome, e)) is None else v - best for e in at])
        result[algorithm] = [_median([row[i] for row in rows]) for i in range(len(at))]
    return result


def _median(values: list[float | None]) -> float | None:
    known = [v if v is not None else math.inf for v in values]
    middle = statistics.median(known)
    return round(middle, 4) if math.isfinite(middle) else None


def measure() -> dict[str, Any]:
    """Measure everything."""
    content: dict[str, Any] = {
        "maximum": MAXIMUM,
        "eta": ETA,
        "rough": vars(learning.ROUGH),
        "decision_s": 0.05,
        "epoch_s": 20,
        "one_slot": {},
        "large": {},
        "slots": {},
        "found": {},
    }
    for name, path in {"digits": CURVES, "synthetic": None}.items():
        content["one_slot"][name] = {a: follows_textbook(a, path) for a in ("asha", "hyperband")}
        print(name, content["one_slot"][name], flush=True)
        for faults in FAULTS:
            for algorithm in ALGORITHMS:
                _, row = run(algorithm, slots=1000, trials=10_000, faults=FAULTS[faults], path=path)
                content["large"][f"{name}, {faults}, {algorithm}"] = row
                print(name, faults, algorithm, row, flush=True)
        content["found"][name] = found_over_epochs(path, slots=8, seeds=5)
        print(name, content["found"][name], flush=True)
    for algorithm in ("asha", "hyperband"):
        for slots, trials in ((1, 286), (2, 286), (8, 572), (64, 2860), (1000, 50_000), (10_000, 10_000)):
            _, row = run(algorithm, slots=slots, trials=trials, faults=learning.ROUGH, path=CURVES)
            content["slots"][f"{algorithm}, {slots} slots, {trials} trials"] = row
            print(algorithm, slots, row, flush=True)
    return content


@click.command()
@click.option("--algorithm", type=click.Choice([*ALGORITHMS, "median"]))
@click.option("--slots", default=64, show_default=True)
@click.option("--trials", default=1000, show_default=True)
@click.option("--curves", type=click.Path(path_type=Path, exists=True), help="Recorded curves; default: made up ones.")
@click.option("--rough", is_flag=True, help="With failures, NaN, lost workers and stragglers.")
@click.option("--seed", default=0, show_default=True)
def main(algorithm: str | None, slots: int, trials: int, curves: Path | None, rough: bool, seed: int) -> None:
    """Simulate one campaign, or measure everything and write results/simulated_campaign.json."""
    if algorithm is not None:
        faults = FAULTS["rough" if rough else "quiet"]
        _, row = run(algorithm, slots=slots, trials=trials, faults=faults, path=curves, seed=seed)
        print(common.table(["figure", "value"], list(row.items())))
        return
    packages = common.versions("autotune", "numpy", "scikit-learn")
    print(common.write("simulated_campaign", "python -m benchmarks.simulated_campaign", measure(), packages))


if __name__ == "__main__":
    main()

"""Runs the chaos scenarios, prints what was injected and lost; the long form writes ``benchmarks/results/chaos.json``.

python -m benchmarks.chaos [SCENARIO ...] [--short] [--seed N]
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks import common
from benchmarks.chaos.audit import Outcome

_IN_FOLDER = ("partition", "skew", "coordinator_kills")
"""Scenarios that take an empty folder, and return figures with ``losses``."""
SCENARIOS = ("storm", "failover", *_IN_FOLDER, "soak")


@click.command()
@click.argument("scenarios", nargs=-1, type=click.Choice(SCENARIOS))
@click.option("--short", is_flag=True, help="The short form of each, as in the tests; writes nothing.")
@click.option("--seed", default=0, show_default=True, help="Seed of the faults and of the search.")
def main(scenarios: tuple[str, ...], short: bool, seed: int) -> None:
    """Run SCENARIO ... (default: all) and end with code 1 when something was lost or left over."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C does: what was started is ended first
    figures = _earlier()
    failed = False
    for name in scenarios or SCENARIOS:
        outcome = _run(name, short=short, seed=seed)
        print(f"\n## {outcome.name}\n\n{common.table(outcome.columns, outcome.rows)}\n", flush=True)
        if name not in _IN_FOLDER:  # their table holds all
            print("\n".join(f"{key}: {value}" for key, value in outcome.figures.items() if key != "problems"))
        print("\n".join(f"PROBLEM: {problem}" for problem in outcome.problems) or "no problem", flush=True)
        failed = failed or bool(outcome.problems)
        if not short:
            figures[name] = {"seed": seed, **outcome.figures}
            versions = common.versions("autotune", "pymongo", "hyperopt")
            common.write("chaos", "python -m benchmarks.chaos", {"scenarios": figures}, versions)
    sys.exit(1 if failed else 0)


def _run(name: str, *, short: bool, seed: int) -> Outcome:
    run = importlib.import_module(f"benchmarks.chaos.{name}").run
    if name not in _IN_FOLDER:
        outcome: Outcome = run(short=short, seed=seed)
        return outcome
    with tempfile.TemporaryDirectory(prefix="autotune-chaos-") as folder:
        figures: dict[str, Any] = run(Path(folder), short=short, seed=seed)
    rows = [[key, value] for key, value in _flat(figures) if key != "losses"]
    losses = [str(loss) for loss in figures["losses"]]
    return Outcome(name=name, columns=["what", "figures"], rows=rows, figures=figures, problems=losses)


def _flat(figures: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Return nested figures as (dotted name, value)."""
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _earlier() -> dict[str, object]:
    """Return the figures of earlier runs: one scenario may be run alone."""
    try:
        content: dict[str, dict[str, object]] = json.loads((common.RESULTS / "chaos.json").read_text())
    except (OSError, ValueError):
        return {}
    return content.get("scenarios", {})


if __name__ == "__main__":
    main()

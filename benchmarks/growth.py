"""What a trial costs beside its training as a campaign grows: one campaign of 20,000 trials of sin(x), by the thousand.

Everything that a coordinator does for a new trial should depend on what changed, not on how much there is. Ours only,
in the worker's process (`isolation: none`), 2 slots, the embedded MongoDB; other systems would take hours for their
proposals alone (`suggest_latency.py`).

    python benchmarks/growth.py [--trials 20000] [--slots 2]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import common
from orchestration import campaign_of

STRETCH = 1000


@click.command()
@click.option("--trials", default=20_000, show_default=True)
@click.option("--slots", default=2, show_default=True)
def main(trials: int, slots: int) -> None:
    """Measure, print a table, write results/growth.json."""
    with tempfile.TemporaryDirectory() as folder:
        made, whole_s = campaign_of(trials, Path(folder), slots, "none")
    made.sort(key=lambda t: t.ended_at)
    rows = []
    for start in range(0, trials, STRETCH):
        part = made[start : start + STRETCH]
        took_s = (part[-1].ended_at - min(t.started_at for t in part)).total_seconds()
        rows.append([start, start + len(part), round(1000 * took_s / len(part), 2)])
    columns = ["from trial", "to trial", "ms per trial"]
    print(common.table(columns, rows))
    content = {
        "slots": slots,
        "whole_s": round(whole_s, 1),
        "stretches": [dict(zip(columns, r, strict=True)) for r in rows],
    }
    packages = common.versions("autotune", "pymongo")
    print(common.write("growth", f"python benchmarks/growth.py --trials {trials} --slots {slots}", content, packages))


if __name__ == "__main__":
    main()

"""``autotune report``: tables of best and worst configurations and run times, figures, and one page with all of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from autotune.cli.output import console, store_option
from autotune.errors import CampaignExistsError, NotFoundError

if TYPE_CHECKING:
    from autotune.report.benchmark import Benchmark
    from autotune.report.report import Report
    from autotune.store.mongo import MongoStore


@click.command()
@click.argument("name")
@click.option("--best", default=10, show_default=True, metavar="N", help="Number of best configurations.")
@click.option("--worst", default=10, show_default=True, metavar="N", help="Number of worst configurations.")
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Write report.html, tables (CSV, Markdown, LaTeX) and figures (PNG, SVG, CSV) here.",
)
@click.option("--no-figures", is_flag=True, help="Write no figures.")
@click.option(
    "--parameter", metavar="NAME", help="Parameter of the first figure; default: n_layers where it is searched."
)
@store_option
def report(
    name: str, best: int, worst: int, out: str | None, no_figures: bool, parameter: str | None, store_uri: str | None
) -> None:
    """Print the best and worst configurations of campaign NAME, its run times, and its benchmark if it has one."""
    from autotune.report.collect import collect
    from autotune.store.mongo import open_store

    with open_store(store_uri) as store:
        made = collect(store, name, benchmark=_benchmark(store, name), n_best=best, n_worst=worst, parameter=parameter)
    made.show(console())
    if out is not None:
        write(made, Path(out), figures=not no_figures)


def write(made: Report, folder: Path, *, figures: bool = True) -> None:
    """Write the files of a report and say which, on standard error.

    Args:
        made: The report.
        folder: Made where it does not exist.
        figures: Whether figures are wanted.
    """
    from autotune.report.report import NO_FIGURES

    for path in made.write(folder, figures=figures):
        if path.parent.name != "figures":
            click.echo(f"wrote {path}", err=True)
    if figures and made.can_draw:
        click.echo(f"wrote {len(made.figures)} figures to {folder / 'figures'}", err=True)
    elif figures:
        click.echo(NO_FIGURES, err=True)


def _benchmark(store: MongoStore, name: str) -> Benchmark | None:
    """Return the benchmark of a campaign, or None where there is none."""
    from autotune.local.benchmark import load

    if store.campaigns.get(name).evaluation:
        return None
    try:
        return load(store, name)
    except (NotFoundError, CampaignExistsError):
        return None

"""``autotune report``: the tables of best and worst configurations and run times."""

from __future__ import annotations

from pathlib import Path

import click

from autotune.cli.output import console, store_option


@click.command()
@click.argument("name")
@click.option("--best", default=10, show_default=True, metavar="N", help="Number of best configurations.")
@click.option("--worst", default=10, show_default=True, metavar="N", help="Number of worst configurations.")
@click.option(
    "--out", type=click.Path(file_okay=False), metavar="DIR", help="Write CSV, Markdown and LaTeX files here."
)
@store_option
def report(name: str, best: int, worst: int, out: str | None, store_uri: str | None) -> None:
    """Print the best and worst configurations of campaign NAME, and its run times."""
    from autotune.report.report import Report
    from autotune.store.mongo import open_store

    with open_store(store_uri) as store:
        campaign = store.campaigns.get(name)
        made = Report(campaign=campaign, trials=tuple(store.trials.find(name)), n_best=best, n_worst=worst)
    made.show(console())
    if out is not None:
        for path in made.write(Path(out)):
            click.echo(f"wrote {path}", err=True)

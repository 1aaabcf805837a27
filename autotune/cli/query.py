"""``autotune campaigns``, ``status``, ``trials`` and ``show``: questions to the history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from autotune.cli.output import echo_frame, echo_json, echo_table, format_option, store_option
from autotune.cli.output import show as shown
from autotune.errors import InputError
from autotune.trial import Origin, TrialState

if TYPE_CHECKING:
    from autotune.store.base import CampaignRecord
    from autotune.store.mongo import MongoStore
    from autotune.trial import Attempt, Trial


@click.command()
@format_option("table", "json", "csv")
@store_option
def campaigns(format_: str, store_uri: str | None) -> None:
    """List the campaigns of the store, newest first."""
    from autotune.store.mongo import open_store

    with open_store(store_uri) as store:
        rows = [_campaign_row(store, record) for record in store.campaigns.find()]
    if format_ == "json":
        echo_json(rows)
    elif format_ == "csv":
        import pandas as pd

        echo_frame(pd.DataFrame(rows), format_)
    elif rows:
        echo_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        click.echo("the store has no campaigns")


def _campaign_row(store: MongoStore, record: CampaignRecord) -> dict[str, Any]:
    counts = store.trials.counts(record.name)
    best = store.trials.best(record.name, record.metric["mode"])
    return {
        "name": record.name,
        "state": str(record.state),
        "objective": record.spec["objective"],
        "finished": counts.get(TrialState.FINISHED, 0),
        "failed": counts.get(TrialState.FAILED, 0),
        "max_trials": record.max_trials,
        "metric": record.metric["name"],
        "best": None if best is None else best.score,
        "created_at": record.created_at,
    }


@click.command()
@click.argument("name")
@click.option(
    "--where",
    "where",
    multiple=True,
    metavar="EXPR",
    help="Filter, e.g. 'n_layers=2' or 'marginal_ll<1200'; repeatable.",
)
@click.option("--sort", metavar="KEY", help="Sort by a column; the campaign's metric sorts best first; -KEY reverses.")
@click.option("--limit", type=int, metavar="N", help="Print the first N.")
@click.option("--columns", metavar="A,B,...", help="Print these columns only.")
@format_option("table", "json", "csv", "parquet")
@store_option
def trials(
    name: str,
    where: tuple[str, ...],
    sort: str | None,
    limit: int | None,
    columns: str | None,
    format_: str,
    store_uri: str | None,
) -> None:
    """List the trials of campaign NAME, filtered and sorted."""
    from autotune import history
    from autotune.store.mongo import open_store

    if format_ == "json" and columns is not None:
        raise InputError("--columns does not go with --format json, which prints trials whole")
    with open_store(store_uri) as store:
        record = store.campaigns.get(name)
        found = store.trials.find(name)
    table = history.frame(found, record.metric["name"])
    names = None if columns is None else [c.strip() for c in columns.split(",") if c.strip()]
    chosen = history.query(
        table,
        where=history.parse_where(where),
        sort=sort,
        limit=limit,
        columns=None if format_ == "json" else names,
        metric=record.metric["name"],
        mode=record.metric["mode"],
    )
    if format_ == "json":
        by_number = {r["number"]: r for r in history.records(found)}
        echo_json([by_number[int(n)] for n in chosen["number"]])
    else:
        echo_frame(history.storable(chosen) if format_ == "parquet" else chosen, format_)


@click.command()
@click.argument("name")
@click.argument("number", type=int)
@format_option("table", "json")
@store_option
def show(name: str, number: int, format_: str, store_uri: str | None) -> None:
    """Show trial NUMBER of campaign NAME whole: configuration, attempts, curve, failures with traceback and log."""
    from autotune import history
    from autotune.store.mongo import open_store

    with open_store(store_uri) as store:
        store.campaigns.get(name)
        trial = store.trials.get(name, number)
        curve = store.reports.curve(name, number)
    if format_ == "json":
        [record] = history.records([trial])
        for plain, attempt in zip(record["attempts"], trial.attempts, strict=True):
            plain.update(traceback=attempt.traceback, log_tail=attempt.log_tail, late_result=attempt.late_result)
        echo_json({**record, "curve": [{"step": r.step, **r.metrics} for r in curve]})
        return
    _show_head(trial)
    for index, attempt in enumerate(trial.attempts):
        _show_attempt(index, attempt)
    if curve:
        names = sorted({key for report in curve for key in report.metrics})
        echo_table(["step", *names], [[r.step, *(r.metrics.get(n) for n in names)] for r in curve], title="curve")


def _show_head(trial: Trial) -> None:
    click.echo(f"trial {trial.number} of {trial.campaign}: {trial.state}")
    for key, value in trial.params.items():
        click.echo(f"  {key} = {shown(value)}")
    for key, metric in trial.metrics.items():
        rest = ", ".join(f"{k} {shown(v)}" for k, v in metric.items() if k != "value")
        click.echo(f"  {key}: {shown(metric.get('value'))}{f'  ({rest})' if rest else ''}")
    for key, value in trial.facts.items():
        click.echo(f"  {key}: {shown(value)}")
    chosen = "by a person" if trial.origin is Origin.PERSON else "by the search"
    click.echo(f"  seed {trial.seed}, configuration {trial.config_hash}, chosen {chosen}")
    if trial.claims > len(trial.attempts):
        click.echo(f"  tried {trial.claims} times; the last {len(trial.attempts)} attempts:")


def _show_attempt(index: int, attempt: Attempt) -> None:
    end = "running" if attempt.ended_at is None else f"ended {shown(attempt.ended_at)}"
    click.echo(f"attempt {index} on {attempt.host} ({attempt.device}): started {shown(attempt.started_at)}, {end}")
    if attempt.timing:
        click.echo("  " + ", ".join(f"{k} {shown(v)}" for k, v in attempt.timing.items()))
    if attempt.cause:
        code = "" if attempt.exit_code is None else f" (exit code {attempt.exit_code})"
        click.echo(f"  {attempt.cause}: {attempt.message}{code}")
    for title, text in (("traceback", attempt.traceback), ("last log lines", attempt.log_tail)):
        if text:
            click.echo(f"  {title}:")
            click.echo("\n".join("    " + line for line in text.rstrip().splitlines()))
    for difference in attempt.mismatch:
        click.echo(f"  differs from the campaign: {difference}")
    if attempt.late_result:
        click.echo(f"  late result, not used: score {shown(attempt.late_result.get('score'))}")

"""``autotune pause``, ``cancel``, ``extend``, ``enqueue``, ``retry`` and ``events``: what people do to a campaign."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from autotune.cli.output import echo_json, echo_table, format_option, plain, store_option
from autotune.errors import InputError
from autotune.trial import CampaignState

if TYPE_CHECKING:
    from autotune.local.steering import Extended, Retried


@click.command()
@click.argument("name")
@store_option
def pause(name: str, store_uri: str | None) -> None:
    """Start no more trials of campaign NAME. Running ones go on to their end; `autotune resume NAME` continues."""
    from autotune.local import steering
    from autotune.store.mongo import open_store

    with open_store(store_uri) as store:
        moved = steering.pause(store, name)
    click.echo(f"campaign '{name}' is paused" if moved else f"campaign '{name}' was paused already")


@click.command()
@click.argument("name")
@store_option
def cancel(name: str, store_uri: str | None) -> None:
    """End campaign NAME for good: queued trials are dropped, running ones are stopped at their next renewal."""
    from autotune.local import steering
    from autotune.store.mongo import open_store

    with open_store(store_uri) as store:
        changed, dropped = steering.cancel(store, name)
    if changed:
        click.echo(f"campaign '{name}' is cancelled; {dropped} trials were dropped")
    else:
        click.echo(f"campaign '{name}' was cancelled already")


@click.command()
@click.argument("name")
@click.option("--trials", type=int, metavar="N", help="The new total number of trials.")
@click.option("--hours", type=float, metavar="H", help="The new total of hours in which the campaign runs.")
@click.option("--device-hours", type=float, metavar="H", help="The new total of hours of devices.")
@store_option
def extend(
    name: str, trials: int | None, hours: float | None, device_hours: float | None, store_uri: str | None
) -> None:
    """Give campaign NAME a larger budget: totals, not additions. A finished one goes on."""
    from autotune.local import steering
    from autotune.store.campaigns import Extension
    from autotune.store.mongo import open_store

    with open_store(store_uri) as store:
        done = steering.extend(
            store, name, Extension(max_trials=trials, max_hours=hours, max_device_hours=device_hours)
        )
    click.echo(_extended(name, done))


def _extended(name: str, done: Extended) -> str:
    record = done.campaign
    budget = f"{record.max_trials} trials"
    for hours, unit in ((record.max_hours, "hours"), (record.max_device_hours, "device-hours")):
        budget += "" if hours is None else f", {hours:g} {unit}"
    if not done.changed:
        return f"campaign '{name}' had this budget already: {budget}"
    said = f"campaign '{name}' has a budget of {budget}"
    if done.reopened:
        return f"{said} and runs again; {_how_to_serve(name)}"
    match record.state:
        case CampaignState.PAUSED:
            return f"{said}; it is paused, go on with: autotune resume {name}"
        case CampaignState.FAILED:
            return f"{said}; it is failed and stays so until: autotune retry {name} --all"
        case CampaignState.FINISHED:
            return f"{said}; it stays finished: this budget leaves nothing more to do"
        case _:
            return said


def _how_to_serve(name: str) -> str:
    return f"autotune resume {name} --workers K starts local processes if none serve it"


@click.command()
@click.argument("name")
@click.argument("values", nargs=-1, metavar="KEY=VALUE...")
@click.option("--like", type=int, metavar="NUMBER", help="Take parameters that are not given from this trial.")
@store_option
def enqueue(name: str, values: tuple[str, ...], like: int | None, store_uri: str | None) -> None:
    """Queue a trial of campaign NAME with these parameters (values are YAML): lr=1e-3 layers=2."""
    from autotune.local import steering
    from autotune.store.mongo import open_store

    params = _parameters(values)
    with open_store(store_uri) as store:
        done = steering.enqueue(store, name, params, like=like)
    if not done.new:
        click.echo(f"trial {done.number} has this configuration already")
    elif done.state is CampaignState.PAUSED:
        click.echo(f"trial {done.number} is queued; the campaign is paused, go on with: autotune resume {name}")
    else:
        click.echo(f"trial {done.number} is queued")


def _parameters(values: tuple[str, ...]) -> dict[str, Any]:
    from autotune.yaml_reader import read_yaml

    params: dict[str, Any] = {}
    for value in values:
        key, separator, text = value.partition("=")
        key = key.strip()
        if not separator or not key:
            raise InputError(f"a parameter is key=value, for example lr=1e-3, not '{value}'")
        if key in params:
            raise InputError(f"parameter '{key}' is given twice")
        params[key] = read_yaml(text, f"{key}: '{text}'")
    return params


@click.command()
@click.argument("name")
@click.option(
    "--where", "where", multiple=True, metavar="EXPR", help="Filter, e.g. cause=error or 'n_layers=2'; repeatable."
)
@click.option("--all", "everything", is_flag=True, help="Every failed or cancelled trial.")
@click.option("--dry-run", is_flag=True, help="Only say which.")
@store_option
def retry(name: str, where: tuple[str, ...], everything: bool, dry_run: bool, store_uri: str | None) -> None:
    """Queue failed and cancelled trials of campaign NAME again, with a clean record. One that ended goes on."""
    from autotune.local import steering
    from autotune.store.mongo import open_store

    with open_store(store_uri) as store:
        done = steering.retry(store, name, where, everything=everything, dry_run=dry_run)
    click.echo(_retried(name, done, dry_run=dry_run))


def _retried(name: str, done: Retried, *, dry_run: bool) -> str:
    count = len(done.numbers)
    if not count:
        return f"campaign '{name}' has no such failed or cancelled trial"
    named = ", ".join(map(str, done.numbers[:20])) + (", ..." if count > 20 else "")
    trials = f"{count} trial{'' if count == 1 else 's'}"
    if dry_run:
        return f"would queue {trials} of campaign '{name}' again: {named}"
    said = f"{trials} of campaign '{name}' {'is' if count == 1 else 'are'} queued again: {named}"
    if done.reopened:
        return f"{said}; it runs again, {_how_to_serve(name)}"
    if done.state is CampaignState.PAUSED:
        return f"{said}; it is paused, go on with: autotune resume {name}"
    return said


@click.command()
@click.argument("name")
@format_option("table", "json", "csv")
@store_option
def events(name: str, format_: str, store_uri: str | None) -> None:
    """List what was done to campaign NAME, by whom and when, oldest first."""
    from autotune.store.mongo import open_store

    with open_store(store_uri) as store:
        store.campaigns.get(name)
        found = store.campaigns.events(name)
    rows = [{key: event.get(key) for key in ("at", "action", "who", "detail")} for event in found]
    if format_ == "json":
        echo_json(rows)
        return
    texts = [{**row, "detail": json.dumps(plain(row["detail"])) if row["detail"] else ""} for row in rows]
    if format_ == "csv":
        import pandas as pd

        from autotune.cli.output import echo_frame

        echo_frame(pd.DataFrame(texts, columns=["at", "action", "who", "detail"]), format_)
    else:
        echo_table(["at", "action", "who", "detail"], [list(row.values()) for row in texts])

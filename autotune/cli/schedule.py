"""``autotune plan`` and ``autotune rungs``: what a schedule will spend, and where its trials are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from autotune.cli.output import echo_json, echo_table, format_option, store_option
from autotune.errors import CampaignError

if TYPE_CHECKING:
    from autotune.schedule.base import BracketTable, Preview, RungTable
    from autotune.store.base import CampaignRecord
    from autotune.store.mongo import MongoStore

_SHOWN = 12


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, as for launch; repeatable.")
@format_option("table", "json")
def plan(file: str, overrides: tuple[str, ...], format_: str) -> None:
    """Show the trials and epochs that the campaign in FILE will spend, before anything runs. Writes nothing."""
    from autotune.campaign import load_campaign
    from autotune.local.resolve import objective_paths, resolve
    from autotune.schedule import make_schedule, schedule_of

    record = resolve(load_campaign(file, overrides), objective_paths(file))
    found = make_schedule(schedule_of(record.spec)).preview(record.max_trials)
    if format_ == "json":
        echo_json({"name": record.name, "schedule": dict(record.spec["schedule"]), **asdict(found)})
        return
    _show_preview(record.name, record.spec["schedule"], found)


def _show_preview(name: str, settings: dict[str, Any], found: Preview) -> None:
    click.echo(f"{name}: {found.trials} trials, schedule {settings['algorithm']}")
    rows = [
        [b.bracket, b.s, ", ".join(f"{n} to {resource}" for n, resource in b.rungs), b.epochs]
        for b in found.brackets[:_SHOWN]
    ]
    if rows and found.epochs is not None:
        echo_table(["bracket", "s", "trials to epoch", "epochs"], rows)
    if len(found.brackets) > _SHOWN:
        click.echo(f"... and {len(found.brackets) - _SHOWN} more brackets")
    if found.epochs is None or found.full_epochs is None:
        click.echo("epochs: as many as the objective trains; its maximum is not known here")
        return
    saved = 1 - found.epochs / found.full_epochs if found.full_epochs else 0.0
    about = "" if found.exact else "about "
    click.echo(f"epochs: {about}{found.epochs:,} of {found.full_epochs:,} without a schedule ({saved:.0%} saved)")
    if found.note:
        click.echo(found.note)


@click.command()
@click.argument("name")
@format_option("table", "json")
@store_option
def rungs(name: str, format_: str, store_uri: str | None) -> None:
    """Show the brackets and rungs of campaign NAME: who waits for whom, epochs spent and saved."""
    from autotune.store.mongo import open_store

    with open_store(store_uri) as store:
        found = _rungs(store, name)
    if format_ == "json":
        brackets = [{**b, "rungs": [asdict(r) for r in b["rungs"]]} for b in found["brackets"]]
        echo_json({**found, "brackets": brackets})
        return
    click.echo(f"{name}: schedule {found['schedule']}, compared by {found['metric']}")
    columns = ["bracket", "rung", "epoch", "planned", "members", "running", "queued", "waiting", "promoted", "pruned"]
    columns += ["finished", "dead", "waits for"]
    echo_table(columns, [_row(b["bracket"], b["s"], r) for b in found["brackets"] for r in b["rungs"]])
    spent, saved = found["epochs"], found["epochs_saved"]
    if spent is not None:
        click.echo(f"epochs: {spent:,} spent, {saved:,} saved against training every trial to the end")


def waiting(store: MongoStore, record: CampaignRecord) -> str | None:
    """Return what paused trials of a campaign wait for, one line; None if none is paused.

    Args:
        store: An open store.
        record: The campaign.
    """
    from autotune.planning import members, schedule_mode
    from autotune.schedule import make_schedule, schedule_of

    try:
        schedule = make_schedule(schedule_of(record.spec))
    except CampaignError:
        return None  # of a package that is not here
    return waits(schedule.tables(members(store.trials.heads(record.name), schedule_mode(record))))


def waits(tables: Sequence[BracketTable]) -> str | None:
    """Return in one line which rungs wait for which trials; None if no trial is paused. Pure."""
    held = [(b.bracket, r) for b in tables for r in b.rungs if r.waiting]
    if not held:
        return None
    parts = [f"bracket {bracket}, rung {r.rung} waits for trials {_numbers(r.waits_for)}"
             for bracket, r in held if r.waits_for]  # fmt: skip
    paused = sum(r.waiting for _, r in held)
    if not parts:
        return f"paused trials: {paused}; each goes on when it is among the best of its rung"
    more = f" and {len(parts) - _SHOWN} more rungs" if len(parts) > _SHOWN else ""
    return "; ".join(parts[:_SHOWN]) + more + f" ({paused} trials paused)"


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:_SHOWN])) + (" ..." if len(numbers) > _SHOWN else "")


def _row(bracket: int, s: int, rung: RungTable) -> list[Any]:
    return [
        bracket, rung.rung, rung.resource, rung.planned, rung.members, rung.running, rung.queued, rung.waiting,
        rung.promoted, rung.pruned, rung.finished, rung.dead, _numbers(rung.waits_for) or "-",
    ]  # fmt: skip


def _rungs(store: MongoStore, name: str) -> dict[str, Any]:
    from autotune.planning import members, schedule_mode
    from autotune.schedule import make_schedule, schedule_of

    record = store.campaigns.get(name)
    settings = record.spec.get("schedule") or {"algorithm": "none"}
    schedule = make_schedule(schedule_of(record.spec))
    seen = members(store.trials.heads(name), schedule_mode(record))
    tables = schedule.tables(seen)
    spent = [r.epochs for b in tables for r in b.rungs]
    known = [e for e in spent if e is not None]
    maximum = schedule.resources[-1]
    ended = sum(m.state not in ("queued", "running", "paused") for m in seen)
    whole = len(known) == len(spent) and maximum is not None
    return {
        "name": name,
        "schedule": settings["algorithm"],
        "metric": (settings.get("metric") or record.metric)["name"],
        "epochs": sum(known) if whole else None,
        "epochs_saved": max(0, ended * maximum - sum(known)) if whole and maximum is not None else None,
        "brackets": [{"bracket": b.bracket, "s": b.s, "rungs": list(b.rungs)} for b in tables],
    }

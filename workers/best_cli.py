"""The command ``autotune best``: the best configuration of a campaign, and its model in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autotune.cli import exit_codes
from autotune.cli.output import echo_json, format_option, show, store_option
from autotune.errors import InputError, StateError
from autotune.history import records
from autotune.store.mongo import open_store
from autotune.trial import CampaignState, Result, Trial
from workers.again import slot_like, unlike
from workers.models import check_free, check_saves, how_to_open, save_model
from workers.replay_cli import check_admitted, compare, stopped_by_signals

if TYPE_CHECKING:
    from autotune.store.base import CampaignRecord
    from autotune.store.mongo import MongoStore

_FACTS = ("n_epochs", "n_epochs_run", "n_params", "n_weights")


@click.command()
@click.argument("name")
@click.option("--save", "folder", metavar="DIR", help="Write its model into this folder.")
@click.option("--force", is_flag=True, help="Replace a model that is in DIR.")
@click.option(
    "--devices", help="auto (the first GPU, else the CPU), cpu, or a GPU number; default: what the trial had."
)
@click.option("--threads", type=int, metavar="N", help="CPU threads; default: as many as the trial had.")
@click.option(
    "--allow-objective", "allowed", multiple=True, metavar="MODULE", help="As for `autotune worker`; repeatable."
)
@click.option("--allow-mismatch", is_flag=True, help="Train with other package versions or source all the same.")
@format_option("text", "json")
@store_option
def best(
    name: str,
    folder: str | None,
    force: bool,
    devices: str | None,
    threads: int | None,
    allowed: tuple[str, ...],
    allow_mismatch: bool,
    format_: str,
    store_uri: str | None,
) -> int:
    """Print the best finished configuration of campaign NAME; with --save, write its model into DIR.

    The model is trained again with the trial's seed, from its checkpoint on where the campaign keeps one. DIR appears
    whole or not at all. Nothing is written to the store.
    """
    if folder is None and (force or devices is not None or threads is not None):
        raise InputError("--force, --devices and --threads go with --save DIR")
    with open_store(store_uri) as store, stopped_by_signals() as stop:
        record, trial = best_of(store, name)
        if folder is None:
            _print(record, trial, format_)
            return exit_codes.OK
        check_saves(record)
        check_free(Path(folder).expanduser().resolve(), force=force)
        check_admitted(record, allowed, allow_mismatch=allow_mismatch)
        slot = slot_like(trial, devices, threads)
        if format_ == "text":
            _print(record, trial, format_)
        result = save_model(store, record, trial, Path(folder), slot, stop, force=force)
    if format_ == "json":
        echo_json({**_document(record, trial), **_saved(folder, result, record)})
        return exit_codes.OK
    compare(record, trial, result, unlike(trial, slot))
    lines = how_to_open(Path(folder), record)
    click.echo(f"wrote {folder}{'; open it with:' if lines else ''}")
    for line in lines:
        click.echo(f"  {line}")
    return exit_codes.OK


def best_of(store: MongoStore, name: str) -> tuple[CampaignRecord, Trial]:
    """Return a campaign and its best finished trial, whole.

    Raises:
        NotFoundError: If there is no such campaign.
        StateError: If none of its trials has finished.
    """
    record = store.campaigns.get(name)
    found = store.trials.best(name, record.metric["mode"])
    if found is None:
        raise StateError(f"no trial of campaign '{name}' ({record.state}) has finished; see: autotune status {name}")
    return record, store.trials.get(name, found.number)


def _document(record: CampaignRecord, trial: Trial) -> dict[str, Any]:
    """Return the configuration with what is known of its training."""
    [plain] = records([trial])
    kept = ("number", "params", "seed", "score", "metrics", "facts")
    return {
        "campaign": record.name,
        "state": str(record.state),
        "metric": dict(record.metric),
        **{key: plain[key] for key in kept},
        "fixed": dict(record.spec.get("fixed") or {}),
    }


def _saved(folder: str, result: Result, record: CampaignRecord) -> dict[str, Any]:
    return {
        "saved": str(Path(folder).expanduser().absolute()),
        "score_now": result.score,
        "open": how_to_open(Path(folder), record),
    }


def _print(record: CampaignRecord, trial: Trial, format_: str) -> None:
    if format_ == "json":
        echo_json(_document(record, trial))
        return
    so_far = "" if record.state is CampaignState.FINISHED else f" so far (the campaign is {record.state})"
    click.echo(f"best of '{record.name}'{so_far}: trial {trial.number}, {record.metric['name']} {show(trial.score)}")
    for key, value in trial.params.items():
        click.echo(f"  {key} = {show(value)}")
    for key, value in (record.spec.get("fixed") or {}).items():
        click.echo(f"  {key} = {show(value)} (fixed)")
    for key in _FACTS:
        if key in trial.facts:
            click.echo(f"  {key}: {show(trial.facts[key])}")

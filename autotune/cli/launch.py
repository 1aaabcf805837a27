"""``autotune launch`` and ``autotune resume``: run a campaign from this machine and follow it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from autotune.campaign import load_campaign
from autotune.cli import exit_codes
from autotune.cli.output import store_option
from autotune.cli.progress import ProgressDisplay
from autotune.errors import InputError, StoreUnreachableError, WorkerError
from autotune.local.crew import Crew
from autotune.local.follow import follow
from autotune.local.resolve import objective_paths
from autotune.local.session import CampaignResult, reopen, result_of, submit
from autotune.store.mongo import MongoStore, open_store
from autotune.trial import CampaignState, TrialState


def _crew_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--detach", is_flag=True, help="Leave coordinator and workers in the background and return."),
        click.option("--out", type=click.Path(file_okay=False), metavar="DIR", help="Also write the tables here."),
        click.option(
            "--slots-per-device", default=1, show_default=True, metavar="K", help="Trials at a time per device."
        ),
        click.option(
            "--allow-mismatch", is_flag=True, help="Let workers differ in package versions or source; recorded."
        ),
        click.option(
            "--allow-objective", "allowed", multiple=True, metavar="MODULE", help="Let workers import it; repeatable."
        ),
        click.option("--devices", default="auto", show_default=True, help="auto, cpu, or GPU numbers: 0,1."),
        click.option(
            "--workers", default=1, show_default=True, metavar="N", help="Local workers; 0: others do the work."
        ),
        store_option,
    ):
        command = option(command)
    return command


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, e.g. budget.max_trials=12; repeatable."
)
@_crew_options
def launch(file: str, overrides: tuple[str, ...], store_uri: str | None, **options: Any) -> int:
    """Run the campaign in FILE: write it to the store, start a coordinator and workers, follow it to its end.

    Launching the same file again goes on where it stopped. Ctrl-C gives running trials back and pauses the campaign;
    `autotune resume NAME` goes on to exactly its budget.
    """
    _check_options(**options)
    campaign = load_campaign(file, overrides)
    with open_store(store_uri) as store:
        crew = _crew(store, campaign.name, **options)
        record = submit(store, campaign, objective_paths(file))
        _note_start(store, record.name, record.state)
        return _run(store, crew, **options)


@click.command()
@click.argument("name")
@_crew_options
def resume(name: str, store_uri: str | None, **options: Any) -> int:
    """Go on with campaign NAME, paused or without a coordinator, to exactly its budget."""
    _check_options(**options)
    with open_store(store_uri) as store:
        crew = _crew(store, name, trusted=store.is_local, **options)
        reopen(store, name)
        _note_start(store, name, CampaignState.RUNNING)
        return _run(store, crew, **options)


def _check_options(*, detach: bool, out: str | None, **_: Any) -> None:
    if detach and out is not None:
        raise InputError("--out does not go with --detach; later: autotune report NAME --out DIR")


def _crew(
    store: MongoStore,
    name: str,
    *,
    workers: int,
    devices: str,
    slots_per_device: int,
    allow_mismatch: bool,
    allowed: tuple[str, ...],
    trusted: bool = True,
    **_: Any,
) -> Crew:
    return Crew(
        store_uri=store.uri, campaign=name, workers=workers, devices=devices, slots_per_device=slots_per_device,
        allow_mismatch=allow_mismatch, allowed=allowed, trusted=trusted,
    )  # fmt: skip


def _note_start(store: MongoStore, name: str, state: CampaignState) -> None:
    click.echo(f"campaign '{name}' in the store at {store.address}: {state}", err=True)


def _run(store: MongoStore, crew: Crew, *, out: str | None, detach: bool, **_: Any) -> int:
    name = crew.campaign
    if detach:
        return detached(store, crew)
    try:
        with ProgressDisplay(name) as display:
            follow(store, crew, display.update)
    except KeyboardInterrupt:
        click.echo(f"interrupted; {_how_to_go_on(store, name)}", err=True)
        return exit_codes.INTERRUPTED
    result = result_of(store, name)
    _show(store, result, out)
    return _exit_code(result)


def _how_to_go_on(store: MongoStore, name: str) -> str:
    try:
        record = store.campaigns.get(name)
    except StoreUnreachableError:
        return f"the store does not answer; when it does, go on with: autotune resume {name}"
    return f"campaign '{name}' is {record.state}; go on with: autotune resume {name}"


def detached(store: MongoStore, crew: Crew, more: str = "") -> int:
    """Start a crew, leave it in the background, and say how to follow it; `more` goes behind that.

    Raises:
        WorkerError: If one of it ended at once.
    """
    crew.detached = True
    record = store.campaigns.get(crew.campaign)
    if record.state is CampaignState.RUNNING:
        crew.start(record)
        failed = crew.failed_at_start(store)
        if failed is not None:
            crew.stop()
            raise WorkerError(f"the {failed.role} ended at once: {failed.last_words()} (log: {failed.log})")
        crew.release()
    for member in crew.members:
        click.echo(f"{member.role} in the background (log: {member.log})", err=True)
    click.echo(f"follow it with: autotune status {crew.campaign}{more}", err=True)
    return exit_codes.OK


def _show(store: MongoStore, result: CampaignResult, out: str | None) -> None:
    from autotune.cli.output import console
    from autotune.cli.report import write
    from autotune.report.collect import collect

    report = collect(store, result.campaign.name)
    report.show(console())
    if out is not None:
        write(report, Path(out))
    if result.campaign.message:
        click.echo(f"{result.campaign.name}: {result.campaign.message}", err=True)


def _exit_code(result: CampaignResult) -> int:
    sys.stdout.flush()
    if result.campaign.state is CampaignState.PAUSED:
        click.echo(f"paused; go on with: autotune resume {result.campaign.name}", err=True)
        return exit_codes.PAUSED
    finished = any(t.state is TrialState.FINISHED for t in result.trials)
    good = result.campaign.state is CampaignState.FINISHED and finished
    return exit_codes.OK if good else exit_codes.CAMPAIGN_FAILED

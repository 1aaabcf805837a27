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
from autotune.local.crew import Crew
from autotune.local.session import CampaignResult, follow, make_crew, reopen, submit
from autotune.store.mongo import MongoStore, open_store
from autotune.trial import CampaignState, TrialState


def _crew_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--detach", is_flag=True, help="Leave coordinator and workers in the background and return."),
        click.option("--out", type=click.Path(file_okay=False), metavar="DIR", help="Also write the tables here."),
        click.option(
            "--slots-per-device", default=1, show_default=True, metavar="K", help="Trials at a time per device."
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
    campaign = load_campaign(file, overrides)
    with open_store(store_uri) as store:
        record = submit(store, campaign)
        _note_start(store, record.name, record.state)
        return _run(store, record.name, paths=(str(Path(file).parent.absolute()),), **options)


@click.command()
@click.argument("name")
@_crew_options
def resume(name: str, store_uri: str | None, **options: Any) -> int:
    """Go on with campaign NAME, paused or without a coordinator, to exactly its budget."""
    with open_store(store_uri) as store:
        reopen(store, name)
        _note_start(store, name, CampaignState.RUNNING)
        return _run(store, name, paths=(), **options)


def _note_start(store: MongoStore, name: str, state: CampaignState) -> None:
    click.echo(f"campaign '{name}' in the store at {store.address}: {state}", err=True)


def _run(
    store: MongoStore,
    name: str,
    *,
    paths: tuple[str, ...],
    workers: int,
    devices: str,
    slots_per_device: int,
    out: str | None,
    detach: bool,
) -> int:
    crew = make_crew(store, name, workers, devices, slots_per_device)
    crew.paths = paths
    if detach:
        return _detach(store, name, crew)
    try:
        with ProgressDisplay(name) as display:
            result = follow(store, name, crew, display.update)
    except KeyboardInterrupt:
        state = store.campaigns.get(name).state
        click.echo(f"interrupted; campaign '{name}' is {state}; go on with: autotune resume {name}", err=True)
        return exit_codes.INTERRUPTED
    _show(result, out)
    return _exit_code(result)


def _detach(store: MongoStore, name: str, crew: Crew) -> int:
    crew.detached = True
    if store.campaigns.get(name).state is CampaignState.RUNNING:
        crew.start()
    for member in crew.members:
        click.echo(f"{member.role} in the background (log: {member.log})", err=True)
    click.echo(f"follow it with: autotune status {name}", err=True)
    return exit_codes.OK


def _show(result: CampaignResult, out: str | None) -> None:
    from autotune.cli.output import console

    report = result.report()
    report.show(console())
    if out is not None:
        for path in report.write(Path(out)):
            click.echo(f"wrote {path}", err=True)
    if result.campaign.message:
        click.echo(f"{result.campaign.name}: {result.campaign.message}", err=True)


def _exit_code(result: CampaignResult) -> int:
    finished = any(t.state is TrialState.FINISHED for t in result.trials)
    good = result.campaign.state in (CampaignState.FINISHED, CampaignState.PAUSED) and finished
    if result.campaign.state is CampaignState.PAUSED:
        click.echo(f"campaign '{result.campaign.name}' was paused", err=True)
    sys.stdout.flush()
    return exit_codes.OK if good else exit_codes.CAMPAIGN_FAILED

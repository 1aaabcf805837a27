"""``autotune coordinator``, ``pause`` and ``cancel``: what people do to a campaign."""

from __future__ import annotations

import os
import threading

import click

from autotune import logs
from autotune.cli.output import store_option
from autotune.processes import stop_on_signals, stop_with_parent
from autotune.trial import CampaignState


@click.command()
@click.argument("name")
@click.option("--with-parent", type=int, hidden=True, help="End when this process, the parent, ends.")
@store_option
def coordinator(name: str, with_parent: int | None, store_uri: str | None) -> None:
    """Propose trials for campaign NAME until it ends. Any number may run: one leads, the others stand by."""
    from autotune.coordinator import Coordinator
    from autotune.store.mongo import open_store

    logs.configure()
    stop = threading.Event()
    with open_store(store_uri) as store, stop_on_signals(stop, at_once=lambda: os._exit(130)):
        stop_with_parent(stop, with_parent)
        Coordinator(store, name).run(stop)


@click.command()
@click.argument("name")
@store_option
def pause(name: str, store_uri: str | None) -> None:
    """Start no more trials of campaign NAME. Running ones go on to their end; `autotune resume NAME` continues."""
    from autotune.local.follow import who
    from autotune.store.mongo import open_store

    with open_store(store_uri) as store:
        moved = store.campaigns.set_state(name, CampaignState.PAUSED, expected=[CampaignState.RUNNING], who=who())
        click.echo(f"campaign '{name}' is paused" if moved else f"campaign '{name}' was paused already")


@click.command()
@click.argument("name")
@store_option
def cancel(name: str, store_uri: str | None) -> None:
    """End campaign NAME for good: queued trials are dropped, running ones are stopped at their next renewal."""
    from autotune.local.follow import who
    from autotune.store.mongo import open_store

    with open_store(store_uri) as store:
        expected = [CampaignState.RUNNING, CampaignState.PAUSED]
        store.campaigns.set_state(name, CampaignState.CANCELLED, expected=expected, who=who())
        count = store.trials.cancel(name, "the campaign was cancelled")
        click.echo(f"campaign '{name}' is cancelled; {count} trials were dropped")

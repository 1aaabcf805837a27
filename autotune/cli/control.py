"""``autotune coordinator``: proposes the trials of a campaign."""

from __future__ import annotations

import os
import threading

import click

from autotune import logs
from autotune.cli.output import store_option
from autotune.processes import stop_on_signals, stop_with_parent


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

"""``autotune store``: the embedded server, and what is wrong with a store."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from autotune.cli import exit_codes
from autotune.cli.output import echo_json, format_option, store_option

if TYPE_CHECKING:
    from autotune.store.check import Finding

_ELSEWHERE = {
    "backup": "autotune.cli.backup:backup",
    "restore": "autotune.cli.backup:restore",
    "users": "autotune.cli.users:users",
}


class StoreGroup(click.Group):
    """A group with commands in modules of their own, imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return [*super().list_commands(ctx), *_ELSEWHERE]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, imported if it is elsewhere."""
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = _ELSEWHERE[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=StoreGroup)
def store() -> None:
    """The store: the embedded one (a private MongoDB on loopback) up and down; what is wrong with any; its users."""


@store.command()
def up() -> None:
    """Start the embedded store, or find it if it runs; print its address."""
    from autotune.store import embedded

    click.echo(embedded.start())


@store.command()
def down() -> None:
    """Stop the embedded store. Its data stays; what runs waits until it is up again."""
    from autotune.store import embedded
    from autotune.store.mongo import MongoStore
    from autotune.trial import CampaignState

    uri = embedded.find()
    if uri is not None:
        with MongoStore(uri, prepare=False) as opened:
            served = [r.name for r in opened.campaigns.find([CampaignState.RUNNING]) if opened.workers.live(r.name)]
        if served:
            click.echo(f"workers serve {', '.join(served)}; they wait until: autotune store up", err=True)
    click.echo("stopped" if embedded.stop() else "the embedded store does not run")


@store.command()
@format_option("table", "json")
@store_option
def status(format_: str, store_uri: str | None) -> int:
    """Show the address, version and contents of the store. Starts nothing."""
    from autotune.store import embedded
    from autotune.store.check import summary
    from autotune.store.connection import named_uri
    from autotune.store.mongo import MongoStore

    uri = named_uri(store_uri) or embedded.find()
    if uri is None:
        if format_ == "json":
            echo_json({"uri": None, "version": None, "state": "down"})
        else:
            click.echo("the embedded store does not run; start it with: autotune store up")
        return exit_codes.OK
    with MongoStore(uri, prepare=False) as opened:
        found = summary(opened)
    if format_ == "json":
        echo_json(found)
    else:
        for key, value in found.items():
            click.echo(f"{key}: {value}")
    return exit_codes.OK


@store.command()
@store_option
def upgrade(store_uri: str | None) -> None:
    """Put back missing collections, validators and indexes, and bring documents of older versions to this one."""
    from autotune.store.mongo import open_store

    with open_store(store_uri, prepare=False) as opened:
        opened.upgrade()
        click.echo(f"the store at {opened.address} has the collections, validators and indexes of this version")


@store.command()
@format_option("table", "json")
@store_option
def check(format_: str, store_uri: str | None) -> int:
    """Say what is wrong with the store, in words. Exit code 5 if anything is."""
    from autotune.store.check import check as check_store
    from autotune.store.connection import named_uri
    from autotune.store.mongo import MongoStore, open_store

    uri = named_uri(store_uri)
    with MongoStore(uri, prepare=False) if uri else open_store() as opened:
        findings = check_store(opened)
    if format_ == "json":
        echo_json([asdict(f) for f in findings])
    else:
        for finding in findings:
            click.echo(f"{_label(finding)} {finding.text}")
    return exit_codes.OK if all(f.ok for f in findings) else exit_codes.STORE


def _label(finding: Finding) -> str:
    return "PROBLEM " if not finding.ok else "warning " if finding.warning else "ok      "

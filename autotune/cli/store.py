"""``autotune store``: the embedded server, and what is wrong with a store."""

from __future__ import annotations

import os
from dataclasses import asdict

import click

from autotune.cli import exit_codes
from autotune.cli.output import echo_json, format_option, store_option


@click.group()
def store() -> None:
    """The embedded store (a private MongoDB on loopback): start it, stop it, see what is wrong with it."""


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
    from autotune.store.mongo import URI_VARIABLE, MongoStore

    uri = store_uri or os.environ.get(URI_VARIABLE) or embedded.find()
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
    """Put back missing collections, validators and indexes. Documents are not changed."""
    from autotune.store.mongo import open_store

    with open_store(store_uri) as opened:
        opened.upgrade()
        click.echo(f"the store at {opened.address} has the collections, validators and indexes of this version")


@store.command()
@format_option("table", "json")
@store_option
def check(format_: str, store_uri: str | None) -> int:
    """Say what is wrong with the store, in words. Exit code 5 if anything is."""
    from autotune.store.check import check as check_store
    from autotune.store.mongo import URI_VARIABLE, MongoStore, open_store

    uri = store_uri or os.environ.get(URI_VARIABLE)
    with MongoStore(uri, prepare=False) if uri else open_store() as opened:
        findings = check_store(opened)
    if format_ == "json":
        echo_json([asdict(f) for f in findings])
    else:
        for finding in findings:
            click.echo(f"{'ok      ' if finding.ok else 'PROBLEM '} {finding.text}")
    return exit_codes.OK if all(f.ok for f in findings) else exit_codes.STORE

"""``autotune store users``: who may use a store, and for what."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from autotune.cli.output import echo_json, echo_table, format_option, store_option
from autotune.errors import InputError

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore
    from autotune.store.users import Users

_F = TypeVar("_F", bound=Callable[..., Any])
_ROLES = ("reader", "worker", "coordinator")


@click.group()
def users() -> None:
    """Users of a store with passwords, each with no more rights than its work needs. For the store's owner."""


def _password_options(command: _F) -> _F:
    for option in (
        click.option("--generate", is_flag=True, help="Make a password up and print it, once."),
        click.option("--password-stdin", is_flag=True, help="Read the password from standard input, one line."),
    ):
        command = option(command)
    return command


@users.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(_ROLES),
    required=True,
    help="coordinator: launch, steer, push data; worker: train; reader: look.",
)
@_password_options
@store_option
def add(name: str, role: str, password_stdin: bool, generate: bool, store_uri: str | None) -> None:
    """Add user NAME, or give the user NAME another role. Asks for a password unless told where it comes from."""
    from autotune.store.users import Role

    _check(password_stdin, generate)
    with _opened(store_uri, prepare=True) as (store, found):
        there = found.find(name) is not None
        password = None if there and not (password_stdin or generate) else _password(password_stdin, generate)
        new = found.add(name, Role(role), password)
        click.echo(f"user '{name}' {'has been added with' if new else 'now has'} the role {role}")
        _show_way_in(store, name, password if generate else None)


@users.command(name="list")
@format_option("table", "json")
@store_option
def list_(format_: str, store_uri: str | None) -> None:
    """List the users of the store and their roles."""
    with _opened(store_uri) as (_, found):
        rows = [(user.name, user.role, ", ".join(user.others)) for user in found.all()]
    if format_ == "json":
        echo_json([dict(zip(("name", "role", "other_roles"), row, strict=True)) for row in rows])
    elif rows:
        echo_table(["name", "role", "other roles"], [[name, role, others or None] for name, role, others in rows])
    else:
        click.echo("the store has no users; add one: autotune store users add NAME --role worker")


@users.command()
@click.argument("name")
@store_option
def remove(name: str, store_uri: str | None) -> None:
    """Remove user NAME. What runs under it loses the store at once."""
    with _opened(store_uri) as (_, found):
        found.remove(name)
    click.echo(f"user '{name}' is removed")


@users.command()
@click.argument("name")
@_password_options
@store_option
def password(name: str, password_stdin: bool, generate: bool, store_uri: str | None) -> None:
    """Give user NAME another password. What runs goes on until it has to connect again."""
    _check(password_stdin, generate)
    with _opened(store_uri) as (store, found):
        new = _password(password_stdin, generate)
        found.set_password(name, new)
        click.echo(f"user '{name}' has another password")
        if generate:
            _show_way_in(store, name, new)


@contextmanager
def _opened(store_uri: str | None, *, prepare: bool = False) -> Iterator[tuple[MongoStore, Users]]:
    from autotune.store.mongo import open_store
    from autotune.store.users import Users

    with open_store(store_uri, prepare=prepare) as store:
        yield store, Users(store.connection)


def _check(password_stdin: bool, generate: bool) -> None:
    if password_stdin and generate:
        raise InputError("--password-stdin does not go with --generate; choose one")


def _password(password_stdin: bool, generate: bool) -> str:
    from autotune.store.users import new_password

    if generate:
        return new_password()
    if password_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise InputError("there is nobody to ask for a password; give --password-stdin or --generate")
    return str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))


def _show_way_in(store: MongoStore, name: str, password: str | None) -> None:
    """Print the URI of a user: with its password where nobody knows it yet, else with a place for it."""
    from autotune.store.users import uri_for

    if password is None:
        click.echo(f"it connects with: {uri_for(store.connection, name, 'PASSWORD')}")
    else:
        click.echo("this is shown once:")
        click.echo(uri_for(store.connection, name, password))

"""Who can reach a store without a password. A store that other machines reach and that wants none is refused.

Somebody who can write to a store can change campaigns, make up results, and read what trainings logged; so a store
without a password is for one machine. `exposure` decides, from what the URI says and what the server says of itself;
the rest of the module asks them.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pymongo import errors as driver

from autotune.errors import StoreSetupError
from autotune.store.connection import FILE_VARIABLE, Connection, Target

INSECURE_VARIABLE = "AUTOTUNE_INSECURE"

_NOT_TOLD = frozenset({13, 59, 115, 8000})
"""Codes of a server that will not tell its settings: it checks rights, or is a hosted one without that command."""
_SERVER_DEFAULT_BIND = "localhost"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a server says of itself.

    Attributes:
        listens: The addresses other than loopback that it listens on.
        authorization: Whether it asks its clients for a password.
    """

    listens: tuple[str, ...]
    authorization: bool


def exposure(target: Target, outside: tuple[str, ...], settings: Settings | None) -> str | None:
    """Return in words why anybody on another machine may use a store without a password, or None.

    Args:
        target: What the URI says.
        outside: Those of its hosts that are not this machine's loopback.
        settings: What the server says of itself; None when it does not tell.
    """
    if outside and not target.authenticated:
        return f"{', '.join(outside)} is another machine or can be reached from one, and the URI has no user"
    if settings is None or settings.authorization:
        return None
    if outside:
        return f"{', '.join(outside)} can be reached from other machines, and its server checks no passwords"
    if settings.listens:
        return f"its server listens on {', '.join(settings.listens)} and checks no passwords"
    return None


def is_loopback(address: str) -> bool:
    """Return whether an address can be reached from its own machine alone: of IPv4, of IPv6, or a path of a socket."""
    if "/" in address:
        return True
    try:
        parsed = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)


def settings_of(options: Mapping[str, Any]) -> Settings:
    """Return what the ``parsed`` options of a server's ``getCmdLineOpts`` mean.

    A server that was told nothing listens on loopback and checks no passwords. A key file implies authorization,
    unless the server is told to take both kinds of clients.
    """
    net, security = options.get("net") or {}, options.get("security") or {}
    bind = [part.strip() for part in str(net.get("bindIp") or _SERVER_DEFAULT_BIND).split(",")]
    listens = [part for part in bind if part and part != "localhost" and not is_loopback(part)]
    if net.get("bindIpAll"):
        listens = ["all addresses"]
    checks = security.get("authorization") == "enabled" or bool(
        security.get("keyFile") or security.get("clusterAuthMode")
    )
    return Settings(
        listens=tuple(dict.fromkeys(listens)), authorization=checks and not security.get("transitionToAuth")
    )


def outside_hosts(hosts: Iterable[str]) -> tuple[str, ...]:
    """Return the hosts that do not all resolve to loopback. A name that does not resolve counts as outside."""
    return tuple(host for host in hosts if not is_loopback(host) and not _resolves_to_loopback(host))


def _resolves_to_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(is_loopback(str(entry[4][0])) for entry in found)


def ask(connection: Connection) -> Settings | None:
    """Ask the server for its settings, in one round trip; None when it does not tell."""
    with connection.mapped():
        try:
            found = connection.client.admin.command("getCmdLineOpts")
        except driver.OperationFailure as error:
            if error.code in _NOT_TOLD:
                return None
            raise
    return settings_of(found.get("parsed") or {})


def found_exposure(connection: Connection) -> str | None:
    """Ask the server, and return why its store is exposed, or None."""
    settings = ask(connection)
    return exposure(connection.target, outside_hosts(connection.target.hosts), settings)


def guard(connection: Connection) -> None:
    """Refuse a store that others can reach without a password, unless ``AUTOTUNE_INSECURE=1``.

    Raises:
        StoreSetupError: If it is exposed; says why and what to do.
        StoreUnreachableError: If the server does not answer.
    """
    if os.environ.get(INSECURE_VARIABLE) == "1":
        return
    why = found_exposure(connection)
    if why is not None:
        raise StoreSetupError(
            f"the store at {connection.address} is open to anybody: {why}; start its server with users "
            f"(docs/security.md) and write mongodb://user:password@host/database into the file that "
            f"{FILE_VARIABLE} names, or accept it: --insecure"
        )

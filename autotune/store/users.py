"""Users of a store, and the roles that give each no more than its work needs.

The roles are MongoDB's own, in the store's database, so the server itself refuses what a role does not have.
MongoDB gives rights by collection, not by document: a worker that may end its trials may end others' too.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote

from autotune.errors import InputError, NotFoundError, nearest
from autotune.store.connection import Connection, mapped

_PREFIX = "autotune-"
_READ = ("find", "changeStream", "listCollections", "listIndexes")
_MECHANISMS = ["SCRAM-SHA-256"]


class Role(StrEnum):
    """What a user is for."""

    READER = "reader"
    WORKER = "worker"
    COORDINATOR = "coordinator"


_WORKER: dict[str, tuple[str, ...]] = {
    "trials": ("update",),
    "reports": ("insert", "update"),
    "workers": ("insert", "update"),
    "artifacts.files": ("insert", "update"),
    "artifacts.chunks": ("insert",),
    "artifacts.pushes": ("insert", "update", "remove"),
}
_COORDINATOR: dict[str, tuple[str, ...]] = {
    "campaigns": ("insert", "update"),
    "trials": ("insert", "update"),
    "reports": ("insert", "update"),
    "workers": ("insert", "update"),
    "leaders": ("insert", "update", "remove"),
    "events": ("insert",),
    "datasets.files": ("insert", "update", "remove", "createIndex"),
    "datasets.chunks": ("insert", "update", "remove", "createIndex"),
    "datasets.pushes": ("insert", "update", "remove"),
    "artifacts.files": ("insert", "update", "remove"),
    "artifacts.chunks": ("insert", "remove"),
    "artifacts.pushes": ("insert", "update", "remove"),
}
WRITES: Mapping[Role, Mapping[str, tuple[str, ...]]] = {
    Role.READER: {},
    Role.WORKER: _WORKER,
    Role.COORDINATOR: _COORDINATOR,
}
"""Role -> collection -> what it may do there beside reading, which every role may everywhere in the store.

A coordinator has the rights of a worker: `launch` hands its URI to the workers that it starts. To give a role a new
right, add it here; the next `autotune store users add` of any user writes it into the store.
"""


@dataclass(frozen=True, kw_only=True)
class User:
    """A user of the store's database.

    Attributes:
        name: Its name.
        role: What it is for; None for one that was not made by `Users`, such as an owner.
        others: Its roles that are not ours.
    """

    name: str
    role: Role | None
    others: tuple[str, ...] = ()


def privileges(role: Role, database: str) -> list[dict[str, Any]]:
    """Return the privileges of a role as MongoDB's ``createRole`` takes them."""
    everywhere = {"resource": {"db": database, "collection": ""}, "actions": list(_READ)}
    return [
        everywhere,
        *(
            {"resource": {"db": database, "collection": collection}, "actions": list(actions)}
            for collection, actions in WRITES[role].items()
        ),
    ]


def new_password() -> str:
    """Return a random password of letters, digits, ``-`` and ``_``: 192 bits, nothing to encode in a URI."""
    return secrets.token_urlsafe(24)


def checked_password(password: str) -> str:
    """Return a password that MongoDB takes.

    Raises:
        InputError: If it is empty or holds control characters; does not show it.
    """
    if not password:
        raise InputError("the password is empty; give one of at least one character")
    if not password.isprintable():
        raise InputError("the password holds a control character or a line break; give one line of text")
    return password


class Users:
    """The users and roles of a store's database. Only the store's owner may use it (``dbOwner`` or more)."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._database = connection.database

    @mapped
    def all(self) -> list[User]:
        """Return the users of the store's database, by name."""
        return [_user(d) for d in self._database.command("usersInfo")["users"]]

    def find(self, name: str) -> User | None:
        """Return one of our users, or None when there is none of that name.

        Raises:
            InputError: If that user is not one of ours: its other rights would be lost or used.
        """
        found = next((user for user in self.all() if user.name == name), None)
        if found is not None and found.role is None:
            raise InputError(
                f"user '{name}' was not made by autotune (roles: {', '.join(found.others) or 'none'}); "
                "choose another name"
            )
        return found

    @mapped
    def add(self, name: str, role: Role, password: str | None = None) -> bool:
        """Write the roles as this version has them, and a user with one of them. Safe to repeat.

        Args:
            name: Its name.
            role: What it is for; a user that is there gets this role in place of the one it had.
            password: Its password; None leaves that of a user that is there.

        Returns:
            Whether the user is new.

        Raises:
            InputError: If the name or password is not possible, or the name is taken by another's user.
        """
        if not name or not name.isprintable() or "." in name[:1] or "$" in name:
            raise InputError(f"{name!r} cannot be the name of a user; use letters, digits, '-', '_' and '@'")
        there = self.find(name)
        if there is None and password is None:
            raise InputError(f"user '{name}' is new and needs a password")
        changes: dict[str, Any] = {"roles": [_PREFIX + role], "mechanisms": _MECHANISMS}
        if password is not None:
            changes["pwd"] = checked_password(password)
        self._write_roles()
        if there is None:
            self._database.command("createUser", name, **changes)
            return True
        if password is None:
            del changes["mechanisms"]
        self._database.command("updateUser", name, **changes)
        return False

    @mapped
    def remove(self, name: str) -> None:
        """Remove one of our users; its open connections lose their rights.

        Raises:
            NotFoundError: If there is none of that name.
        """
        self._known(name)
        self._database.command("dropUser", name)

    @mapped
    def set_password(self, name: str, password: str) -> None:
        """Give one of our users another password. Connections that are open stay.

        Raises:
            NotFoundError: If there is none of that name.
            InputError: If the password is not possible.
        """
        self._known(name)
        self._database.command("updateUser", name, pwd=checked_password(password), mechanisms=_MECHANISMS)

    def _known(self, name: str) -> User:
        found = self.find(name)
        if found is None:
            names = [user.name for user in self.all() if user.role is not None]
            hint = nearest(name, names) if names else "; it has no users yet"
            raise NotFoundError(f"there is no user '{name}' in the store at {self.connection.address}{hint}")
        return found

    def _write_roles(self) -> None:
        there = {found["role"] for found in self._database.command("rolesInfo", 1)["roles"]}
        for role in Role:
            verb = "updateRole" if _PREFIX + role in there else "createRole"
            self._database.command(
                verb, _PREFIX + role, privileges=privileges(role, self.connection.target.database), roles=[]
            )


def _user(document: Mapping[str, Any]) -> User:
    names = [str(role["role"]) for role in document.get("roles", ())]
    ours = [Role(name.removeprefix(_PREFIX)) for name in names if name in {_PREFIX + role for role in Role}]
    others = tuple(name for name in names if name not in {_PREFIX + role for role in Role})
    return User(name=str(document["user"]), role=max(ours, key=list(Role).index, default=None), others=others)


def uri_for(connection: Connection, name: str, password: str) -> str:
    """Return the URI by which a user of this store connects to it.

    Args:
        connection: The owner's; replica set and TLS are taken from it, the owner's name and password are not.
        name: The user's name.
        password: The user's password, or what to write in its place.
    """
    options = {
        "replicaSet": connection.client.topology_description.replica_set_name,
        "tls": "true" if connection.target.tls else None,
        "tlsCAFile": connection.target.ca_file,
    }
    query = "&".join(f"{key}={quote(value, safe='/')}" for key, value in options.items() if value)
    credentials = f"//{quote(name, safe='')}:{quote(password, safe='')}@"
    return connection.address.replace("//", credentials, 1) + (f"?{query}" if query else "")

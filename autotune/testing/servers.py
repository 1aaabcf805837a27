"""A mongod of a test's own, with fail points: real faults instead of mocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autotune.store import embedded
from autotune.store.mongo import MongoStore


@contextmanager
def faulty_server(folder: Path) -> Iterator[str]:
    """Run a mongod on which `fail_point` works, in `folder`; gives its URI. It is gone at the end.

    Raises:
        StoreSetupError: If there is no ``mongod``.
    """
    server = embedded.launch(folder, "--setParameter", "enableTestCommands=1")
    try:
        yield server.uri
    finally:
        embedded.end(server)


@contextmanager
def fail_point(store: MongoStore, commands: Sequence[str], *, times: int = 1, **data: Any) -> Iterator[None]:
    """While inside, the server fails some commands that `store` sends.

    Args:
        store: An open store on a server of `faulty_server`.
        commands: Names, for example ``findAndModify``.
        times: So many of them fail.
        data: What ``failCommand`` takes: ``closeConnection=True`` drops the connection before the command is executed,
            ``writeConcernError={"code": ...}`` executes it and then says that it may not last.
    """
    admin = store.connection.client.admin
    data = {"failCommands": list(commands), "appName": "autotune", **data}
    admin.command({"configureFailPoint": "failCommand", "mode": {"times": times}, "data": data})
    try:
        yield
    finally:
        admin.command({"configureFailPoint": "failCommand", "mode": "off"})

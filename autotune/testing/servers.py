"""A mongod of a test's own, with fail points, users or TLS: real faults and real refusals instead of mocks."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pymongo
from pymongo.errors import PyMongoError

from autotune.store import embedded
from autotune.store.mongo import MongoStore
from autotune.store.mongod import find_binary, free_port

_START_TIMEOUT_S = 60.0
_REPLICA_SET = "secured"


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


@dataclass(frozen=True, kw_only=True)
class SecuredServer:
    """A running server that asks for passwords, and its owner.

    Attributes:
        port: Its port on 127.0.0.1.
        owner_password: Password of the user ``owner``, who may do everything.
        options: More options that a URI needs, for example ``tls=true&tlsCAFile=/path``.
    """

    port: int
    owner_password: str
    options: str = ""

    def uri(self, name: str | None = None, password: str = "", database: str = "autotune", options: str = "") -> str:
        """Return the URI by which a user of `database` connects, or by which nobody in particular does.

        Args:
            name: The user; None: without one.
            password: Its password.
            database: The store's database.
            options: Options in place of the server's own.
        """
        user = "" if name is None else f"{quote(name, safe='')}:{quote(password, safe='')}@"
        more = options or self.options
        query = f"replicaSet={_REPLICA_SET}" + (f"&{more}" if more else "")
        return f"mongodb://{user}127.0.0.1:{self.port}/{database}?{query}"

    def owner_uri(self, database: str = "autotune") -> str:
        """Return the URI of the owner."""
        return self.uri("owner", self.owner_password, database) + "&authSource=admin"


@contextmanager
def secured_server(
    folder: Path, *, bind: str = "127.0.0.1", certificate: Path | None = None, authority: Path | None = None
) -> Iterator[SecuredServer]:
    """Run a mongod with ``--auth`` and a key file, in `folder`; with a certificate it takes TLS alone.

    Args:
        folder: Where its data, key and log are; exists.
        bind: The addresses that it listens on.
        certificate: File with its certificate and private key, for 127.0.0.1.
        authority: File with the certificate of who signed it; needed with `certificate`.

    Raises:
        StoreSetupError: If there is no ``mongod``.
        TimeoutError: If it does not start; its log is in the message.
    """
    key, port = folder / "key", free_port(0)
    key.write_text(secrets.token_hex(64))
    key.chmod(0o600)
    arguments = ["--auth", "--keyFile", str(key), "--replSet", _REPLICA_SET, "--bind_ip", bind, "--port", str(port)]
    options: dict[str, Any] = {}
    query = ""
    if certificate is not None and authority is not None:
        arguments += ["--tlsMode", "requireTLS", "--tlsCertificateKeyFile", str(certificate)]
        arguments += ["--tlsCAFile", str(authority), "--tlsAllowConnectionsWithoutCertificates"]
        options = {"tls": True, "tlsCAFile": str(authority)}
        query = f"tls=true&tlsCAFile={authority}"
    server = SecuredServer(port=port, owner_password=secrets.token_urlsafe(12), options=query)
    with _mongod(folder, arguments) as process:
        _create_owner(server, options, lambda: process.poll() is None, folder / "mongod.log")
        yield server


@contextmanager
def open_server(folder: Path, bind: str) -> Iterator[str]:
    """Run a mongod without any password that listens on the addresses `bind`; gives its URI on loopback."""
    port = free_port(0)
    with _mongod(folder, ["--bind_ip", bind, "--port", str(port)]) as process:
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient("127.0.0.1", port, directConnection=True)
        with client:
            _until_done(lambda: client.admin.command("ping"), lambda: process.poll() is None, folder / "mongod.log")
        yield f"mongodb://127.0.0.1:{port}/autotune"


@contextmanager
def _mongod(folder: Path, arguments: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    data = folder / "data"
    data.mkdir()
    command = [
        str(find_binary()), "--dbpath", str(data), "--logpath", str(folder / "mongod.log"), "--nounixsocket",
        "--oplogSize", "64", "--wiredTigerCacheSizeGB", "0.25", "--setParameter",
        "diagnosticDataCollectionEnabled=false", *arguments,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={k: v for k, v in os.environ.items() if not k.startswith("AUTOTUNE_")},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _create_owner(server: SecuredServer, options: dict[str, Any], alive: Callable[[], bool], log: Path) -> None:
    """Make a fresh server the primary of its replica set, and write its first user: only from loopback, only once."""
    member = {"_id": 0, "host": f"127.0.0.1:{server.port}"}
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
        "127.0.0.1", server.port, directConnection=True, serverSelectionTimeoutMS=500, **options
    )
    with client:
        configuration = {"_id": _REPLICA_SET, "members": [member]}
        _until_done(lambda: client.admin.command("replSetInitiate", configuration), alive, log)
        _until_done(
            lambda: client.admin.command("createUser", "owner", pwd=server.owner_password, roles=["root"]), alive, log
        )


def _until_done(attempt: Callable[[], object], alive: Callable[[], bool], log: Path) -> None:
    end_s = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            attempt()
            return
        except PyMongoError as error:
            if not alive() or time.monotonic() > end_s:
                last = log.read_text(errors="replace")[-2000:] if log.exists() else ""
                raise TimeoutError(f"mongod did not start: {error}\n{last}") from error
        time.sleep(0.05)

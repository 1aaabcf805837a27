"""A store that anybody can reach is refused; TLS and wrong passwords are one clear line; no password is ever shown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pymongo
import pytest
import trustme
from pymongo.monitoring import CommandListener, CommandStartedEvent

from autotune.errors import StoreSetupError, StoreUnreachableError
from autotune.local.crew import Crew
from autotune.store.check import check
from autotune.store.mongo import MongoStore, open_store
from autotune.store.users import Role, Users
from autotune.testing.servers import SecuredServer, open_server, secured_server
from tests.acceptance.support import background, one_line, until, write_campaign

SECRET = "s3cr3t%@:/w0rd"
SPELLINGS = (SECRET, quote(SECRET, safe=""), "s3cr3t", "w0rd")
SOON_S = 12.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredServer]:
    """A server that asks for passwords, with a prepared store and the coordinator `lab`."""
    with secured_server(tmp_path_factory.mktemp("secured")) as started:
        with MongoStore(started.owner_uri()) as store:
            Users(store.connection).add("lab", Role.COORDINATOR, SECRET)
        yield started


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files: the authority that signed the server's certificate, another authority, the server's certificate."""
    folder, ours = tmp_path_factory.mktemp("certificates"), trustme.CA()
    files = {name: folder / f"{name}.pem" for name in ("right", "wrong", "server")}
    ours.cert_pem.write_to_path(str(files["right"]))
    trustme.CA().cert_pem.write_to_path(str(files["wrong"]))
    ours.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(files["server"]))
    return files


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory, authorities: dict[str, Path]) -> Iterator[SecuredServer]:
    """A server that takes TLS alone, with a prepared store."""
    folder = tmp_path_factory.mktemp("tls")
    with secured_server(folder, certificate=authorities["server"], authority=authorities["right"]) as started:
        MongoStore(started.owner_uri()).close()
        yield started


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of a server without users that listens on an address whose spelling is not one of loopback (it is)."""
    with open_server(tmp_path_factory.mktemp("open"), bind="127.1") as uri:
        yield uri


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTOTUNE_STORE", "AUTOTUNE_STORE_FILE", "AUTOTUNE_INSECURE", "AUTOTUNE_DEBUG"):
        monkeypatch.delenv(name, raising=False)


def elsewhere(uri: str) -> str:
    """Return the URI with a host that is not loopback by its spelling, but leads to this machine."""
    host, _, rest = uri.partition("127.0.0.1")
    return f"{host}0.0.0.0{rest.replace('replicaSet=secured', 'directConnection=true')}"


Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Runs a command with an environment of its own."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "autotune.cli.main", *arguments],
            capture_output=True, text=True, timeout=60, cwd=tmp_path, env={**os.environ, **environment}, check=False,
        )  # fmt: skip

    return run


# Exposure


def test_a_server_without_users_that_listens_elsewhere_is_refused(unguarded: str) -> None:
    untouched = unguarded.removesuffix("/autotune") + "/untouched"  # other tests share the server
    with pytest.raises(StoreSetupError, match=r"listens on 127\.1 and checks no passwords.*--insecure"):
        open_store(untouched)
    with MongoStore(untouched, prepare=False) as store:
        assert store.connection.database.list_collection_names() == []


def test_the_refusal_is_one_line_and_insecure_accepts_it(cli: Cli, unguarded: str) -> None:
    refused = cli("campaigns", AUTOTUNE_STORE=unguarded)
    assert refused.returncode == 5
    assert "--insecure" in one_line(refused.stderr)
    assert cli("campaigns", "--insecure", AUTOTUNE_STORE=unguarded).returncode == 0
    assert cli("campaigns", AUTOTUNE_STORE=unguarded, AUTOTUNE_INSECURE="1").returncode == 0
    assert cli("campaigns", AUTOTUNE_STORE=unguarded, AUTOTUNE_INSECURE="").returncode == 5


def test_insecure_reaches_the_processes_of_launch(cli: Cli, tmp_path: Path, server_uri: str) -> None:
    """The store of the test run has no users; by this spelling of its host it counts as one that others reach."""
    uri = elsewhere(server_uri).replace("/autotune?", "/insecure_launch?").split("?")[0] + "?directConnection=true"
    file = write_campaign(tmp_path, budget={"max_trials": 2})
    arguments = ("launch", str(file), "--devices", "cpu")
    home = {"AUTOTUNE_STORE": uri, "AUTOTUNE_HOME": str(tmp_path / "home")}
    assert cli(*arguments, **home).returncode == 5
    try:
        done = cli(*arguments, "--insecure", **home)
        assert done.returncode == 0, done.stderr
    finally:
        with MongoStore(uri, prepare=False) as store:
            store.connection.client.drop_database("insecure_launch")


def test_a_host_elsewhere_without_a_user_is_refused_and_with_one_it_is_not(server: SecuredServer) -> None:
    with pytest.raises(StoreSetupError, match=r"0\.0\.0\.0 is another machine.*the URI has no user"):
        open_store(elsewhere(server.uri()))
    open_store(elsewhere(server.uri("lab", SECRET))).close()


def test_a_user_does_not_hide_that_the_server_checks_none(server_uri: str) -> None:
    """A server without --auth also takes clients that give no password."""
    with MongoStore(server_uri, prepare=False) as store:
        admin = store.connection.client["admin"]
        admin.command("createUser", "somebody", pwd="pw", roles=["root"])
        try:
            uri = elsewhere(server_uri).split("/autotune")[0].replace("//", "//somebody:pw@")
            with pytest.raises(StoreSetupError, match="checks no passwords"):
                open_store(f"{uri}/autotune?directConnection=true&authSource=admin")
        finally:
            admin.command("dropUser", "somebody")


def test_a_server_that_asks_for_passwords_tells_who_gives_none(cli: Cli, server: SecuredServer) -> None:
    done = cli("campaigns", AUTOTUNE_STORE=server.uri())
    assert done.returncode == 5
    assert "wants a name and a password" in one_line(done.stderr)


class Commands(CommandListener):
    """Keeps the names of the commands that a client sends."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.sent.append(event.command_name)

    def succeeded(self, event: Any) -> None:
        """Nothing to do."""

    def failed(self, event: Any) -> None:
        """Nothing to do."""


def test_the_guard_costs_one_round_trip_and_nothing_for_the_embedded_store(
    store_uri: str, server_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands, client = Commands(), pymongo.MongoClient
    monkeypatch.setattr(pymongo, "MongoClient", lambda *a, **k: client(*a, event_listeners=[commands], **k))

    def sent_by(opening: Callable[[], MongoStore]) -> list[str]:
        commands.sent.clear()
        opening().close()
        return [name for name in commands.sent if name != "endSessions"]

    MongoStore(store_uri).close()
    without = sent_by(lambda: MongoStore(store_uri))
    assert sent_by(lambda: open_store(store_uri)) == ["getCmdLineOpts", *without]
    open_store().close()
    assert "getCmdLineOpts" not in sent_by(open_store)


def test_check_says_what_is_not_safe(server: SecuredServer, server_uri: str, unguarded: str) -> None:
    def findings(uri: str) -> dict[str, tuple[bool, bool]]:
        with MongoStore(uri, prepare=False) as store:
            return {f.text: (f.ok, f.warning) for f in check(store)}

    def of(uri: str, words: str) -> list[tuple[bool, bool]]:
        return [level for text, level in findings(uri).items() if words in text]

    with_user = server.uri("lab", SECRET)
    assert of(with_user, "asks for a name and a password") == [(True, False)]
    assert of(with_user, "without TLS") == []
    assert of(elsewhere(with_user), "without TLS") == [(True, True)]
    assert of(server_uri, "asks for no password") == [(True, False)]
    assert of(unguarded, "open to anybody") == [(False, False)]
    assert SECRET not in str(findings(with_user))


# TLS and passwords


def test_the_right_authority_connects(cli: Cli, tls_server: SecuredServer) -> None:
    with open_store(tls_server.owner_uri()) as store:
        assert store.connection.target.tls
        assert store.campaigns.find() == []
        Users(store.connection).add("reader", Role.READER, "pw")
    assert cli("campaigns", AUTOTUNE_STORE=tls_server.uri("reader", "pw")).returncode == 0
    added = cli("store", "users", "add", "w", "--role", "worker", "--generate", AUTOTUNE_STORE=tls_server.owner_uri())
    assert cli("campaigns", AUTOTUNE_STORE=added.stdout.splitlines()[-1]).returncode == 0


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("wrong authority", "certificate of the store at .* is not trusted.*tlsCAFile="),
        ("system's authorities", "certificate of the store at .* is not trusted.*tlsCAFile="),
        ("no TLS", r"if it wants TLS, add tls=true"),
    ],
)
def test_what_is_not_trusted_is_refused_soon(
    cli: Cli, tls_server: SecuredServer, authorities: dict[str, Path], which: str, message: str
) -> None:
    options = {
        "wrong authority": f"tls=true&tlsCAFile={authorities['wrong']}",
        "system's authorities": "tls=true",
        "no TLS": "tls=false",
    }[which]
    uri = tls_server.uri("lab", SECRET, options=options)
    started_s = time.monotonic()
    done = cli("campaigns", AUTOTUNE_STORE=uri)
    assert time.monotonic() - started_s < SOON_S
    assert (done.returncode, shown(done)) == (4, [])
    assert re.search(message, one_line(done.stderr))


def test_another_name_than_the_certificate_has_is_refused(tls_server: SecuredServer) -> None:
    uri = (
        tls_server.owner_uri().replace("127.0.0.1", "localhost").replace("replicaSet=secured", "directConnection=true")
    )
    with pytest.raises(StoreUnreachableError, match="is not trusted"):
        open_store(uri)


def test_tls_to_a_server_without_it_is_one_line(server: SecuredServer) -> None:
    with pytest.raises(StoreUnreachableError, match=r"no answer from the store"):
        open_store(server.uri("lab", SECRET, options="tls=true"), timeout_s=1)


def test_a_wrong_password_is_one_line_soon(cli: Cli, server: SecuredServer) -> None:
    started_s = time.monotonic()
    done = cli("campaigns", AUTOTUNE_STORE=server.uri("lab", SECRET + "x"))
    assert time.monotonic() - started_s < SOON_S
    assert done.returncode == 5
    assert "wrong name or password" in one_line(done.stderr)
    assert shown(done) == []


# Nothing shown


def shown(*outputs: object) -> list[str]:
    """Return the spellings of the secret that occur in some outputs."""
    text = "".join(o.stdout + o.stderr if isinstance(o, subprocess.CompletedProcess) else str(o) for o in outputs)
    return [spelling for spelling in SPELLINGS if spelling in text]


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("right", 0),
        ("wrong password", 5),
        ("unreachable", 4),
        ("unknown host", 4),
        ("not encoded", 2),
        ("no host", 2),
        ("wrong option", 2),
        ("no certificate", 2),
        ("wrong mechanism", 5),
    ],
)
def test_no_command_shows_a_password(cli: Cli, server: SecuredServer, case: str, code: int) -> None:
    right, encoded = server.uri("lab", SECRET), quote(SECRET, safe="")
    uri = {
        "right": right,
        "wrong password": server.uri("other", SECRET),
        "unreachable": right.replace(f":{server.port}/", ":9/"),
        "unknown host": f"mongodb://lab:{encoded}@no-such-host.invalid/autotune",
        "not encoded": f"mongodb://lab:{SECRET}@127.0.0.1/autotune",
        "no host": f"mongodb://lab:{encoded}",
        "wrong option": right + "&nonsense=1",
        "no certificate": right + f"&tls=true&tlsCAFile=/nowhere&tlsCertificateKeyFilePassword={encoded}",
        "wrong mechanism": right + "&authMechanism=SCRAM-SHA-1",
    }[case]
    done = cli("campaigns", AUTOTUNE_STORE=uri)
    assert (done.returncode, shown(done)) == (code, []), done.stderr
    assert code == 0 or one_line(done.stderr)
    commands = [["store", "status", "--format", "json"]]
    if code != 4:
        commands += [["store", "check"], ["status", "demo"], ["store", "users", "list"]]
    for command in commands:
        debugged = cli(*command, AUTOTUNE_STORE=uri, AUTOTUNE_DEBUG="1")
        assert shown(debugged) == [], command
        assert debugged.returncode == 0 or command == ["store", "check"] or "Traceback" in debugged.stderr


def test_the_uri_can_be_in_a_file(cli: Cli, server: SecuredServer, tmp_path: Path) -> None:
    file = tmp_path / "store-uri"
    file.write_text(server.uri("lab", SECRET) + "\n")
    done = cli("store", "status", "--format", "json", AUTOTUNE_STORE_FILE=str(file))
    assert (done.returncode, shown(done)) == (0, [])
    assert str(server.port) in done.stdout
    missing = cli("campaigns", AUTOTUNE_STORE_FILE=str(tmp_path / "none"))
    assert (missing.returncode, "cannot read AUTOTUNE_STORE_FILE" in one_line(missing.stderr)) == (2, True)


def processes() -> dict[int, str]:
    """Return process id -> command line of all processes."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found[int(folder.name)] = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
        except OSError:
            continue
    return found


def test_launch_shows_no_password_in_the_list_of_processes_or_in_logs(
    server: SecuredServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("AUTOTUNE_HOME", str(home))
    file = write_campaign(tmp_path, objective="objectives:gated", budget={"max_trials": 2})
    uri = server.uri("lab", SECRET)
    with background(tmp_path, uri, "launch", str(file), "--devices", "cpu") as launched, open_store(uri) as store:
        until(lambda: store.campaigns.find() and [t for t in store.trials.heads("sine") if t.state == "running"])
        there = processes()
        roles = [line for line in there.values() if "sine" in line]
        assert any("coordinator" in line for line in roles)
        assert any("workers" in line for line in roles)
        assert shown(*there.values()) == []
        (tmp_path / "go").touch()
        out, err = launched.communicate(timeout=120)
    assert launched.returncode == 0, err
    logs = [p.read_text(errors="replace") for p in home.rglob("*") if p.is_file()]
    assert len(logs) >= 2
    assert shown(out, err, *logs) == []


def test_a_crew_does_not_show_the_password() -> None:
    assert shown(repr(Crew(store_uri=f"mongodb://lab:{SECRET}@h/db", campaign="c"))) == []

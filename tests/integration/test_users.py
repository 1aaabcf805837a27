"""Users with the least rights, on a real server with passwords: what each role does, and what the server refuses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pymongo.errors import OperationFailure

from autotune.campaign import parse_campaign
from autotune.errors import AutotuneError, InputError, NotFoundError, StoreSetupError
from autotune.history import frame
from autotune.local.resolve import resolve
from autotune.store.check import check
from autotune.store.connection import Connection
from autotune.store.datasets import Datasets
from autotune.store.mongo import MongoStore, open_store
from autotune.store.users import WRITES, Role, Users
from autotune.testing.helpers import campaign_record, propose
from autotune.testing.servers import SecuredServer, secured_server
from autotune.trial import CampaignState
from tests.objectives.support import ENDINGS, ROOT, assert_exact, coordinating, wait_until, working

PASSWORDS = {role: f"pw-{role}-%@:/?#é" for role in Role}
OWNER = "owner"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredServer]:
    """A server with a prepared store and one user per role, named like it."""
    with secured_server(tmp_path_factory.mktemp("secured")) as started:
        with MongoStore(started.owner_uri()) as store:
            for role in Role:
                assert Users(store.connection).add(role, role, PASSWORDS[role])
        yield started


@pytest.fixture
def as_role(server: SecuredServer) -> Iterator[Callable[[str], MongoStore]]:
    """Opens the store as the owner or as the user of a role."""
    opened = []

    def connect(who: str) -> MongoStore:
        store = open_store(server.owner_uri() if who == OWNER else server.uri(who, PASSWORDS[Role(who)]))
        opened.append(store)
        return store

    yield connect
    for store in opened:
        store.close()


@pytest.fixture
def owner(as_role: Callable[[str], MongoStore]) -> Iterator[MongoStore]:
    """The store as its owner; emptied at the end."""
    store = as_role(OWNER)
    yield store
    for name in WRITES[Role.COORDINATOR]:
        store.connection.database[name].delete_many({})


def test_a_campaign_is_worked_with_each_part_in_its_own_role(
    as_role: Callable[[str], MongoStore], owner: MongoStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    launcher, trainer, reader = as_role("coordinator"), as_role("worker"), as_role("reader")
    content: dict[str, Any] = {
        "name": "demo",
        "objective": f"{ENDINGS}:chosen",
        "metric": {"name": "loss", "mode": "min"},
        "space": {"x": {"float": [-2, 2]}},
        "search": {"algorithm": "random", "seed": 0},
        "fixed": {"do": "reports", "folder": str(tmp_path)},
        "budget": {"max_trials": 6},
    }
    launcher.campaigns.create(resolve(parse_campaign(content)), "a test")
    with (
        reader.watch_progress("demo") as watch,
        coordinating(launcher),
        working(trainer, campaigns=["demo"], once=True),
    ):
        assert watch.wait(30)
        wait_until(lambda: reader.campaigns.get("demo").state is CampaignState.FINISHED, "end of the campaign")
        wait_until(lambda: not reader.workers.live("demo"), "end of the worker")
    trials = assert_exact(reader, 6)
    assert len(frame(tuple(trials), "loss")) == 6
    assert len(reader.reports.curve("demo", 0)) == 10
    assert next(e["action"] for e in reader.campaigns.events("demo")) == "create"
    for role in Role:
        assert [f.text for f in check(as_role(role)) if not f.ok] == []


def test_a_coordinator_steers_and_its_lead_goes(as_role: Callable[[str], MongoStore], owner: MongoStore) -> None:
    store = as_role("coordinator")
    store.campaigns.create(campaign_record("steered"))
    assert store.leaders.lead("steered", "me", 60)
    propose(store, 0, "steered")
    store.campaigns.set_state("steered", CampaignState.PAUSED, expected=[CampaignState.RUNNING])
    store.campaigns.set_state("steered", CampaignState.CANCELLED, expected=[CampaignState.PAUSED])
    assert store.trials.cancel("steered") == 1
    store.leaders.resign("steered", "me")
    assert owner.leaders.leader("steered") is None


def test_a_coordinator_pushes_data_and_a_worker_reads_them(
    as_role: Callable[[str], MongoStore], owner: MongoStore, tmp_path: Path
) -> None:
    (tmp_path / "cells.h5ad").write_bytes(os.urandom(3_000_000))
    coordinator = Datasets(as_role("coordinator").connection)
    pushed = coordinator.push(tmp_path / "cells.h5ad").dataset
    reader = Datasets(as_role("worker").connection)
    found = reader.find(pushed.sha256)
    assert found is not None
    assert b"".join(reader.read(found, 0)) == (tmp_path / "cells.h5ad").read_bytes()
    with pytest.raises(StoreSetupError, match=r"refused the user: it may not delete in 'datasets\.files'"):
        reader.remove(found)
    coordinator.remove(found)


CREATE: dict[str, Callable[[Any], Any]] = {
    "drop a collection": lambda d: d.drop_collection("reports"),
    "drop the trials": lambda d: d.drop_collection("trials"),
    "drop the database": lambda d: d.client.drop_database(d.name),
    "make a collection": lambda d: d.create_collection("mine"),
    "write to a new collection": lambda d: d["mine"].insert_one({}),
    "take a validator away": lambda d: d.command("collMod", "trials", validator={}),
    "make an index": lambda d: d["trials"].create_index("params.x"),
    "drop an index": lambda d: d["trials"].drop_index("campaign_number"),
    "rename a collection": lambda d: d["trials"].rename("others"),
    "write past a validator": lambda d: d["reports"].insert_one({"no": 1}, bypass_document_validation=True),
    "write another schema version": lambda d: d["meta"].update_one({}, {"$set": {"version": 99}}),
    "write the trials elsewhere": lambda d: d["trials"].aggregate([{"$match": {}}, {"$out": "stolen"}]),
    "write the trials to another database": lambda d: d["trials"].aggregate([{"$out": {"db": "x", "coll": "y"}}]),
    "delete trials": lambda d: d["trials"].delete_many({}),
    "delete reports": lambda d: d["reports"].delete_many({}),
    "delete campaigns": lambda d: d["campaigns"].delete_many({}),
    "delete the audit": lambda d: d["events"].delete_many({}),
    "change the audit": lambda d: d["events"].update_many({}, {"$set": {"who": "nobody"}}),
    "read users": lambda d: d.command("usersInfo", 1),
    "read password hashes": lambda d: list(d.client["admin"]["system.users"].find()),
    "read roles": lambda d: d.command("rolesInfo", 1, showPrivileges=True),
    "make a user": lambda d: d.command("createUser", "evil", pwd="x", roles=[]),
    "take a role": lambda d: d.command("grantRolesToUser", "worker", roles=["dbOwner"]),
    "widen a role": lambda d: d.command("grantRolesToRole", "autotune-worker", roles=["dbOwner"]),
    "change the owner's password": lambda d: d.client["admin"].command("updateUser", "owner", pwd="x"),
    "read another database": lambda d: d.client["other"]["things"].find_one(),
    "write another database": lambda d: d.client["other"]["things"].insert_one({}),
    "list databases' contents": lambda d: d.client["other"].list_collection_names(),
    "read the replication log": lambda d: d.client["local"]["oplog.rs"].find_one(),
    "stop the server": lambda d: d.client["admin"].command("shutdown"),
    "set a parameter": lambda d: d.client["admin"].command("setParameter", 1, logLevel=1),
    "see others' operations": lambda d: list(d.client["admin"].aggregate([{"$currentOp": {"allUsers": True}}])),
}
NO_WORKER: dict[str, Callable[[Any], Any]] = {
    "make a campaign": lambda d: d["campaigns"].insert_one({"_id": "mine"}),
    "change a campaign": lambda d: d["campaigns"].update_one({}, {"$set": {"spec": {}}}),
    "replace a campaign": lambda d: d["campaigns"].find_one_and_replace({}, {}),
    "make a trial": lambda d: d["trials"].insert_one({"campaign": "demo", "number": 99}),
    "make a trial by upsert": lambda d: d["trials"].update_one({"n": -1}, {"$set": {"x": 1}}, upsert=True),
    "lead": lambda d: d["leaders"].update_one({"_id": "demo"}, {"$set": {"owner": "me"}}, upsert=True),
    "take the lead away": lambda d: d["leaders"].delete_many({}),
    "write the audit": lambda d: d["events"].insert_one({}),
    "put data": lambda d: d["datasets.files"].insert_one({}),
    "put chunks": lambda d: d["datasets.chunks"].insert_one({}),
    "change chunks": lambda d: d["datasets.chunks"].update_many({}, {"$set": {"n": 7}}),
    "delete data": lambda d: d["datasets.files"].delete_many({}),
    "begin a push": lambda d: d["datasets.pushes"].insert_one({}),
    "remove workers": lambda d: d["workers"].delete_many({}),
}
NO_READER: dict[str, Callable[[Any], Any]] = {
    "change a trial": lambda d: d["trials"].update_one({}, {"$set": {"score": 0.0}}),
    "report": lambda d: d["reports"].insert_one({}),
    "change a report": lambda d: d["reports"].update_one({}, {"$set": {"metrics": {}}}),
    "be a worker": lambda d: d["workers"].insert_one({}),
}
FORBIDDEN = [
    *(("coordinator", what) for what in CREATE),
    *(("worker", what) for what in {**CREATE, **NO_WORKER}),
    *(("reader", what) for what in {**CREATE, **NO_WORKER, **NO_READER}),
]
ACTIONS = {**CREATE, **NO_WORKER, **NO_READER}


@pytest.mark.parametrize(("role", "what"), FORBIDDEN)
def test_the_server_refuses_what_a_role_may_not(server: SecuredServer, role: str, what: str) -> None:
    with MongoStore(server.uri(role, PASSWORDS[Role(role)]), prepare=False) as store:
        with pytest.raises(OperationFailure) as caught:
            ACTIONS[what](store.connection.database)
        assert caught.value.code == 13, caught.value


ALLOWED = [
    *(("worker", what) for what in NO_READER),
    *(("coordinator", what) for what in {**NO_WORKER, **NO_READER} if what != "remove workers"),
]


@pytest.mark.parametrize(("role", "what"), ALLOWED)
def test_the_next_role_up_is_not_refused(server: SecuredServer, owner: MongoStore, role: str, what: str) -> None:
    """The refusals above come from the role, not from the command; a validator may still refuse the document."""
    with MongoStore(server.uri(role, PASSWORDS[Role(role)]), prepare=False) as store:
        refused = None
        try:
            ACTIONS[what](store.connection.database)
        except OperationFailure as error:
            refused = error.code
        assert refused in (None, 121)


def test_a_role_that_lost_rights_in_the_store_gets_them_back_by_add(server: SecuredServer, owner: MongoStore) -> None:
    database = owner.connection.database
    database.command("updateRole", "autotune-worker", privileges=[], roles=[])
    with MongoStore(server.uri("worker", PASSWORDS[Role.WORKER]), prepare=False) as worker:
        with pytest.raises(StoreSetupError, match="it may not "):
            worker.campaigns.find()
        assert Users(owner.connection).add("worker", Role.WORKER) is False
        assert worker.campaigns.find() == []


def test_add_again_changes_the_role_and_keeps_the_password(server: SecuredServer, owner: MongoStore) -> None:
    users = Users(owner.connection)
    assert users.add("ann", Role.READER, "first") is True
    assert users.add("ann", Role.COORDINATOR) is False
    with MongoStore(server.uri("ann", "first")) as store:
        assert store.campaigns.create(campaign_record("of-ann"))
    assert users.add("ann", Role.READER, "second") is False
    with MongoStore(server.uri("ann", "second")) as store, pytest.raises(StoreSetupError, match="role coordinator"):
        store.campaigns.create(campaign_record("another"))
    with pytest.raises(StoreSetupError, match="wrong name or password"):
        MongoStore(server.uri("ann", "first"))
    users.remove("ann")


def test_a_removed_user_loses_the_connections_it_has(server: SecuredServer, owner: MongoStore) -> None:
    users = Users(owner.connection)
    users.add("bob", Role.WORKER, "pw")
    with MongoStore(server.uri("bob", "pw")) as store:
        assert store.campaigns.find() == []
        users.set_password("bob", "other")
        assert store.campaigns.find() == []
        users.remove("bob")
        with pytest.raises(AutotuneError):
            store.campaigns.find()
    with pytest.raises(NotFoundError, match="no user 'bob'"):
        users.remove("bob")


def test_users_that_are_not_ours_are_left_alone(owner: MongoStore) -> None:
    users, database = Users(owner.connection), owner.connection.database
    database.command("createUser", "boss", pwd="x", roles=["dbOwner"])
    try:
        for action in (
            lambda: users.add("boss", Role.READER),
            lambda: users.remove("boss"),
            lambda: users.set_password("boss", "y"),
        ):
            with pytest.raises(InputError, match="not made by autotune"):
                action()
        assert [(u.name, u.role, u.others) for u in users.all() if u.name == "boss"] == [("boss", None, ("dbOwner",))]
    finally:
        database.command("dropUser", "boss")


@pytest.mark.parametrize("name", ["", "a\nb", ".x", "a$b"])
def test_names_that_cannot_be(owner: MongoStore, name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name"):
        Users(owner.connection).add(name, Role.READER, "pw")


def test_an_owner_of_the_database_alone_can_do_all_of_it(server: SecuredServer, owner: MongoStore) -> None:
    """`dbOwner` of a database is enough to prepare a store there and to keep its users; `root` is not needed."""
    admin = owner.connection.client["admin"]
    admin.command("createUser", "lab", pwd="pw", roles=[{"role": "dbOwner", "db": "lab"}])
    try:
        with open_store(server.uri("lab", "pw", "lab") + "&authSource=admin") as store:
            users = Users(store.connection)
            assert users.add("w", Role.WORKER, "pw")
            assert [u.name for u in users.all()] == ["w"]
            store.upgrade()
        with open_store(server.uri("w", "pw", "lab")) as store:
            assert store.campaigns.find() == []
        with pytest.raises(StoreSetupError, match="wrong name or password"):
            open_store(server.uri("w", "pw"))
    finally:
        owner.connection.client.drop_database("lab")
        owner.connection.client["lab"].command("dropAllUsersFromDatabase")
        admin.command("dropUser", "lab")


@pytest.mark.parametrize("role", list(Role))
def test_a_store_that_is_not_prepared_is_said_to_who_may_not_prepare_it(
    server: SecuredServer, owner: MongoStore, role: Role
) -> None:
    other = Connection(server.owner_uri("bare"))
    try:
        Users(other).add("early", role, "pw")
        with pytest.raises(StoreSetupError, match=r"not prepared.*autotune store upgrade"):
            open_store(server.uri("early", "pw", "bare"))
        assert "campaigns" not in other.database.list_collection_names()
    finally:
        other.database.command("dropAllUsersFromDatabase")
        other.client.drop_database("bare")
        other.close()


CAMPAIGN_FILE = """
name: other
objective: math:fsum
metric: {name: loss, mode: min}
space: {x: {float: [0, 1]}}
budget: {max_trials: 1}
"""
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(server: SecuredServer, tmp_path: Path) -> Cli:
    """Runs a command as the owner, or with the URI given."""

    def run(*arguments: str, uri: str = "", given: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "autotune.cli.main", *arguments],
            input=given, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False,
            env={**os.environ, "AUTOTUNE_STORE": uri or server.owner_uri(), **more},
        )  # fmt: skip

    return run


def test_the_commands(cli: Cli, server: SecuredServer, owner: MongoStore) -> None:
    added = cli("store", "users", "add", "eve", "--role", "worker", "--generate")
    assert added.returncode == 0, added.stderr
    uri = added.stdout.splitlines()[-1]
    assert uri.startswith("mongodb://eve:")
    assert server.owner_password not in added.stdout
    assert cli("campaigns", uri=uri).returncode == 0

    given = cli("store", "users", "add", "dan", "--role", "reader", "--password-stdin", given="p@ss w:rd\n")
    assert "mongodb://dan:PASSWORD@" in given.stdout
    assert "p@ss" not in given.stdout + given.stderr
    assert cli("campaigns", uri=server.uri("dan", "p@ss w:rd")).returncode == 0

    again = cli("store", "users", "add", "dan", "--role", "worker")
    assert (again.returncode, "now has the role worker" in again.stdout) == (0, True)
    listed = {u["name"]: u["role"] for u in json.loads(cli("store", "users", "list", "--format", "json").stdout)}
    assert (listed["dan"], listed["eve"]) == ("worker", "worker")
    assert "dan" in cli("store", "users", "list").stdout

    changed = cli("store", "users", "password", "dan", "--password-stdin", given="other\n")
    assert changed.returncode == 0, changed.stderr
    assert cli("campaigns", uri=server.uri("dan", "p@ss w:rd")).returncode == 5
    for name in ("dan", "eve"):
        assert cli("store", "users", "remove", name).returncode == 0
    gone = cli("store", "users", "remove", "dan")
    assert (gone.returncode, "no user 'dan'" in gone.stderr) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        (["add", "x", "--role", "worker"], "", "nobody to ask"),
        (["add", "x", "--role", "worker", "--password-stdin"], "", "password is empty"),
        (["add", "x", "--role", "worker", "--password-stdin"], "a\x07secret\n", "control character"),
        (["add", "x", "--role", "worker", "--password-stdin", "--generate"], "", "does not go with"),
        (["password", "reader"], "", "nobody to ask"),
        (["add", "owner of it\x1b", "--role", "worker", "--generate"], "", "cannot be the name"),
    ],
)
def test_wrong_use_is_one_line(cli: Cli, arguments: list[str], given: str, message: str) -> None:
    done = cli("store", "users", *arguments, given=given)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert message in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("role", "arguments", "message"),
    [
        ("reader", ["store", "users", "list"], "only the store's owner"),
        ("coordinator", ["store", "users", "add", "x", "--role", "reader", "--generate"], "only the store's owner"),
        ("coordinator", ["store", "upgrade"], ""),
        ("worker", ["pause", "demo"], "role coordinator"),
        ("reader", ["cancel", "demo"], "role coordinator"),
        ("reader", ["worker", "--once", "--devices", "cpu"], "or worker (to train)"),
        ("worker", ["launch", "campaign.yaml", "--workers", "0"], "role coordinator"),
    ],
)
def test_a_command_of_the_wrong_role_is_one_line(
    cli: Cli, server: SecuredServer, owner: MongoStore, tmp_path: Path, role: str, arguments: list[str], message: str
) -> None:
    owner.campaigns.create(campaign_record("demo"))
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN_FILE)
    done = cli(*arguments, uri=server.uri(role, PASSWORDS[Role(role)]))
    assert done.returncode == 5, done.stderr
    line = done.stderr.splitlines()[-1]
    assert "refused the user: it may not " in line
    assert message in line
    assert "Traceback" not in done.stderr
    assert PASSWORDS[Role(role)] not in done.stderr + done.stdout
    assert quote(PASSWORDS[Role(role)], safe="") not in done.stderr + done.stdout

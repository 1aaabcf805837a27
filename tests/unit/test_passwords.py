"""No password in what anybody is shown: errors, reprs, addresses; for URIs right, wrong and odd."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo import errors as driver

from autotune.errors import InputError, StoreSetupError, StoreUnreachableError
from autotune.store.connection import Connection, describe_uri, map_error, named_uri
from autotune.store.mongo import MongoStore
from autotune.store.users import WRITES, Role, checked_password, new_password, privileges

SECRET = "s3cr3tw0rd"
ODD = st.text(alphabet="aZ0:/?#[]@!$&'()*+,;=%-._~ \\\"\té…\u00a0", max_size=8)
ADDRESS = "mongodb://h:1/db"


def shown_of(uri: str) -> str:
    """Return everything that somebody may see of a store with this URI, open or refused."""
    try:
        store = MongoStore(uri, prepare=False)
    except InputError as error:
        return str(error) + repr(error) + "".join(traceback.format_exception(error))
    try:
        parts = [store, store.connection, store.campaigns, store.connection.target, store.address]
        return "".join(map(repr, parts)) + str(store) + str(store.connection)
    finally:
        store.close()


@given(ODD, ODD)
def test_raw_passwords(left: str, right: str) -> None:
    assert SECRET not in shown_of(f"mongodb://user:{left}{SECRET}{right}@h:1/db")


@given(ODD, ODD, st.sampled_from([quote, quote_plus]))
def test_encoded_passwords(left: str, right: str, encode: Callable[..., str]) -> None:
    shown = shown_of(f"mongodb://user:{encode(f'{left}{SECRET}{right}', safe='')}@h:1/db")
    assert SECRET not in shown
    assert "MongoStore(mongodb://h:1/db)" in shown


@settings(max_examples=300)
@given(
    st.sampled_from(
        [
            "mongodb://user:{}",
            "mongodb://user:{}@",
            "mongodb://user:{}@/db",
            "mongodb://user:{}@h:port/db",
            "mongodb://user:{}@h:99999/db",
            "mongodb://user:{}@h/d b?x",
            "mongodb://user:{}@h/db?nonsense=1",
            "mongodb://user:{}@h/db?tls=maybe",
            "mongodb://user:{}@h,h2:x/db",
            "mongodb://user:{}@[::1/db",
            "mongodb://:{}@h/db",
            "mongodb:/user:{}@h/db",
            "user:{}@h/db",
            "http://user:{}@h/db",
            "mongodb+srv://user:{}@h:1/db",
            "mongodb+srv://user:{}@localhost/db",
            "mongodb://user:{}@h/db?authMechanism=NONSENSE",
            "mongodb://user:{}@h/db?authMechanism=MONGODB-X509",
            "mongodb://h/db?password={}",
            "mongodb://h/db?authMechanismProperties={}",
            "mongodb://u@h/db?authMechanism=MONGODB-AWS&authMechanismProperties=AWS_SESSION_TOKEN:{}",
            "mongodb://h/db?tls=true&tlsCertificateKeyFile=/nowhere&tlsCertificateKeyFilePassword={}",
            "mongodb://h/db?tlsCertificateKeyFilePassword={}&tls=maybe",
            "mongodb://h/db?tlsCertificateKeyFilePassword={}",
            "mongodb://h/db?maxPoolSize={}",
            "mongodb://h/db?readPreference={}",
            "mongodb://h/db?{}",
        ]
    ),
    ODD,
)
def test_malformed_uris(form: str, odd: str) -> None:
    if form.endswith("user:{}"):
        odd = odd.replace("@", "")  # what follows it is the name of a host
    assert SECRET not in shown_of(form.format(odd + SECRET))
    assert SECRET not in shown_of(form.format(quote(odd, safe="") + SECRET + quote(odd, safe="")))


@given(ODD)
def test_addresses_have_no_user_and_no_options(odd: str) -> None:
    address, database = describe_uri(
        f"mongodb://{quote(odd + 'user', safe='')}:{SECRET}@h:1,[::1]:2/lab?replicaSet={SECRET}"
    )
    assert (address, database) == ("mongodb://h:1,::1:2/lab", "lab")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (driver.OperationFailure("Authentication failed.", 18), StoreSetupError, "wrong name or password"),
        (driver.OperationFailure("bad auth", 8000), StoreSetupError, "wrong name or password"),
        (driver.OperationFailure("command find requires authentication", 13), StoreSetupError, "AUTOTUNE_STORE_FILE"),
        (driver.OperationFailure("no reason", 13), StoreSetupError, "lacks a right"),
        (
            driver.OperationFailure(
                f'not authorized on autotune to execute command {{ createUser: "x", pwd: "{SECRET}", roles: [] }}', 13
            ),
            StoreSetupError,
            "may not createUser; only the store's owner",
        ),
        (
            driver.OperationFailure(
                f'not authorized on autotune to execute command {{ insert: "campaigns", x: "{SECRET}" }}', 13
            ),
            StoreSetupError,
            "may not insert in 'campaigns'; use a user with the role coordinator",
        ),
        (
            driver.OperationFailure('not authorized on autotune to execute command { find: "trials", filter: {} }', 13),
            StoreSetupError,
            "--role reader",
        ),
        (driver.ServerSelectionTimeoutError("h:1: connection closed, more"), StoreUnreachableError, "tls=true"),
        (
            driver.ServerSelectionTimeoutError("h:1: [SSL: CERTIFICATE_VERIFY_FAILED] self-signed, more"),
            StoreUnreachableError,
            "tlsCAFile=",
        ),
        (driver.ServerSelectionTimeoutError("h:1: [SSL: WRONG_VERSION], more"), StoreUnreachableError, "speaks TLS"),
        (driver.ServerSelectionTimeoutError("h:1: refused, more"), StoreUnreachableError, "server runs"),
    ],
)
def test_refusals_say_what_to_do_and_show_no_part_of_a_command(
    error: driver.PyMongoError, kind: type[Exception], words: str
) -> None:
    mapped = map_error(error, ADDRESS)
    assert type(mapped) is kind
    assert words in str(mapped)
    assert ADDRESS in str(mapped)
    assert SECRET not in str(mapped)


def test_certificates_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    for option in (f"tlsCAFile={tmp_path}/none", f"tlsCAFile={tmp_path}/no.pem", f"tlsCertificateKeyFile={tmp_path}"):
        with pytest.raises(InputError, match="URI"):
            Connection(f"mongodb://h/db?tls=true&{option}")


def test_the_store_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AUTOTUNE_STORE", "AUTOTUNE_STORE_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert named_uri() is None
    file = tmp_path / "uri"
    file.write_text("\n  mongodb://of-file/x \r\n\n")
    monkeypatch.setenv("AUTOTUNE_STORE_FILE", str(file))
    assert named_uri() == "mongodb://of-file/x"
    monkeypatch.setenv("AUTOTUNE_STORE", "mongodb://of-variable/x")
    assert named_uri() == "mongodb://of-variable/x"
    assert named_uri("mongodb://given/x") == "mongodb://given/x"


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"a\nb\n", b"\xff\xfe"])
def test_a_file_that_does_not_hold_one_uri(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    monkeypatch.delenv("AUTOTUNE_STORE", raising=False)
    monkeypatch.setenv("AUTOTUNE_STORE_FILE", str(tmp_path / "uri"))
    if content is not None:
        (tmp_path / "uri").write_bytes(content)
    with pytest.raises(InputError, match=f"AUTOTUNE_STORE_FILE={tmp_path / 'uri'}.*one line"):
        named_uri()


def test_a_file_with_a_wrong_uri_shows_nothing_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AUTOTUNE_STORE", raising=False)
    (tmp_path / "uri").write_text(f"user:{SECRET}\nsecond {SECRET}")
    monkeypatch.setenv("AUTOTUNE_STORE_FILE", str(tmp_path / "uri"))
    with pytest.raises(InputError) as caught:
        named_uri()
    assert SECRET not in str(caught.value)


def test_generated_passwords_need_no_encoding_and_differ() -> None:
    made = {new_password() for _ in range(100)}
    assert len(made) == 100
    assert all(quote(p, safe="") == p and len(p) >= 32 for p in made)


@pytest.mark.parametrize("password", ["", "a\n" + SECRET, "\x07" + SECRET])
def test_passwords_that_cannot_be(password: str) -> None:
    with pytest.raises(InputError, match="password") as caught:
        checked_password(password)
    assert SECRET not in str(caught.value)


def test_the_table_of_rights() -> None:
    """The least rights: nobody drops, deletes trials, or writes the schema; each role has those of the one before."""
    order = [WRITES[role] for role in (Role.READER, Role.WORKER, Role.COORDINATOR)]
    for less, more in pairwise(order):
        assert all(set(actions) <= set(more[name]) for name, actions in less.items())
    checkpoints = {"artifacts.files", "artifacts.chunks", "artifacts.pushes"}
    assert set(WRITES[Role.WORKER]) == {"trials", "reports", "workers"} | checkpoints
    assert not any("remove" in WRITES[Role.WORKER][name] for name in ("artifacts.files", "artifacts.chunks"))
    assert WRITES[Role.WORKER]["trials"] == ("update",)
    for role in Role:
        for privilege in privileges(role, "lab"):
            assert privilege["resource"]["db"] == "lab"
            allowed = {"find", "changeStream", "listCollections", "listIndexes", "insert", "update"}
            if privilege["resource"]["collection"].startswith(("datasets.", "artifacts.", "leaders")):
                allowed |= {"remove", "createIndex"}
            assert set(privilege["actions"]) <= allowed

"""Connecting: errors are ours, name the address, say what to do, and never show a password."""

from __future__ import annotations

import inspect
import socket
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from bson.errors import BSONError
from hypothesis import given
from hypothesis import strategies as st
from pymongo import errors as driver

from autotune.errors import (
    AutotuneError,
    DuplicateError,
    InputError,
    StoreError,
    StoreSetupError,
    StoreUnreachableError,
)
from autotune.store.connection import Connection, describe_uri, map_error
from autotune.store.mongo import MongoStore
from autotune.store.schema import SCHEMA_VERSION
from autotune.testing.helpers import CAMPAIGN, propose, running

SECRET = "s3cr3tw0rd"
ADDRESS = "mongodb://h:1/db"


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on loopback that is bound, so that nobody else takes it, and does not listen."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_an_unreachable_store_is_said_soon_with_its_address_and_no_password(closed_port: int) -> None:
    started_s = time.monotonic()
    with pytest.raises(StoreUnreachableError) as caught:
        MongoStore(f"mongodb://user:{SECRET}@127.0.0.1:{closed_port}/lab")
    assert time.monotonic() - started_s < 10
    assert f"127.0.0.1:{closed_port}/lab" in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_server_that_accepts_and_never_answers_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(StoreUnreachableError, match=str(port)):
            MongoStore(f"mongodb://127.0.0.1:{port}/lab", timeout_s=0.5)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "localhost",
        "http://host/db",
        "mongodb://",
        "mongodb://h:port/db",
        "mongodb://h:99999/db",
        "mongodb://h/a b",
        "mongodb://h/db?unknownOption=1",
        "mongodb://h/db?tls=maybe",
        f"mongodb://user:{SECRET}/x@h/db",
        f"mongodb://user:12/{SECRET}@h/db",
        f"mongodb://user:12?{SECRET}@h/db",
        f"mongodb://user:{SECRET}%zz@h/db",
        f"mongodb://user:a@{SECRET}@h/db",
        f"mongodb://user:a@b/{SECRET}@h/db",
    ],
)
def test_a_malformed_uri_is_an_error_of_the_user_without_the_password(uri: str) -> None:
    with pytest.raises(InputError, match="URI") as caught:
        Connection(uri)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@given(st.text(alphabet="aZ0:/?#[]@!$&'()*+,;=%-._~ \\é", max_size=6))
def test_no_password_however_odd_is_ever_shown(odd: str) -> None:
    uri = f"mongodb://user:{SECRET}{odd}{SECRET}@h:1/db"
    try:
        address, _ = describe_uri(uri)
    except InputError as error:
        address = str(error)
    assert SECRET not in address


def test_reprs_do_not_show_the_password(server_uri: str) -> None:
    store = MongoStore(server_uri.replace("mongodb://", f"mongodb://user:{SECRET}@"), prepare=False)
    try:
        shown = [repr(store), str(store), repr(store.connection), store.address, repr(vars(store.connection))]
        with pytest.raises(StoreSetupError, match="refused the user") as caught:
            store.campaigns.find()
        shown.append("".join(traceback.format_exception(caught.value)))
    finally:
        store.close()
    assert not [text for text in shown if SECRET in text]


def driver_errors() -> list[type[Exception]]:
    """Return every class of error that the driver defines."""
    classes = [c for _, c in inspect.getmembers(driver, inspect.isclass) if c.__module__ == driver.__name__]
    return sorted({c for c in classes if issubclass(c, Exception)}, key=lambda c: c.__name__)


def made(kind: type[Exception]) -> Exception:
    """Return an error of that class."""
    details: dict[str, Any] = {"writeErrors": [], "error": None, "anySuccessful": False}
    if kind is driver.EncryptionError:
        return driver.EncryptionError(ValueError("boom"))
    if kind is driver.EncryptedCollectionError:
        return driver.EncryptedCollectionError(ValueError("boom"), {})
    if kind is driver.BulkWriteError:
        return driver.BulkWriteError(details)
    if kind is driver.ClientBulkWriteException:
        return driver.ClientBulkWriteException(details, verbose=False)
    return kind("boom")


@pytest.mark.parametrize("kind", driver_errors())
def test_no_error_of_the_driver_is_unmapped(kind: type[Exception]) -> None:
    connection = Connection(ADDRESS)
    try:
        with pytest.raises(AutotuneError) as caught, connection.mapped():
            raise made(kind)
    finally:
        connection.close()
    assert isinstance(caught.value, StoreError | DuplicateError)
    assert ADDRESS in str(caught.value)
    if issubclass(kind, driver.ConnectionFailure):
        assert isinstance(caught.value, StoreUnreachableError)


def test_the_classes_of_errors_were_found() -> None:
    assert driver.AutoReconnect in driver_errors()
    assert len(driver_errors()) >= 20


@pytest.mark.parametrize("error", [BSONError("x"), OverflowError("x"), UnicodeEncodeError("utf-8", "x", 0, 1, "bad")])
def test_errors_of_encoding_are_mapped(error: Exception) -> None:
    connection = Connection(ADDRESS)
    try:
        with pytest.raises(StoreError, match="cannot hold this"), connection.mapped():
            raise error
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (13, StoreSetupError),
        (18, StoreSetupError),
        (121, StoreError),
        (64, StoreUnreachableError),
        (91, StoreUnreachableError),
        (11602, StoreUnreachableError),
        (2, StoreError),
    ],
)
def test_codes_of_the_server_lead_to_what_the_caller_does_next(code: int, kind: type[StoreError]) -> None:
    assert type(map_error(driver.OperationFailure("boom", code), ADDRESS)) is kind


def test_a_document_that_breaks_its_validator_is_refused(store: MongoStore) -> None:
    with pytest.raises(StoreError, match="validator"):
        store.trials.propose(CAMPAIGN, 0, {"x": 1}, "hash", seed=-1)
    assert store.trials.find(CAMPAIGN) == []


def test_a_score_that_is_no_number_breaks_the_validator(store: MongoStore) -> None:
    running(store)
    trials = store.connection.database["trials"]
    for score in (float("nan"), float("inf")):
        with pytest.raises(driver.WriteError) as caught:
            trials.update_one({"number": 0}, {"$set": {"score": score}})
        assert caught.value.code == 121


def test_a_newer_schema_is_refused(store: MongoStore, store_uri: str) -> None:
    store.connection.database["meta"].update_one({"_id": "schema"}, {"$set": {"version": SCHEMA_VERSION + 1}})
    with pytest.raises(StoreSetupError, match=r"newer autotune.*upgrade"):
        MongoStore(store_uri)


def test_opening_twice_leaves_what_is_there(store: MongoStore, store_uri: str) -> None:
    propose(store, 0)
    with MongoStore(store_uri) as again:
        assert [t.number for t in again.trials.find(CAMPAIGN)] == [0]

"""The connection to MongoDB, and the one place where the driver's errors become ours."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import pymongo
from bson.errors import BSONError
from pymongo import errors as driver
from pymongo.database import Database
from pymongo.uri_parser import parse_uri
from pymongo.write_concern import WriteConcern

from autotune.errors import DuplicateError, InputError, StoreError, StoreSetupError, StoreUnreachableError

DEFAULT_DATABASE = "autotune"
CONNECT_TIMEOUT_S = 5.0

_REFUSED_USER = frozenset({13, 18, 8000})
_BROKEN_DOCUMENT = 121
_TRANSIENT = frozenset({6, 7, 64, 89, 91, 134, 189, 262, 9001, 10058, 10107, 11600, 11602, 13435, 13436})
"""Codes of a server that is going away, changing its primary, or was too slow to say that a write is safe."""

Document = dict[str, Any]
_P = ParamSpec("_P")
_R = TypeVar("_R")


class Connection:
    """A client of one database, which never shows the password of its URI.

    Args:
        uri: ``mongodb://[user:password@]host[:port][,...]/[database][?options]``.
        timeout_s: How long to look for a server before giving up, seconds.

    Raises:
        InputError: If the URI is not one of MongoDB.
    """

    def __init__(self, uri: str, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self.address, database = describe_uri(uri)
        try:
            self.client: pymongo.MongoClient[Document] = pymongo.MongoClient(
                uri,
                appname="autotune",
                connectTimeoutMS=int(timeout_s * 1000),
                serverSelectionTimeoutMS=int(timeout_s * 1000),
                socketTimeoutMS=60_000,
                retryWrites=True,
                tz_aware=True,
            )
        except (driver.PyMongoError, ValueError) as error:
            raise InputError(f"the store's URI is not usable ({self.address}): {_scrub(str(error))}") from None
        self.database: Database[Document] = self.client.get_database(
            database, write_concern=WriteConcern(w="majority", j=True, wtimeout=60_000)
        )

    def __repr__(self) -> str:
        return f"Connection({self.address})"

    def close(self) -> None:
        """Close all sockets."""
        self.client.close()

    @contextmanager
    def mapped(self) -> Iterator[None]:
        """Turn the driver's errors into ours."""
        try:
            yield
        except driver.PyMongoError as error:
            raise map_error(error, self.address) from error
        except (BSONError, OverflowError, UnicodeEncodeError) as error:
            raise StoreError(
                f"the store at {self.address} cannot hold this: {_one_line(error)}; send plain JSON values, "
                "integers below 2**63 and at most 16 MB at a time"
            ) from error


def describe_uri(uri: str) -> tuple[str, str]:
    """Return (address without user and password, database name) of a URI.

    Raises:
        InputError: If it is not a URI of MongoDB.
    """
    if "@" in re.sub(r"^[^/]*//[^/?]*", "", uri):
        raise InputError(
            "the store's URI is not usable: its user or password holds a character that has a meaning in a URI; "
            "write such characters percent-encoded, for example @ as %40 and / as %2F"
        )
    try:
        parsed = parse_uri(uri, validate=True, warn=False)
    except (driver.PyMongoError, ValueError) as error:
        raise InputError(
            f"the store's URI is not usable: {_scrub(str(error))}; write mongodb://host:27017/autotune"
        ) from None
    hosts = ",".join(host if port is None else f"{host}:{port}" for host, port in parsed["nodelist"])
    database = parsed["database"] or DEFAULT_DATABASE
    return f"mongodb://{hosts}/{database}", database


def _scrub(text: str) -> str:
    """Return `text` without anything that looks like credentials of a URI."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def map_error(error: driver.PyMongoError, address: str) -> Exception:
    """Return our error for one of the driver's; the message names the address, never a password."""
    message = _one_line(error)
    if isinstance(error, driver.DuplicateKeyError):
        return DuplicateError(f"already in the store at {address}: {message}")
    if isinstance(error, driver.ConnectionFailure):
        return StoreUnreachableError(
            f"no answer from the store at {address}; check the address and that the server runs ({_first(message)})"
        )
    if isinstance(error, driver.ConfigurationError | driver.InvalidURI):
        return StoreSetupError(f"the store at {address} is not usable: {message}")
    if isinstance(error, driver.OperationFailure):
        if error.code in _REFUSED_USER:
            return StoreSetupError(f"the store at {address} refused the user: {message}")
        if error.code == _BROKEN_DOCUMENT:
            return StoreError(f"the store at {address} refused a document that breaks its validator: {message}")
        if error.has_error_label("RetryableWriteError") or error.code in _TRANSIENT:
            return StoreUnreachableError(f"the store at {address} is changing its primary; try again ({message})")
    return StoreError(f"the store at {address} failed: {message}")


def _one_line(error: Exception) -> str:
    return _scrub(" ".join(str(error).split()))[:300]


def _first(message: str) -> str:
    return message.split(",")[0].split(" (configured")[0][:120]


def mapped(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a method of an object with a ``connection``: driver errors leave it as ours."""

    @functools.wraps(method)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        connection: Connection = args[0].connection  # type: ignore[attr-defined]
        with connection.mapped():
            return method(*args, **kwargs)

    return wrapper

"""The connection to MongoDB, and the one place where the driver's errors become ours."""

from __future__ import annotations

import functools
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import unquote_plus

import pymongo
from bson.errors import BSONError
from pymongo import errors as driver
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.read_concern import ReadConcern
from pymongo.uri_parser import parse_uri
from pymongo.write_concern import WriteConcern

from autotune.errors import DuplicateError, InputError, StoreError, StoreSetupError, StoreUnreachableError

DEFAULT_DATABASE = "autotune"
AT_ONCE = WriteConcern(w=1)
"""For a write that needs not outlive its server, or that one with the usual concern follows: half the cost."""
CONNECT_TIMEOUT_S = 5.0
TRANSACTION_S = 20.0
"""So long a transaction is tried again."""
URI_VARIABLE = "AUTOTUNE_STORE"
FILE_VARIABLE = "AUTOTUNE_STORE_FILE"

_WRONG_PASSWORD = frozenset({18, 8000})
_NOT_ALLOWED = 13
_REFUSED_COMMAND = r'execute command \{ (\w+): (?:"([^"]*)")?'
_DUPLICATE_KEY = 11000
_BROKEN_DOCUMENT = 121
_TRANSIENT = frozenset({6, 7, 64, 89, 91, 134, 189, 262, 9001, 10058, 10107, 11600, 11602, 13435, 13436})
"""Codes of a server that is going away, changing its primary, or was too slow to say that a write is safe."""

_AGAIN_S = 0.02
_AGAIN_LABELS = ("RetryableWriteError", "TransientTransactionError")
_READS = frozenset({"find", "aggregate", "count", "distinct", "listCollections", "listIndexes", "getMore"})
_WRITES = frozenset({"insert", "update", "delete", "findAndModify"})

Document = dict[str, Any]
_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a URI names, without its user and password.

    Attributes:
        address: To show: hosts and database.
        database: Name of the database.
        hosts: Names or addresses of the servers, or paths of their sockets.
        authenticated: Whether the client says who it is, by password, certificate or another way.
        tls: Whether the connection is encrypted.
        ca_file: File of the authority that signed the server's certificate, or None.
    """

    address: str
    database: str
    hosts: tuple[str, ...]
    authenticated: bool
    tls: bool
    ca_file: str | None = None


class Connection:
    """A client of one database, which never shows the password of its URI.

    Args:
        uri: ``mongodb://[user:password@]host[:port][,...]/[database][?options]``.
        timeout_s: How long to look for a server before giving up, seconds.

    Raises:
        InputError: If the URI is not one of MongoDB.
    """

    def __init__(self, uri: str, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self.target = read_uri(uri)
        self.address = self.target.address
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # an option that the driver does not take
                self.client: pymongo.MongoClient[Document] = pymongo.MongoClient(
                    uri,
                    appname="autotune",
                    connectTimeoutMS=int(timeout_s * 1000),
                    serverSelectionTimeoutMS=int(timeout_s * 1000),
                    socketTimeoutMS=60_000,
                    retryWrites=True,
                    tz_aware=True,
                )
        except OSError as error:
            raise InputError(_no_certificate(error)) from None
        except (driver.PyMongoError, ValueError, UserWarning) as error:
            raise InputError(f"the store's URI is not usable ({self.address}): {_scrub(str(error), uri)}") from None
        try:
            self.database: Database[Document] = self.client.get_database(
                self.target.database, write_concern=WriteConcern(w="majority", j=True, wtimeout=60_000)
            )
        except driver.InvalidName as error:
            self.client.close()
            raise InputError(f"the store's URI is not usable ({self.address!r}): {error}") from None

    def __repr__(self) -> str:
        return f"Connection({self.address})"

    def close(self) -> None:
        """Close all sockets."""
        self.client.close()

    def transaction(self, action: Callable[[ClientSession], _R]) -> _R:
        """Do what an action reads and writes at one moment, again where somebody wrote the same; return its value.

        As `ClientSession.with_transaction`, which goes on for two minutes while the store is away.

        Args:
            action: Passes the session to every call. It may be called several times.

        Raises:
            pymongo.errors.PyMongoError: What still stands in the way after `TRANSACTION_S`, or what another try would
                not change. Where it is a `ConnectionFailure`, the transaction may have been carried out.
        """
        end_s = time.monotonic() + TRANSACTION_S
        safe = WriteConcern(w="majority", j=True, wtimeout=60_000)
        with self.client.start_session() as session:
            while True:
                try:
                    with session.start_transaction(read_concern=ReadConcern("snapshot"), write_concern=safe):
                        value = action(session)
                        _commit(session, end_s)
                        return value
                except driver.PyMongoError as error:
                    if not error.has_error_label("TransientTransactionError") or time.monotonic() > end_s:
                        raise
                time.sleep(_AGAIN_S)

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


def _commit(session: ClientSession, end_s: float) -> None:
    """Commit, again while nobody knows whether that was done, until a time."""
    while True:
        try:
            return session.commit_transaction()
        except driver.PyMongoError as error:
            if not error.has_error_label("UnknownTransactionCommitResult") or time.monotonic() > end_s:
                raise


def named_uri(given: str | None = None) -> str | None:
    """Return the URI of the store that somebody named, or None: the embedded one is meant.

    Args:
        given: By ``--store``; else that of ``AUTOTUNE_STORE``, else the one in the file ``AUTOTUNE_STORE_FILE``.

    Raises:
        InputError: If that file cannot be read or does not hold one line.
    """
    file = os.environ.get(FILE_VARIABLE)
    uri = given or os.environ.get(URI_VARIABLE)
    if uri or not file:
        return uri or None
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or "it is not text"
        raise InputError(f"cannot read {FILE_VARIABLE}={file} ({why}); it holds the store's URI, one line") from None
    uris = [line.strip() for line in lines if line.strip()]
    if len(uris) != 1:
        raise InputError(f"{FILE_VARIABLE}={file} has {len(uris)} lines; it holds the store's URI, one line")
    return uris[0]


def describe_uri(uri: str) -> tuple[str, str]:
    """Return (address without user and password, database name) of a URI.

    Raises:
        InputError: If it is not a URI of MongoDB.
    """
    target = read_uri(uri)
    return target.address, target.database


def read_uri(uri: str) -> Target:
    """Return what a URI names.

    Raises:
        InputError: If it is not a URI of MongoDB.
    """
    empty_password = re.match(r"^[^/]*//[^/?@]*:@", uri)  # more likely one that begins with @, and no host behind it
    if empty_password or "@" in re.sub(r"^[^/]*//[^/?]*", "", uri):
        raise InputError(
            "the store's URI is not usable: its password is empty, or it or the user holds a character that has a "
            "meaning in a URI; write such characters percent-encoded, for example @ as %40 and / as %2F"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # an option that is given twice
            parsed = parse_uri(uri, validate=True, warn=False)
    except OSError as error:
        raise InputError(_no_certificate(error)) from None
    except (driver.PyMongoError, ValueError, UserWarning) as error:
        raise InputError(
            f"the store's URI is not usable: {_scrub(str(error), uri)}; write mongodb://host:27017/autotune"
        ) from None
    hosts = ",".join(host if port is None else f"{host}:{port}" for host, port in parsed["nodelist"])
    database = parsed["database"] or DEFAULT_DATABASE
    return Target(
        address=f"mongodb://{hosts}/{database}",
        database=database,
        hosts=tuple(host for host, _ in parsed["nodelist"]),
        authenticated=parsed["username"] is not None or "authMechanism" in parsed["options"],
        tls=bool(parsed["options"].get("tls", False)),
        ca_file=parsed["options"].get("tlsCAFile"),
    )


def _no_certificate(error: OSError) -> str:
    return (
        f"the store's URI is not usable: cannot read {error.filename or 'its certificates'} "
        f"({error.strerror or 'no PEM file'}); check tlsCAFile and tlsCertificateKeyFile in it"
    )


def _scrub(text: str, uri: str = "") -> str:
    """Return `text` without anything that looks like credentials of a URI, and without any part of `uri` that may be.

    Args:
        text: What the driver said.
        uri: What it was given. Where that is malformed a password may stand anywhere before the options, or in them.
    """
    text = re.sub(r"//[^/@\s]*@", "//***@", text)
    authority, _, options = uri.partition("//")[2].partition("?")
    values = [pair.partition("=")[2] for pair in re.split("[&;]", options)]
    pieces = [p for part in (authority, *values) for p in (part, *re.split(r"[/@:?&=,]+", part))]
    for piece in sorted({*pieces, *map(unquote_plus, pieces)}, key=len, reverse=True):
        if len(piece) > 2:
            text = text.replace(piece, "***")
    return text


def lacks_right(error: BaseException) -> bool:
    """Return whether one of our errors says that a known user may not write something; not that nobody logged in."""
    cause = error.__cause__
    if not isinstance(cause, driver.OperationFailure) or cause.code != _NOT_ALLOWED:
        return False
    command = re.search(_REFUSED_COMMAND, str(cause))
    return command is not None and command.group(1) not in _READS


def map_error(error: driver.PyMongoError, address: str) -> Exception:
    """Return our error for one of the driver's; the message names the address, never a password."""
    if isinstance(error, driver.BulkWriteError):
        error = _first_of(error)
    message = _one_line(error)
    if isinstance(error, driver.DuplicateKeyError):
        return DuplicateError(f"already in the store at {address}: {message}")
    if isinstance(error, driver.ConnectionFailure):
        return StoreUnreachableError(_no_answer(message, address))
    if isinstance(error, driver.ConfigurationError | driver.InvalidURI):
        return StoreSetupError(f"the store at {address} is not usable: {message}")
    if isinstance(error, driver.OperationFailure):
        if error.code in _WRONG_PASSWORD:
            return StoreSetupError(
                f"the store at {address} refused the user: wrong name or password, or the user belongs to another "
                "database (name it in the URI: authSource=admin)"
            )
        if error.code == _NOT_ALLOWED:
            return StoreSetupError(f"the store at {address} refused the user: {_not_allowed(message)}")
        if error.code == _BROKEN_DOCUMENT:
            return StoreError(f"the store at {address} refused a document that breaks its validator: {message}")
        transient = any(error.has_error_label(label) for label in _AGAIN_LABELS)
        if transient or error.timeout or error.code in _TRANSIENT:
            return StoreUnreachableError(
                f"the store at {address} is busy or changing its primary; try again ({message})"
            )
    return StoreError(f"the store at {address} failed: {message}")


def _first_of(error: driver.BulkWriteError) -> driver.OperationFailure:
    """Return the first error of a bulk write as a single write would have raised it."""
    details = error.details or {}
    found = [*details.get("writeErrors", []), *details.get("writeConcernErrors", [])]
    if not found:
        return error
    code, text = found[0].get("code"), str(found[0].get("errmsg"))
    return (driver.DuplicateKeyError if code == _DUPLICATE_KEY else driver.OperationFailure)(text, code)


def _no_answer(message: str, address: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in message or "certificate is not valid for" in message:
        return (
            f"the certificate of the store at {address} is not trusted ({_first(message)}); give the file of the "
            "authority that signed it in the URI: tlsCAFile=/path/ca.pem, and the host's name as the certificate has it"
        )
    if "connection closed" in message:
        hint = "check that the server runs; if it wants TLS, add tls=true to the URI"
    elif "SSL" in message:
        hint = "check that the server speaks TLS, or take tls=true out of the URI"
    else:
        hint = "check the address and that the server runs"
    return f"no answer from the store at {address}; {hint} ({_first(message)})"


def _not_allowed(message: str) -> str:
    """Return what a user may not do and who may; of the refused command no more than its name and collection."""
    if "requires authentication" in message:
        return (
            f"it wants a name and a password; write mongodb://user:password@host/database into the file "
            f"that {FILE_VARIABLE} names"
        )
    command = re.search(_REFUSED_COMMAND, message)
    if command is None:
        return "it lacks a right; see `autotune store users list`"
    name, collection = command.groups()
    what = f"it may not {name}" + (f" in '{collection}'" if collection and name in _READS | _WRITES else "")
    if name in _READS:
        return f"{what}; give it a role: autotune store users add NAME --role reader"
    if name in _WRITES:
        return f"{what}; use a user with the role coordinator (to launch, steer, push data) or worker (to train)"
    return f"{what}; only the store's owner may: use the owner's URI"


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

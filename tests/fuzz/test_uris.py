"""Mutants of the store's URI: an address without credentials, or one clear line without credentials."""

from __future__ import annotations

import functools
import random
import warnings

import pymongo
import pytest

from autotune.errors import AutotuneError
from autotune.store.connection import Connection, describe_uri
from tests.fuzz.mutants import Jury, cut_up, swap_tokens

MUTANTS = 300

ORIGINALS = (
    "mongodb://127.0.0.1:27017/autotune?replicaSet=rs0",
    "mongodb://ann:s3cr%40t@a:27017,b:27018/autotune?replicaSet=rs0&authSource=admin&tls=true",
    "mongodb://[::1]:27017/db?readPreference=secondary&w=2&wtimeoutMS=5&maxPoolSize=3",
    "mongodb://u:p@%2Ftmp%2Fmongodb-27017.sock/autotune?retryWrites=false",
    "mongodb://u:p@host/?authMechanism=SCRAM-SHA-256&compressors=zlib&ssl_cert_reqs=CERT_NONE&tlsCAFile=/nowhere",
)
HOSTILE = (
    "",
    " ",
    "mongodb",
    "mongodb:",
    "mongodb://",
    "mongodb:///",
    "mongodb://@",
    "mongodb://:@",
    "mongodb://:",
    "http://a",
    "mongodb://a:b:c",
    "mongodb://a:99999",
    "mongodb://a:-1",
    "mongodb://a:x",
    "mongodb://[::1",
    "mongodb://a/$db",
    "mongodb://a/a b",
    "mongodb://a/a.b",
    "mongodb://a/" + "d" * 500,
    "mongodb://a/\x00",
    "mongodb://a?x",
    "mongodb://a/?=",
    "mongodb://a/?w=-1",
    "mongodb://a/?w=x&journal=maybe",
    "mongodb://a/?replicaSet=",
    "mongodb://a/?readPreference=worst",
    "mongodb://a/?tls=true&ssl=false",
    "mongodb://a/?directConnection=true&replicaSet=r",
    "mongodb://a,b/?directConnection=true",
    "mongodb://a/?loadBalanced=true&replicaSet=r",
    "mongodb://s3cr@t:x@a",
    "mongodb://u:s3cr/t@a",
    "mongodb://u:s3cr?t@a/",
    "mongodb://u:%zz@a",
    "mongodb://u:s3cr%@a",
    "mongodb://u:s3cr t@a",
    "mongodb://u:s3cr:t@a",
    "mongodb://u:s3cr#t@a",
    "mongodb://é:s3cr@a",
    "mongodb://u@a:s3cr@b",
    "mongodb://a/?authMechanism=NONE",
    "mongodb://u:s3cr@a/?authMechanism=GSSAPI",
    "mongodb://a/?authMechanism=MONGODB-X509&tls=false",
    "mongodb://a" + ",a" * 2_000,
    "mongodb://a/?tlsCertificateKeyFile=/nowhere&tls=true",
    "mongodb://a/?maxPoolSize=-1",
    "mongodb://a/?maxPoolSize=9" + "9" * 50,
    "mongodb://a/?uuidRepresentation=x",
    "mongodb://a/?heartbeatFrequencyMS=0",
    "mongodb://a/?connectTimeoutMS=nan",
    "mongodb://a/?appname=" + "x" * 500,
    "mongodb://\ud800",
    "MONGODB://a",
    "mongodb://a/%00",
)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients do not look for their servers: nothing leaves this machine."""
    monkeypatch.setattr(pymongo, "MongoClient", functools.partial(pymongo.MongoClient, connect=False))


def run(uri: str) -> None:
    """Do what opening a store does with a URI, but connect; nothing that comes out shows the password."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = ""
        try:
            address, database = describe_uri(uri)
            said = address + database
            connection = Connection(uri)
            said += repr(connection)
            connection.close()
        except AutotuneError as error:
            said += str(error)
            raise
        finally:
            leaks = [word for word in ("s3cr", "s3cr%40t", "s3cr@t") if word in said]
            if leaks:
                raise AssertionError(f"the password is shown: {said[:200]}")


def local(uri: str) -> bool:
    """Return whether reading the URI asks no name server."""
    return not uri.strip().lower().startswith("mongodb+srv")


@pytest.mark.parametrize("uri", ORIGINALS[:4])
def test_the_originals_are_uris(uri: str) -> None:
    run(uri)


@pytest.mark.parametrize("change", [cut_up, swap_tokens])
def test_changed_uris(change: object) -> None:
    chance = random.Random(f"uris {change is cut_up}")
    with Jury() as jury:
        while jury.judged < MUTANTS:
            original = chance.choice(ORIGINALS)
            mutant = cut_up(original, chance) if change is cut_up else swap_tokens(original, chance)
            if local(mutant) and ("s3cr" not in original or "s3cr" in mutant):
                jury.judge(functools.partial(run, mutant), mutant)
        assert jury.refused > MUTANTS / 5


def test_hostile_uris() -> None:
    with Jury() as jury:
        for uri in HOSTILE:
            jury.judge(functools.partial(run, uri), uri)

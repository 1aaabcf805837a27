"""Who can reach a store without a password: decided from the URI and from what the server says of itself."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.store.connection import read_uri
from autotune.store.exposure import Settings, exposure, is_loopback, outside_hosts, settings_of

OPEN_INSIDE = Settings(listens=(), authorization=False)
OPEN_OUTSIDE = Settings(listens=("0.0.0.0",), authorization=False)
CLOSED = Settings(listens=("0.0.0.0",), authorization=True)


@pytest.mark.parametrize(
    ("uri", "outside", "settings", "exposed"),
    [
        ("mongodb://127.0.0.1/x", (), None, False),
        ("mongodb://127.0.0.1/x", (), OPEN_INSIDE, False),
        ("mongodb://127.0.0.1/x", (), OPEN_OUTSIDE, True),
        ("mongodb://127.0.0.1/x", (), CLOSED, False),
        ("mongodb://u:p@127.0.0.1/x", (), OPEN_OUTSIDE, True),
        ("mongodb://u:p@127.0.0.1/x", (), OPEN_INSIDE, False),
        ("mongodb://h/x", ("h",), None, True),
        ("mongodb://h/x", ("h",), OPEN_INSIDE, True),
        ("mongodb://h/x", ("h",), CLOSED, True),
        ("mongodb://u:p@h/x", ("h",), None, False),
        ("mongodb://u:p@h/x", ("h",), CLOSED, False),
        ("mongodb://u:p@h/x", ("h",), OPEN_INSIDE, True),
        ("mongodb://u:p@h/x", ("h",), OPEN_OUTSIDE, True),
        ("mongodb://h/x?tls=true&authMechanism=MONGODB-X509", ("h",), None, False),
        ("mongodb://h/x?tls=true", ("h",), None, True),
    ],
)
def test_the_decision(uri: str, outside: tuple[str, ...], settings: Settings | None, exposed: bool) -> None:
    assert (exposure(read_uri(uri), outside, settings) is not None) is exposed


ANY_SETTINGS = st.builds(Settings, listens=st.just(("0.0.0.0",)), authorization=st.booleans())


@given(st.booleans(), st.booleans(), st.none() | ANY_SETTINGS)
def test_what_asks_for_a_password_and_gets_one_is_never_refused(
    user: bool, outside: bool, settings: Settings | None
) -> None:
    target = read_uri(f"mongodb://{'u:p@' if user else ''}h/x")
    why = exposure(target, ("h",) if outside else (), settings)
    if user and settings is not None and settings.authorization:
        assert why is None
    if settings is not None and not settings.authorization:
        assert why is not None
    assert why is None or "\n" not in why


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("/tmp/mongodb-27017.sock", True),
        ("0.0.0.0", False),
        ("::", False),
        ("*", False),
        ("", False),
        ("10.0.0.5", False),
        ("::ffff:10.0.0.5", False),
        ("fe80::1%eth0", False),
        ("2001:db8::1", False),
        ("mongo.example.org", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_loopback(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


@given(st.ip_addresses())
def test_loopback_agrees_with_the_standard(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert is_loopback(str(address)) is (getattr(address, "ipv4_mapped", None) or address).is_loopback


@given(st.text(max_size=30))
def test_any_text_is_an_answer(text: str) -> None:
    assert is_loopback(text) in (True, False)


@pytest.mark.parametrize(
    ("options", "listens", "authorization"),
    [
        ({}, (), False),
        ({"net": {"bindIp": "127.0.0.1"}}, (), False),
        ({"net": {"bindIp": "127.0.0.1,::1,localhost,/tmp/mongo.sock"}}, (), False),
        ({"net": {"bindIp": "127.0.0.1, 10.0.0.5"}}, ("10.0.0.5",), False),
        ({"net": {"bindIp": "0.0.0.0"}}, ("0.0.0.0",), False),
        ({"net": {"bindIp": "::"}}, ("::",), False),
        ({"net": {"bindIp": "*"}}, ("*",), False),
        ({"net": {"bindIp": "mongo.example.org"}}, ("mongo.example.org",), False),
        ({"net": {"bindIpAll": True}}, ("all addresses",), False),
        ({"security": {"authorization": "enabled"}}, (), True),
        ({"security": {"authorization": "disabled"}}, (), False),
        ({"security": {"keyFile": "/key"}}, (), True),
        ({"security": {"clusterAuthMode": "x509"}}, (), True),
        ({"security": {"keyFile": "/key", "transitionToAuth": True}}, (), False),
        ({"net": None, "security": None}, (), False),
    ],
)
def test_what_a_server_says_of_itself(
    options: dict[str, object], listens: tuple[str, ...], authorization: bool
) -> None:
    assert settings_of(options) == Settings(listens=listens, authorization=authorization)


def test_hosts_of_a_uri_that_are_elsewhere() -> None:
    hosts = ("localhost", "127.0.0.1", "::1", "10.1.2.3", "/tmp/mongodb.sock", "no-such-host.invalid")
    assert outside_hosts(hosts) == ("10.1.2.3", "no-such-host.invalid")
    assert outside_hosts(("a" * 300, "a..b", "\udcff")) == ("a" * 300, "a..b", "\udcff")


def test_other_spellings_of_loopback_are_resolved() -> None:
    assert outside_hosts(("127.1", "2130706433")) == ()

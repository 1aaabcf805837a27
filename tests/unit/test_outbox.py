"""Messages of a training go out in order, without waiting for an agent that is behind."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import pytest

from workers import outbox
from workers.outbox import Outbox


def pair() -> tuple[socket.socket, socket.socket]:
    mine, theirs = socket.socketpair()
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    theirs.settimeout(30)
    return mine, theirs


def read(sock: socket.socket, count: int) -> list[Any]:
    with sock.makefile("rb") as file:
        return [json.loads(file.readline()) for _ in range(count)]


def test_nothing_waits_for_a_reader_that_comes_late_and_the_order_stays() -> None:
    mine, theirs = pair()
    with mine, theirs:
        box = Outbox(mine.fileno())
        for number in range(2000):
            box.send({"report": number, "text": "x" * 200})
        last = threading.Thread(target=box.flush)
        last.start()
        assert last.is_alive(), "the socket cannot hold all of it"
        assert [message["report"] for message in read(theirs, 2000)] == list(range(2000))
        last.join(30)
        assert not last.is_alive()


def test_a_default_timeout_of_somebody_else_changes_nothing() -> None:
    mine, theirs = pair()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    try:
        box = Outbox(mine.fileno())
    finally:
        socket.setdefaulttimeout(before)
    with mine, theirs:
        sender = threading.Thread(target=lambda: [box.send({"report": n, "text": "x" * 999}) for n in range(500)])
        sender.start()
        sender.join(10)
        assert not sender.is_alive()
        assert len(read(theirs, 500)) == 500


def test_threads_share_it_line_by_line() -> None:
    mine, theirs = pair()
    with mine, theirs:
        box = Outbox(mine.fileno())
        threads = [
            threading.Thread(target=lambda n=n: [box.send({"from": n, "i": i, "pad": "y" * 999}) for i in range(100)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        found = read(theirs, 400)
        for thread in threads:
            thread.join(30)
        for n in range(4):
            assert [m["i"] for m in found if m["from"] == n] == list(range(100))


def test_a_reader_that_is_gone_holds_up_nobody() -> None:
    mine, theirs = pair()
    with mine:
        box = Outbox(mine.fileno())
        for number in range(200):
            box.send({"report": number, "pad": "z" * 1000})
        theirs.close()
        done = threading.Thread(target=lambda: (box.send({"last": True}), box.flush()))
        done.start()
        done.join(30)
        assert not done.is_alive()


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_BYTES", 10_000)
    mine, theirs = pair()
    with mine, theirs:
        box = Outbox(mine.fileno())
        sent: list[int] = []
        writer = threading.Thread(
            target=lambda: [(box.send({"i": i, "pad": "w" * 1000}), sent.append(i)) for i in range(500)]
        )
        writer.start()
        writer.join(0.5)
        assert writer.is_alive()
        assert len(sent) < 500
        assert [message["i"] for message in read(theirs, 500)] == list(range(500))
        writer.join(30)
        assert len(sent) == 500

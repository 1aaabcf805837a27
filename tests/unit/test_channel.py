"""Messages over sockets: whole or in parts, small or large, with descriptors, and with the other end gone."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from workers.channel import Channel


@pytest.fixture
def raw_and_channel() -> Iterator[tuple[socket.socket, Channel]]:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    yield ours, channel
    ours.close()
    channel.close()


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    first, second = (Channel(s) for s in socket.socketpair())
    yield first, second
    first.close()
    second.close()


def test_message_in_parts_is_received_whole(raw_and_channel: tuple[socket.socket, Channel]) -> None:
    raw, channel = raw_and_channel
    raw.sendall(b'{"a": ')
    assert channel.receive(0.0) is None
    assert not channel.closed
    raw.sendall(b'1}\n{"b"')
    assert channel.receive(1.0) == {"a": 1}
    assert channel.receive(0.0) is None
    raw.sendall(b": 2}\n")
    assert channel.receive(1.0) == {"b": 2}


def test_messages_that_came_before_the_end_are_received(raw_and_channel: tuple[socket.socket, Channel]) -> None:
    raw, channel = raw_and_channel
    raw.sendall(b'{"a": 1}\n{"a": 2}\n{"half": ')
    raw.close()
    assert [channel.receive(1.0), channel.receive(1.0)] == [{"a": 1}, {"a": 2}]
    assert channel.receive(None) is None
    assert channel.closed


def test_large_message(channels: tuple[Channel, Channel]) -> None:
    first, second = channels
    message = {"text": "é\n" * 2_000_000, "nan": float("inf")}
    sender = threading.Thread(target=first.send, args=(message,))
    sender.start()
    assert second.receive(10.0) == message
    sender.join()


def test_send_to_an_end_that_is_gone_says_so(channels: tuple[Channel, Channel]) -> None:
    first, second = channels
    second.close()
    assert first.send({"a": 1}) is False
    assert first.receive(None) is None
    assert first.closed


def test_shutdown_wakes_a_reader(channels: tuple[Channel, Channel]) -> None:
    first, _ = channels
    received: list[object] = []
    reader = threading.Thread(target=lambda: received.append(first.receive(None)))
    reader.start()
    first.shutdown()
    reader.join(10)
    assert received == [None]
    assert first.closed


def test_descriptors_stay_with_their_messages(channels: tuple[Channel, Channel]) -> None:
    first, second = channels
    reads, writes = zip(*(os.pipe() for _ in range(3)), strict=True)
    texts = ["x" * 150_000, "", "y" * 70_000]

    def send() -> None:
        for text, fd in zip(texts, writes, strict=True):
            assert first.send({"text": text}, fd)
            os.close(fd)
        assert first.send({"text": "none"})

    sender = threading.Thread(target=send)
    sender.start()
    for text, read in zip(texts, reads, strict=True):
        message, fd = second.receive_with_fd()
        assert message == {"text": text}
        assert fd is not None
        assert not os.get_inheritable(fd)
        os.write(fd, b"1")
        os.close(fd)
        assert os.read(read, 10) == b"1"
        os.close(read)
    assert second.receive_with_fd() == ({"text": "none"}, None)
    sender.join()
    first.close()
    assert second.receive_with_fd() == (None, None)


def test_two_messages_in_one_read_are_both_announced(raw_and_channel: tuple[socket.socket, Channel]) -> None:
    raw, channel = raw_and_channel
    raw.sendall(b"".join(json.dumps({"n": n}).encode() + b"\n" for n in range(2)))
    assert channel.receive_with_fd() == ({"n": 0}, None)
    assert channel.has_message
    assert channel.receive_with_fd() == ({"n": 1}, None)
    assert not channel.has_message


def test_close_closes_descriptors_that_nobody_took(channels: tuple[Channel, Channel]) -> None:
    first, second = channels
    read, write = os.pipe()
    socket.send_fds(socket.socket(fileno=os.dup(first.fileno())), [b'{"a": 1}\n'], [write])
    os.close(write)
    assert second.receive_with_fd() == ({"a": 1}, None)
    second.close()
    assert os.read(read, 1) == b""
    os.close(read)

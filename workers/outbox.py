"""Sends a training's messages without ever waiting for an agent that is behind."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading

from workers.channel import Message

MAX_BYTES = 64_000_000
"""So much may wait; an agent that is further behind than that is waited for."""
_PIECE = 1 << 20


class Outbox:
    """The writing end of a channel. Safe to share between threads.

    What the socket takes at once goes out in the calling thread, so that a process that is killed has lost nothing of
    it. The rest goes out in a thread of its own, in the same order.

    Args:
        fd: Descriptor of a connected stream socket, that nobody else writes to.
    """

    def __init__(self, fd: int) -> None:
        self._sock = socket.socket(fileno=os.dup(fd))
        self._sock.settimeout(None)  # whatever default an objective's libraries have set
        self._waiting = bytearray()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def send(self, message: Message) -> None:
        """Send a message, as a line of JSON; dropped if the other end is gone."""
        data = json.dumps(message).encode() + b"\n"
        with self._changed:
            if not self._waiting:
                data = data[self._taken(data) :]
            if not data:
                return
            self._changed.wait_for(lambda: len(self._waiting) < MAX_BYTES)
            self._waiting += data
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Return when everything has been sent, or the other end is gone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting)

    def _taken(self, data: bytes) -> int:
        """Return how many bytes the socket took at once; all of them if the other end is gone."""
        try:
            return self._sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                piece = bytes(self._waiting[:_PIECE])  # stays until it is sent: what comes meanwhile must go behind it
            with contextlib.suppress(OSError):
                self._sock.sendall(piece)
            with self._changed:
                del self._waiting[: len(piece)]
                self._changed.notify_all()

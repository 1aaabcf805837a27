"""Messages between an agent, its fork servers and its trainings: JSON objects, a line each, over Unix sockets."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
from collections import deque
from typing import Any

Message = dict[str, Any]

_CHUNK = 1 << 16
_MAX_FDS = 4


class Channel:
    """One end of a socket that carries JSON lines. One reader and one writer at a time.

    Args:
        sock: A connected stream socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._partial = bytearray()
        self._lines: deque[bytes] = deque()
        self._fds: deque[int] = deque()
        self.closed = False

    def fileno(self) -> int:
        """Return the socket's file descriptor."""
        return self._sock.fileno()

    @property
    def has_message(self) -> bool:
        """Whether a whole message has been read from the socket already."""
        return bool(self._lines)

    def send(self, message: Message, fd: int | None = None) -> bool:
        """Send a message, with a file descriptor if given; return False when the other end is gone."""
        data = json.dumps(message if fd is None else {**message, "with_fd": True}).encode() + b"\n"
        try:
            if fd is not None:
                sent = socket.send_fds(self._sock, [data], [fd])
                data = data[sent:]
            self._sock.sendall(data)
        except OSError:
            return False
        return True

    def receive(self, timeout_s: float | None) -> Message | None:
        """Return the next message, or None after `timeout_s` seconds or when the other end is gone (`closed`)."""
        poll = select.poll()
        while not self._lines:
            if self.closed:
                return None
            poll.register(self._sock, select.POLLIN)
            if not poll.poll(None if timeout_s is None else timeout_s * 1000):
                return None
            try:
                self._take(self._sock.recv(_CHUNK))
            except OSError:
                self.closed = True
        return self._next()

    def receive_with_fd(self) -> tuple[Message | None, int | None]:
        """Wait for the next message and the file descriptor sent with it; (None, None) when the other end is gone."""
        while not self._lines:
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, _CHUNK, _MAX_FDS)
            except OSError:
                data, fds = b"", []
            for fd in fds:
                os.set_inheritable(fd, False)
            self._fds.extend(fds)
            self._take(data)
            if self.closed:
                return None, None
        message = self._next()
        # One read may bring the descriptors of two messages: each message says whether one of them is its own.
        return message, self._fds.popleft() if message.pop("with_fd", False) else None

    def _take(self, data: bytes) -> None:
        if not data:
            self.closed = True
            return
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._lines.append(bytes(self._partial) + end)
            self._partial.clear()
        self._partial += rest

    def _next(self) -> Message:
        return dict(json.loads(self._lines.popleft()))

    def shutdown(self) -> None:
        """Tell the other end that nothing more comes; a reader on this end wakes up and sees `closed`."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, and descriptors that came and were not asked for."""
        self.closed = True
        self._sock.close()
        while self._fds:
            os.close(self._fds.popleft())

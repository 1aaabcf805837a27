"""Messages between an agent, its fork servers and its trainings: JSON objects, a line each, over Unix sockets."""

from __future__ import annotations

import contextlib
import json
import select
import socket
from typing import Any

Message = dict[str, Any]


class Channel:
    """One end of a socket that carries JSON lines. One reader and one writer at a time.

    Args:
        sock: A connected stream socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = b""
        self._lines: list[bytes] = []
        self.closed = False

    def fileno(self) -> int:
        """Return the socket's file descriptor."""
        return self._sock.fileno()

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> bool:
        """Send a message, with file descriptors if given; return False when the other end is gone."""
        data = json.dumps(message).encode() + b"\n"
        try:
            if fds:
                sent = socket.send_fds(self._sock, [data], list(fds))
                data = data[sent:]
            self._sock.sendall(data)
        except OSError:
            return False
        return True

    def receive(self, timeout_s: float | None) -> Message | None:
        """Return the next message, or None after `timeout_s` seconds or when the other end is gone (`closed`)."""
        while not self._lines:
            if self.closed or not select.select([self._sock], [], [], timeout_s)[0]:
                return None
            self._fill()
        return dict(json.loads(self._lines.pop(0)))

    def _fill(self) -> None:
        try:
            data = self._sock.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self._lines.extend(lines)

    def receive_with_fds(self) -> tuple[Message | None, list[int]]:
        """Wait for the next message and the file descriptors sent with it; (None, []) when the other end is gone."""
        fds: list[int] = []
        while not self._lines:
            try:
                data, more, _, _ = socket.recv_fds(self._sock, 1 << 16, 4)
            except OSError:
                data, more = b"", []
            fds.extend(more)
            if not data:
                self.closed = True
                return None, fds
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            self._lines.extend(lines)
        return dict(json.loads(self._lines.pop(0))), fds

    def shutdown(self) -> None:
        """Tell the other end that nothing more comes; a reader on this end wakes up and sees `closed`."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self.closed = True
        self._sock.close()

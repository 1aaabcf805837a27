"""The process of one trial, as the agent sees it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path

from workers.channel import Channel

LOG_CHARS = 8_000
LOG_LIMIT = 8_000_000
"""Size in bytes at which a training's log is cut back to its end: what it prints never fills the disk."""


@dataclass(kw_only=True)
class Child:
    """The process of one trial, as the agent sees it.

    Attributes:
        channel: To the process.
        log: File with what it prints; the process appends to it.
        pid: Its process id once started.
        status: Exit code once ended; negative for a signal; None when nobody could tell.
        peak_rss_kb: Its largest memory, kilobytes.
        error: Why it could not be started, or None.
        started: Set when `pid` is known, or when it will never be.
        ended: Set when it ended.
    """

    channel: Channel
    log: Path
    pid: int | None = None
    status: int | None = None
    peak_rss_kb: int | None = None
    error: str | None = None
    started: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    _cut: bytes = b""

    def terminate(self, grace_s: float) -> None:
        """End the process and its group: SIGTERM, and SIGKILL after `grace_s` seconds."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.pid is None or self.ended.is_set():
                break
            signal_group(self.pid, number)
            signal_group(self.pid, signal.SIGCONT)  # one that is stopped would not hear of it
            self.ended.wait(grace_s)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, if it runs."""
        if self.pid is not None and not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def log_tail(self, lines: int = 200) -> str:
        """Return the end of what the process printed."""
        text = (self._cut + self._end_of_log()).decode(errors="replace")
        return "\n".join(text[-LOG_CHARS:].splitlines()[-lines:])

    def trim_log(self) -> None:
        """Cut the log back to its end when it has grown too large.

        What is printed in the very moment between reading the end and cutting is lost.
        """
        with contextlib.suppress(OSError):
            if self.log.stat().st_size <= LOG_LIMIT:
                return
            with open(self.log, "r+b") as file:
                file.seek(-LOG_CHARS, os.SEEK_END)
                end = file.read()
                while more := file.read():
                    end += more
                file.truncate(0)
            self._cut = end[-LOG_CHARS:]

    def _end_of_log(self) -> bytes:
        try:
            with open(self.log, "rb") as file:
                file.seek(max(0, os.path.getsize(self.log) - LOG_CHARS))
                return file.read(LOG_CHARS)
        except OSError:
            return b""

    def close(self) -> None:
        """Forget the process: close its channel, which ends it if it still runs, and delete its log."""
        self.channel.close()
        self.log.unlink(missing_ok=True)


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process group, if there is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)

"""Notices a training that takes too long, fell silent, or stands still. Pure, but for one look at ``/proc``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autotune.trial import Cause


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why a training must be ended.

    Attributes:
        cause: ``timeout``, or ``lost`` for a process that somebody stopped.
        message: One line.
    """

    cause: Cause
    message: str


@dataclass(kw_only=True)
class Watchdog:
    """Watches one training. Times are monotonic seconds.

    A process that somebody stopped (SIGSTOP) does not end and reports nothing, while its worker renews its lease: only
    the worker can tell. It is given as long as a worker that stands still would be, a whole lease.

    Attributes:
        started_s: When it was started.
        trial_s: So long it may take, or None.
        silent_s: So long it may send nothing, or None.
        frozen_s: So long it may be stopped.
    """

    started_s: float
    trial_s: float | None = None
    silent_s: float | None = None
    frozen_s: float
    _heard_s: float | None = None
    _stopped_s: float | None = None

    def heard(self, now_s: float) -> None:
        """Take in that it sent something."""
        self._heard_s = now_s

    def look(self, now_s: float, *, stopped: bool) -> Verdict | None:
        """Return why it must be ended now, or None.

        Args:
            now_s: The time.
            stopped: Whether its process is stopped by a signal.
        """
        if self.trial_s is not None and now_s - self.started_s >= self.trial_s:
            return Verdict(cause=Cause.TIMEOUT, message=f"it ran {self.trial_s:g} s (limits.trial_s)")
        if not stopped:
            if self._stopped_s is not None:
                self.heard(now_s)  # while it was stopped it could not report
            self._stopped_s = None
        elif self._stopped_s is None:
            self._stopped_s = now_s
        elif now_s - self._stopped_s >= self.frozen_s:
            text = f"the training process was stopped by a signal for {self.frozen_s:g} s while its worker went on"
            return Verdict(cause=Cause.LOST, message=text)
        silent_s = now_s - (self.started_s if self._heard_s is None else self._heard_s)
        if self.silent_s is not None and not stopped and silent_s >= self.silent_s:
            return Verdict(cause=Cause.TIMEOUT, message=f"it sent no report for {self.silent_s:g} s (limits.silent_s)")
        return None


def is_stopped(pid: int | None) -> bool:
    """Return whether a process is stopped by a signal (or by a debugger); False where the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False

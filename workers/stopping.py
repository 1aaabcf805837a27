"""How a worker is asked to end: at once for new trials, after a time of grace for running ones."""

from __future__ import annotations

import threading
import time


class StopRequest(threading.Event):
    """Set when the worker must end: it claims nothing more. Running trials may go on until `expired`.

    Args:
        grace_s: So long they may go on.
    """

    def __init__(self, grace_s: float = 0.0) -> None:
        super().__init__()
        self._grace_s = grace_s
        self._asked_s: float | None = None

    def set(self) -> None:
        """Ask for the end; the time of grace begins with the first call."""
        if self._asked_s is None:
            self._asked_s = time.monotonic()
        super().set()

    @property
    def expired(self) -> bool:
        """Whether the time of grace is over."""
        return self.expired_for(0.0)

    def expired_for(self, seconds: float) -> bool:
        """Return whether the time of grace has been over for so long."""
        return self._asked_s is not None and time.monotonic() - self._asked_s >= self._grace_s + seconds

"""Something that is done after a while unless it is stopped before, all by one thread: most of it is stopped."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)

_LEAST_S = 0.05
"""The thread looks at its list no more often: a thousand of them a second come and are stopped, and none is due."""


class Later:
    """Does something once, in another thread, unless it is stopped before its time.

    Args:
        delay_s: When to do it; up to a twentieth of a second later, or when what was due before is done.
        act: What to do.
    """

    def __init__(self, delay_s: float, act: Callable[[], None]) -> None:
        self._act: Callable[[], None] | None = act
        self._delay_s = delay_s
        self._lock = threading.Lock()
        self._started = False

    def start(self) -> None:
        """Begin to wait."""
        self._started = True
        _ALARM.add(time.monotonic() + self._delay_s, self)

    def now(self) -> None:
        """Do it now, if it was started and is neither done nor stopped; returns when it is done."""
        if self._started:
            with self._lock:
                act, self._act = self._act, None
                if act is not None:
                    act()

    def stop(self) -> None:
        """Do not begin any more; returns when what has begun is done."""
        with self._lock:
            self._act = None


class _Alarm:
    """The thread, which begins with the first entry."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._entries: list[tuple[float, int, Later]] = []
        self._count = itertools.count()
        self._is_running = self._rests = False

    def add(self, due_s: float, later: Later) -> None:
        """Have something done at a time of the monotonic clock."""
        with self._changed:
            heapq.heappush(self._entries, (due_s, next(self._count), later))
            if not self._is_running:
                threading.Thread(target=self._run, name="later", daemon=True).start()
                self._is_running = True
            elif self._entries[0][0] == due_s and not self._rests:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            for later in self._due():
                try:
                    later.now()
                except Exception:  # noqa: BLE001 - the others must be done all the same
                    _log.exception("unexpected", extra={"action": "later-error"})
            self._rests = True
            time.sleep(_LEAST_S)
            self._rests = False

    def _due(self) -> list[Later]:
        """Wait until something is due; return all that is."""
        with self._changed:
            while not self._entries or self._entries[0][0] > time.monotonic():
                self._changed.wait(self._entries[0][0] - time.monotonic() if self._entries else None)
            now_s, due = time.monotonic(), []
            while self._entries and self._entries[0][0] <= now_s:
                due.append(heapq.heappop(self._entries)[2])
            return due


_ALARM = _Alarm()

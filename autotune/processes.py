"""Signals and parents: how the service's long-running processes are asked to end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_PARENT_CHECK_S = 0.5


@contextmanager
def stop_on_signals(stop: threading.Event, at_once: Callable[[], object]) -> Iterator[None]:
    """While inside: the first SIGINT or SIGTERM sets `stop`, a second one calls `at_once`.

    The handlers that were there before are restored at the end. Main thread only.
    """

    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            at_once()
        asked = True
        stop.set()

    before: dict[int, Any] = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_with_parent(stop: threading.Event, parent: int | None) -> None:
    """Set `stop` when the parent process ends, so that a killed command leaves no workers behind.

    Args:
        stop: The event to set.
        parent: Process id of the parent; None: the process outlives its parent.
    """
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == parent and not stop.wait(_PARENT_CHECK_S):
            pass
        stop.set()

    threading.Thread(target=watch, name="parent", daemon=True).start()

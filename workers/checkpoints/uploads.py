"""Checkpoints that are due by `checkpoints.every`: carried while the training goes on, in a thread of their own.

The thread that reads the training's reports must never wait for the store: the socket between them holds some hundred
reports, and when it is full the training waits, too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from autotune.errors import LeaseLostError, StoreError
from autotune.store.artifacts import Reference
from workers.checkpoints.carrier import Carrier
from workers.lease import Held

_log = logging.getLogger(__name__)


class Uploads:
    """Carries the newest checkpoint of an attempt that trains; one at a time, what came meanwhile is passed over.

    Args:
        carrier: Of the attempt. Between the first `ask` and `end` nobody else may use it.
        held: The attempt's lease; marked as lost when the store says so.
        keep: Writes a reference into the trial's document.
        has_room: Asked before each; where it says no, this one is passed over.
    """

    def __init__(
        self, carrier: Carrier, held: Held, keep: Callable[[Reference], None], has_room: Callable[[], bool]
    ) -> None:
        self._carrier = carrier
        self._held = held
        self._keep = keep
        self._has_room = has_room
        self._some = threading.Event()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Carry the newest checkpoint soon. Never waits."""
        self._some.set()
        if self._thread is None and not self._over.is_set():
            self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
            self._thread.start()

    def abandon(self) -> None:
        """Begin no more; one that is on its way may go on, and its reference is refused when the attempt has ended."""
        self._over.set()
        self._some.set()

    def end(self) -> None:
        """Begin no more; returns when the one that is on its way has ended, so that the carrier is free."""
        self.abandon()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while self._some.wait() and not self._over.is_set() and not self._held.lost.is_set():
            self._some.clear()
            lease = self._held.lease
            names = {"campaign": lease.campaign, "number": lease.number}
            try:
                if not self._has_room():
                    _log.info("no room for a checkpoint on the way", extra={"action": "checkpoint-no-room", **names})
                    continue
                reference = self._carrier.carry()
                if reference is not None:
                    self._keep(reference)
            except LeaseLostError:
                if not self._over.is_set():  # then the end of the attempt is what took it
                    self._held.lost.set()
            except (StoreError, OSError) as error:
                _log.warning("%s", error, extra={"action": "checkpoint-waits", **names})
            except Exception:  # noqa: BLE001 - the training goes on, and the checkpoint of its end is tried anew
                _log.exception("unexpected", extra={"action": "checkpoint-waits", **names})

"""Keeps the leases of a worker's running trials alive, from outside the training processes."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autotune.clock import Clock, SystemClock
from autotune.errors import StoreError
from autotune.trial import Lease

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore

_log = logging.getLogger(__name__)

SEEN_S = 10.0
"""How often an idle worker writes that it lives."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A lease that this worker holds.

    Attributes:
        lease: The lease.
        renewal_s: How often to renew it.
        lost: Set when the store says that it is gone.
    """

    lease: Lease
    renewal_s: float
    lost: threading.Event = field(default_factory=threading.Event)


class LeaseKeeper:
    """Renews leases in a thread of its own.

    Args:
        store: An open store.
        worker_id: Id of the worker, which is written to be alive at the same time.
        clock: For the pauses between renewals.
    """

    def __init__(self, store: MongoStore, worker_id: str, clock: Clock | None = None) -> None:
        self._store = store
        self._worker_id = worker_id
        self._clock = clock or SystemClock()
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        """Start renewing."""
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing; returns when the thread has ended."""
        self._stop.set()
        self._changed.set()
        self._thread.join()

    def hold(self, lease: Lease, renewal_s: float) -> Held:
        """Begin to keep a lease alive."""
        held = Held(lease=lease, renewal_s=renewal_s)
        with self._lock:
            self._held[lease.token] = held
        self._changed.set()
        return held

    def drop(self, lease: Lease) -> None:
        """Stop keeping a lease alive."""
        with self._lock:
            self._held.pop(lease.token, None)

    def _run(self) -> None:
        seen_s = -SEEN_S
        renewed_s: dict[str, float] = {}
        while not self._stop.is_set():
            self._changed.clear()
            now_s = self._clock.monotonic_s()
            with self._lock:
                held = list(self._held.values())
            due = [h for h in held if now_s - renewed_s.setdefault(h.lease.token, now_s) >= h.renewal_s]
            try:
                if due:
                    self.renew(due)
                if due or now_s - seen_s >= SEEN_S:
                    self._store.workers.seen(self._worker_id)
                    seen_s = now_s
                renewed_s.update((h.lease.token, now_s) for h in due)
            except StoreError as error:
                _log.warning("%s", error, extra={"action": "renew-failed"})
            renewed_s = {h.lease.token: renewed_s[h.lease.token] for h in held}
            shortest_s = min([h.renewal_s for h in held], default=SEEN_S)
            self._clock.wait(self._changed, min(shortest_s, SEEN_S) / 2)

    def renew(self, held: list[Held]) -> None:
        """Renew these leases now, and mark those that are gone.

        Raises:
            StoreError: If the store cannot be asked; then nothing is marked.
        """
        kept = self._store.trials.renew([h.lease for h in held])
        for h in held:
            with self._lock:
                current = h.lease.token in self._held
            if current and h.lease.token not in kept:
                _log.warning("lease lost", extra={"action": "lease-lost", "campaign": h.lease.campaign, "number": h.lease.number})
                h.lost.set()

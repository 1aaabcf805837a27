"""Keeps the leases of a worker's running trials alive, from outside the training processes."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from autotune.clock import Clock, SystemClock
from autotune.errors import StoreError
from autotune.trial import Lease

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore

_log = logging.getLogger(__name__)

SEEN_S = 10.0
"""How often an idle worker writes that it lives."""
_RETRY_S = 0.5
_CHECK_S = 1.0
LATE_S = 0.5
"""A report that is so late is waited for no longer: the worker asks whether the lease holds."""
_STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Held:
    """A lease that this worker holds.

    Attributes:
        lease: The lease.
        renewal_s: How often to renew it.
        lost: Set when the store says that it is gone.
        ending: Set when the trial's end is being written: from then on only that write can say that the lease is gone.
        confirmed: To be called after a write that the store takes from this lease alone, with the seconds until the
            next one is due. (From another one too while servers change; the next write tells.)
    """

    lease: Lease
    renewal_s: float
    lost: threading.Event = field(default_factory=threading.Event)
    ending: threading.Event = field(default_factory=threading.Event)
    confirmed: Callable[[float], None] = lambda _: None


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
        self._renewed_s: dict[str, float] = {}
        self._asked_s: dict[str, float] = {}
        self._confirmed_s: dict[str, float] = {}  # by token, until when
        self._checked: dict[str, bool] = {}  # by token, whether something was heard
        self._seen_s = -SEEN_S
        self._wakes_s = -math.inf  # when the thread looks again by itself
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        """Start renewing."""
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing; returns when the thread has ended, or hangs in a store that does not answer."""
        self._stop.set()
        self._changed.set()
        self._thread.join(_STOP_TIMEOUT_S)

    def hold(self, lease: Lease, renewal_s: float) -> Held:
        """Begin to keep a lease alive."""
        held = Held(lease=lease, renewal_s=renewal_s, confirmed=partial(self._confirm, lease.token))
        with self._lock:
            self._held[lease.token] = held
            self._renewed_s[lease.token] = self._clock.monotonic_s()
            self._wake_by(self._due_s(lease.token))
        return held

    def check(self, *, heard: bool = False) -> None:
        """Ask soon whether all leases hold: one of them may have been taken away, by a cancellation for example.

        Those that were renewed or asked for within the last second are left until it is over; and those that a report
        has just confirmed, until the next one would have.

        Args:
            heard: Whether there is a reason to think so; then no report is waited for.
        """
        with self._lock:
            for token in self._held:
                self._checked[token] = heard or self._checked.get(token, False)
                self._wake_by(self._asks_s(token))

    def _confirm(self, token: str, next_s: float) -> None:
        """Note that the store has just taken a write of a lease, and takes the next one in so many seconds."""
        with self._lock:
            if token in self._held:
                self._confirmed_s[token] = self._clock.monotonic_s() + next_s + LATE_S

    def drop(self, lease: Lease) -> None:
        """Stop keeping a lease alive."""
        with self._lock:
            self._held.pop(lease.token, None)
            self._renewed_s.pop(lease.token, None)
            self._asked_s.pop(lease.token, None)
            self._confirmed_s.pop(lease.token, None)
            self._checked.pop(lease.token, None)

    def _wake_by(self, due_s: float) -> None:
        """Wake the thread if it would sleep too long; with the lock held."""
        if due_s < self._wakes_s:
            self._changed.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._changed.clear()
            try:
                pause_s = self.step()
            except StoreError as error:
                _log.warning("%s", error, extra={"action": "renew-failed"})
                pause_s = _RETRY_S
            except Exception:  # noqa: BLE001 - without this thread every lease would run out
                _log.exception("unexpected", extra={"action": "renew-failed"})
                pause_s = _RETRY_S
            self._clock.wait(self._changed, pause_s)

    def step(self) -> float:
        """Renew what is due, and write that the worker lives; return the seconds until something is due again.

        Raises:
            StoreError: If the store cannot be asked; then all that was due is due still.
        """
        now_s = self._clock.monotonic_s()
        with self._lock:
            due = [h for token, h in self._held.items() if self._due_s(token) <= now_s and not h.lost.is_set()]
            asked = [
                h for token, h in self._held.items()
                if self._asks_s(token) <= now_s and not h.lost.is_set() and h not in due
            ]  # fmt: skip
            # Taken out before the store is asked: what is heard from now on is asked for anew.
            taken = {h.lease.token: self._checked.pop(h.lease.token, None) for h in [*due, *asked]}
        try:
            if due:
                self.renew(due)
            if asked:
                self._mark(asked, self._store.trials.held([h.lease.token for h in asked]))
        except BaseException:
            with self._lock:
                for token, heard in taken.items():
                    if heard is not None and token in self._held:
                        self._checked[token] = heard or self._checked.get(token, False)
            raise
        if due or now_s - self._seen_s >= SEEN_S:
            self._store.workers.seen(self._worker_id)
            self._seen_s = now_s
        with self._lock:
            self._renewed_s.update((h.lease.token, now_s) for h in due if h.lease.token in self._held)
            self._asked_s.update((h.lease.token, now_s) for h in [*due, *asked] if h.lease.token in self._held)
            times_s = [
                min(self._due_s(token), self._asks_s(token)) for token, h in self._held.items() if not h.lost.is_set()
            ]
            self._wakes_s = min([*times_s, self._seen_s + SEEN_S])
        return max(0.0, self._wakes_s - self._clock.monotonic_s())

    def _due_s(self, token: str) -> float:
        """Return when a lease is to be renewed."""
        return self._renewed_s[token] + self._held[token].renewal_s

    def _asks_s(self, token: str) -> float:
        """Return when to ask whether a lease holds."""
        if token not in self._checked:
            return math.inf
        renewal_s = self._held[token].renewal_s
        asks_s = self._asked_s.get(token, self._renewed_s[token]) + min(_CHECK_S, renewal_s)
        if self._checked[token]:
            return asks_s
        return max(asks_s, self._confirmed_s.get(token, -math.inf))

    def renew(self, held: list[Held]) -> None:
        """Renew these leases now, and mark those that are gone.

        Raises:
            StoreError: If the store cannot be asked; then nothing is marked.
        """
        self._mark(held, self._store.trials.renew([h.lease for h in held]))

    def _mark(self, held: list[Held], kept: set[str]) -> None:
        """Mark those as lost that the store did not name."""
        for h in held:
            with self._lock:
                current = h.lease.token in self._held and not h.ending.is_set()
            if current and h.lease.token not in kept:
                names = {"campaign": h.lease.campaign, "number": h.lease.number}
                _log.warning("lease lost", extra={"action": "lease-lost", **names})
                h.lost.set()

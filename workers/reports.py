"""Sends a trial's reports to the store, without ever holding up the training."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autotune.errors import LeaseLostError, StoreUnreachableError
from autotune.schedule import step_before
from autotune.trial import Report, Trial
from workers.crowd import Crowd
from workers.journal import AttemptJournal
from workers.lease import Held

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore

_log = logging.getLogger(__name__)

_EVERY_S = 0.5
_SELDOM_S, _MOST_S = 3.0, 6.0
_SHARE = 0.02  # of a training's time that its batches may take
MOST_REPORTS = 250
"""So many batches a second all slots of all workers write at the most."""
MAX_PENDING = 10_000
"""While the store is away, so many of the latest reports are kept."""


def apart_s(since_s: float, took_s: float, crowd_s: float = 0.0) -> float:
    """Return the seconds from one batch of reports to the next: a tenth of the training's age, 0.5 to 3.

    Where many workers write, or the store answers slowly (from 120 ms on), it is up to 6 s.

    Args:
        since_s: Seconds since the training's first report.
        took_s: Seconds that the last batch took.
        crowd_s: At least so many, for the sake of the others.
    """
    seldom_s = min(_SELDOM_S, max(_EVERY_S, since_s / 10))
    return min(_MOST_S, max(seldom_s, took_s / _SHARE, crowd_s))


class BestReported:
    """What a trial is compared by at its rung: the best value of the schedule's metric, earlier rungs included.

    None if it reported the metric on its way from the rung before, and never as a finite number: it diverged.

    Args:
        spec: The campaign file as plain values.
        trial: The trial.
    """

    def __init__(self, spec: Mapping[str, Any], trial: Trial) -> None:
        metric = (spec.get("schedule") or {}).get("metric") or {}
        self._name = metric.get("name")
        self._better = max if metric.get("mode") == "max" else min
        earlier = [score for score in trial.rung_scores if score is not None]
        self._best: float | None = self._better(earlier) if earlier else None
        self._since = step_before(spec, trial.rung, trial.target)
        self._finite = self._odd = False

    @property
    def value(self) -> float | None:
        """The best value so far, or None."""
        return None if self._odd and not self._finite else self._best

    def take(self, report: Report) -> None:
        """Take in a report; what is no finite number is never the best."""
        value = report.metrics.get(self._name) if self._name is not None else None
        if value is None:
            return
        finite = math.isfinite(value)
        if finite:
            self._best = value if self._best is None else self._better(self._best, value)
        if report.step > self._since:
            self._finite, self._odd = self._finite or finite, self._odd or not finite


class ReportSender:
    """Writes the reports of one trial in a thread of its own, many at a time.

    Args:
        store: An open store.
        held: The trial's lease; marked as lost when the store says so.
        journal: Keeps on disk what the store could not take.
        crowd: The workers that share the store.
    """

    def __init__(self, store: MongoStore, held: Held, journal: AttemptJournal, crowd: Crowd) -> None:
        self._store = store
        self._held = held
        self._crowd = crowd
        self._journal = journal
        self._journaled = 0
        self._sending: list[Report] = []
        self._pending: list[Report] = []
        self._lock = threading.Lock()
        self._some = threading.Event()
        self._closed = threading.Event()
        self._hurry = threading.Event()  # ends a pause: no more reports come, or too many wait
        self._thread: threading.Thread | None = None

    def add(self, report: Report) -> None:
        """Take a report; it is written soon. Never blocks on the store."""
        with self._lock:
            self._pending.append(report)
            del self._pending[:-MAX_PENDING]
            if len(self._pending) >= MAX_PENDING // 2:
                self._hurry.set()
        self._some.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="reports", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Ask the thread to end; from now on nothing is deleted from the journal."""
        with self._lock:
            self._closed.set()
        self._some.set()
        self._hurry.set()

    def close(self) -> list[Report]:
        """End the thread, after the write that it is in; return the reports that are not in the store."""
        self.end()
        if self._thread is not None:
            self._thread.join()
        return self._pending

    def keep(self) -> bool:
        """Keep the reports that may not be in the store on disk; return whether they are safe. For after `end`."""
        with self._lock:
            reports = [*self._sending, *self._pending]
            new, self._journaled = reports[self._journaled :], len(reports)
        return self._journal.reports(new)

    def forget(self) -> None:
        """Drop the reports that are left. For after `close`."""
        self._pending, self._journaled = [], 0

    def _run(self) -> None:
        began_s = time.monotonic()
        pause_s = _EVERY_S
        while self._some.wait() and not self._closed.is_set() and not self._held.lost.is_set():
            self._some.clear()
            with self._lock:
                batch = self._sending = self._pending
                self._pending = []
                if not self._closed.is_set():
                    self._hurry.clear()
            names = {"campaign": self._held.lease.campaign, "number": self._held.lease.number, "reports": len(batch)}
            sent_s = time.monotonic()
            try:
                self._store.reports.add(self._held.lease, batch)
            except LeaseLostError:
                _log.warning("lease lost", extra={"action": "lease-lost", **names})
                self._put_back(batch)  # they go with the result, should that be accepted all the same
                self._held.lost.set()
            except StoreUnreachableError as error:
                _log.warning("%s", error, extra={"action": "reports-wait", **names})
                self._journaled = self._put_back(batch, on_disk=True)
                self._some.set()
                self._closed.wait(pause_s)
                continue
            except Exception:  # noqa: BLE001 - a report that the store refuses must not end the training
                _log.exception("reports dropped", extra={"action": "reports-refused", **names})
                self._written()
            else:
                now_s = time.monotonic()
                pause_s = apart_s(now_s - began_s, now_s - sent_s, self._crowd.apart_s(MOST_REPORTS))
                self._held.confirmed(pause_s)
                self._written()
            self._hurry.wait(pause_s)

    def _put_back(self, batch: list[Report], *, on_disk: bool = False) -> int:
        """Take back reports that the store did not take; return how many of them there was room for.

        Args:
            batch: The reports; the first `_journaled` of them are on disk already.
            on_disk: Whether to keep them there, too.
        """
        if on_disk:
            self._journal.reports(batch[self._journaled :])
        with self._lock:
            pending = [*batch, *self._pending]
            self._pending, self._sending = pending[-MAX_PENDING:], []
        return max(0, len(batch) - (len(pending) - len(self._pending)))

    def _written(self) -> None:
        with self._lock:
            self._sending = []
            if self._journaled and not self._closed.is_set():
                self._journal.discard()
                self._journaled = 0

"""Brings the end of an attempt into the store, by way of the local journal while the store is away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from autotune.errors import LeaseLostError, NotFoundError, StoreError, StoreSetupError, StoreUnreachableError
from autotune.lifecycle import RetryPolicy
from autotune.store.artifacts import Reference
from autotune.trial import Cause, Failure, Lease
from workers.checkpoints.carrier import Carrier
from workers.checkpoints.uploads import Uploads
from workers.ending import Ended
from workers.journal import AttemptJournal, Entry, Journal
from workers.later import Later
from workers.lease import Held
from workers.reports import BestReported, ReportSender

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore

_log = logging.getLogger(__name__)

_GIVEN_BACK = frozenset({Cause.PREEMPTED, Cause.LOST, Cause.OUT_OF_MEMORY})
KEEP_AFTER_S = 0.25
"""What the store has not taken after so many seconds is written to the local journal: a write takes milliseconds as a
rule, but hangs for a minute where the network drops what is sent."""
_BACKOFF_S = (0.2, 5.0)


class Delivery:
    """Writes how one attempt ended. While the store is away it tries again, for as long as the worker is not stopped.

    Args:
        store: An open store.
        held: The attempt's lease; marked as lost when the store says so.
        journal: Keeps on disk what the store could not take; what is left there when the worker ends is delivered by
            the next one.
        carrier: Carries the attempt's checkpoint.
        uploads: What may use the carrier until now.
        policy: How often the trial is tried again.
        stop: Set when the worker must end.
    """

    def __init__(
        self,
        *,
        store: MongoStore,
        held: Held,
        journal: AttemptJournal,
        carrier: Carrier,
        uploads: Uploads,
        policy: RetryPolicy,
        stop: threading.Event,
    ) -> None:
        self._store = store
        self._held = held
        self._journal = journal
        self._carrier = carrier
        self._uploads = uploads
        self._policy = policy
        self._stop = stop

    def deliver(self, ended: Ended, sender: ReportSender) -> None:
        """Write the reports that are not in the store, then the end; what is in the journal is deleted afterwards.

        Should the worker be stopped while the store is away, all of it stays in the journal.

        Args:
            ended: How the attempt ended.
            sender: Has the reports; it is closed.

        Raises:
            StoreError: If the store answers but refuses the end.
        """
        self._held.ending.set()
        self._uploads.abandon()
        sender.end()
        safe = Later(KEEP_AFTER_S, lambda: self._keep(ended, sender))
        if ended.result is not None or not self._held.lost.is_set():
            safe.start()
        try:
            sender.close()
            done = self._persist(lambda: self._write(ended, sender), safe)
        finally:
            safe.stop()
        if done:
            self._journal.discard()

    def _write(self, ended: Ended, sender: ReportSender) -> None:
        """Write the reports, then the end. Safe to repeat.

        Raises:
            LeaseLostError: If the lease is gone; a result has been kept as late, if it could be.
            StoreError: If the store is away, or refuses the end.
        """
        lease, result, failure = self._held.lease, ended.result, ended.failure
        if result is None and self._held.lost.is_set():
            return
        self._write_reports(sender, has_result=result is not None)
        extra: dict[str, Any] = names(self._held)
        if result is not None:
            self._store.trials.finish(lease, result, ended.timing, rung_score=ended.rung_score)
            _log.info("finished", extra={"action": "finish", **extra, "score": result.score})
        elif ended.paused is not None:
            step = ended.paused.step
            reference = self._carried()
            checkpoint = None if reference is None else reference.document()
            message = f"paused at step {step}"
            self._store.trials.pause(
                lease, ended.rung_score, checkpoint=checkpoint, timing=ended.timing, message=message
            )
            _log.info("paused", extra={"action": "pause", **extra, "step": step})
        elif failure is not None:
            self._keep_checkpoint(failure)
            self._store.trials.end_attempt(
                lease, failure, process_killed=ended.process_killed, timing=ended.timing, policy=self._policy
            )
            _log.info("%s", failure.message, extra={"action": "attempt-ended", **extra, "cause": failure.cause})

    def _keep_checkpoint(self, failure: Failure) -> None:
        """Keep the state of a trial that is given back: the next attempt goes on from there."""
        if failure.cause not in _GIVEN_BACK:
            return
        reference = self._carried()
        if reference is not None:
            self._store.trials.keep_checkpoint(self._held.lease, reference.document())

    def _carried(self) -> Reference | None:
        """Keep the newest checkpoint where the campaign keeps them; return its reference, None if there is none.

        One that was kept before may not be known to the store yet: it is looked for, since after a long outage it may
        have been taken for abandoned. A checkpoint that nobody takes is lost, the trial is not.

        Raises:
            StoreUnreachableError: If the store is away.
        """
        self._uploads.end()
        for again in (True, False):
            try:
                found = self._carrier.carry()
                if found is None and self._carrier.reference is not None:
                    found = self._carrier.reference if self._carrier.is_there() else self._carrier.carry()
                return found
            except StoreUnreachableError:
                raise
            except (StoreError, OSError) as error:
                extra = {"action": "checkpoint-lost", **names(self._held), "again": again}
                _log.error("a checkpoint was not kept: %s", error, extra=extra)
        return self._carrier.reference  # an older one, if there is any

    def _write_reports(self, sender: ReportSender, *, has_result: bool) -> None:
        """Write the reports that are left; those that the store refuses must not hold up the end."""
        reports = sender.close()
        try:
            self._store.reports.add(self._held.lease, reports, ran_out=has_result)
        except StoreUnreachableError:
            raise
        except LeaseLostError:
            if not has_result:
                raise
        except StoreError as error:
            extra = {"action": "reports-refused", **names(self._held), "reports": len(reports)}
            _log.error("%s", error, extra=extra)
        sender.forget()

    def _keep(self, ended: Ended, sender: ReportSender) -> None:
        """Keep on disk what may not be in the store: a worker that is killed now has lost nothing."""
        sender.keep()
        if ended.result is not None:
            self._journal.result(ended.result, ended.timing)
        elif ended.failure is not None:
            self._journal.failure(ended.failure, ended.process_killed, ended.timing)

    def _persist(self, write: Callable[[], object], safe: Later) -> bool:
        """Write, again while the store is away; return whether the store took it, or said that the lease is gone.

        Args:
            write: Writes into the store.
            safe: Done at the latest when the store is known to be away.

        Raises:
            StoreError: If the store answers but refuses the write.
        """
        pause_s = _BACKOFF_S[0]
        while True:
            try:
                write()
            except LeaseLostError as error:
                self._held.lost.set()
                _log.warning("%s", error, extra={"action": "late", **names(self._held)})
                return True
            except StoreUnreachableError as error:
                _log.warning("%s", error, extra={"action": "store-away", **names(self._held)})
                safe.now()
                if self._stop.wait(pause_s):
                    return False
                pause_s = min(_BACKOFF_S[1], pause_s * 2)
            else:
                return True


def names(held: Held) -> dict[str, Any]:
    """Return what log lines say of an attempt."""
    return {"campaign": held.lease.campaign, "number": held.lease.number, "attempt": held.lease.attempt}


def deliver_left_over(store: MongoStore, journal: Journal) -> int:
    """Bring what earlier workers of this host left in the journal into the store; return the number of attempts.

    A result whose trial has been given to another meanwhile is kept as late.

    Raises:
        StoreUnreachableError: If the store is away; what is left stays.
        StoreSetupError: If this user may not write; what is left stays, too.
    """
    count = 0
    for entry in journal.left_over():
        try:
            _deliver_entry(store, entry)
        except (StoreUnreachableError, StoreSetupError):
            entry.close()
            raise
        except (LeaseLostError, StoreError, NotFoundError) as error:
            _log.warning("%s", error, extra={"action": "late", **_entry_names(entry)})
        else:
            _log.info("delivered what an earlier worker left", extra={"action": "delivered", **_entry_names(entry)})
        entry.done()
        count += 1
    return count


def _deliver_entry(store: MongoStore, entry: Entry) -> None:
    if entry.reports:
        try:
            store.reports.add(entry.lease, entry.reports, ran_out=entry.result is not None)
        except LeaseLostError:
            if entry.result is None:
                raise
    if entry.result is not None:
        store.trials.finish(entry.lease, entry.result, entry.timing, rung_score=_rung_score(store, entry.lease))
    elif entry.failure is not None:
        policy = policy_of(store.campaigns.get(entry.lease.campaign).spec)
        store.trials.end_attempt(
            entry.lease, entry.failure, process_killed=entry.process_killed, timing=entry.timing, policy=policy
        )


def _rung_score(store: MongoStore, lease: Lease) -> float | None:
    """Return what a trial is compared by at its rung, from the reports in the store; for after they are there."""
    best = BestReported(store.campaigns.get(lease.campaign).spec, store.trials.get(lease.campaign, lease.number))
    for report in store.reports.curve(lease.campaign, lease.number):
        best.take(report)
    return best.value


def _entry_names(entry: Entry) -> dict[str, Any]:
    return {"campaign": entry.lease.campaign, "number": entry.lease.number, "attempt": entry.lease.attempt}


def policy_of(spec: Mapping[str, Any]) -> RetryPolicy:
    """Return how often the trials of a campaign are tried again.

    Args:
        spec: The campaign file as plain values.
    """
    failures, default = spec.get("failures") or {}, RetryPolicy()
    return RetryPolicy(
        retries={**default.retries, **(failures.get("retries") or {})},
        max_kills=int(failures.get("max_kills", default.max_kills)),
    )

"""Runs one trial in one child process: sends its reports to the store, and its end."""

from __future__ import annotations

import logging
import math
import signal
import time
from dataclasses import replace
from typing import Any

from autotune.errors import DataError, StoreError, StoreUnreachableError
from autotune.store.artifacts import Reference
from autotune.trial import Cause, Failure, Lease, Report
from workers.channel import Message
from workers.checkpoints.uploads import Uploads
from workers.children import Children
from workers.claimed import Claimed
from workers.ending import Ended, Paused, cause_of_death, failure_of, kernel_oom_kills, result_of
from workers.reports import BestReported
from workers.training import Child
from workers.watchdog import Verdict, Watchdog, is_stopped

_log = logging.getLogger(__name__)

GRACE_S = 3.0
_POLITE_S = 1.0
_DUMP_S = 0.3
_STACKS = "most recent call first"
_STATUS_S = 10.0
"""How long the end of a training is waited for whose channel is closed: without its status nobody knows its cause."""
_POLL_S = 0.25


class Runner:
    """Runs one claimed trial to its end.

    Args:
        claimed: The trial, and what its attempt needs.
        children: The fork server of the trial's campaign; it is started if it does not run.

    Attributes:
        refusal: Why this worker must not serve the campaign any more: it cannot load the objective or its data, while
            trials of the campaign have finished, so the fault lies here. None while it may.
    """

    def __init__(self, claimed: Claimed, children: Children) -> None:
        self._claimed = claimed
        self._store = claimed.store
        self._children = children
        self._trial = claimed.trial
        self._spec = claimed.spec
        self._held = claimed.held
        self._stop = claimed.stop
        self._carrier = claimed.carrier
        self._best = BestReported(self._spec, self._trial)
        self._asked = False
        self._reports = claimed.sender()
        self._uploads = Uploads(self._carrier, self._held, self._refer_to, self._has_room)
        self._looked_s = -math.inf
        self._watchdog = Watchdog(started_s=0.0, frozen_s=0.0)
        self._verdict: Verdict | None = None
        self.refusal: str | None = None

    @property
    def _lease(self) -> Lease:
        return self._claimed.lease

    def run(self) -> None:
        """Run the trial; returns when its end is in the store, or its lease is gone.

        Raises:
            WorkerError: If its process could not be started.
            StoreError: If the store refuses what is written; one that is away is waited for.
        """
        claimed_s = time.monotonic()
        self._children.start(self._stop)
        started_s = time.monotonic()
        ooms = kernel_oom_kills()
        request = {**self._claimed.request(), "checkpoint": self._checkpoint()}
        child = self._children.spawn(request, self._claimed.slot.environment())
        self._watchdog = self._new_watchdog()
        try:
            ended = self._judge(child, self._follow(child), ooms)
            timing = {**ended.timing, "server_s": started_s - claimed_s, "total_s": time.monotonic() - started_s}
            if child.peak_rss_kb is not None:
                timing["peak_rss_mb"] = child.peak_rss_kb / 1024
            self._claimed.deliver(replace(ended, timing=timing), self._best, self._reports, self._uploads)
        finally:
            self._uploads.abandon()
            self._reports.close()
            child.terminate(GRACE_S)
            child.close()
            self._carrier.close()

    def _new_watchdog(self) -> Watchdog:
        limits = self._spec.get("limits") or {}
        return Watchdog(
            started_s=time.monotonic(), trial_s=limits.get("trial_s"), silent_s=limits.get("silent_s"),
            frozen_s=self._lease.duration_s,
        )  # fmt: skip

    def _follow(self, child: Child) -> Message | None:
        """Read the child's messages until its last one, its death, its time-out, a stop, or the loss of the lease."""
        while not self._stop.expired and not self._held.lost.is_set():
            message = child.channel.receive(_POLL_S)
            if message is None and (child.channel.closed or child.ended.is_set()):
                return self._rest(child)
            if message is not None and not self._took_report(message):
                child.ended.wait(_POLITE_S)
                return message
            if self._stop.is_set() and not self._asked:
                self._asked = child.channel.send({"ask": "the worker was stopped"})  # one that keeps its state may end
            if not self._looks_well(child):
                return self._put_down(child)
        child.channel.send({"stop": "the lease is gone" if self._held.lost.is_set() else "the worker was stopped"})
        child.ended.wait(_POLITE_S)
        child.terminate(GRACE_S)
        last = self._rest(child)
        return last if last is not None and ("result" in last or "paused" in last) else None

    def _looks_well(self, child: Child) -> bool:
        """Look after the process, but not at each of thousands of reports; return whether it may go on."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= _POLL_S:
            self._looked_s = now_s
            child.trim_log()
            self._verdict = self._watchdog.look(now_s, stopped=is_stopped(child.pid))
        return self._verdict is None

    def _put_down(self, child: Child) -> Message | None:
        """End a training that the watchdog gave up; its log says where it was. A result that it sent counts."""
        if self._verdict is not None and self._verdict.cause is not Cause.LOST:  # one that is stopped cannot write
            child.send_signal(signal.SIGUSR1)  # `workers.child` writes the stacks of all threads
            self._wait_for_stacks(child)
        child.terminate(GRACE_S)
        last = self._rest(child)
        return last if last is not None and ("result" in last or "paused" in last) else None

    def _wait_for_stacks(self, child: Child) -> None:
        """Wait until the stacks are in its log and that grows no more; not for long."""
        end_s, before = time.monotonic() + GRACE_S, None
        while time.monotonic() < end_s and not child.ended.wait(_DUMP_S):
            tail = child.log_tail()
            if _STACKS in tail and tail == before:
                return
            before = tail

    def _rest(self, child: Child) -> Message | None:
        """Take the reports that an ended child had sent; return its last message, or None when it died without one."""
        while (message := child.channel.receive(0.0)) is not None:
            if not self._took_report(message):
                return message
        return None

    def _took_report(self, message: Message) -> bool:
        if "checkpoint" in message:
            self._keep_checkpoint(int(message["checkpoint"]))
            return True
        if "report" not in message:
            return False
        report = Report(step=message["report"], metrics=message["metrics"], attempt=self._lease.attempt)
        self._reports.add(report)
        self._best.take(report)
        self._watchdog.heard(time.monotonic())
        return True

    def _checkpoint(self) -> dict[str, Any]:
        """Return what the training must know of checkpoints; the one to go on from is fetched.

        Raises:
            DataError: If this host cannot read it where others can.
            StoreUnreachableError: If the store is away.
        """
        try:
            earlier = self._carrier.bring()
        except StoreUnreachableError:
            raise
        except (StoreError, OSError) as error:
            raise DataError(f"this worker cannot read the checkpoint of trial {self._trial.number}: {error}") from error
        self._take_earlier_reports()
        return {
            "root": str(self._carrier.own), "earlier": None if earlier is None else str(earlier),
            "target": self._trial.target, "every": (self._spec.get("checkpoints") or {}).get("every"),
        }  # fmt: skip

    def _take_earlier_reports(self) -> None:
        """Let what earlier attempts reported up to the checkpoint count at the next rung, too."""
        reference = self._carrier.reference
        if reference is None:
            return
        for report in self._store.reports.curve(self._trial.campaign, self._trial.number):
            if report.step <= reference.step:
                self._best.take(report)

    def _keep_checkpoint(self, step: int) -> None:
        """Keep a checkpoint that is due by `checkpoints.every`; the others go with the end of the attempt."""
        if self._trial.target != step and not self._stop.is_set():
            self._uploads.ask()

    def _refer_to(self, reference: Reference) -> None:
        self._store.trials.keep_checkpoint(self._lease, reference.document())

    def _has_room(self) -> bool:
        return self._carrier.has_room((self._spec.get("checkpoints") or {}).get("max_gb"))

    def _judge(self, child: Child, message: Message | None, ooms: int) -> Ended:
        timing = dict((message or {}).get("timing") or {})
        if message is not None and "result" in message:
            return Ended(result=result_of(message), timing=timing)
        if message is not None and "paused" in message:
            return Ended(paused=Paused(step=int(message["paused"])), timing=timing)
        if message is not None and "failed" in message:
            told = failure_of(message, child.log_tail())
            failure, self.refusal = self._claimed.judged(told, loading=bool(message.get("loading")))
            return Ended(failure=failure, timing=timing)
        if self._verdict is not None:
            verdict = self._verdict
            failure = Failure(cause=verdict.cause, message=verdict.message, log_tail=child.log_tail())
            return Ended(failure=failure, process_killed=verdict.cause is Cause.LOST, timing=timing)
        if self._was_stopped(child):
            return Ended(failure=Failure(cause=Cause.PREEMPTED, message="the worker was stopped"), timing=timing)
        if not child.ended.wait(_STATUS_S):
            text = "the training process fell silent and did not end"
            failure = Failure(cause=Cause.ERROR, message=text, log_tail=child.log_tail())
            return Ended(failure=failure, timing=timing)
        cause, text, killed = cause_of_death(child.status, oom_killed=kernel_oom_kills() > ooms)
        failure = Failure(cause=cause, message=text, log_tail=child.log_tail(), exit_code=child.status)
        return Ended(failure=failure, process_killed=killed, timing=timing)

    def _was_stopped(self, child: Child) -> bool:
        """Return whether the worker ends; a cluster that takes the host back signals worker and training at once."""
        signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        child.ended.wait(_POLITE_S)  # its channel closes a moment before its status is known
        if child.status is not None and -child.status in signals and not self._held.lost.is_set():
            return self._stop.wait(GRACE_S)
        return self._stop.is_set()

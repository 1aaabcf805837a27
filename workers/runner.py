"""Runs one trial in one child process: sends its reports to the store, and its end."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.errors import LeaseLostError, StoreError, StoreUnreachableError
from autotune.trial import Cause, Failure, Lease, Report, Result, Trial, TrialState
from workers.channel import Message
from workers.children import Children
from workers.devices import Slot
from workers.lease import Held
from workers.reports import ReportSender
from workers.training import Child

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore

_log = logging.getLogger(__name__)

GRACE_S = 3.0
_POLITE_S = 1.0
_POLL_S = 0.25
_BACKOFF_S = (0.2, 5.0)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child's training ended.

    Attributes:
        result: Its result, or None.
        failure: Why it has none, or None.
        process_killed: Whether something other than this worker killed its process.
        timing: Seconds per phase.
    """

    result: Result | None = None
    failure: Failure | None = None
    process_killed: bool = False
    timing: Mapping[str, float]


class Runner:
    """Runs one claimed trial to its end.

    Args:
        store: An open store.
        children: The fork server of the trial's campaign; it is started if it does not run.
        trial: The trial, with its lease.
        spec: The campaign file as plain values.
        metric: ``{"name", "mode"}`` of the campaign.
        slot: What it runs on.
        held: Its lease, kept alive by the lease keeper.
        stop: Set when the worker must end: the trial is given back.

    Attributes:
        refusal: Why this worker must not serve the campaign any more: it cannot load the objective or its data, while
            trials of the campaign have finished, so the fault lies here. None while it may.
    """

    def __init__(
        self,
        *,
        store: MongoStore,
        children: Children,
        trial: Trial,
        spec: Mapping[str, Any],
        metric: Mapping[str, str],
        slot: Slot,
        held: Held,
        stop: threading.Event,
    ) -> None:
        self._store = store
        self._children = children
        self._trial = trial
        self._spec = spec
        self._metric = metric
        self._slot = slot
        self._held = held
        self._stop = stop
        self._reports = ReportSender(store, held)
        self.refusal: str | None = None

    @property
    def _lease(self) -> Lease:
        return self._held.lease

    def run(self) -> None:
        """Run the trial; returns when its end is in the store, or its lease is gone.

        Raises:
            WorkerError: If its process could not be started.
            StoreError: If the store refuses what is written; one that is away is waited for.
        """
        self._children.start(self._stop)
        started_s = time.monotonic()
        ooms = kernel_oom_kills()
        child = self._children.spawn(self._request(), self._slot.environment())
        try:
            ended = self._judge(child, self._follow(child), ooms)
            timing = {**ended.timing, "total_s": time.monotonic() - started_s}
            if child.peak_rss_kb is not None:
                timing["peak_rss_mb"] = child.peak_rss_kb / 1024
            self._deliver(replace(ended, timing={k: round(v, 4) for k, v in timing.items()}))
        finally:
            self._reports.close()
            child.terminate(GRACE_S)
            child.close()

    def _request(self) -> dict[str, Any]:
        trial = self._trial
        fixed = self._spec.get("fixed") or {}
        return {
            "spec": dict(self._spec),
            "metric": dict(self._metric),
            "trial": {
                "params": {**trial.params, **fixed},
                "campaign": trial.campaign,
                "number": trial.number,
                "fold": trial.fold,
                "replicate": trial.replicate,
                "attempt": self._lease.attempt,
                "seed": trial.seed,
                "device": self._slot.trial_device,
                "threads": self._slot.threads,
            },
        }

    def _follow(self, child: Child) -> Message | None:
        """Read the child's messages until its last one, its death, a stop, or the loss of the lease."""
        while not self._stop.is_set() and not self._held.lost.is_set():
            message = child.channel.receive(_POLL_S)
            if message is None and (child.channel.closed or child.ended.is_set()):
                return self._rest(child)
            if message is not None and not self._took_report(message):
                child.ended.wait(_POLITE_S)
                return message
            child.trim_log()
        child.channel.send({"stop": "the worker was stopped" if self._stop.is_set() else "the lease is gone"})
        child.ended.wait(_POLITE_S)
        child.terminate(GRACE_S)
        last = self._rest(child)
        return last if last is not None and "result" in last else None

    def _rest(self, child: Child) -> Message | None:
        """Take the reports that an ended child had sent; return its last message, or None when it died without one."""
        while (message := child.channel.receive(0.0)) is not None:
            if not self._took_report(message):
                return message
        return None

    def _took_report(self, message: Message) -> bool:
        if "report" not in message:
            return False
        report = Report(step=message["report"], metrics=message["metrics"], attempt=self._lease.attempt)
        self._reports.add(report)
        return True

    def _judge(self, child: Child, message: Message | None, ooms: int) -> Ended:
        timing = dict((message or {}).get("timing") or {})
        if message is not None and "result" in message:
            result = message["result"]
            return Ended(
                result=Result(score=result["score"], metrics=result["metrics"], facts=result["facts"]), timing=timing
            )
        if message is not None and "failed" in message:
            failed = message["failed"]
            if message.get("loading") and self._has_finished_trials():
                self.refusal = f"this worker cannot load the objective of '{self._trial.campaign}': {failed['message']}"
                return Ended(failure=Failure(cause=Cause.LOST, message=self.refusal), timing=timing)
            failure = Failure(
                cause=Cause(failed["cause"]), message=failed["message"], traceback=failed["traceback"],
                log_tail=child.log_tail(), exit_code=1,
            )  # fmt: skip
            return Ended(failure=failure, timing=timing)
        if self._was_stopped(child):
            return Ended(failure=Failure(cause=Cause.PREEMPTED, message="the worker was stopped"), timing=timing)
        if not child.ended.wait(GRACE_S):
            text = "the training process fell silent and did not end"
            failure = Failure(cause=Cause.ERROR, message=text, log_tail=child.log_tail())
            return Ended(failure=failure, timing=timing)
        cause, text, killed = cause_of_death(child.status, oom_killed=kernel_oom_kills() > ooms)
        failure = Failure(cause=cause, message=text, log_tail=child.log_tail(), exit_code=child.status)
        return Ended(failure=failure, process_killed=killed, timing=timing)

    def _has_finished_trials(self) -> bool:
        """Return whether the campaign's objective works somewhere; False while the store cannot say."""
        try:
            return self._store.trials.counts(self._trial.campaign).get(TrialState.FINISHED, 0) > 0
        except StoreUnreachableError:
            return False

    def _was_stopped(self, child: Child) -> bool:
        """Return whether the worker ends; a cluster that takes the host back signals worker and training at once."""
        signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        if child.status is not None and -child.status in signals and not self._held.lost.is_set():
            return self._stop.wait(_POLITE_S)
        return self._stop.is_set()

    def _deliver(self, ended: Ended) -> None:
        """Write how it ended; while the store is away, try again, for as long as the worker is not stopped."""
        self._held.ending.set()
        self._deliver_reports()
        result, failure = ended.result, ended.failure
        if result is not None:
            if self._persist(lambda: self._store.trials.finish(self._lease, result, ended.timing)):
                _log.info("finished", extra={"action": "finish", **self._names(), "score": result.score})
        elif failure is not None and not self._held.lost.is_set():
            killed, timing = ended.process_killed, ended.timing
            if self._persist(
                lambda: self._store.trials.end_attempt(self._lease, failure, process_killed=killed, timing=timing)
            ):
                extra = {"action": "attempt-ended", **self._names(), "cause": failure.cause}
                _log.info("%s", failure.message, extra=extra)

    def _deliver_reports(self) -> None:
        rest = self._reports.close()
        if not rest or self._held.lost.is_set():
            return
        try:
            self._persist(lambda: self._store.reports.add(self._lease, rest))
        except StoreError as error:
            _log.error("%s", error, extra={"action": "reports-refused", **self._names(), "reports": len(rest)})

    def _persist(self, write: Callable[[], object]) -> bool:
        """Write, again while the store is away; return whether it was written.

        Raises:
            StoreError: If the store answers but refuses the write.
        """
        pause_s = _BACKOFF_S[0]
        while True:
            try:
                write()
            except LeaseLostError as error:
                self._held.lost.set()
                _log.warning("%s", error, extra={"action": "late", **self._names()})
                return False
            except StoreUnreachableError as error:
                _log.warning("%s", error, extra={"action": "store-away", **self._names()})
                if self._held.lost.is_set() or self._stop.wait(pause_s):
                    return False
                pause_s = min(_BACKOFF_S[1], pause_s * 2)
            else:
                return True

    def _names(self) -> dict[str, Any]:
        return {"campaign": self._trial.campaign, "number": self._trial.number, "attempt": self._lease.attempt}


def cause_of_death(status: int | None, *, oom_killed: bool) -> tuple[Cause, str, bool]:
    """Return (cause, message, whether the process was killed from outside) of a child that ended without a word.

    Args:
        status: Its exit code, negative for a signal, None when unknown.
        oom_killed: Whether the kernel killed something for lack of memory while it ran.
    """
    if status is None:
        return Cause.LOST, "the fork server of the training died", True
    if status >= 0:
        return Cause.ERROR, f"the training process exited with code {status} without a result", False
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if status == -signal.SIGKILL and oom_killed:
        return Cause.OUT_OF_MEMORY, "the kernel killed the training process: the host ran out of memory", False
    if -status in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return Cause.LOST, f"the training process was killed by {name}", True
    return Cause.ERROR, f"the training process died by {name}", False


def kernel_oom_kills(path: Path = Path("/proc/vmstat")) -> int:
    """Return how many processes the kernel has killed for lack of memory since boot; 0 where it does not say."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

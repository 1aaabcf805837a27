"""Runs one trial in one child process: sends its reports to the store, and its end."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.errors import LeaseLostError, StoreError, WorkerError
from autotune.trial import Cause, Failure, Lease, Report, Result, Trial
from workers.channel import Message
from workers.children import Child, Children
from workers.devices import Slot
from workers.lease import Held

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore

_log = logging.getLogger(__name__)

REPORT_EVERY_S = 0.5
MAX_PENDING_REPORTS = 10_000
GRACE_S = 3.0
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
        children: The fork server of the trial's campaign, started.
        trial: The trial, with its lease.
        spec: The campaign file as plain values.
        metric: ``{"name", "mode"}`` of the campaign.
        slot: What it runs on.
        held: Its lease, kept alive by the lease keeper.
        stop: Set when the worker must end: the trial is given back.
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
        self._pending: list[Report] = []
        self._sent_s = time.monotonic()

    @property
    def _lease(self) -> Lease:
        return self._held.lease

    def run(self) -> None:
        """Run the trial; returns when its end is in the store, or its lease is gone."""
        started_s = time.monotonic()
        ooms = kernel_oom_kills()
        try:
            child = self._children.spawn(self._request(), self._slot.environment())
        except WorkerError as error:
            self._deliver(Ended(failure=Failure(cause=Cause.LOST, message=str(error)), timing={}))
            return
        try:
            message = self._follow(child)
            ended = self._judge(child, message, ooms)
            timing = {**ended.timing, "total_s": time.monotonic() - started_s}
            if child.peak_rss_kb is not None:
                timing["peak_rss_mb"] = child.peak_rss_kb / 1024
            self._deliver(Ended(result=ended.result, failure=ended.failure, process_killed=ended.process_killed,
                                timing={k: round(v, 4) for k, v in timing.items()}))  # fmt: skip
        finally:
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
            message = child.channel.receive(_POLL_S if self._pending else 1.0)
            if message is not None and "report" in message:
                self._pending.append(
                    Report(step=message["report"], metrics=message["metrics"], attempt=self._lease.attempt)
                )
                del self._pending[:-MAX_PENDING_REPORTS]
            elif message is not None:
                return message
            elif child.channel.closed or child.ended.is_set():
                return child.channel.receive(0.0)
            if self._pending and time.monotonic() - self._sent_s >= REPORT_EVERY_S:
                self._send_reports()
        child.channel.send({"stop": "the worker was stopped" if self._stop.is_set() else "the lease is gone"})
        child.terminate(GRACE_S)
        return None

    def _send_reports(self) -> None:
        """Write pending reports; what the store does not take now waits for the next time."""
        try:
            self._store.reports.add(self._lease, self._pending)
            self._pending = []
        except LeaseLostError:
            self._held.lost.set()
        except StoreError as error:
            _log.warning("%s", error, extra={"action": "report-failed", **self._names()})
        self._sent_s = time.monotonic()

    def _judge(self, child: Child, message: Message | None, ooms: int) -> Ended:
        timing = dict((message or {}).get("timing") or {})
        if message is not None and "result" in message:
            result = message["result"]
            return Ended(result=Result(score=result["score"], metrics=result["metrics"], facts=result["facts"]), timing=timing)
        if message is not None and "failed" in message:
            failed = message["failed"]
            failure = Failure(
                cause=Cause(failed["cause"]), message=failed["message"], traceback=failed["traceback"],
                log_tail=child.log_tail(), exit_code=1,
            )  # fmt: skip
            return Ended(failure=failure, timing=timing)
        if self._stop.is_set():
            return Ended(failure=Failure(cause=Cause.PREEMPTED, message="the worker was stopped"), timing=timing)
        child.ended.wait(GRACE_S)
        cause, text, killed = cause_of_death(child.status, oom_killed=kernel_oom_kills() > ooms)
        failure = Failure(cause=cause, message=text, log_tail=child.log_tail(), exit_code=child.status)
        return Ended(failure=failure, process_killed=killed, timing=timing)

    def _deliver(self, ended: Ended) -> None:
        """Write how it ended; while the store is away, try again, for as long as the worker is not stopped."""
        self._persist(self._flush)
        if ended.result is not None:
            result = ended.result
            self._persist(lambda: self._store.trials.finish(self._lease, result, ended.timing))
            _log.info("finished", extra={"action": "finish", **self._names(), "score": result.score})
        elif ended.failure is not None and not self._held.lost.is_set():
            failure = ended.failure
            self._persist(
                lambda: self._store.trials.end_attempt(
                    self._lease, failure, process_killed=ended.process_killed, timing=ended.timing
                )
            )
            _log.info("%s", failure.message, extra={"action": "attempt-ended", **self._names(), "cause": failure.cause})

    def _flush(self) -> None:
        self._store.reports.add(self._lease, self._pending)
        self._pending = []

    def _persist(self, write: Callable[[], object]) -> None:
        pause_s = _BACKOFF_S[0]
        while True:
            try:
                write()
            except LeaseLostError as error:
                self._held.lost.set()
                _log.warning("%s", error, extra={"action": "late", **self._names()})
            except StoreError as error:
                _log.warning("%s", error, extra={"action": "store-away", **self._names()})
                if not self._held.lost.is_set() and not self._stop.wait(pause_s):
                    pause_s = min(_BACKOFF_S[1], pause_s * 2)
                    continue
            return

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

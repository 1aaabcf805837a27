"""Runs one trial in the worker's own process (`isolation: none`), for objectives that take milliseconds.

No process of its own means: nothing can be killed, so there are no time limits, and an objective is stopped only when
it reports; what it does to the process (global random numbers, environment, a crash) it does to the worker and to the
other slots. Everything else is as in `workers.runner`: lease, reports, journal, causes of failure, delivery.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autotune.errors import StoreUnreachableError
from autotune.trial import Cause, Failure, Report, Trial, TrialState
from workers import objectives, outcome, reporting
from workers.checkpoints.carrier import Carrier
from workers.checkpoints.uploads import Uploads
from workers.delivery import Delivery, policy_of
from workers.devices import Slot
from workers.ending import Ended
from workers.journal import AttemptJournal
from workers.lease import Held
from workers.refusals import Key
from workers.reports import BestReported, ReportSender
from workers.stopping import StopRequest

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore

_log = logging.getLogger(__name__)


class Loaded:
    """The objectives that were loaded into this process, one per campaign and definition. Safe to use from threads."""

    def __init__(self) -> None:
        self._kept: dict[Key, objectives.Objective] = {}
        self._lock = threading.Lock()

    def of(self, key: Key, spec: Mapping[str, Any]) -> objectives.Objective:
        """Return a campaign's objective, loaded at the first call.

        Raises:
            ObjectiveError: If the code cannot be imported.
        """
        with self._lock:
            if key not in self._kept:
                self._kept[key] = objectives.load_fresh(spec)
            return self._kept[key]


class InlineRunner:
    """Runs one claimed trial to its end, in the calling thread.

    Args:
        store: An open store.
        spec: The campaign file as plain values.
        load: Returns the campaign's objective.
        trial: The trial, with its lease.
        metric: ``{"name", "mode"}`` of the campaign.
        slot: What it runs on.
        held: Its lease, kept alive by the lease keeper.
        journal: Keeps on disk what the store could not take.
        carrier: Carries nothing; for the delivery.
        stop: Set when the worker must end; when its time of grace is over, the trial is given back.

    Attributes:
        refusal: As in `workers.runner.Runner`.
    """

    def __init__(
        self,
        *,
        store: MongoStore,
        spec: Mapping[str, Any],
        load: Any,
        trial: Trial,
        metric: Mapping[str, str],
        slot: Slot,
        held: Held,
        journal: AttemptJournal,
        carrier: Carrier,
        stop: StopRequest,
    ) -> None:
        self._store = store
        self._spec = spec
        self._load = load
        self._trial = trial
        self._metric = metric
        self._slot = slot
        self._held = held
        self._journal = journal
        self._carrier = carrier
        self._stop = stop
        self._best = BestReported(spec, trial)
        self._reports = ReportSender(store, held, journal)
        self._timing: dict[str, float] = {}
        self.refusal: str | None = None

    def run(self) -> None:
        """Run the trial; returns when its end is in the store, or its lease is gone.

        Raises:
            StoreError: If the store refuses what is written; one that is away is waited for.
        """
        started_s = time.monotonic()
        ended = self._ended()
        timing = {**self._timing, "total_s": time.monotonic() - started_s}
        uploads = Uploads(self._carrier, self._held, lambda _: None, lambda: True)
        delivery = Delivery(
            store=self._store, held=self._held, journal=self._journal, carrier=self._carrier, uploads=uploads,
            policy=policy_of(self._spec), stop=self._stop,
        )  # fmt: skip
        rounded = {k: round(v, 4) for k, v in timing.items()}
        try:
            delivery.deliver(replace(ended, timing=rounded, rung_score=self._best.value), self._reports)
        finally:
            self._reports.close()
            self._carrier.close()

    def _ended(self) -> Ended:
        """Run the objective; return how that ended."""
        loading = True
        try:
            objective = self._load()
            loading = False
            request = objectives.request_of(
                self._spec, self._metric, self._trial, self._slot, attempt=self._held.lease.attempt
            )
            trial = reporting.Trial(
                **request["trial"], metric=self._metric["name"], mode=self._metric["mode"], send=self._report,
                schedule_metric=objectives.schedule_metric(self._spec),
            )  # fmt: skip
            started_s = time.monotonic()
            returned = objective.perform(request, trial)
            self._timing = outcome.run_timing(time.monotonic() - started_s, returned)
            return Ended(result=outcome.as_result(returned, self._metric["name"]), timing={})
        except BaseException as error:  # noqa: BLE001 - whatever an objective raises is that trial's end, not the slot's
            failure = outcome.as_failure(error)
        if failure.cause is Cause.STOPPED and self._stop.is_set():
            failure = Failure(cause=Cause.PREEMPTED, message="the worker was stopped")
        elif loading and self._works_elsewhere():
            self.refusal = f"this worker cannot load the objective of '{self._trial.campaign}': {failure.message}"
            failure = Failure(cause=Cause.LOST, message=self.refusal)
        return Ended(failure=failure, timing={})

    def _works_elsewhere(self) -> bool:
        """Return whether trials of the campaign have finished; False while the store cannot say."""
        try:
            return self._store.trials.counts(self._trial.campaign).get(TrialState.FINISHED, 0) > 0
        except StoreUnreachableError:
            return False

    def _report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a report; it is written soon.

        Raises:
            TrialStopped: If the lease is gone, or the worker's time of grace is over.
        """
        report = Report(step=step, metrics=dict(metrics), attempt=self._held.lease.attempt)
        self._reports.add(report)
        self._best.take(report)
        if self._held.lost.is_set():
            raise reporting.TrialStopped("the lease is gone")
        if self._stop.expired:
            raise reporting.TrialStopped("the worker was stopped")

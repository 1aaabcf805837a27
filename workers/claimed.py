"""A trial that this worker holds, with all that carrying it out needs; the same wherever it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from autotune.errors import StoreUnreachableError
from autotune.trial import Cause, Failure, Lease, Trial, TrialState
from workers.checkpoints.carrier import Carrier
from workers.checkpoints.uploads import Uploads
from workers.crowd import Crowd
from workers.delivery import Delivery, policy_of
from workers.devices import Slot
from workers.ending import Ended
from workers.journal import AttemptJournal
from workers.lease import Held
from workers.objectives import request_of
from workers.reports import BestReported, ReportSender
from workers.stopping import StopRequest

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A claimed trial.

    Attributes:
        store: An open store.
        spec: The campaign file as plain values, with this host's paths.
        metric: ``{"name", "mode"}`` of the campaign.
        trial: The trial, with its lease.
        slot: What it runs on.
        held: Its lease, kept alive by the lease keeper.
        journal: Keeps on disk what the store could not take.
        carrier: Carries its checkpoints.
        crowd: The workers that share the store.
        stop: Set when the worker must end; when its time of grace is over, the trial is given back.
    """

    store: MongoStore
    spec: Mapping[str, Any]
    metric: Mapping[str, str]
    trial: Trial
    slot: Slot
    held: Held
    journal: AttemptJournal
    carrier: Carrier
    crowd: Crowd
    stop: StopRequest

    @property
    def lease(self) -> Lease:
        """The lease of this attempt."""
        return self.held.lease

    def request(self) -> dict[str, Any]:
        """Return what the training is asked to do."""
        return request_of(self.spec, self.metric, self.trial, self.slot, attempt=self.lease.attempt)

    def sender(self) -> ReportSender:
        """Return what writes its reports."""
        return ReportSender(self.store, self.held, self.journal, self.crowd)

    def judged(self, failure: Failure, *, loading: bool) -> tuple[Failure, str | None]:
        """Return what a failure that its code told of means, and why this worker must not serve the campaign any more.

        An end because the worker was stopped is a preemption. An objective that does not load here, while trials of the
        campaign have finished, is the fault of this host: the trial goes back.

        Args:
            failure: What its code told.
            loading: Whether the objective was being loaded.
        """
        if failure.cause is Cause.STOPPED and self.stop.is_set():
            return Failure(cause=Cause.PREEMPTED, message="the worker was stopped"), None
        if loading and self._works_elsewhere():
            refusal = f"this worker cannot load the objective of '{self.trial.campaign}': {failure.message}"
            return Failure(cause=Cause.LOST, message=refusal), refusal
        return failure, None

    def _works_elsewhere(self) -> bool:
        """Return whether trials of the campaign have finished; False while the store cannot say."""
        try:
            return self.store.trials.counts(self.trial.campaign).get(TrialState.FINISHED, 0) > 0
        except StoreUnreachableError:
            return False

    def deliver(self, ended: Ended, best: BestReported, reports: ReportSender, uploads: Uploads) -> None:
        """Bring the end into the store.

        Raises:
            StoreError: If the store refuses what is written; one that is away is waited for.
        """
        delivery = Delivery(
            store=self.store, held=self.held, journal=self.journal, carrier=self.carrier, uploads=uploads,
            policy=policy_of(self.spec), stop=self.stop,
        )  # fmt: skip
        timing = {name: round(seconds, 4) for name, seconds in ended.timing.items()}
        delivery.deliver(replace(ended, timing=timing, rung_score=best.value), reports)

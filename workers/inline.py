"""Runs one trial in the worker's own process (`isolation: none`), for objectives that take milliseconds.

No process of its own means: nothing can be killed, so there are no time limits, and an objective is stopped only when
it reports; what it does to the process (global random numbers, environment, a crash) it does to the worker and to the
other slots. Everything else is as in `workers.runner`: lease, reports, journal, causes of failure, delivery.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from autotune.errors import ObjectiveError
from autotune.sources import source_hash
from autotune.trial import Cause, Failure, Report
from workers import objectives, outcome, reporting
from workers.checkpoints.uploads import Uploads
from workers.claimed import Claimed
from workers.ending import Ended
from workers.refusals import Key
from workers.reports import BestReported


class StaleModuleError(ObjectiveError):
    """A process imports a module once; this one has it as it was for another campaign."""


class Loaded:
    """The objectives that were loaded into this process, one per campaign and definition. Safe to use from threads."""

    def __init__(self) -> None:
        self._kept: dict[Key, objectives.Objective] = {}
        self._sources: dict[str, str | None] = {}
        self._lock = threading.Lock()

    def of(self, key: Key, spec: Mapping[str, Any]) -> objectives.Objective:
        """Return a campaign's objective, loaded at the first call.

        Raises:
            ObjectiveError: If the code cannot be imported.
            StaleModuleError: If another version of its module is in this process than on its disk.
        """
        module = spec["objective"].partition(":")[0]
        with self._lock:
            if key not in self._kept:
                source = source_hash(spec["objective"])
                if self._sources.get(module, source) != source:
                    raise StaleModuleError(f"this worker has loaded another version of '{module}'; restart it")
                try:
                    self._kept[key] = objectives.load_fresh(spec)
                finally:
                    if module in sys.modules:  # it stays there even where something else could not be loaded
                        self._sources[module] = source
            return self._kept[key]


class InlineRunner:
    """Runs one claimed trial to its end, in the calling thread.

    Args:
        claimed: The trial, and what its attempt needs.
        load: Returns the campaign's objective.

    Attributes:
        refusal: As in `workers.runner.Runner`.
    """

    def __init__(self, claimed: Claimed, load: Callable[[], objectives.Objective]) -> None:
        self._claimed = claimed
        self._load = load
        self._best = BestReported(claimed.spec, claimed.trial)
        self._reports = claimed.sender()
        self.refusal: str | None = None

    def run(self) -> None:
        """Run the trial; returns when its end is in the store, or its lease is gone.

        Raises:
            StoreError: If the store refuses what is written; one that is away is waited for.
        """
        claimed, started_s = self._claimed, time.monotonic()
        ended = self._ended()
        timing = {**ended.timing, "total_s": time.monotonic() - started_s}
        nothing = Uploads(claimed.carrier, claimed.held, lambda _: None, lambda: True)
        try:
            claimed.deliver(replace(ended, timing=timing), self._best, self._reports, nothing)
        finally:
            self._reports.close()
            claimed.carrier.close()

    def _ended(self) -> Ended:
        """Run the objective; return how that ended."""
        claimed, metric, loading = self._claimed, self._claimed.metric, True
        timing: dict[str, float] = {}
        try:
            objective = self._load()
            loading = False
            request = claimed.request()
            trial = reporting.Trial(
                **request["trial"], metric=metric["name"], mode=metric["mode"], send=self._report,
                schedule_metric=objectives.schedule_metric(claimed.spec),
            )  # fmt: skip
            started_s = time.monotonic()
            returned = objective.perform(request, trial)
            timing = outcome.run_timing(time.monotonic() - started_s, returned)
            return Ended(result=outcome.as_result(returned, metric["name"]), timing=timing)
        except StaleModuleError as error:
            self.refusal = str(error)
            failure = Failure(cause=Cause.LOST, message=self.refusal)
        except BaseException as error:  # noqa: BLE001 - whatever an objective raises is that trial's end, not the slot's
            failure, self.refusal = claimed.judged(outcome.as_failure(error), loading=loading)
        return Ended(failure=failure, timing=timing)

    def _report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a report; it is written soon.

        Raises:
            TrialStopped: If the lease is gone, or the worker's time of grace is over.
        """
        report = Report(step=step, metrics=dict(metrics), attempt=self._claimed.lease.attempt)
        self._reports.add(report)
        self._best.take(report)
        if self._claimed.held.lost.is_set():
            raise reporting.TrialStopped("the lease is gone")
        if self._claimed.stop.expired:
            raise reporting.TrialStopped("the worker was stopped")

"""Reports: the metrics that trainings send while they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pymongo import ASCENDING, UpdateOne
from pymongo.errors import BulkWriteError

from autotune.errors import LeaseLostError
from autotune.lifecycle import Event, sources
from autotune.store.connection import AT_ONCE, Connection, mapped
from autotune.store.documents import report_value
from autotune.store.schema import SCHEMA_VERSION
from autotune.store.trial_ends import ran_out_of
from autotune.trial import Lease, Report

_DUPLICATE_KEY = 11000


class Reports:
    """The collection ``reports``."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._reports = connection.database["reports"]
        self._trials = connection.database["trials"]

    @mapped
    def add(self, lease: Lease, reports: Sequence[Report], *, ran_out: bool = False) -> None:
        """Write reports of a running trial. Idempotent on (trial, step).

        The trial is touched first with the lease's token in the filter; each report is then written only where no
        later attempt has written that step, so a writer whose lease goes in between changes nothing that counts. Nor
        does one whose touch is lost with its server: only the reports are waited for to be safe.

        Args:
            lease: The attempt's lease.
            reports: What to write.
            ran_out: Whether a lease that ran out is enough, while the trial is queued and no other attempt has begun:
                right before the result of such an attempt is delivered.

        Raises:
            LeaseLostError: If the lease is not this one any more; then nothing is written.
        """
        if not reports:
            return
        mine = [{"state": {"$in": sources(Event.REPORT)}, "lease.token": lease.token}]
        if ran_out:
            mine.append(ran_out_of(lease))
        query = {"campaign": lease.campaign, "number": lease.number, "$or": mine}
        touch = {"$max": {"last_step": max(r.step for r in reports)}}
        held = self._trials.with_options(write_concern=AT_ONCE).update_one(query, touch)
        # That it is gone must not be the word of a server which has been replaced and does not know it yet.
        if not held.matched_count and not self._trials.update_one(query, touch).matched_count:
            raise LeaseLostError(f"trial {lease.number} of '{lease.campaign}' has been given to another")
        writes = [
            UpdateOne(
                {
                    "campaign": lease.campaign,
                    "number": lease.number,
                    "step": report.step,
                    "attempt": {"$lte": lease.attempt},
                },
                {
                    "$set": {
                        "schema_version": SCHEMA_VERSION,
                        "attempt": lease.attempt,
                        "metrics": dict(report.metrics),
                    },
                    "$currentDate": {"at": True},
                },
                upsert=True,
            )
            for report in reports
        ]
        try:
            self._reports.bulk_write(writes, ordered=False)
        except BulkWriteError as error:
            others = [e for e in error.details["writeErrors"] if e["code"] != _DUPLICATE_KEY]
            if others or error.details["writeConcernErrors"]:
                raise

    @mapped
    def curves(self, campaign: str, numbers: Sequence[int] | None = None) -> dict[int, list[Report]]:
        """Return number -> reports as `curve` has them, of those trials that have any, in one query.

        Args:
            campaign: Name of the campaign.
            numbers: Numbers of trials; None: all.
        """
        found: dict[int, list[Report]] = {}
        query: dict[str, Any] = {"campaign": campaign}
        if numbers is not None:
            query["number"] = {"$in": list(numbers)}
        for document in self._reports.find(query).sort([("number", ASCENDING), ("step", ASCENDING)]):
            found.setdefault(int(document["number"]), []).append(report_value(document))
        return {number: _last_seen(reports) for number, reports in found.items()}

    @mapped
    def curve(self, campaign: str, number: int) -> list[Report]:
        """Return the reports of a trial in order of step, as its last attempt saw them.

        Steps that only an earlier attempt reached after the last attempt began anew are left out.
        """
        found = self._reports.find({"campaign": campaign, "number": number}).sort("step", ASCENDING)
        return _last_seen([report_value(d) for d in found])


def _last_seen(reports: list[Report]) -> list[Report]:
    """Leave out steps that only an earlier attempt reached after the last attempt began anew."""
    last_attempt = max((r.attempt for r in reports), default=0)
    last_step = max((r.step for r in reports if r.attempt == last_attempt), default=-1)
    return [r for r in reports if r.step <= last_step]

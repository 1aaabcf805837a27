"""The reports that came since somebody last looked, of many trials at once."""

from __future__ import annotations

from collections.abc import Mapping

from pymongo import ASCENDING

from autotune.store.connection import Connection, mapped
from autotune.store.documents import report_value
from autotune.trial import Report

_AT_ONCE = 500


class ReportTails:
    """The collection ``reports``, read from a step on."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._reports = connection.database["reports"]

    @mapped
    def read(self, campaign: str, after: Mapping[int, int]) -> dict[int, list[Report]]:
        """Return number -> reports in order of step, of whichever attempt, of those trials that have any.

        Args:
            campaign: Name of the campaign.
            after: Number -> only steps above this one.
        """
        found: dict[int, list[Report]] = {}
        items = list(after.items())
        for first in range(0, len(items), _AT_ONCE):
            wanted = [
                {"campaign": campaign, "number": n, "step": {"$gt": s}} for n, s in items[first : first + _AT_ONCE]
            ]
            for document in self._reports.find({"$or": wanted}).sort([("number", ASCENDING), ("step", ASCENDING)]):
                found.setdefault(int(document["number"]), []).append(report_value(document))
        return found

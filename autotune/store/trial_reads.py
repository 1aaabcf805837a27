"""Reading trials: one, many, the best, how many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pymongo import ASCENDING, DESCENDING

from autotune.errors import NotFoundError, StoreError
from autotune.store.connection import Connection, mapped
from autotune.store.documents import trial_value
from autotune.store.expressions import expired
from autotune.store.schema import BY_SCORE, BY_STATE
from autotune.trial import Trial, TrialState

WITHOUT_TEXTS = {"attempts.traceback": 0, "attempts.log_tail": 0, "attempts.late_result": 0}
"""Projection without the long texts of attempts."""

_HEAD = {
    "campaign": 1, "number": 1, "params": 1, "config_hash": 1, "state": 1, "score": 1, "lease": 1,
    "attempts.token": 1, "attempts.cause": 1, "attempts.message": 1, "attempts.started_at": 1, "attempts.ended_at": 1,
    "attempts.share": 1, "claims": 1, "ends": 1, "alone": 1, "bracket": 1, "rung": 1, "target": 1, "rung_scores": 1,
    "checkpoint.sha256": 1,
}  # fmt: skip
_MARK = {"_id": 0, "number": 1, "state": 1, "claims": 1, "rung": 1, "checkpoint.sha256": 1}


class TrialReads:
    """The collection ``trials``, read only."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._trials = connection.database["trials"]

    @mapped
    def get(self, campaign: str, number: int) -> Trial:
        """Return one trial whole.

        Raises:
            NotFoundError: If there is none of that number.
        """
        document = self._trials.find_one({"campaign": campaign, "number": number})
        if document is None:
            count = self._trials.count_documents({"campaign": campaign})
            raise NotFoundError(f"campaign '{campaign}' has no trial {number}; it has {count} trials")
        return trial_value(document)

    @mapped
    def find(self, campaign: str, states: Iterable[TrialState] | None = None) -> list[Trial]:
        """Return trials in order of number, without tracebacks and logs; all of them or those in `states`."""
        query: dict[str, Any] = {"campaign": campaign}
        if states is not None:
            query["state"] = {"$in": sorted(states)}
        found = self._trials.find(query, WITHOUT_TEXTS).sort("number", ASCENDING)
        return [trial_value(d) for d in found]

    @mapped
    def heads(
        self, campaign: str, *, states: Iterable[TrialState] | None = None, numbers: Sequence[int] | None = None
    ) -> list[Trial]:
        """Return what the search needs of trials (number, params, state, score, causes), in order of number."""
        query: dict[str, Any] = {"campaign": campaign}
        if states is not None:
            query["state"] = {"$in": sorted(states)}
        if numbers is not None:
            query["number"] = {"$in": list(numbers)}
        return [trial_value(d) for d in self._trials.find(query, _HEAD).sort("number", ASCENDING)]

    @mapped
    def marks(self, campaign: str, states: Iterable[TrialState]) -> dict[int, tuple[str, int, int, str | None]]:
        """Return of each trial in `states` what tells that it has changed: state, claims, rung, checkpoint's hash."""
        query = {"campaign": campaign, "state": {"$in": sorted(states)}}
        return {
            int(d["number"]): (
                str(d["state"]), int(d.get("claims") or 0), int(d.get("rung") or 0),
                (d.get("checkpoint") or {}).get("sha256"),
            )
            for d in self._trials.find(query, _MARK, hint=BY_STATE)
        }  # fmt: skip

    @mapped
    def best(self, campaign: str, mode: str) -> Trial | None:
        """Return the finished trial with the best score, the lowest number among equals; None when none finished."""
        query: dict[str, Any] = {"campaign": campaign, "state": "finished", "score": {"$type": "double"}}
        order = [("score", DESCENDING if mode == "max" else ASCENDING)]
        # Two looks at one end of an index; sorting by both at once would read every trial.
        first = self._trials.find_one(query, {"score": 1}, sort=order, hint=BY_SCORE)
        if first is None:
            return None
        equal = query | {"score": first["score"]}
        document = self._trials.find_one(equal, WITHOUT_TEXTS, sort=[("number", ASCENDING)], hint=BY_SCORE)
        return None if document is None else trial_value(document)

    @mapped
    def counts(self, campaign: str) -> dict[TrialState, int]:
        """Return how many trials of a campaign are in each state; states without trials are left out."""
        rows = self._trials.aggregate(
            [{"$match": {"campaign": campaign}}, {"$group": {"_id": "$state", "n": {"$sum": 1}}}]
        )
        counts = [(row["_id"], int(row["n"])) for row in rows]
        odd = [state for state, _ in counts if state not in list(TrialState)]
        if odd:
            raise StoreError(f"campaign '{campaign}' has trials in the state {odd[0]!r:.80}; restore a backup")
        return {TrialState(state): n for state, n in counts}

    @mapped
    def overdue(self, campaign: str) -> list[int]:
        """Return the numbers of the running trials whose lease ran out and that nobody has given back yet."""
        query = {"campaign": campaign, "state": "running", **expired("lease.expires_at")}
        found = self._trials.find(query, {"number": 1}, hint=BY_STATE)
        return [int(d["number"]) for d in found.sort("number", ASCENDING)]

    @mapped
    def running_by_owner(self, owners: Sequence[str], *, but_not: str | None = None) -> dict[str, int]:
        """Return how many trials each of these workers runs now, of all campaigns or of all but one."""
        query: dict[str, Any] = {"state": "running", "lease.owner": {"$in": list(owners)}}
        if but_not is not None:
            query["campaign"] = {"$ne": but_not}
        rows = self._trials.aggregate(
            [
                {"$match": query},
                {"$group": {"_id": "$lease.owner", "n": {"$sum": 1}}},
            ]
        )
        return {row["_id"]: int(row["n"]) for row in rows}

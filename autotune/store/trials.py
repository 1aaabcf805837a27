"""Trials: propose, claim, renew, finish, fail, release, reap, cancel; and reading them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pymongo import ASCENDING, DESCENDING, ReturnDocument

from autotune.errors import DuplicateError, LeaseLostError, NotFoundError
from autotune.lifecycle import Event, after_attempt, sources, target
from autotune.store.connection import Connection, mapped
from autotune.store.documents import failure_fields, result_fields, trial_document, trial_value
from autotune.store.expressions import NOW, expired, in_seconds, insert_only, literal
from autotune.trial import Cause, Failure, Lease, Result, Trial, TrialState

_WITHOUT_TEXTS = {"attempts.traceback": 0, "attempts.log_tail": 0, "attempts.late_result": 0}
_HEAD = {
    "campaign": 1, "number": 1, "params": 1, "config_hash": 1, "state": 1, "score": 1, "lease": 1,
    "attempts.token": 1, "attempts.cause": 1, "attempts.message": 1,
}  # fmt: skip


class Trials:
    """The collection ``trials``."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._trials = connection.database["trials"]

    @mapped
    def propose(
        self,
        campaign: str,
        number: int,
        params: Mapping[str, Any],
        config_hash: str,
        *,
        seed: int,
        fold: int = 0,
        replicate: int = 0,
    ) -> Trial:
        """Write a new queued trial.

        Raises:
            DuplicateError: If the number or the configuration is in the campaign already.
        """
        document = trial_document(campaign, number, params, config_hash, seed, fold, replicate)
        before = self._trials.find_one_and_update(
            {"campaign": campaign, "number": number},
            insert_only(document, {"proposed_at": NOW}),
            upsert=True,
            return_document=ReturnDocument.BEFORE,
            projection={"_id": 1},
        )
        if before is not None:
            raise DuplicateError(f"trial {number} of campaign '{campaign}' was proposed already")
        return trial_value(document)

    @mapped
    def claim(
        self,
        campaigns: Collection[str],
        *,
        owner: str,
        token: str,
        duration_s: float | Mapping[str, float],
        host: str = "",
        device: str = "",
    ) -> Trial | None:
        """Take the queued trial with the lowest number, or return None when there is none.

        Args:
            campaigns: Names of the campaigns to serve.
            owner: Id of the worker.
            token: Random text, new for each claim: the fence of this attempt.
            duration_s: Length of the lease, seconds; one number, or one per campaign.
            host: Name of the host, kept with the attempt.
            device: What the trial will run on, kept with the attempt.
        """
        names = sorted(campaigns)
        if not names:
            return None
        durations = {n: duration_s[n] if isinstance(duration_s, Mapping) else duration_s for n in names}
        for name in names:
            attempt = {"token": literal(token), "owner": literal(owner), "host": literal(host),
                       "device": literal(device), "started_at": NOW}  # fmt: skip
            lease = {"owner": literal(owner), "token": literal(token), "duration_s": float(durations[name]),
                     "expires_at": in_seconds(durations[name])}  # fmt: skip
            document = self._trials.find_one_and_update(
                {"campaign": name, "state": {"$in": sources(Event.CLAIM)}},
                [
                    {
                        "$set": {
                            "state": str(target(Event.CLAIM)),
                            "started_at": {"$ifNull": ["$started_at", NOW]},
                            "lease": lease,
                            "attempts": {"$concatArrays": ["$attempts", [attempt]]},
                        }
                    }
                ],
                sort=[("number", ASCENDING)],
                return_document=ReturnDocument.AFTER,
                projection=_WITHOUT_TEXTS,
            )
            if document is not None:
                return trial_value(document)
        return None

    @mapped
    def renew(self, leases: Iterable[Lease]) -> set[str]:
        """Renew leases; return the tokens of those that still hold. The others are lost: stop their trainings."""
        by_duration: dict[float, list[str]] = {}
        for lease in leases:
            by_duration.setdefault(lease.duration_s, []).append(lease.token)
        for duration_s, tokens in by_duration.items():
            self._trials.update_many(
                {"state": {"$in": sources(Event.RENEW)}, "lease.token": {"$in": tokens}},
                [{"$set": {"lease.expires_at": in_seconds(duration_s)}}],
            )
        tokens = [t for some in by_duration.values() for t in some]
        held = self._trials.find({"state": "running", "lease.token": {"$in": tokens}}, {"lease.token": 1})
        return {d["lease"]["token"] for d in held}

    @mapped
    def finish(self, lease: Lease, result: Result, timing: Mapping[str, float] | None = None) -> None:
        """Write the result of a trial and end it. Safe to repeat.

        Raises:
            LeaseLostError: If the lease is not this one any more; the result is kept as the attempt's late result.
        """
        fields = result_fields(result)
        if self._end(lease, Event.FINISH, fields, {"timing": dict(timing or {})}):
            return
        now = self._trials.find_one(
            {"campaign": lease.campaign, "number": lease.number, "state": "finished"}, {"attempts.token": 1}
        )
        if now is not None and now["attempts"][-1]["token"] == lease.token:
            return
        self._trials.update_one(
            {"campaign": lease.campaign, "number": lease.number, "attempts.token": lease.token},
            {"$set": {"attempts.$.late_result": fields}},
        )
        raise LeaseLostError(f"trial {lease.number} of '{lease.campaign}' has been given to another; result kept as late")

    @mapped
    def end_attempt(
        self, lease: Lease, failure: Failure, *, process_killed: bool = False, timing: Mapping[str, float] | None = None
    ) -> TrialState:
        """End an attempt that has no result; the trial goes where `lifecycle.after_attempt` says.

        Args:
            lease: The attempt's lease.
            failure: Why it ended.
            process_killed: Whether its process was killed while its worker lived.
            timing: Seconds per phase.

        Returns:
            The state that the trial is in now.

        Raises:
            LeaseLostError: If the lease is not this one any more; then nothing is changed.
        """
        killed_before = 0
        if process_killed:
            trial = self._trials.find_one(
                {"campaign": lease.campaign, "number": lease.number}, {"attempts.process_killed": 1}
            )
            killed_before = sum(bool(a.get("process_killed")) for a in (trial or {}).get("attempts", []))
        event = after_attempt(failure.cause, killed_before=killed_before, process_killed=process_killed)
        attempt = {**failure_fields(failure), "timing": dict(timing or {})}
        if process_killed:
            attempt["process_killed"] = True
        if not self._end(lease, event, {}, attempt):
            raise LeaseLostError(f"trial {lease.number} of '{lease.campaign}' has been given to another")
        return target(event)

    def _end(self, lease: Lease, event: Event, fields: Mapping[str, Any], attempt: Mapping[str, Any]) -> bool:
        state = target(event)
        now: dict[str, Any] = {"attempts.$[mine].ended_at": True}
        if state is not TrialState.QUEUED:
            now["ended_at"] = True
        done = self._trials.update_one(
            {
                "campaign": lease.campaign,
                "number": lease.number,
                "state": {"$in": sources(event)},
                "lease.token": lease.token,
            },
            {
                "$set": {
                    "state": str(state),
                    "lease": None,
                    **fields,
                    **{f"attempts.$[mine].{key}": value for key, value in attempt.items()},
                },
                "$currentDate": now,
            },
            array_filters=[{"mine.token": lease.token}],
        )
        return done.modified_count == 1

    @mapped
    def reap(self, campaign: str) -> list[int]:
        """Give back the trials whose lease ran out on the database's clock; return their numbers."""
        query = {"campaign": campaign, "state": {"$in": sources(Event.RELEASE)}, **expired("lease.expires_at")}
        reaped = []
        for document in list(self._trials.find(query, {"number": 1, "lease.token": 1, "lease.owner": 1})):
            lease = document["lease"]
            done = self._trials.update_one(
                {"_id": document["_id"], "lease.token": lease["token"], **query},
                {
                    "$set": {
                        "state": str(target(Event.RELEASE)),
                        "lease": None,
                        "attempts.$[mine].cause": str(Cause.LOST),
                        "attempts.$[mine].message": f"worker {lease['owner']} was not heard of for a whole lease",
                    },
                    "$currentDate": {"attempts.$[mine].ended_at": True},
                },
                array_filters=[{"mine.token": lease["token"]}],
            )
            if done.modified_count:
                reaped.append(int(document["number"]))
        return reaped

    @mapped
    def cancel(self, campaign: str, message: str = "cancelled") -> int:
        """Cancel every trial of a campaign that has not ended; return how many. Workers notice at their next renewal."""
        attempts = {
            "$map": {
                "input": "$attempts",
                "in": {
                    "$cond": [
                        {"$eq": ["$$this.token", "$lease.token"]},
                        {
                            "$mergeObjects": [
                                "$$this",
                                {"cause": str(Cause.STOPPED), "message": literal(message), "ended_at": NOW},
                            ]
                        },
                        "$$this",
                    ]
                },
            }
        }
        done = self._trials.update_many(
            {"campaign": campaign, "state": {"$in": sources(Event.CANCEL)}},
            [{"$set": {"state": str(target(Event.CANCEL)), "attempts": attempts, "lease": None, "ended_at": NOW}}],
        )
        return done.modified_count

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
        found = self._trials.find(query, _WITHOUT_TEXTS).sort("number", ASCENDING)
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
    def best(self, campaign: str, mode: str) -> Trial | None:
        """Return the finished trial with the best score, the lowest number among equals; None when none finished."""
        order = [("score", DESCENDING if mode == "max" else ASCENDING), ("number", ASCENDING)]
        query = {"campaign": campaign, "state": "finished", "score": {"$type": "double"}}
        document = self._trials.find_one(query, _WITHOUT_TEXTS, sort=order)
        return None if document is None else trial_value(document)

    @mapped
    def counts(self, campaign: str) -> dict[TrialState, int]:
        """Return how many trials of a campaign are in each state; states without trials are left out."""
        rows = self._trials.aggregate(
            [{"$match": {"campaign": campaign}}, {"$group": {"_id": "$state", "n": {"$sum": 1}}}]
        )
        return {TrialState(row["_id"]): int(row["n"]) for row in rows}

    @mapped
    def running_by_owner(self, owners: Sequence[str]) -> dict[str, int]:
        """Return how many trials, of all campaigns, each of these workers runs now."""
        rows = self._trials.aggregate(
            [
                {"$match": {"state": "running", "lease.owner": {"$in": list(owners)}}},
                {"$group": {"_id": "$lease.owner", "n": {"$sum": 1}}},
            ]
        )
        return {row["_id"]: int(row["n"]) for row in rows}

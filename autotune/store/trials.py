"""Trials: propose, claim, renew, finish, fail, release, reap, cancel."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pymongo import ASCENDING, ReturnDocument
from pymongo.errors import DuplicateKeyError

from autotune.errors import DuplicateError, LeaseLostError, ObjectiveError
from autotune.lifecycle import Event, after_attempt, sources, target
from autotune.store.connection import mapped
from autotune.store.documents import failure_fields, result_fields, trial_document, trial_value
from autotune.store.expressions import NOW, Expression, expired, in_seconds, insert_only, literal
from autotune.store.trial_reads import WITHOUT_TEXTS, TrialReads
from autotune.trial import Cause, Failure, Lease, Result, Trial, TrialState


class Trials(TrialReads):
    """The collection ``trials``: its moves."""

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

        Safe to repeat: a call with the token of a lease that is held returns that lease's trial.

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
        attempt = {"token": literal(token), "owner": literal(owner), "host": literal(host),
                   "device": literal(device), "started_at": NOW}  # fmt: skip
        try:
            for name in names:
                document = self._claim_in(name, attempt, durations[name])
                if document is not None:
                    return trial_value(document)
        except DuplicateKeyError:
            pass  # the token holds a trial already: the reply of an earlier call was lost
        document = self._trials.find_one({"lease.token": token}, WITHOUT_TEXTS)
        return None if document is None else trial_value(document)

    def _claim_in(self, campaign: str, attempt: Expression, duration_s: float) -> dict[str, Any] | None:
        lease = {"owner": attempt["owner"], "token": attempt["token"], "duration_s": float(duration_s),
                 "expires_at": in_seconds(duration_s)}  # fmt: skip
        return self._trials.find_one_and_update(
            {"campaign": campaign, "state": {"$in": sources(Event.CLAIM)}},
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
            projection=WITHOUT_TEXTS,
        )

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
            ObjectiveError: If the score is not a finite number; then nothing is changed.
            LeaseLostError: If the lease is not this one any more; the result is kept as the attempt's late result.
        """
        if not math.isfinite(result.score):
            raise ObjectiveError(
                f"trial {lease.number} of '{lease.campaign}' has the score {result.score}, not a finite number; "
                "end the attempt as not-a-number"
            )
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
        raise LeaseLostError(
            f"trial {lease.number} of '{lease.campaign}' has been given to another; result kept as late"
        )

    @mapped
    def end_attempt(
        self, lease: Lease, failure: Failure, *, process_killed: bool = False, timing: Mapping[str, float] | None = None
    ) -> TrialState:
        """End an attempt that has no result; the trial goes where `lifecycle.after_attempt` says. Safe to repeat.

        Args:
            lease: The attempt's lease.
            failure: Why it ended.
            process_killed: Whether its process was killed while its worker lived.
            timing: Seconds per phase.

        Returns:
            The state that the trial went to.

        Raises:
            LeaseLostError: If the lease is not this one any more; then nothing is changed.
        """
        attempts = self._attempts(lease) if process_killed else []
        killed_before = sum(bool(a.get("process_killed")) for a in attempts if a["token"] != lease.token)
        event = after_attempt(failure.cause, killed_before=killed_before, process_killed=process_killed)
        attempt = {**failure_fields(failure), "timing": dict(timing or {}), "ended_by_holder": True}
        if process_killed:
            attempt["process_killed"] = True
        if not self._end(lease, event, {}, attempt) and not any(
            a["token"] == lease.token and a.get("ended_by_holder") and a["cause"] == attempt["cause"]
            for a in self._attempts(lease)
        ):
            raise LeaseLostError(f"trial {lease.number} of '{lease.campaign}' has been given to another")
        return target(event)

    def _attempts(self, lease: Lease) -> list[dict[str, Any]]:
        """Return the attempts of the lease's trial, without texts."""
        fields = {"attempts.token": 1, "attempts.cause": 1, "attempts.process_killed": 1, "attempts.ended_by_holder": 1}
        trial = self._trials.find_one({"campaign": lease.campaign, "number": lease.number}, fields)
        return [] if trial is None else list(trial["attempts"])

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
        """Cancel every trial of a campaign that has not ended; return how many. Workers notice when they renew."""
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

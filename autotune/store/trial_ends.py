"""How attempts end: with a result, without one, by a lease that ran out, by a pause."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from autotune.errors import LeaseLostError, ObjectiveError
from autotune.lifecycle import KILLED, Event, RetryPolicy, after_attempt, sources, target
from autotune.store.connection import mapped
from autotune.store.documents import failure_fields, result_fields
from autotune.store.expressions import expired, literal
from autotune.store.schema import BY_STATE
from autotune.store.trial_reads import TrialReads
from autotune.trial import Cause, Failure, Lease, Result, TrialState

_ENDS = {"attempts.token": 1, "attempts.cause": 1, "attempts.ended_by_holder": 1, "ends": 1, "state": 1}


def ran_out_of(lease: Lease) -> dict[str, Any]:
    """Return a filter for the trial whose last attempt had this lease, which ran out, and where nobody has begun."""
    return {
        "state": {"$in": sources(Event.DELIVER)},
        "$expr": {"$eq": [{"$last": "$attempts.token"}, literal(lease.token)]},
        "attempts": {"$elemMatch": {"token": lease.token, "ended_by_holder": None}},
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


class TrialEnds(TrialReads):
    """The collection ``trials``: the moves that end an attempt."""

    @mapped
    def finish(
        self,
        lease: Lease,
        result: Result,
        timing: Mapping[str, float] | None = None,
        *,
        rung_score: float | None = None,
    ) -> None:
        """Write the result of a trial and end it. Safe to repeat.

        A result whose lease ran out is accepted while the trial is queued and no other attempt has begun.

        Args:
            lease: The attempt's lease.
            result: What the training returned.
            timing: Seconds per phase.
            rung_score: Value of the schedule's metric at its end, by which it is compared at its rung; or None.

        Raises:
            ObjectiveError: If the score is not a finite number; then nothing is changed.
            LeaseLostError: If the trial has been given to another; the result is kept as the attempt's late result.
        """
        if not math.isfinite(result.score):
            raise ObjectiveError(
                f"trial {lease.number} of '{lease.campaign}' has the score {result.score}, not a finite number; "
                "end the attempt as not-a-number"
            )
        fields = result_fields(result)
        attempt = {"timing": dict(timing or {})}
        push = None if rung_score is None else {"rung_scores": _finite(rung_score)}
        if self._end(lease, Event.FINISH, fields, attempt, push=push) or self._deliver(lease, fields, attempt, push):
            return
        now = self._trials.find_one(
            {"campaign": lease.campaign, "number": lease.number, "state": "finished"}, {"attempts.token": 1}
        )
        if now is not None and now["attempts"][-1]["token"] == lease.token:
            return
        kept = self._trials.update_one(
            {"campaign": lease.campaign, "number": lease.number, "attempts.token": lease.token},
            {"$set": {"attempts.$.late_result": fields}},
        )
        raise LeaseLostError(
            f"trial {lease.number} of '{lease.campaign}' has been given to another; result "
            + ("kept as late" if kept.matched_count else "dropped, it is of an attempt of long ago")
        )

    def _deliver(
        self, lease: Lease, fields: Mapping[str, Any], attempt: Mapping[str, Any], push: Mapping[str, Any] | None
    ) -> bool:
        """Accept a result whose lease ran out, if its attempt is still the trial's last one and nobody has begun."""
        ended = {**attempt, "cause": None, "message": None}
        return self._move(lease, Event.DELIVER, ran_out_of(lease), fields, ended, {}, push)

    @mapped
    def end_attempt(
        self,
        lease: Lease,
        failure: Failure,
        *,
        process_killed: bool = False,
        timing: Mapping[str, float] | None = None,
        policy: RetryPolicy | None = None,
    ) -> TrialState:
        """End an attempt that has no result; the trial goes where `lifecycle.after_attempt` says. Safe to repeat.

        After an attempt that ran out of memory, the next one has its device for itself.

        Args:
            lease: The attempt's lease.
            failure: Why it ended.
            process_killed: Whether its process was killed while its worker lived.
            timing: Seconds per phase.
            policy: How often a trial is tried again; default: as `RetryPolicy` says.

        Returns:
            The state that the trial went to.

        Raises:
            LeaseLostError: If the lease is not this one any more; then nothing is changed.
        """
        before = self._trials.find_one({"campaign": lease.campaign, "number": lease.number}, _ENDS) or {"attempts": []}
        mine: dict[str, Any] = next((a for a in before["attempts"] if a["token"] == lease.token), {})
        if mine.get("ended_by_holder") and mine["cause"] == failure.cause:
            return TrialState(mine["ended_by_holder"])
        event = after_attempt(
            failure.cause, ends=before.get("ends") or {}, process_killed=process_killed, policy=policy or RetryPolicy()
        )
        attempt = {
            **failure_fields(failure),
            "timing": dict(timing or {}),
            "ended_by_holder": str(target(event)),
            **({"process_killed": True} if process_killed else {}),
        }
        counts = {str(failure.cause): 1, **({KILLED: 1} if process_killed else {})}
        fields = {"alone": True} if failure.cause is Cause.OUT_OF_MEMORY else {}  # losing a worker does not undo it
        if not self._end(lease, event, fields, attempt, counts):
            raise LeaseLostError(f"trial {lease.number} of '{lease.campaign}' has been given to another")
        return target(event)

    @mapped
    def pause(
        self,
        lease: Lease,
        rung_score: float | None = None,
        *,
        checkpoint: Mapping[str, Any] | None = None,
        timing: Mapping[str, float] | None = None,
        message: str = "paused by the schedule",
    ) -> None:
        """End an attempt whose trial has reached its rung and waits until it is promoted. Safe to repeat.

        Args:
            lease: The attempt's lease.
            rung_score: Value of the schedule's metric there; None for not a number.
            checkpoint: Where its state lies; None: it begins anew when it is promoted.
            timing: Seconds per phase.
            message: One line, kept with the attempt.

        Raises:
            LeaseLostError: If the lease is not this one any more; then nothing is changed.
        """
        paused = str(target(Event.PAUSE))
        attempt = {
            "cause": str(Cause.SCHEDULE), "message": message, "timing": dict(timing or {}), "ended_by_holder": paused,
        }  # fmt: skip
        fields = {"checkpoint": None if checkpoint is None else dict(checkpoint)}
        if self._end(lease, Event.PAUSE, fields, attempt, push={"rung_scores": _finite(rung_score)}):
            return
        query = {"token": lease.token, "ended_by_holder": paused}
        if not self._trials.find_one(
            {"campaign": lease.campaign, "number": lease.number, "attempts": {"$elemMatch": query}}, {"_id": 1}
        ):
            raise LeaseLostError(f"trial {lease.number} of '{lease.campaign}' has been given to another")

    @mapped
    def keep_checkpoint(self, lease: Lease, checkpoint: Mapping[str, Any]) -> None:
        """Write where the state of a running trial lies; the next attempt goes on from there.

        Raises:
            LeaseLostError: If the lease is not this one any more; then nothing is changed.
        """
        done = self._trials.update_one(
            {
                "campaign": lease.campaign,
                "number": lease.number,
                "state": {"$in": sources(Event.REPORT)},
                "lease.token": lease.token,
            },
            {"$set": {"checkpoint": dict(checkpoint)}},
        )
        if not done.matched_count:
            raise LeaseLostError(f"trial {lease.number} of '{lease.campaign}' has been given to another")

    def _end(
        self,
        lease: Lease,
        event: Event,
        fields: Mapping[str, Any],
        attempt: Mapping[str, Any],
        counts: Mapping[str, int] | None = None,
        push: Mapping[str, Any] | None = None,
    ) -> bool:
        """Move a trial that this lease holds; return whether it was held."""
        return self._move(lease, event, {"lease.token": lease.token}, fields, attempt, counts or {}, push)

    def _move(
        self,
        lease: Lease,
        event: Event,
        query: Mapping[str, Any],
        fields: Mapping[str, Any],
        attempt: Mapping[str, Any],
        counts: Mapping[str, int],
        push: Mapping[str, Any] | None = None,
    ) -> bool:
        state = target(event)
        now: dict[str, Any] = {"attempts.$[mine].ended_at": True}
        if state not in (TrialState.QUEUED, TrialState.PAUSED):
            now["ended_at"] = True
        update: dict[str, Any] = {
            "$set": {
                "state": str(state),
                "lease": None,
                **fields,
                **{f"attempts.$[mine].{key}": value for key, value in attempt.items()},
            },
            "$currentDate": now,
        }
        if counts:
            update["$inc"] = {f"ends.{key}": value for key, value in counts.items()}
        if push:
            update["$push"] = dict(push)
        done = self._trials.update_one(
            {"campaign": lease.campaign, "number": lease.number, "state": {"$in": sources(event)}, **query},
            update,
            array_filters=[{"mine.token": lease.token}],
        )
        return done.modified_count == 1

    @mapped
    def reap(self, campaign: str) -> list[int]:
        """Give back the trials whose lease ran out on the database's clock; return their numbers."""
        query = {"campaign": campaign, "state": {"$in": sources(Event.RELEASE)}, **expired("lease.expires_at")}
        reaped = []
        overdue = self._trials.find(query, {"number": 1, "lease.token": 1, "lease.owner": 1}, hint=BY_STATE)
        for document in list(overdue):
            lease = {"token": None, "owner": "unknown", **(document.get("lease") or {})}
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
                    "$inc": {f"ends.{Cause.LOST}": 1},
                },
                array_filters=[{"mine.token": lease["token"]}],
            )
            if done.modified_count:
                reaped.append(int(document["number"]))
        return reaped

"""What people and schedules do to trials from outside: promote, prune, retry, cancel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pymongo.client_session import ClientSession

from autotune.lifecycle import Event, sources, target
from autotune.store.connection import mapped
from autotune.store.expressions import NOW, Expression, literal
from autotune.store.trial_reads import TrialReads
from autotune.trial import ACTIVE_STATES, CampaignState, Cause, TrialState


class TrialSteering(TrialReads):
    """The collection ``trials``: the moves that no lease is needed for."""

    @mapped
    def promote(self, campaign: str, number: int, rung: int | None = None, target: int | None = None) -> bool:
        """Queue a paused trial again, towards its next rung; return whether this call did it.

        Args:
            campaign: Name of the campaign.
            number: Number of the trial.
            rung: The rung that it works towards from now on; it must wait behind the one before. 0: it goes on at the
                first one. None: as it was.
            target: Step at which it is paused there; None: it trains to its own end.
        """
        fields: dict[str, object] = {"target": target}
        if rung is None:
            return self._moved(campaign, number, Event.PROMOTE, fields)
        return self._moved(campaign, number, Event.PROMOTE, {**fields, "rung": rung}, {"rung": max(0, rung - 1)})

    @mapped
    def prune(self, campaign: str, number: int, rung: int | None = None) -> bool:
        """End a paused trial, which its schedule will not promote; return whether this call did it.

        Args:
            campaign: Name of the campaign.
            number: Number of the trial.
            rung: The rung that it must wait behind, as whoever decided this saw it; None: any.
        """
        where = {} if rung is None else {"rung": rung}
        done = self._trials.update_one(
            {"campaign": campaign, "number": number, "state": str(TrialState.PAUSED), **where},
            {"$set": {"state": str(target(Event.PRUNE))}, "$currentDate": {"ended_at": True}},
        )
        return done.modified_count == 1

    @mapped
    def retry(self, campaign: str, numbers: Sequence[int]) -> list[int]:
        """Queue failed and cancelled trials again, with a clean record; return the numbers of those that were.

        Their attempts stay. What they had counted towards `lifecycle.RetryPolicy` is forgotten, and
        so is the score of a rung that they had come to but were not promoted from: it is taken again.
        """
        return [n for n in numbers if self._retry(campaign, n)]

    def _retry(self, campaign: str, number: int) -> bool:
        fields = {"ends": {}, "alone": False, "ended_at": None, "score": None, "metrics": {}, "facts": {}}
        below = {"$cond": [{"$gt": ["$rung", 0]}, {"$slice": ["$rung_scores", {"$max": [1, "$rung"]}]}, []]}
        done = self._trials.update_one(
            {"campaign": campaign, "number": number, "state": {"$in": sources(Event.RETRY)}},
            [
                {"$set": {"state": str(target(Event.RETRY)), "lease": None, "rung_scores": below}},
                {"$set": {key: literal(value) for key, value in fields.items()}},
            ],
        )
        return done.modified_count == 1

    def _moved(
        self,
        campaign: str,
        number: int,
        event: Event,
        fields: Mapping[str, object],
        where: Mapping[str, object] | None = None,
    ) -> bool:
        done = self._trials.update_one(
            {"campaign": campaign, "number": number, "state": {"$in": sources(event)}, **(where or {})},
            {"$set": {"state": str(target(event)), "lease": None, **fields}},
        )
        return done.modified_count == 1

    @mapped
    def forget_checkpoints(self, campaign: str, numbers: Sequence[int]) -> int:
        """Take away the reference to the checkpoint of trials that have ended; return of how many."""
        ended = [str(s) for s in TrialState if s not in ACTIVE_STATES]
        done = self._trials.update_many(
            {"campaign": campaign, "number": {"$in": list(numbers)}, "state": {"$in": ended}},
            {"$set": {"checkpoint": None}},
        )
        return done.modified_count

    @mapped
    def stop(self, campaign: str, number: int, message: str) -> bool:
        """End a running trial for its schedule; return whether this call did it. Its worker notices when it renews."""
        done = self._trials.update_one(
            {"campaign": campaign, "number": number, "state": str(TrialState.RUNNING)},
            [_taken_away(Event.PRUNE, Cause.SCHEDULE, message)],
        )
        return done.modified_count == 1

    @mapped
    def cancel(self, campaign: str, message: str = "cancelled") -> int:
        """Cancel every trial of a campaign that has not ended; return how many. Workers notice when they renew."""
        return self._cancel(campaign, message)

    @mapped
    def cancel_if(
        self, campaign: str, message: str, *, state: CampaignState, revision: int | None = None
    ) -> int | None:
        """Cancel as `cancel` does, if the campaign is as it was seen, at the moment of the cancellation.

        A trial that is queued after the campaign was changed is not cancelled by somebody who saw it as it was before.

        Args:
            campaign: Name of the campaign.
            message: Why, kept with the attempts that run.
            state: The state that it must be in.
            revision: As in `Campaigns.set_state`; None: any.

        Returns:
            How many were cancelled, or None when the campaign is not as it was seen.
        """
        query: dict[str, Any] = {"_id": campaign, "state": str(state)}
        if revision is not None:
            query["revision"] = revision
        campaigns = self.connection.database["campaigns"]

        def check_and_cancel(session: ClientSession) -> int | None:
            seen = campaigns.find_one(query, {"_id": 1}, session=session)
            return None if seen is None else self._cancel(campaign, message, session)

        return self.connection.transaction(check_and_cancel)

    def _cancel(self, campaign: str, message: str, session: ClientSession | None = None) -> int:
        done = self._trials.update_many(
            {"campaign": campaign, "state": {"$in": sources(Event.CANCEL)}},
            [_taken_away(Event.CANCEL, Cause.STOPPED, message)],
            session=session,
        )
        return done.modified_count


def _taken_away(event: Event, cause: Cause, message: str) -> Expression:
    """Return the stage that ends a trial from outside, and the attempt that holds its lease, if one does."""
    ending = {"cause": str(cause), "message": literal(message), "ended_at": NOW}
    holds = {"$eq": ["$$this.token", "$lease.token"]}
    attempts = {
        "$map": {"input": "$attempts", "in": {"$cond": [holds, {"$mergeObjects": ["$$this", ending]}, "$$this"]}}
    }
    return {"$set": {"state": str(target(event)), "attempts": attempts, "lease": None, "ended_at": NOW}}

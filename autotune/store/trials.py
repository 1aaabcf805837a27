"""Trials: propose, claim, renew. How attempts end, and what is done from outside, is in modules beside this one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pymongo import ASCENDING, ReturnDocument, UpdateOne
from pymongo.errors import DuplicateKeyError

from autotune.errors import DuplicateError
from autotune.lifecycle import Event, sources, target
from autotune.store.connection import mapped
from autotune.store.documents import trial_document, trial_value
from autotune.store.expressions import NOW, Expression, in_seconds, insert_only, literal
from autotune.store.schema import BY_STATE, MAX_ATTEMPTS
from autotune.store.trial_ends import TrialEnds
from autotune.store.trial_reads import WITHOUT_TEXTS
from autotune.store.trial_steering import TrialSteering
from autotune.trial import Lease, Origin, Trial


class Trials(TrialEnds, TrialSteering):
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
        origin: Origin = Origin.SEARCH,
        bracket: int = 0,
        target: int | None = None,
    ) -> Trial:
        """Write a new queued trial, which its schedule pauses at step `target` (None: which trains to its own end).

        Raises:
            DuplicateError: If the number or the configuration is in the campaign already.
        """
        document = trial_document(
            campaign, number, params, config_hash, seed=seed, fold=fold, replicate=replicate, origin=origin,
            bracket=bracket, target=target,
        )  # fmt: skip
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
    def propose_many(self, campaign: str, proposals: Sequence[Mapping[str, Any]]) -> list[Trial]:
        """Write new queued trials in one round trip, in order.

        Where another coordinator proposes at the same time, trials behind the first one that it has may be written;
        `propose` would have stopped there.

        Args:
            campaign: Name of the campaign.
            proposals: The other arguments of `propose` for each: ``number``, ``params``, ``config_hash``, ``seed``, ...

        Raises:
            DuplicateError: If one of the numbers or configurations is in the campaign already.
        """
        documents = [
            trial_document(campaign, **{"fold": 0, "replicate": 0, "origin": Origin.SEARCH, **proposal})
            for proposal in proposals
        ]
        writes = [
            UpdateOne({"campaign": campaign, "number": d["number"]}, insert_only(d, {"proposed_at": NOW}), upsert=True)
            for d in documents
        ]
        made = self._trials.bulk_write(writes).upserted_ids or {}
        taken = [d["number"] for i, d in enumerate(documents) if i not in made]
        if taken:
            raise DuplicateError(f"trial {taken[0]} of campaign '{campaign}' was proposed already")
        return [trial_value(d) for d in documents]

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
        share: float = 1.0,
        threads: int = 0,
        versions: Mapping[str, str] | None = None,
        mismatch: Mapping[str, Sequence[str]] | None = None,
        repeated: bool = True,
    ) -> Trial | None:
        """Take the queued trial with the lowest number, or return None when there is none.

        Safe to repeat: a call with the token of a lease that is held returns that lease's trial, and a trial that has
        lost the lease of that token meanwhile is not taken under it again: an attempt has its token for itself.

        Args:
            campaigns: Names of the campaigns to serve.
            owner: Id of the worker.
            token: Random text, new for each claim: the fence of this attempt.
            duration_s: Length of the lease, seconds; one number, or one per campaign.
            host: Name of the host, kept with the attempt.
            device: What the trial will run on, kept with the attempt.
            share: The part of the device that it will have, kept with the attempt.
            threads: CPU threads that it will have, kept with the attempt.
            versions: Versions of the worker's packages, kept with the attempt.
            mismatch: Campaign -> in which points the worker differs from it, kept with the attempt.
            repeated: Whether a call with this token may have been made before; False saves looking for what it took.
        """
        names = sorted(campaigns)
        if not names:
            return None
        durations = {n: duration_s[n] if isinstance(duration_s, Mapping) else duration_s for n in names}
        attempt = {"token": literal(token), "owner": literal(owner), "host": literal(host), "device": literal(device),
                   "share": share, "threads": threads, "versions": literal(dict(versions or {})),
                   "started_at": NOW}  # fmt: skip
        try:
            for name in names:
                differs = list((mismatch or {}).get(name, ()))
                spent = token if repeated else None
                document = self._claim_in(name, {**attempt, "mismatch": literal(differs)}, durations[name], spent)
                if document is not None:
                    return trial_value(document)
        except DuplicateKeyError:
            repeated = True  # the token holds a trial already: the reply of an earlier call was lost
        if not repeated:
            return None
        document = self._trials.find_one({"lease.token": token}, WITHOUT_TEXTS)
        return None if document is None else trial_value(document)

    def _claim_in(
        self, campaign: str, attempt: Expression, duration_s: float, spent: str | None
    ) -> dict[str, Any] | None:
        """Take a trial of one campaign; none that has an attempt of the token `spent`."""
        fresh = {} if spent is None else {"attempts.token": {"$ne": spent}}
        lease = {"owner": attempt["owner"], "token": attempt["token"], "duration_s": float(duration_s),
                 "expires_at": in_seconds(duration_s)}  # fmt: skip
        return self._trials.find_one_and_update(
            {"campaign": campaign, "state": {"$in": sources(Event.CLAIM)}, **fresh},
            [
                {
                    "$set": {
                        "state": str(target(Event.CLAIM)),
                        "started_at": {"$ifNull": ["$started_at", NOW]},
                        "lease": lease,
                        "attempts": {"$slice": [{"$concatArrays": ["$attempts", [attempt]]}, -MAX_ATTEMPTS]},
                        "claims": {"$add": ["$claims", 1]},
                    }
                }
            ],
            sort=[("number", ASCENDING)],
            hint=BY_STATE,
            return_document=ReturnDocument.AFTER,
            projection=WITHOUT_TEXTS,
        )

    @mapped
    def renew(self, leases: Iterable[Lease]) -> set[str]:
        """Renew leases; return the tokens of those that still hold. The others are lost: stop their trainings."""
        by_duration: dict[float, list[str]] = {}
        for lease in leases:
            by_duration.setdefault(lease.duration_s, []).append(lease.token)
        kept: set[str] = set()
        for duration_s, tokens in by_duration.items():
            renewed = self._trials.update_many(
                {"state": {"$in": sources(Event.RENEW)}, "lease.token": {"$in": tokens}},
                [{"$set": {"lease.expires_at": in_seconds(duration_s)}}],
            )
            kept.update(tokens if renewed.matched_count == len(tokens) else self.held(tokens))
        return kept

    @mapped
    def held(self, tokens: Sequence[str]) -> set[str]:
        """Return those of the tokens whose lease still holds, and change nothing."""
        found = self._trials.find({"state": "running", "lease.token": {"$in": list(tokens)}}, {"lease.token": 1})
        return {d["lease"]["token"] for d in found}

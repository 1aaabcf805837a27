"""Frozen values of the service: what a trial, an attempt, a lease, a report and a result are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


class TrialState(StrEnum):
    """Where a trial is in its life; the moves between them are in `autotune.lifecycle`."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    PRUNED = "pruned"
    FAILED = "failed"
    CANCELLED = "cancelled"


class CampaignState(StrEnum):
    """Where a campaign is in its life."""

    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Origin(StrEnum):
    """Who chose a trial's configuration."""

    SEARCH = "search"
    PERSON = "person"


class Cause(StrEnum):
    """Why an attempt ended without a result."""

    LOST = "lost"
    PREEMPTED = "preempted"
    OUT_OF_MEMORY = "out-of-memory"
    NOT_A_NUMBER = "not-a-number"
    ERROR = "error"
    TIMEOUT = "timeout"
    STOPPED = "stopped"
    SCHEDULE = "stopped-by-schedule"


DETERMINISTIC = frozenset({Cause.OUT_OF_MEMORY, Cause.NOT_A_NUMBER, Cause.ERROR, Cause.TIMEOUT})
"""Causes that lie in the configuration and would come again: the search learns from them."""

ACTIVE_STATES = frozenset({TrialState.QUEUED, TrialState.RUNNING, TrialState.PAUSED})
"""States in which a trial still has something to do."""

ENDED_STATES = frozenset(TrialState) - ACTIVE_STATES
"""States in which a trial stays unless a person retries it."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right of one attempt to write to its trial.

    Attributes:
        campaign: Name of the campaign.
        number: Number of the trial.
        owner: Id of the worker.
        token: Random text, new for each attempt: the fence.
        attempt: Index of the attempt, 0-based.
        duration_s: Length of the lease; it runs out that long after the last renewal, on the database's clock.
        expires_at: That time, as the store said last.
    """

    campaign: str
    number: int
    owner: str
    token: str
    attempt: int
    duration_s: float
    expires_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an attempt ended without a result.

    Attributes:
        cause: One of `Cause`.
        message: One line.
        traceback: Text of the traceback, shortened, where there is one.
        log_tail: The last lines that the training printed.
        exit_code: Exit code of the child process; negative for a signal.
    """

    cause: Cause
    message: str
    traceback: str | None = None
    log_tail: str | None = None
    exit_code: int | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished training returned.

    Attributes:
        score: Value of the campaign's metric.
        metrics: Name -> ``{"value": float, "se": ..., "split": ..., ...}``.
        facts: Name -> plain JSON value.
    """

    score: float
    metrics: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Metrics of a trial at a step; one per (trial, step).

    Attributes:
        step: Resource spent, usually epochs trained.
        metrics: Name -> number.
        attempt: Index of the attempt that sent it.
    """

    step: int
    metrics: Mapping[str, float]
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try of a worker at a trial.

    Attributes:
        token: The fence of its lease.
        owner: Id of the worker.
        host: Name of the host.
        device: What it ran on, for example ``cpu`` or ``cuda:GPU-...``.
        started_at: When it was claimed, on the database's clock.
        ended_at: When it ended, or None while it runs.
        cause: Why it ended without a result, or None.
        message: One line about that.
        traceback: Shortened traceback.
        log_tail: Last lines of its output.
        exit_code: Exit code of the child; negative for a signal.
        timing: Seconds spent per phase.
        late_result: What it sent after its lease was gone: kept, never used as the trial's result.
        share: The part of its device that it had: 1 over the number of slots on that device.
        threads: CPU threads that its training had; 0: nobody wrote them down.
        versions: Versions of the packages of its worker.
        mismatch: In which points its worker differed from the campaign, where that was allowed.
    """

    token: str
    owner: str
    host: str = ""
    device: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    cause: str | None = None
    message: str | None = None
    traceback: str | None = None
    log_tail: str | None = None
    exit_code: int | None = None
    timing: Mapping[str, float] = field(default_factory=dict)
    late_result: Mapping[str, Any] | None = None
    share: float = 1.0
    threads: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    mismatch: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of one configuration in one campaign, as the store has it.

    Attributes:
        campaign: Name of the campaign.
        number: 0, 1, 2, ... dense and unique in the campaign.
        params: The configuration: name -> value.
        config_hash: Canonical hash of `params`.
        state: Where it is in its life.
        seed: Seed of the training, from (campaign seed, number).
        fold: Cross-validation fold.
        replicate: Repetition of the configuration.
        origin: Who chose the configuration.
        attempts: The last tries, oldest first; of very many only the last 64 are kept.
        claims: Number of all tries.
        ends: Cause -> number of attempts that ended for it since the trial was last retried by a person; ``killed``
            counts those whose process was killed while its worker lived.
        bracket: Bracket of the schedule that it belongs to.
        rung: Rung that it works towards, waits behind, or was at when it ended.
        target: Step at which it is paused, or None: it trains to its own end.
        rung_scores: Value of the schedule's metric at the rungs that it has reached; None for not a number.
        checkpoint: Where its last checkpoint lies: ``{"sha256", "size", "step", "url", ...}``, or None.
        alone: Whether its next attempt needs its device for itself: the last one ran out of memory.
        lease: The lease of the running attempt, or None.
        score: Value of the campaign's metric, or None.
        metrics: As in `Result`.
        facts: As in `Result`.
        proposed_at: When it was proposed, on the database's clock.
        started_at: Start of the first attempt.
        ended_at: When it ended, or None.
    """

    campaign: str
    number: int
    params: Mapping[str, Any]
    config_hash: str
    state: TrialState
    seed: int = 0
    fold: int = 0
    replicate: int = 0
    origin: Origin = Origin.SEARCH
    attempts: tuple[Attempt, ...] = ()
    claims: int = 0
    ends: Mapping[str, int] = field(default_factory=dict)
    alone: bool = False
    bracket: int = 0
    rung: int = 0
    target: int | None = None
    rung_scores: tuple[float | None, ...] = ()
    checkpoint: Mapping[str, Any] | None = None
    lease: Lease | None = None
    score: float | None = None
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    proposed_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def failure(self) -> Attempt | None:
        """The last attempt that ended without a result, or None."""
        return next((a for a in reversed(self.attempts) if a.cause is not None), None)

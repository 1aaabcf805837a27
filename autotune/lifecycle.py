"""The one table of allowed moves of a trial, and the policy that says what an ended attempt means.

Pure: nothing here knows a database or a clock. Stores carry the moves out atomically; the state that a move
expects and the state that it leads to are read from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from autotune.errors import StateError
from autotune.trial import Cause, TrialState


class Event(StrEnum):
    """What can happen to a trial."""

    CLAIM = "claim"
    RENEW = "renew"
    REPORT = "report"
    FINISH = "finish"
    DELIVER = "deliver"
    FAIL = "fail"
    RELEASE = "release"
    PRUNE = "prune"
    PAUSE = "pause"
    PROMOTE = "promote"
    CANCEL = "cancel"
    RETRY = "retry"


_S = TrialState

MOVES: dict[Event, tuple[frozenset[TrialState], TrialState]] = {
    Event.CLAIM: (frozenset({_S.QUEUED}), _S.RUNNING),
    Event.RENEW: (frozenset({_S.RUNNING}), _S.RUNNING),
    Event.REPORT: (frozenset({_S.RUNNING}), _S.RUNNING),
    Event.FINISH: (frozenset({_S.RUNNING}), _S.FINISHED),
    Event.DELIVER: (frozenset({_S.QUEUED}), _S.FINISHED),
    Event.FAIL: (frozenset({_S.RUNNING}), _S.FAILED),
    Event.RELEASE: (frozenset({_S.RUNNING}), _S.QUEUED),
    Event.PRUNE: (frozenset({_S.RUNNING, _S.PAUSED}), _S.PRUNED),
    Event.PAUSE: (frozenset({_S.RUNNING}), _S.PAUSED),
    Event.PROMOTE: (frozenset({_S.PAUSED}), _S.QUEUED),
    Event.CANCEL: (frozenset({_S.QUEUED, _S.RUNNING, _S.PAUSED}), _S.CANCELLED),
    Event.RETRY: (frozenset({_S.FAILED, _S.CANCELLED}), _S.QUEUED),
}
"""Event -> (states it is allowed in, state it leads to)."""

FENCED = frozenset({Event.RENEW, Event.REPORT, Event.FINISH, Event.FAIL, Event.RELEASE, Event.PAUSE})
"""Events that only the holder of the trial's lease may cause (a reaper releases for a holder that is gone).

`DELIVER` is fenced too, though there is no lease any more: the result of an attempt whose lease ran out counts while
that attempt is still the trial's last one.
"""

KILLED = "killed"
"""Key of `Trial.ends` for attempts whose process was killed while its worker lived."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often a trial is tried again by itself.

    Attributes:
        retries: Cause -> number of attempts that may end for it before the trial fails. Losing a worker and being
            preempted are not in it: they never use up anything.
        max_kills: So many attempts may end by a kill of the training's process, by nobody knows whom, before the
            trial fails; 0: no limit.
    """

    retries: Mapping[str, int] = field(default_factory=lambda: {str(Cause.OUT_OF_MEMORY): 1})
    max_kills: int = 5


def sources(event: Event) -> list[str]:
    """Return the states in which `event` is allowed, sorted."""
    return sorted(MOVES[event][0])


def target(event: Event) -> TrialState:
    """Return the state that `event` leads to."""
    return MOVES[event][1]


def move(state: TrialState, event: Event) -> TrialState:
    """Return the state after `event`.

    Raises:
        StateError: If `event` is not allowed in `state`.
    """
    allowed, after = MOVES[event]
    if state not in allowed:
        raise StateError(f"a trial that is {state} cannot {event}; allowed when {', '.join(sorted(allowed))}")
    return after


def after_attempt(cause: Cause, *, ends: Mapping[str, int], process_killed: bool = False, policy: RetryPolicy) -> Event:
    """Return what happens to a trial whose attempt ended for `cause`.

    Losing a worker or being preempted gives the trial back, without limit. A training process that something
    killed while its worker lived goes back too, but not for ever: a training that gets itself killed each time would
    otherwise run for ever.

    Args:
        cause: Why the attempt ended.
        ends: How earlier attempts ended, as in `Trial.ends`.
        process_killed: Whether this attempt's process was killed while its worker lived.
        policy: How often a trial is tried again.
    """
    if cause is Cause.LOST and process_killed and 0 < policy.max_kills <= ends.get(KILLED, 0) + 1:
        return Event.FAIL
    if cause in (Cause.LOST, Cause.PREEMPTED):
        return Event.RELEASE
    if cause is Cause.STOPPED:
        return Event.CANCEL
    if cause is Cause.SCHEDULE:
        return Event.PRUNE
    if ends.get(cause, 0) < policy.retries.get(cause, 0):
        return Event.RELEASE
    return Event.FAIL


def common_failure(causes: Sequence[tuple[str, str] | None], first: int) -> str | None:
    """Return why a campaign should stop because everything fails from its start, or None.

    Args:
        causes: Per ended trial in order of number, (cause, message) of a failed one, None for any other end.
        first: So many trials must all have failed for the same cause; 0 switches the rule off.
    """
    if first < 1 or len(causes) < first:
        return None
    head = causes[:first]
    failed = [c for c in head if c is not None]
    if len(failed) < first or len({cause for cause, _ in failed}) > 1:
        return None
    cause, message = failed[-1]
    return f"the first {first} trials all failed ({cause}): {message}"

"""What a schedule is: who trains how far, as a pure function of the history."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import Protocol

from autotune.trial import TrialState

PENDING = frozenset({TrialState.QUEUED, TrialState.RUNNING})
"""States in which a member is on its way to its rung."""

DEAD = frozenset({TrialState.FAILED, TrialState.CANCELLED})
"""States in which a member counts as the worst of its rung, and neither blocks it nor frees its place."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """What a schedule sees of a trial.

    Attributes:
        number: Its number.
        state: Where it is in its life.
        bracket: The bracket that it was proposed in, 0, 1, 2, ... over the whole campaign.
        rung: Index of the rung that it works towards, waits behind, or was at when it ended.
        losses: Its loss at the rungs that it has reached, in order; smaller is better. A trial that ended by itself
            before its rung (early stopping) has its final loss as its last one.
    """

    number: int
    state: TrialState
    bracket: int = 0
    rung: int = 0
    losses: tuple[float, ...] = ()

    def loss(self, rung: int) -> float:
        """Return what it is compared by at a rung: infinite where it died before, has none, or it is not a number."""
        if self.rung == rung and self.state in DEAD:
            return math.inf
        if rung < len(self.losses):
            value = self.losses[rung]
        elif self.state is TrialState.FINISHED and self.losses:
            value = self.losses[-1]
        else:
            return math.inf
        return value if value == value else math.inf  # NaN is not equal to itself


@dataclass(frozen=True, kw_only=True)
class Propose:
    """Propose a new trial.

    Attributes:
        bracket: The bracket that it belongs to.
        rung: The rung that it works towards, always 0.
        resource: The step that it trains to first; None: to its own end.
    """

    bracket: int = 0
    rung: int = 0
    resource: int | None = None


@dataclass(frozen=True, kw_only=True)
class Promote:
    """Queue a paused trial again.

    Attributes:
        number: Its number.
        rung: The rung that it works towards next.
        resource: The step that it trains to; None: to its own end.
    """

    number: int
    rung: int
    resource: int | None = None


@dataclass(frozen=True, kw_only=True)
class Prune:
    """End a paused trial: it will not be promoted.

    Attributes:
        number: Its number.
    """

    number: int


Action = Propose | Promote | Prune


class Verdict(StrEnum):
    """What becomes of a trial that has just reported a step between rungs."""

    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The reports of one trial.

    Attributes:
        steps: Steps that it reported, increasing.
        losses: Its loss at each of them; smaller is better, may be infinite or NaN.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    _sums: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    def continued(self, steps: tuple[int, ...], losses: tuple[float, ...]) -> Curve:
        """Return this curve with later reports behind it."""
        return Curve(steps=self.steps + steps, losses=self.losses + losses)

    def best(self) -> float:
        """Return the smallest loss so far; infinite if there is none."""
        return min((loss for loss in self.losses if loss == loss), default=math.inf)

    def average(self, step: int) -> float | None:
        """Return the mean loss up to a step; None if this trial has not come that far. NaN counts as infinite."""
        count = bisect_right(self.steps, step)
        if not count or self.steps[-1] < step:
            return None
        if not self._sums:
            self._sums.extend(accumulate(loss if loss == loss else math.inf for loss in self.losses))
        mean = self._sums[count - 1] / count
        return mean if mean == mean else math.inf


@dataclass(frozen=True, kw_only=True)
class BracketPreview:
    """A bracket before anything runs.

    Attributes:
        bracket: Its index.
        s: How often it reduces its members.
        rungs: Per rung (members, resource).
        epochs: Steps that all of them train, continuing from checkpoints.
    """

    bracket: int
    s: int
    rungs: tuple[tuple[int, int], ...]
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a schedule will spend if nothing fails.

    Attributes:
        brackets: The brackets in order.
        trials: Number of trials.
        epochs: Steps trained; None where the schedule knows no maximum.
        full_epochs: Steps if every trial were trained to the maximum; None likewise.
        in_flight: The most trials that run or are paused at once on one slot; so many checkpoints are kept.
        exact: Whether `epochs` depends on no score; otherwise it is an estimate, and `note` says of which kind.
        note: What `epochs` is where it is not exact.
    """

    brackets: tuple[BracketPreview, ...]
    trials: int
    epochs: int | None
    full_epochs: int | None
    in_flight: int
    exact: bool = True
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class RungTable:
    """One rung as it is now.

    Attributes:
        rung: Its index.
        resource: The step at which trials are compared; None: their own end.
        planned: Its planned number of members; None where there is no plan.
        members: Number of trials that have come to it, dead ones included.
        queued: How many of them are queued for it.
        running: How many are on their way to it.
        waiting: How many are paused at it.
        done: How many have come to its end: paused, promoted, pruned or finished there.
        promoted: How many have gone on to the next rung.
        pruned: How many were ended here by the schedule.
        finished: How many are finished here.
        dead: How many failed or were cancelled on the way to it.
        waits_for: Numbers of the trials that a decision here waits for, in order.
        epochs: Steps trained from the rung before to this one by all that have come to its end; None: unknown.
    """

    rung: int
    resource: int | None
    planned: int | None
    members: int
    queued: int
    running: int
    waiting: int
    done: int
    promoted: int
    pruned: int
    finished: int
    dead: int
    waits_for: tuple[int, ...] = ()
    epochs: int | None = None


@dataclass(frozen=True, kw_only=True)
class BracketTable:
    """One bracket as it is now.

    Attributes:
        bracket: Its index.
        s: How often it reduces its members.
        rungs: Its rungs, from the first to the last.
    """

    bracket: int
    s: int
    rungs: tuple[RungTable, ...]


class Schedule(Protocol):
    """Decides who trains how far.

    A schedule is a pure function of its settings and the history: the same members give the same actions, in every
    process, whoever asked before. Internal state may only be a cache. Numbers are unique; their order does not matter.
    """

    @property
    def resources(self) -> tuple[int | None, ...]:
        """The resource of each rung of the largest bracket; ``(None,)`` or ``(maximum,)`` where there are no rungs."""
        ...

    @property
    def stops_between_rungs(self) -> bool:
        """Whether `verdict` may ever say stop."""
        ...

    @property
    def goes_by_ended(self) -> bool:
        """Whether `actions` looks at members that have ended; else it is given the others only."""
        ...

    def place(self, members: Sequence[Member]) -> Propose:
        """Return where one more trial would go, also one that a person enqueues."""
        ...

    def actions(self, members: Sequence[Member], *, idle: int, remaining: int) -> list[Action]:
        """Return what to do now, in the order in which it is to be done.

        Proposals and promotions together are never more than the slots that nothing is queued for. The caller may stop
        after any of the actions and ask again.

        Args:
            members: All trials of the campaign, or those that have not ended, see `goes_by_ended`.
            idle: Number of slots that run nothing; trials that are queued for them are not subtracted.
            remaining: How many trials may still be proposed; 0 also when the space is exhausted.
        """
        ...

    def verdict(self, curve: Curve, others: Sequence[Curve]) -> Verdict:
        """Return whether a trial goes on after its last report.

        Args:
            curve: Its reports so far.
            others: Those of all other trials that have reported anything.
        """
        ...

    def preview(self, max_trials: int) -> Preview:
        """Return what so many trials will spend if nothing fails."""
        ...

    def tables(self, members: Sequence[Member]) -> tuple[BracketTable, ...]:
        """Return the brackets and rungs as they are now."""
        ...


def vacancies(members: Sequence[Member], idle: int) -> int:
    """Return the number of slots that nothing runs on and nothing is queued for."""
    return max(0, idle - sum(m.state is TrialState.QUEUED for m in members)) if idle > 0 else 0


def rung_table(
    members: Sequence[Member],
    rung: int,
    resources: Sequence[int | None],
    *,
    planned: int | None = None,
    waits: bool = True,
) -> RungTable:
    """Return one rung as it is now.

    Args:
        members: The members of its bracket.
        rung: Its index.
        resources: The resources of all rungs of the bracket.
        planned: Its planned number of members.
        waits: Whether decisions wait for those that are on their way.
    """
    here = [m for m in members if m.rung == rung]
    counts = {state: sum(m.state is state for m in here) for state in TrialState}
    promoted = sum(m.rung > rung for m in members)
    waiting, pruned, finished = (counts[s] for s in (TrialState.PAUSED, TrialState.PRUNED, TrialState.FINISHED))
    done = promoted + waiting + pruned + finished
    before = 0 if rung == 0 else resources[rung - 1] or 0
    resource = resources[rung]
    return RungTable(
        rung=rung,
        resource=resource,
        planned=planned,
        members=len(here) + promoted,
        queued=counts[TrialState.QUEUED],
        running=counts[TrialState.RUNNING],
        waiting=waiting,
        done=done,
        promoted=promoted,
        pruned=pruned,
        finished=finished,
        dead=counts[TrialState.FAILED] + counts[TrialState.CANCELLED],
        waits_for=tuple(sorted(m.number for m in here if waits and m.state in PENDING)),
        epochs=None if resource is None else done * (resource - before),
    )

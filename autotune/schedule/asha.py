"""ASHA (Li et al. 2020): asynchronous successive halving with pause and promotion.

A free slot takes the best trial that is promotable, from the top rung down; if there is none, a new configuration.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from autotune.schedule.base import (
    PENDING,
    Action,
    BracketPreview,
    BracketTable,
    Curve,
    Member,
    Preview,
    Promote,
    Propose,
    Prune,
    Verdict,
    rung_table,
)
from autotune.schedule.brackets import asha_rungs
from autotune.schedule.changes import Changes
from autotune.trial import TrialState

_Entry = tuple[float, int]  # (loss, number): their order is the order of trials


class _Rung:
    """Who has come to the end of one rung, best first, and who of them is paused there and could go on."""

    def __init__(self) -> None:
        self.ended: list[_Entry] = []
        self.waiting: list[_Entry] = []

    def promotable(self, eta: int, wanted: int) -> list[int]:
        """Return at most so many of those that wait and are among the best ``floor(n / eta)``, best first."""
        place = len(self.ended) // eta
        return [entry[1] for entry in self.waiting[:wanted] if bisect_left(self.ended, entry) < place]


@dataclass(kw_only=True)
class _Ledger:
    """All rungs, sorted. Built from the members, or brought up to date where only a few changed."""

    rungs: tuple[_Rung, ...]
    changes: Changes = field(default_factory=Changes)
    counts: dict[TrialState, int] = field(default_factory=dict)
    paused: set[int] = field(default_factory=set)

    def update(self, members: Sequence[Member]) -> None:
        """Take over the members of a call."""
        change = self.changes.since(members)
        if change is None:
            self._start_over(members)
            return
        for member in change[0]:
            self._count(member, -1)
            for entries, entry in self._entries(member):
                del entries[bisect_left(entries, entry)]
        for member in change[1]:
            self._count(member, 1)
            for entries, entry in self._entries(member):
                insort(entries, entry)

    def _start_over(self, members: Sequence[Member]) -> None:
        self.counts, self.paused = dict.fromkeys(TrialState, 0), set()
        for rung in self.rungs:
            rung.ended, rung.waiting = [], []
        for member in members:
            self._count(member, 1)
            for entries, entry in self._entries(member):
                entries.append(entry)
        for rung in self.rungs:
            rung.ended.sort()
            rung.waiting.sort()

    def _count(self, member: Member, by: int) -> None:
        self.counts[member.state] += by
        if member.state is TrialState.PAUSED:
            (self.paused.add if by > 0 else self.paused.discard)(member.number)

    def _entries(self, member: Member) -> list[tuple[list[_Entry], _Entry]]:
        """Return the lists that a member stands in, with what stands there."""
        last = min(member.rung, len(self.rungs) - 1)
        found = [(self.rungs[k].ended, (member.loss(k), member.number)) for k in range(last)]
        if member.state in PENDING:
            return found
        entry = (member.loss(last), member.number)
        found.append((self.rungs[last].ended, entry))
        if member.state is TrialState.PAUSED and last < len(self.rungs) - 1 and entry[0] < math.inf:
            found.append((self.rungs[last].waiting, entry))
        return found

    @property
    def resting(self) -> bool:
        """Whether nothing is queued or running."""
        return not any(self.counts[state] for state in PENDING)

    def last_chance(self) -> Promote | None:
        """Return the best of the highest rung where anybody waits, if nothing has finished yet (resource not set)."""
        if self.counts[TrialState.FINISHED]:
            return None
        for k in range(len(self.rungs) - 2, -1, -1):
            if self.rungs[k].waiting:
                return Promote(number=self.rungs[k].waiting[0][1], rung=k + 1)
        return None


@dataclass(frozen=True, kw_only=True)
class AshaSchedule:
    """Promotes without waiting; one bracket.

    Failed and cancelled trials, and losses that are no number, count as the worst of their rung. What is paused is
    ended only when the campaign has nothing else to do. If nothing has finished by then, because there were fewer
    trials than it takes to fill the rungs, the best of the highest rung goes on until one trial has.

    Attributes:
        minimum: The least resource that a trial gets before it is compared.
        maximum: The most.
        eta: One in eta trials of a rung goes on.

    Raises:
        CampaignError: One of them is out of range.
    """

    minimum: int = 1
    maximum: int
    eta: int = 3

    def __post_init__(self) -> None:
        _ = self._ledger  # out of range is said at once

    @property
    def resources(self) -> tuple[int | None, ...]:
        """The resource of each rung."""
        return self._steps

    @cached_property
    def _steps(self) -> tuple[int, ...]:
        return asha_rungs(self.minimum, self.maximum, self.eta)

    @cached_property
    def _ledger(self) -> _Ledger:
        return _Ledger(rungs=tuple(_Rung() for _ in self._steps))

    @property
    def stops_between_rungs(self) -> bool:
        """False."""
        return False

    @property
    def goes_by_ended(self) -> bool:
        """True: they are the ones that others are compared with."""
        return True

    def place(self, members: Sequence[Member]) -> Propose:
        """Return a proposal for the lowest rung."""
        return Propose(resource=self._steps[0])

    def actions(self, members: Sequence[Member], *, idle: int, remaining: int) -> list[Action]:
        """Promote from the top rung down, then propose; prune when all is done. See `Schedule.actions`."""
        ledger = self._ledger
        ledger.update(members)
        free = max(0, idle - ledger.counts[TrialState.QUEUED])
        work: list[Action] = []
        for k in range(len(self._steps) - 2, -1, -1):
            numbers = ledger.rungs[k].promotable(self.eta, free - len(work))
            work += [Promote(number=n, rung=k + 1, resource=self._steps[k + 1]) for n in numbers]
        work += [self.place(members)] * max(0, min(free - len(work), remaining))
        if work or remaining > 0 or not ledger.resting:
            return work
        return self._ending(ledger, free)

    def _ending(self, ledger: _Ledger, free: int) -> list[Action]:
        """Return what is left to do when no trial is on its way and none may be proposed."""
        if any(rung.promotable(self.eta, 1) for rung in ledger.rungs):
            return []  # there is no slot for them at the moment
        chance = ledger.last_chance()
        if chance is None:
            return [Prune(number=n) for n in sorted(ledger.paused)]
        return [Promote(number=chance.number, rung=chance.rung, resource=self._steps[chance.rung])] if free else []

    def verdict(self, curve: Curve, others: Sequence[Curve]) -> Verdict:
        """Return `Verdict.CONTINUE`: trials are compared at rungs only."""
        return Verdict.CONTINUE

    def preview(self, max_trials: int) -> Preview:
        """Return the rungs as if each promotion were the one that the final ranks call for."""
        sizes = [max_trials]
        for _ in self._steps[1:]:
            sizes.append(max(1, sizes[-1] // self.eta) if sizes[-1] else 0)
        rungs = tuple(zip(sizes, self._steps, strict=True))
        before = (0, *self._steps)
        epochs = sum(size * (step - last) for (size, step), last in zip(rungs, before, strict=False))
        return Preview(
            brackets=(BracketPreview(bracket=0, s=len(rungs) - 1, rungs=rungs, epochs=epochs),),
            trials=max_trials,
            epochs=epochs,
            full_epochs=max_trials * self.maximum,
            in_flight=max_trials if len(rungs) > 1 else min(1, max_trials),
            exact=False,
            note="at least; promotions that later trials overtake come on top",
        )

    def tables(self, members: Sequence[Member]) -> tuple[BracketTable, ...]:
        """Return the one bracket; its decisions wait for nobody."""
        rungs = tuple(rung_table(members, k, self.resources, waits=False) for k in range(len(self._steps)))
        return (BracketTable(bracket=0, s=len(rungs) - 1, rungs=rungs),)

"""Hyperband (Li et al. 2018) with pause and promotion: brackets in the textbook order, no slot idle while work exists.

A rung is decided when all of its members have ended there. While one bracket waits for its last members, free slots get
work of the next one. Each rung keeps one in eta of the members that it really had, at least one.
"""

from __future__ import annotations

import math
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
from autotune.schedule.brackets import Bracket, hyperband_brackets
from autotune.schedule.changes import Changes
from autotune.trial import TrialState


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What is to be done in one bracket.

    Attributes:
        promotions: In order, as far as they are decided.
        prunes: In order.
        places: How many more members may begin in it.
    """

    promotions: tuple[Promote, ...] = ()
    prunes: tuple[Prune, ...] = ()
    places: int = 0


def decide(bracket: Bracket, members: Sequence[Member], *, growing: bool) -> Decisions:
    """Decide what to do in one bracket. Pure.

    Args:
        bracket: Its table.
        members: All of its members.
        growing: Whether the campaign may propose more trials; if not, a bracket closes with what it has.
    """
    places = bracket.sizes[0] - len(members)
    if growing and places > 0 and not _begun(members):
        return Decisions(places=places)
    promotions: list[Promote] = []
    prunes: list[Prune] = []
    for rung in range(bracket.s + 1):
        here = [m for m in members if m.rung >= rung]
        paused = sorted(m.number for m in here if m.rung == rung and m.state is TrialState.PAUSED)
        if rung == bracket.s:
            prunes += (Prune(number=number) for number in paused)  # nobody pauses at the maximum; if so, nothing waits
            break
        kept, gone = bracket.kept(rung, len(here)), sum(m.rung > rung for m in here)
        if gone < kept:
            if any(m.rung == rung and m.state in PENDING for m in here):
                break
            ranked = sorted(here, key=lambda m: (m.loss(rung), m.number))
            gone += sum(m.rung == rung and m.state is TrialState.FINISHED for m in ranked[:kept])
            able = [m for m in ranked if m.rung == rung and _promotable(m, rung)][: max(0, kept - gone)]
            if able:
                target = bracket.resources[rung + 1]
                promotions += (Promote(number=m.number, rung=rung + 1, resource=target) for m in able)
                break
        prunes += (Prune(number=number) for number in paused)
    return Decisions(promotions=tuple(promotions), prunes=tuple(prunes))


def _begun(members: Sequence[Member]) -> bool:
    """Whether a bracket's first rung has been decided; then nobody can join it any more."""
    return any(m.rung > 0 or m.state is TrialState.PRUNED for m in members)


def _promotable(member: Member, rung: int) -> bool:
    return member.state is TrialState.PAUSED and member.loss(rung) < math.inf


@dataclass(kw_only=True)
class _Memory:
    """Decisions per bracket, kept while its members are the same; a cache only."""

    changes: Changes = field(default_factory=Changes)
    members: list[dict[int, Member]] = field(default_factory=list)
    decided: dict[tuple[int, bool], Decisions] = field(default_factory=dict)
    active: set[int] = field(default_factory=set)
    queued: int = 0
    growing: bool = True

    def update(self, members: Sequence[Member], growing: bool) -> None:
        """Take over the members of a call."""
        if growing != self.growing:
            self.growing, self.active = growing, set(range(len(self.members)))
        change = self.changes.since(members)
        if change is None:
            self.members, self.decided, self.active, self.queued = [], {}, set(), 0
            change = [], list(members)
        for member in change[0]:
            self._touch(member)
            self.members[member.bracket].pop(member.number, None)
            self.queued -= member.state is TrialState.QUEUED
        for member in change[1]:
            self._touch(member)
            self.members[member.bracket][member.number] = member
            self.queued += member.state is TrialState.QUEUED

    def _touch(self, member: Member) -> None:
        while member.bracket >= len(self.members):
            self.active.add(len(self.members))
            self.members.append({})
        self.active.add(member.bracket)
        self.decided.pop((member.bracket, True), None)
        self.decided.pop((member.bracket, False), None)

    def decisions(self, index: int, bracket: Bracket) -> Decisions:
        """Return what to do in a bracket, looked at again only if its members changed."""
        key = (index, self.growing)
        if key not in self.decided:
            self.decided[key] = decide(bracket, list(self.members[index].values()), growing=self.growing)
        return self.decided[key]


@dataclass(frozen=True, kw_only=True)
class HyperbandSchedule:
    """Repeats the brackets s = s_max, ..., 0 until the campaign's trials are used up.

    Attributes:
        minimum: The least resource that a trial gets before it is compared.
        maximum: The most.
        eta: One in eta members of a rung goes on.

    Raises:
        CampaignError: One of them is out of range.
    """

    minimum: int = 1
    maximum: int
    eta: int = 3
    _memory: _Memory = field(default_factory=_Memory, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _ = self.brackets  # out of range is said at once

    @cached_property
    def brackets(self) -> tuple[Bracket, ...]:
        """One cycle of brackets."""
        return hyperband_brackets(self.minimum, self.maximum, self.eta)

    @property
    def resources(self) -> tuple[int | None, ...]:
        """The resources of the largest bracket."""
        return self.brackets[0].resources

    def bracket(self, index: int) -> Bracket:
        """Return the table of bracket 0, 1, 2, ... of the campaign."""
        return self.brackets[index % len(self.brackets)]

    @property
    def stops_between_rungs(self) -> bool:
        """False."""
        return False

    @property
    def goes_by_ended(self) -> bool:
        """True: they are the ones that others are compared with."""
        return True

    def place(self, members: Sequence[Member]) -> Propose:
        """Return a proposal in the first bracket that has a place; see `Schedule.place`."""
        grouped = self._grouped(members)
        for index, group in enumerate(grouped):
            if decide(self.bracket(index), group, growing=True).places:
                return self._proposal(index)
        return self._proposal(len(grouped))

    def actions(self, members: Sequence[Member], *, idle: int, remaining: int) -> list[Action]:
        """Bracket by bracket: promotions, then proposals; at last what is pruned. See `Schedule.actions`."""
        memory = self._memory
        memory.update(members, remaining > 0)
        free, left = max(0, idle - memory.queued), max(0, remaining)
        work: list[Action] = []
        prunes: list[Action] = []
        for index in sorted(memory.active):
            todo = memory.decisions(index, self.bracket(index))
            prunes += todo.prunes
            work += todo.promotions[: free - len(work)]
            proposals = min(todo.places, free - len(work), left)
            work += [self._proposal(index)] * proposals
            left -= proposals
            if not (todo.promotions or todo.prunes or todo.places):
                memory.active.discard(index)  # until one of its members changes
        index = len(memory.members)
        while (places := min(free - len(work), left, self.bracket(index).sizes[0])) > 0:
            work += [self._proposal(index)] * places
            index, left = index + 1, left - places
        return work + prunes

    def verdict(self, curve: Curve, others: Sequence[Curve]) -> Verdict:
        """Return `Verdict.CONTINUE`: trials are compared at rungs only."""
        return Verdict.CONTINUE

    def preview(self, max_trials: int) -> Preview:
        """Return the brackets that so many trials fill; the last one may be cut short."""
        brackets: list[BracketPreview] = []
        left = max_trials
        while left > 0:
            table = self.bracket(len(brackets)).cut(left)
            left -= table.sizes[0]
            epochs = trained(table)
            brackets.append(BracketPreview(bracket=len(brackets), s=table.s, rungs=table.rungs, epochs=epochs))
        return Preview(
            brackets=tuple(brackets),
            trials=max_trials,
            epochs=sum(b.epochs for b in brackets),
            full_epochs=max_trials * self.maximum,
            in_flight=max((b.rungs[0][0] if b.s else 1 for b in brackets), default=0),
        )

    def tables(self, members: Sequence[Member]) -> tuple[BracketTable, ...]:
        """Return all brackets that have members; `planned` is the textbook's."""
        return tuple(self._table(index, group) for index, group in enumerate(self._grouped(members)))

    def _table(self, index: int, members: Sequence[Member]) -> BracketTable:
        table = self.bracket(index)
        rungs = (
            rung_table(members, rung, table.resources, planned=size, waits=rung < table.s)
            for rung, size in enumerate(table.sizes)
        )
        return BracketTable(bracket=index, s=table.s, rungs=tuple(rungs))

    def _proposal(self, index: int) -> Propose:
        return Propose(bracket=index, resource=self.bracket(index).resources[0])

    def _grouped(self, members: Sequence[Member]) -> list[list[Member]]:
        groups: list[list[Member]] = [[] for _ in range(max((m.bracket for m in members), default=-1) + 1)]
        for member in members:
            groups[member.bracket].append(member)
        return groups


def trained(bracket: Bracket) -> int:
    """Return the steps that a bracket trains when promoted trials continue from their checkpoints."""
    before = (0, *bracket.resources)
    return sum(size * (resource - last) for (size, resource), last in zip(bracket.rungs, before, strict=False))

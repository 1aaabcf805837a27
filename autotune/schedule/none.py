"""No schedule: every trial trains to its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.schedule.base import (
    Action,
    BracketPreview,
    BracketTable,
    Curve,
    Member,
    Preview,
    Promote,
    Propose,
    Verdict,
    rung_table,
    vacancies,
)
from autotune.trial import TrialState


@dataclass(frozen=True, kw_only=True)
class NoSchedule:
    """Proposes whenever a slot is free.

    Attributes:
        maximum: Steps that a trial trains for; None: what the objective decides, and `preview` cannot count them.
    """

    maximum: int | None = None

    @property
    def resources(self) -> tuple[int | None, ...]:
        """One rung, at the end."""
        return (self.maximum,)

    @property
    def stops_between_rungs(self) -> bool:
        """False."""
        return False

    @property
    def goes_by_ended(self) -> bool:
        """False."""
        return False

    def place(self, members: Sequence[Member]) -> Propose:
        """Return a proposal that trains to its end."""
        return Propose(resource=self.maximum)

    def actions(self, members: Sequence[Member], *, idle: int, remaining: int) -> list[Action]:
        """Propose for each free slot; see `Schedule.actions`. Trials that somebody paused go on first."""
        free = vacancies(members, idle)
        paused = sorted(m.number for m in members if m.state is TrialState.PAUSED)[:free]
        resumed: list[Action] = [Promote(number=number, rung=0, resource=self.maximum) for number in paused]
        return resumed + [self.place(members)] * max(0, min(free - len(resumed), remaining))

    def verdict(self, curve: Curve, others: Sequence[Curve]) -> Verdict:
        """Return `Verdict.CONTINUE`."""
        return Verdict.CONTINUE

    def preview(self, max_trials: int) -> Preview:
        """Return trials times the maximum."""
        epochs = None if self.maximum is None else max_trials * self.maximum
        rungs = () if self.maximum is None else ((max_trials, self.maximum),)
        bracket = BracketPreview(bracket=0, s=0, rungs=rungs, epochs=epochs or 0)
        return Preview(brackets=(bracket,), trials=max_trials, epochs=epochs, full_epochs=epochs, in_flight=1)

    def tables(self, members: Sequence[Member]) -> tuple[BracketTable, ...]:
        """Return one bracket with one rung; nothing waits there."""
        return (BracketTable(bracket=0, s=0, rungs=(rung_table(members, 0, self.resources, waits=False),)),)

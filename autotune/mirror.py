"""A campaign's trials in the coordinator's memory, kept up to date without reading ended ones again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autotune.planning import members
from autotune.schedule import Curve, Member
from autotune.store.base import CampaignRecord
from autotune.trial import ACTIVE_STATES, Trial, TrialState

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore


class Mirror:
    """All trials of a campaign in memory. Ended trials never change, so only the others are read again."""

    def __init__(self, store: MongoStore, campaign: str) -> None:
        self._store = store
        self._campaign = campaign
        self._trials: dict[int, Trial] = {}
        self._fresh = True

    @property
    def trials(self) -> list[Trial]:
        """All trials in order of number, as they were at the last refresh."""
        return [self._trials[n] for n in sorted(self._trials)]

    def refresh(self) -> list[Trial]:
        """Return all trials in order of number, as the store has them now."""
        if self._fresh:
            changed = self._store.trials.heads(self._campaign)
            self._fresh = False
        else:
            changed = self._store.trials.heads(self._campaign, states=ACTIVE_STATES)
            seen = {t.number for t in changed}
            unseen = [n for n, t in self._trials.items() if t.state in ACTIVE_STATES and n not in seen]
            highest = max([*seen, *self._trials], default=-1)
            unknown = [n for n in range(highest + 1) if n not in self._trials and n not in seen]
            if unseen or unknown:
                changed += self._store.trials.heads(self._campaign, numbers=[*unseen, *unknown])
        self._trials.update((t.number, t) for t in changed)
        return self.trials

    def add(self, trial: Trial) -> None:
        """Take in a trial that was just proposed; should it end before the next refresh, it is read once more."""
        self._trials[trial.number] = trial

    def forget(self) -> None:
        """Read everything anew at the next refresh: another coordinator wrote."""
        self._fresh = True


class Members:
    """What a schedule sees of the trials: the same object for one that has not changed, which schedules go by."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Trial, Member]] = {}

    def of(self, trials: Sequence[Trial], mode: str) -> list[Member]:
        """Return `planning.members` of the trials.

        Args:
            trials: The trials; one that was not read again is the same object as before.
            mode: ``min`` or ``max``, of the schedule's metric.
        """
        changed = [t for t in trials if t.number not in self._known or self._known[t.number][0] is not t]
        for trial, member in zip(changed, members(changed, mode), strict=True):
            _, before = self._known.get(trial.number, (trial, member))
            self._known[trial.number] = trial, before if before == member else member
        return [self._known[t.number][1] for t in trials]


class Curves:
    """The reports of a campaign's trials in memory; those of ended trials are read once."""

    def __init__(self, store: MongoStore, campaign: str) -> None:
        self._store = store
        self._campaign = campaign
        self._ended: dict[int, Curve] = {}

    def refresh(self, trials: Sequence[Trial], record: CampaignRecord) -> dict[int, Curve]:
        """Return number -> curve of the schedule's metric, smaller is better, of all trials that reported it."""
        metric = (record.spec.get("schedule") or {}).get("metric") or record.metric
        sign = -1.0 if metric["mode"] == "max" else 1.0
        for trial in trials:
            if trial.state in ACTIVE_STATES:
                self._ended.pop(trial.number, None)  # it was retried
        wanted = [t for t in trials if t.number not in self._ended and t.state is not TrialState.QUEUED]
        found = self._store.reports.curves(self._campaign, [t.number for t in wanted])
        curves = dict(self._ended)
        for trial in wanted:
            points = [(r.step, sign * r.metrics[metric["name"]]) for r in found.get(trial.number, ())
                      if metric["name"] in r.metrics]  # fmt: skip
            if points:
                steps, losses = zip(*points, strict=True)
                curves[trial.number] = Curve(steps=steps, losses=losses)
                if trial.state not in ACTIVE_STATES:
                    self._ended[trial.number] = curves[trial.number]
        return curves

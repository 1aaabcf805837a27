"""A campaign's trials in the coordinator's memory, kept up to date without reading ended ones again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.trial import ACTIVE_STATES, Trial

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

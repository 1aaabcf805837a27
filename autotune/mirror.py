"""A campaign's trials in the coordinator's memory, kept up to date without reading ended ones again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import TYPE_CHECKING

from autotune.planning import device_use, members, observations
from autotune.schedule import Curve, Member
from autotune.search import History
from autotune.store.base import CampaignRecord
from autotune.store.report_tails import ReportTails
from autotune.trial import ACTIVE_STATES, Report, Trial, TrialState

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore


Mark = tuple[str, int, int, str | None]
"""What tells one version of an active trial from the next: state, claims, rung, and which checkpoint it has."""


def mark_of(trial: Trial) -> Mark:
    """Return the mark of a trial."""
    checkpoint = None if trial.checkpoint is None else trial.checkpoint.get("sha256")
    return str(trial.state), trial.claims, trial.rung, checkpoint


class Mirror:
    """All trials of a campaign in memory.

    Ended trials never change. Of the others only their marks are read each time, and then those that have changed.
    """

    def __init__(self, store: MongoStore, campaign: str) -> None:
        self._store = store
        self._campaign = campaign
        self._trials: dict[int, Trial] = {}
        self._active: set[int] = set()
        self._ordered: list[Trial] | None = None
        self._revision = 0
        self._revisions: dict[int, int] = {}  # by number; what was taken in last is last
        self._fresh = True

    @property
    def trials(self) -> list[Trial]:
        """All trials in order of number, as they were at the last refresh."""
        if self._ordered is None:
            self._ordered = [self._trials[n] for n in sorted(self._trials)]
        return list(self._ordered)

    @property
    def active(self) -> list[Trial]:
        """Those that are queued, running or paused, in order of number, as they were at the last refresh."""
        return [self._trials[n] for n in sorted(self._active)]

    @property
    def revision(self) -> int:
        """Grows with each trial that is taken in."""
        return self._revision

    def changed_since(self, revision: int) -> list[Trial]:
        """Return the trials that were taken in since, in order of number; at revision 0 that is all."""
        recent = takewhile(lambda n: self._revisions[n] > revision, reversed(self._revisions))
        return [self._trials[n] for n in sorted(recent)]

    def __getitem__(self, number: int) -> Trial:
        """Return one trial, as it was at the last refresh."""
        return self._trials[number]

    def refresh(self) -> list[Trial]:
        """Return all trials in order of number, as the store has them now."""
        if self._fresh:
            self._take(self._store.trials.heads(self._campaign))
            self._fresh = False
            return self.trials
        marks = self._store.trials.marks(self._campaign, ACTIVE_STATES)
        numbers = [n for n, mark in marks.items() if n not in self._trials or mark_of(self._trials[n]) != mark]
        numbers += self._active - marks.keys()
        highest = max([*numbers, len(self._trials) - 1])
        if highest >= len(self._trials):  # else every number up to the highest is known
            known = self._trials.keys() | set(numbers)
            numbers += [n for n in range(highest) if n not in known]
        if numbers:
            self._take(self._store.trials.heads(self._campaign, numbers=numbers))
        return self.trials

    def _take(self, changed: Sequence[Trial]) -> None:
        for trial in changed:
            self.add(trial)

    def add(self, trial: Trial) -> None:
        """Take in a trial that was just proposed; should it end before the next refresh, it is read once more."""
        if self._ordered is not None and trial.number in self._trials and self._is_dense:
            self._ordered[trial.number] = trial
        elif self._ordered is not None and self._is_dense and trial.number == len(self._ordered):
            self._ordered.append(trial)
        else:
            self._ordered = None
        self._trials[trial.number] = trial
        self._revision += 1
        self._revisions.pop(trial.number, None)
        self._revisions[trial.number] = self._revision
        (self._active.add if trial.state in ACTIVE_STATES else self._active.discard)(trial.number)

    @property
    def _is_dense(self) -> bool:
        """Whether the numbers of the ordered trials are their places."""
        return not self._ordered or self._ordered[-1].number == len(self._ordered) - 1

    def forget(self) -> None:
        """Read everything anew at the next refresh: another coordinator wrote."""
        self._fresh = True


class Told:
    """The history that a search sees, one object for as long as a coordinator leads: a search reads what changed."""

    def __init__(self) -> None:
        self._history = History()
        self._revision = 0

    def follow(self, mirror: Mirror, mode: str) -> History:
        """Return the history of all trials of a mirror; what did not change is not looked at.

        Args:
            mirror: The same one each time.
            mode: ``min`` or ``max``, of the campaign's metric.
        """
        changed, self._revision = mirror.changed_since(self._revision), mirror.revision
        for seen in observations(changed, mode):
            self._history.put(seen)
        return self._history


class Members:
    """What a schedule sees of the trials: the same object for one that has not changed, which schedules go by."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._members: list[Member] = []
        self._revision = 0

    def follow(self, mirror: Mirror, mode: str, *, ended: bool) -> Sequence[Member]:
        """Return the members of a mirror; what did not change is not looked at.

        Args:
            mirror: The same one each time.
            mode: ``min`` or ``max``, of the schedule's metric.
            ended: Whether those that have ended are wanted, too; all are then in the order in which they were first
                seen.
        """
        changed, self._revision = mirror.changed_since(self._revision), mirror.revision
        for member in members(changed, mode):
            place = self._places.setdefault(member.number, len(self._members))
            if place == len(self._members):
                self._members.append(member)
            elif self._members[place] != member:
                self._members[place] = member
        return self._members if ended else [self._members[self._places[t.number]] for t in mirror.active]


class Usage:
    """What the trials have used of devices; what those used that have ended is added up once."""

    def __init__(self) -> None:
        self._ended: dict[int, float] = {}
        self._ended_s = 0.0
        self._revision = 0

    def follow(self, mirror: Mirror, now: datetime) -> tuple[float, float]:
        """Return `planning.device_use` of all trials of a mirror.

        Args:
            mirror: The same one each time.
            now: The time on the database's clock, by which attempts that run are counted.
        """
        changed, self._revision = mirror.changed_since(self._revision), mirror.revision
        for trial in changed:
            self._ended_s -= self._ended.pop(trial.number, 0.0)
            if trial.state not in ACTIVE_STATES:
                self._ended[trial.number], _ = device_use([trial], now)
                self._ended_s += self._ended[trial.number]
        active_s, devices = device_use(mirror.active, now)
        return self._ended_s + active_s, devices


@dataclass(kw_only=True)
class _Read:
    """What was read of a trial's reports.

    Attributes:
        claims: How often it had been claimed: another attempt may begin anew, and its curve is read whole.
        attempt: The attempt of the last report.
        step: The last step.
        curve: None while it has reported other metrics only.
    """

    claims: int
    attempt: int
    step: int
    curve: Curve | None


class Curves:
    """The reports of a campaign's trials in memory; those of ended trials are read once, of the others what is new.

    A training that goes back to a step that it has reported before is seen to do so when it has ended.
    """

    def __init__(self, store: MongoStore, campaign: str) -> None:
        self._store = store
        self._tails = ReportTails(store.connection)
        self._campaign = campaign
        self._ended: dict[int, Curve] = {}
        self._running: dict[int, _Read] = {}

    def refresh(self, trials: Sequence[Trial], record: CampaignRecord) -> dict[int, Curve]:
        """Return number -> curve of the schedule's metric, smaller is better, of all trials that reported it."""
        metric = (record.spec.get("schedule") or {}).get("metric") or record.metric
        for trial in trials:
            if trial.state in ACTIVE_STATES:
                self._ended.pop(trial.number, None)  # it was retried
        wanted = {t.number: t for t in trials if t.number not in self._ended and t.state is not TrialState.QUEUED}
        self._read_new(wanted, metric)
        curves = dict(self._ended)
        for number, trial in wanted.items():
            read = self._running.get(number)
            if read is None or read.curve is None:
                continue
            curves[number] = read.curve
            if trial.state not in ACTIVE_STATES:
                self._ended[number] = read.curve
        self._running = {n: read for n, read in self._running.items() if n in wanted and n not in self._ended}
        return curves

    def _read_new(self, wanted: Mapping[int, Trial], metric: Mapping[str, str]) -> None:
        known = {n: r for n, r in self._running.items() if n in wanted and r.claims == wanted[n].claims
                 and wanted[n].state in ACTIVE_STATES}  # fmt: skip
        tails = self._tails.read(self._campaign, {n: read.step for n, read in known.items()})
        for number, reports in tails.items():
            if reports[-1].attempt != known[number].attempt:
                del known[number]  # another attempt has begun meanwhile
                continue
            known[number] = _with(known[number], reports, metric)
        whole = [n for n in wanted if n not in known]
        for number, reports in self._store.reports.curves(self._campaign, whole).items():
            known[number] = _with(_Read(claims=wanted[number].claims, attempt=0, step=-1, curve=None), reports, metric)
        self._running = known


def _with(read: _Read, reports: Sequence[Report], metric: Mapping[str, str]) -> _Read:
    """Return what was read, and these reports behind it."""
    sign = -1.0 if metric["mode"] == "max" else 1.0
    points = [(r.step, sign * r.metrics[metric["name"]]) for r in reports if metric["name"] in r.metrics]
    curve = read.curve
    if points:
        steps, losses = zip(*points, strict=True)
        curve = Curve(steps=steps, losses=losses) if curve is None else curve.continued(steps, losses)
    return _Read(claims=read.claims, attempt=reports[-1].attempt, step=reports[-1].step, curve=curve)

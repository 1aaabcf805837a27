"""The coordinator: proposes trials, gives lost ones back, and ends the campaign exactly at its budget.

Everything it knows follows from the store, so it can be killed at any point and started again, and any number of
them may run: one leads, the others wait for its lead to run out. What to do next is the pure function `plan`.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autotune.clock import Clock, SystemClock
from autotune.errors import DuplicateError, StateError, StoreUnreachableError
from autotune.lifecycle import common_failure
from autotune.search import Observation, Search, make_search
from autotune.space import Space, parse_space
from autotune.store.base import CampaignRecord
from autotune.trial import ACTIVE_STATES, CampaignState, Cause, Trial, TrialState

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore

_log = logging.getLogger(__name__)

LEAD_S = 8.0
"""Length of the lead of a campaign, seconds: another coordinator takes over at most that long after a death."""
_RENEW_LEAD_S = 2.0
_TICK_S = 1.0
_BACKOFF_S = (0.1, 5.0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do next.

    Attributes:
        propose: Number of trials to propose now.
        end: The state to end the campaign in, or None.
        message: Why it ends, one line.
    """

    propose: int = 0
    end: CampaignState | None = None
    message: str = ""


def plan(
    trials: Sequence[Trial], *, max_trials: int, idle_slots: int, exhausted: bool = False, abort_after: int = 0
) -> Plan:
    """Decide what to do next. Pure.

    As many trials are queued as there are idle slots and no more: a later proposal knows more.

    Args:
        trials: All trials of the campaign, in order of number.
        max_trials: The budget; each trial counts once, however often it was tried and however it ended.
        idle_slots: Number of slots of live workers that run nothing.
        exhausted: Whether every configuration of the space is among `trials`.
        abort_after: End the campaign when its first so many trials all failed for one cause; 0: never.
    """
    ended = [t for t in trials if t.state not in ACTIVE_STATES]
    reason = common_failure([_failure(t) for t in ended], abort_after)
    if reason is not None:
        return Plan(end=CampaignState.FAILED, message=reason)
    complete = len(trials) >= max_trials or exhausted
    if complete and len(ended) == len(trials):
        return _ending(trials, max_trials, exhausted)
    if complete:
        return Plan()
    queued = sum(t.state is TrialState.QUEUED for t in trials)
    return Plan(propose=max(0, min(idle_slots - queued, max_trials - len(trials))))


def _ending(trials: Sequence[Trial], max_trials: int, exhausted: bool) -> Plan:
    finished = sum(t.state is TrialState.FINISHED for t in trials)
    failed = sum(t.state is TrialState.FAILED for t in trials)
    parts = []
    if exhausted and len(trials) < max_trials:
        parts.append(f"space exhausted after {len(trials)} of {max_trials} trials")
    if failed:
        parts.append(f"{failed} of {len(trials)} trials failed")
    state = CampaignState.FINISHED if finished or not failed else CampaignState.FAILED
    return Plan(end=state, message="; ".join(parts))


def _failure(trial: Trial) -> tuple[str, str] | None:
    attempt = trial.failure
    if trial.state is not TrialState.FAILED or attempt is None:
        return None
    return attempt.cause or Cause.ERROR, attempt.message or ""


def observations(trials: Iterable[Trial], mode: str) -> list[Observation]:
    """Return the history that a search algorithm sees: losses are smaller-is-better."""
    sign = -1.0 if mode == "max" else 1.0
    return [
        Observation(
            number=t.number,
            params=t.params,
            state=str(t.state),
            loss=None if t.score is None or not math.isfinite(t.score) else sign * t.score,
        )
        for t in trials
    ]


def trial_seed(campaign_seed: int, number: int) -> int:
    """Return the seed of a trial, below 2**32, from (campaign seed, trial number); the same on every attempt."""
    return int(np.random.SeedSequence([campaign_seed, number]).generate_state(1)[0])


def idle_slots(free: Mapping[str, int], trials: Iterable[Trial]) -> int:
    """Return how many slots run nothing, by one and the same snapshot of the trials that the search sees.

    Args:
        free: Worker -> number of its slots that other campaigns leave free.
        trials: The trials of this campaign.
    """
    left = dict(free)
    for trial in trials:
        if trial.lease is not None and trial.lease.owner in left:
            left[trial.lease.owner] -= 1
    return sum(max(0, number) for number in left.values())


class Mirror:
    """All trials of a campaign in memory. Ended trials never change, so only the others are read again."""

    def __init__(self, store: MongoStore, campaign: str) -> None:
        self._store = store
        self._campaign = campaign
        self._trials: dict[int, Trial] = {}
        self._fresh = True

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
        return [self._trials[n] for n in sorted(self._trials)]

    def add(self, trial: Trial) -> None:
        """Take in a trial that was just proposed; should it end before the next refresh, it is read once more."""
        self._trials[trial.number] = trial

    def forget(self) -> None:
        """Read everything anew at the next refresh: another coordinator wrote."""
        self._fresh = True


class Coordinator:
    """Leads one campaign, or waits to.

    Args:
        store: An open store.
        campaign: Name of the campaign.
        clock: For pauses only; leases are judged by the database.
    """

    def __init__(self, store: MongoStore, campaign: str, clock: Clock | None = None) -> None:
        self._store = store
        self._name = campaign
        self._clock = clock or SystemClock()
        self._id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._mirror = Mirror(store, campaign)
        self._leads_until = -math.inf
        self._space: Space | None = None
        self._search: Search | None = None
        self._exhausted = False

    def run(self, stop: threading.Event) -> CampaignState | None:
        """Work until the campaign needs no coordinator; return its state, or None when `stop` was set first.

        Raises:
            NotFoundError: If there is no such campaign.
        """
        self._store.campaigns.get(self._name)
        try:
            return self._work(stop)
        finally:
            self.resign()

    def _work(self, stop: threading.Event) -> CampaignState | None:
        pause_s = _BACKOFF_S[0]
        while not stop.is_set():
            try:
                with self._store.watch_progress(self._name) as watch:
                    while not stop.is_set():
                        state = self.step()
                        if state is not CampaignState.RUNNING:
                            return state
                        pause_s = _BACKOFF_S[0]
                        watch.wait(_TICK_S)
            except StoreUnreachableError as error:
                _log.warning("%s", error, extra={"action": "store-away", "campaign": self._name})
                self._clock.wait(stop, pause_s)
                pause_s = min(_BACKOFF_S[1], pause_s * 2)
        return None

    def resign(self) -> None:
        """Give up the lead at once, so that another coordinator need not wait."""
        try:
            self._store.leaders.resign(self._name, self._id)
        except StoreUnreachableError:
            _log.warning("could not give up the lead", extra={"action": "resign", "campaign": self._name})

    def step(self) -> CampaignState:
        """Do what is to do now; return the state of the campaign."""
        record = self._store.campaigns.get(self._name)
        if record.state is not CampaignState.RUNNING:
            if record.state in (CampaignState.CANCELLED, CampaignState.FAILED):
                self._store.trials.cancel(self._name, record.message or f"the campaign is {record.state}")
            return record.state
        if not self._lead():
            return record.state
        lost = self._store.trials.reap(self._name)
        if lost:
            _log.warning("gave back", extra={"action": "reap", "campaign": self._name, "numbers": lost})
        free = self._free_slots()
        trials = self._mirror.refresh()
        if self._space is None:
            self._space = parse_space(record.space)
        size = self._space.size
        self._exhausted = self._exhausted or (size is not None and len(trials) >= size)
        todo = plan(
            trials,
            max_trials=record.max_trials,
            idle_slots=idle_slots(free, trials),
            exhausted=self._exhausted,
            abort_after=int(record.spec["failures"]["abort_after"]),
        )
        if todo.end is not None:
            return self._end(todo)
        if todo.propose:
            self._propose(record, self._space, trials, todo.propose)
        return record.state

    def _lead(self) -> bool:
        now_s = self._clock.monotonic_s()
        if now_s < self._leads_until - LEAD_S + _RENEW_LEAD_S:
            return True
        led_before = now_s < self._leads_until
        if not self._store.leaders.lead(self._name, self._id, LEAD_S):
            self._leads_until = -math.inf
            self._mirror.forget()
            return False
        if not led_before:
            self._mirror.forget()
            _log.info("leads", extra={"action": "lead", "campaign": self._name, "coordinator": self._id})
        self._leads_until = now_s + LEAD_S
        return True

    def _free_slots(self) -> dict[str, int]:
        """Return how many slots of each live worker are not taken by other campaigns."""
        workers = self._store.workers.live(self._name)
        busy = self._store.trials.running_by_owner([w.id for w in workers], but_not=self._name)
        return {w.id: w.slots - busy.get(w.id, 0) for w in workers}

    def _propose(self, record: CampaignRecord, space: Space, trials: list[Trial], wanted: int) -> None:
        search = self._search = self._search or make_search(record.spec["search"])
        history = observations(trials, record.metric["mode"])
        number = trials[-1].number + 1 if trials else 0
        for _ in range(wanted):
            params = search.propose(space, history, number)
            if params is None:
                self._exhausted = True
                _log.info("space exhausted", extra={"action": "exhausted", "campaign": self._name, "trials": number})
                return
            seed = trial_seed(int(record.spec["search"]["seed"]), number)
            try:
                proposed = self._store.trials.propose(self._name, number, params, space.hash(params), seed=seed)
            except DuplicateError:
                self._mirror.forget()
                _log.info("another coordinator proposed", extra={"action": "yield", "campaign": self._name})
                return
            _log.info("proposed", extra={"action": "propose", "campaign": self._name, "number": number})
            self._mirror.add(proposed)
            history.append(Observation(number=number, params=params, state=str(TrialState.QUEUED), loss=None))
            number += 1

    def _end(self, todo: Plan) -> CampaignState:
        state = todo.end or CampaignState.FINISHED
        try:
            self._store.campaigns.set_state(
                self._name, state, expected=[CampaignState.RUNNING], message=todo.message, who=self._id
            )
        except StateError:  # somebody paused or cancelled it at this moment: that stands
            return CampaignState.RUNNING
        if state is CampaignState.FAILED:
            self._store.trials.cancel(self._name, "the campaign was stopped: " + todo.message)
        _log.info(todo.message or "ended", extra={"action": "end", "campaign": self._name, "state": str(state)})
        return state

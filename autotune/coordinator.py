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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from autotune.clock import Clock, SystemClock
from autotune.errors import DuplicateError, StateError, StoreError, StoreUnreachableError
from autotune.mirror import Curves, Members, Mirror, Told, Usage
from autotune.planning import (
    Budget,
    Plan,
    idle_slots,
    out_of_time,
    plan,
    rung_observations,
    schedule_mode,
    spared,
    target_of,
    trial_seed,
)
from autotune.retention import Retention
from autotune.schedule import Promote, Propose, Schedule, Verdict, make_schedule, schedule_of
from autotune.search import History, Observation, Search, make_search, stored_settings, warm_up
from autotune.space import Space, parse_space
from autotune.store.base import CampaignRecord
from autotune.trial import CampaignState, Trial, TrialState

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore

_log = logging.getLogger(__name__)

LEAD_S = 6.0
"""Length of the lead of a campaign, seconds: another coordinator takes over at most that long after a death."""
AWAY_S = 1.0
"""A store that gave no answer for so long, or for half of a lease if that is shorter, was away; the pause between two
looks is not counted."""
REAP_GRACE_S = 10.0
"""After it took the lead, or lost the store for a while, a coordinator gives workers so long to renew their leases
before it gives trials back, or the campaign's lease if that is shorter."""
_RENEW_LEAD_S = 2.0
_TICK_S = 1.0
_LEAST_TICK_S = 0.05
_LOOK_S = 1.0
_RECORD_S = 0.25
_AHEAD = 2
_LEAST_AT_RUNG = 5
_BACKOFF_S = (0.1, 5.0)


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
        self._schedule: Schedule | None = None
        self._members = Members()
        self._told = Told()
        self._usage = Usage()
        self._curves = Curves(store, campaign)
        self._retention = Retention(store, self._clock)
        self._exhausted = False
        self._revision: int | None = None
        self._connected_s = -math.inf
        self._looked_s = self._read_s = -math.inf
        self._record: CampaignRecord | None = None
        self._slots: dict[str, int] | None = None
        self._answered_s = -math.inf
        self._away_s = AWAY_S
        self._wait_s = _TICK_S

    def run(self, stop: threading.Event) -> CampaignState | None:
        """Work until the campaign needs no coordinator; return its state, or None when `stop` was set first.

        Raises:
            NotFoundError: If there is no such campaign.
        """
        record = self._store.campaigns.get(self._name)
        if record.spec["search"].get("algorithm") == "hyperopt_tpe":
            # a standby that leads must not spend its first seconds on imports
            threading.Thread(target=warm_up, name="warm-up", daemon=True).start()
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
                        state = self.step(only_trials=watch.changed == "trials")
                        if state is not CampaignState.RUNNING:
                            return state
                        pause_s = _BACKOFF_S[0]
                        watch.wait(self._wait_s)
            except StoreUnreachableError as error:
                _log.warning("%s", error, extra={"action": "store-away", "campaign": self._name})
                self._wait_s = pause_s
                self._clock.wait(stop, pause_s)
                pause_s = min(_BACKOFF_S[1], pause_s * 2)
        return None

    def resign(self) -> None:
        """Give up the lead at once, so that another coordinator need not wait."""
        try:
            self._store.leaders.resign(self._name, self._id)
        except StoreUnreachableError:
            _log.warning("could not give up the lead", extra={"action": "resign", "campaign": self._name})

    def step(self, *, only_trials: bool = False) -> CampaignState:
        """Do what is to do now; return the state of the campaign.

        Args:
            only_trials: Whether it is known that trials have changed, and nothing else: leases that ran out, workers
                and the campaign itself are then looked at only if that was a while ago.
        """
        record, now_s = self._record, self._clock.monotonic_s()
        if record is None or not only_trials or now_s - self._read_s >= _RECORD_S:
            record = self._record = self._store.campaigns.get(self._name)
            now_s = self._read_s = self._clock.monotonic_s()
        self._away_s = min(AWAY_S, _setting(record, "lease", "duration_s") / 2)
        self._note_absence(self._answered_s + self._wait_s)  # also where the driver rode it out, and no error came
        self._answered_s = now_s
        if not only_trials or now_s - self._looked_s >= _LOOK_S:
            self._looked_s, self._slots = now_s, None
        state = self._step(record)
        self._answered_s = self._clock.monotonic_s()
        return state

    def _step(self, record: CampaignRecord) -> CampaignState:
        if record.state is not CampaignState.RUNNING:
            if record.state in (CampaignState.CANCELLED, CampaignState.FAILED):
                message = record.message or f"the campaign is {record.state}"
                self._store.trials.cancel_if(self._name, message, state=record.state)
            return record.state
        with self._asking():
            leads = self._lead()
        if not leads:
            return record.state
        if self._slots is None:
            self._reap(record)
            with self._asking():
                self._slots = self._free_slots()
        if record.revision != self._revision:
            self._revision = record.revision
            self._mirror.forget()
        free = self._slots
        with self._asking():
            trials = self._mirror.refresh()
        if self._space is None:
            self._space = parse_space(record.space)
        size = self._space.size
        self._exhausted = self._exhausted or (size is not None and len(trials) >= size)
        budget = self._budget(record)
        self._wait_s = max(_LEAST_TICK_S, min(_TICK_S, budget.left_s))
        idle = idle_slots(free, self._mirror.active)
        todo = plan(
            trials,
            budget=budget,
            exhausted=self._exhausted,
            abort_after=int(_setting(record, "failures", "abort_after")),
        )
        if todo.end is not None:
            return self._end(todo, record)
        self._act(record, trials, todo, idle=idle, ahead=ahead_of(record) * sum(free.values()))
        return record.state

    def _budget(self, record: CampaignRecord) -> Budget:
        """Return what a campaign may use and has used."""
        device_s = devices = 0.0
        if record.max_device_hours is not None and record.read_at is not None:
            device_s, devices = self._usage.follow(self._mirror, record.read_at)
        return Budget(
            max_trials=record.max_trials,
            max_s=None if record.max_hours is None else record.max_hours * 3600,
            max_device_s=None if record.max_device_hours is None else record.max_device_hours * 3600,
            used_s=record.used_s,
            device_s=device_s,
            devices=devices,
        )

    def _act(self, record: CampaignRecord, trials: list[Trial], todo: Plan, *, idle: int, ahead: int) -> None:
        """Carry out what the schedule says: proposals, promotions, and ends of trials that wait in vain."""
        schedule = self._schedule = self._schedule or make_schedule(schedule_of(record.spec))
        self._stop_hopeless(record, schedule, trials)
        seen = self._members.follow(self._mirror, schedule_mode(record), ended=schedule.goes_by_ended)
        proposals: list[Propose] = []
        actions = schedule.actions(seen, idle=idle + ahead, remaining=todo.remaining)
        for action in spared(trials, actions) if self._retention.holds(record, self._mirror) else actions:
            if isinstance(action, Propose):
                proposals.append(action)
            elif isinstance(action, Promote):
                names = {"campaign": self._name, "number": action.number, "rung": action.rung}
                target = target_of(schedule, action.resource)
                with self._asking():
                    promoted = self._store.trials.promote(self._name, action.number, action.rung, target)
                if promoted:
                    _log.info("promoted", extra={"action": "promote", **names})
            elif self._store.trials.prune(self._name, action.number, self._mirror[action.number].rung):
                _log.info("pruned", extra={"action": "prune", "campaign": self._name, "number": action.number})
        if proposals and self._space is not None:
            self._propose(record, self._space, trials, proposals)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """For what is asked of the store: each of these may be the first call to one that hangs."""
        asked_s = self._clock.monotonic_s()
        yield
        self._note_absence(asked_s)

    def _note_absence(self, since_s: float) -> None:
        """Take in that the store has just answered, to what was asked at `since_s`: so long it may have been away."""
        now_s = self._clock.monotonic_s()
        if now_s - since_s > self._away_s:
            self._connected_s = now_s

    def _reap(self, record: CampaignRecord) -> None:
        """Give back the trials of workers that are gone, once those that are not have had the time to say so."""
        now_s = self._clock.monotonic_s()
        if now_s - self._connected_s < min(REAP_GRACE_S, _setting(record, "lease", "duration_s")):
            return
        lost = self._store.trials.reap(self._name)
        if lost:
            _log.warning("gave back", extra={"action": "reap", "campaign": self._name, "numbers": lost})

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
            self._connected_s = now_s
            self._mirror.forget()
            _log.info("leads", extra={"action": "lead", "campaign": self._name, "coordinator": self._id})
        self._leads_until = now_s + LEAD_S
        return True

    def _free_slots(self) -> dict[str, int]:
        """Return how many slots of each live worker are not taken by other campaigns."""
        workers = [w for w in self._store.workers.live(self._name) if self._name not in w.refusals]
        busy = self._store.trials.running_by_owner([w.id for w in workers], but_not=self._name)
        return {w.id: w.slots - busy.get(w.id, 0) for w in workers}

    def _stop_hopeless(self, record: CampaignRecord, schedule: Schedule, trials: list[Trial]) -> None:
        """End running trials that the schedule gives up between rungs."""
        if not schedule.stops_between_rungs:
            return
        running = [t.number for t in self._mirror.active if t.state is TrialState.RUNNING]
        curves = self._curves.refresh(trials, record)
        for number in running:
            if number not in curves:
                continue
            others = [curve for other, curve in curves.items() if other != number]
            if schedule.verdict(curves[number], others) is Verdict.STOP:
                text = "its curve is worse than the median of the others"
                if self._store.trials.stop(self._name, number, text):
                    _log.info("stopped", extra={"action": "stop", "campaign": self._name, "number": number})

    def _propose(self, record: CampaignRecord, space: Space, trials: list[Trial], wanted: list[Propose]) -> None:
        search = self._search = self._search or make_search(stored_settings(record.spec["search"]))
        if self._schedule is not None and self._schedule.resources[:-1]:
            least = max(_LEAST_AT_RUNG, len(space.leaves()) + 2)
            history = History(rung_observations(trials, schedule_mode(record), least))
        else:
            history = self._told.follow(self._mirror, record.metric["mode"])
        number = trials[-1].number + 1 if trials else 0
        at_once = len(wanted) if ahead_of(record) else 1  # one at a time, two coordinators never propose side by side
        for places in batched(wanted, at_once):
            proposals: list[dict[str, Any]] = []
            for place in places:
                params = search.propose(space, history, number)
                if params is None:
                    self._exhausted = True
                    _log.info("exhausted", extra={"action": "exhausted", "campaign": self._name, "trials": number})
                    break
                proposals.append({
                    "number": number, "params": params, "config_hash": space.hash(params), "bracket": place.bracket,
                    "seed": trial_seed(int(_setting(record, "search", "seed")), number),
                    "target": None if self._schedule is None else target_of(self._schedule, place.resource),
                })  # fmt: skip
                history.put(Observation(number=number, params=params, state=str(TrialState.QUEUED), loss=None))
                number += 1
            with self._asking():
                written = self._write(proposals)
            if not written or self._exhausted:
                return

    def _write(self, proposals: list[dict[str, Any]]) -> bool:
        """Write proposals; return False when another coordinator has proposed meanwhile."""
        try:
            if len(proposals) == 1:
                written = [self._store.trials.propose(self._name, **proposals[0])]
            else:
                written = self._store.trials.propose_many(self._name, proposals) if proposals else []
        except DuplicateError:
            self._mirror.forget()
            self._told = Told()
            _log.info("another coordinator proposed", extra={"action": "yield", "campaign": self._name})
            return False
        except StoreError:
            self._told = Told()  # it may or may not be there
            raise
        for trial in written:
            _log.info("proposed", extra={"action": "propose", "campaign": self._name, "number": trial.number})
            self._mirror.add(trial)
        return True

    def _end(self, todo: Plan, record: CampaignRecord) -> CampaignState:
        self._record = None  # where it does not end, that is because somebody has changed it
        if self._mirror.active:  # first, so that a successor ends it again
            running, revision = CampaignState.RUNNING, record.revision
            if self._store.trials.cancel_if(self._name, todo.message, state=running, revision=revision) is None:
                return running  # somebody changed its trials or its budget, or paused it, meanwhile
            if todo.spent is not None:  # what finished until that moment counts
                todo = out_of_time(self._mirror.refresh(), todo.spent)
        state = todo.end or CampaignState.FINISHED
        try:
            self._store.campaigns.set_state(
                self._name,
                state,
                expected=[CampaignState.RUNNING],
                message=todo.message,
                who=self._id,
                revision=record.revision,
            )
        except StateError:  # somebody paused or cancelled it at this moment: that stands
            return CampaignState.RUNNING
        self._retention.end(record, self._mirror.trials)
        _log.info(todo.message or "ended", extra={"action": "end", "campaign": self._name, "state": str(state)})
        return state


def batched(items: Sequence[Propose], size: int) -> Iterator[Sequence[Propose]]:
    """Yield the items in groups of `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def ahead_of(record: CampaignRecord) -> int:
    """Return how many trials per slot are proposed before a slot is free for them."""
    given = record.spec.get("ahead")
    return int(given) if given is not None else _AHEAD if record.spec.get("isolation") == "none" else 0


def _setting(record: CampaignRecord, section: str, key: str) -> float:
    """Return a number of a campaign's definition, as the store has it."""
    value = (record.spec.get(section) or {}).get(key)
    if not isinstance(value, int | float):
        raise StoreError(f"campaign '{record.name}' has no usable {section}.{key} in the store; restore a backup")
    return value

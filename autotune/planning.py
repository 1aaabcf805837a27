"""What a coordinator decides, as pure functions of a campaign's trials."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

import numpy as np

from autotune.lifecycle import common_failure
from autotune.schedule import Action, Member, Promote, Propose, Schedule, make_schedule, schedule_of
from autotune.search import Observation
from autotune.store.base import CampaignRecord
from autotune.trial import ACTIVE_STATES, DETERMINISTIC, CampaignState, Cause, Trial, TrialState


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a campaign may use, and has used.

    Attributes:
        max_trials: Number of trials; each counts once, however often it was tried and however it ended.
        max_s: Seconds in state running, or None.
        max_device_s: Seconds of devices, summed over all attempts, or None.
        used_s: Seconds that it has been running.
        device_s: Seconds of devices that its attempts have used.
        devices: Number of devices that are in use now.
    """

    max_trials: int
    max_s: float | None = None
    max_device_s: float | None = None
    used_s: float = 0.0
    device_s: float = 0.0
    devices: float = 0.0

    @property
    def spent(self) -> str | None:
        """Which of the budgets in time is used up, in words, or None."""
        if self.max_s is not None and self.used_s >= self.max_s:
            return f"the budget of {self.max_s / 3600:.4g} hours is used up"
        if self.max_device_s is not None and self.device_s >= self.max_device_s:
            return f"the budget of {self.max_device_s / 3600:.4g} device hours is used up"
        return None

    @property
    def left_s(self) -> float:
        """Seconds until a budget in time is used up if nothing changes; infinite where there is none."""
        left = [math.inf]
        if self.max_s is not None:
            left.append(self.max_s - self.used_s)
        if self.max_device_s is not None and self.devices > 0:
            left.append((self.max_device_s - self.device_s) / self.devices)
        return max(0.0, min(left))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do next.

    Attributes:
        remaining: How many trials may still be proposed at all.
        end: The state to end the campaign in, or None.
        message: Why it ends, one line.
        spent: The budget in time that ends it, if one does: see `out_of_time`.
    """

    remaining: int = 0
    end: CampaignState | None = None
    message: str = ""
    spent: Budget | None = None


def plan(trials: Sequence[Trial], *, budget: Budget, exhausted: bool = False, abort_after: int = 0) -> Plan:
    """Decide whether the campaign ends, and how much it may still propose. Pure; the rest is its schedule's.

    Args:
        trials: All trials of the campaign, in order of number.
        budget: What it may use and has used.
        exhausted: Whether every configuration of the space is among `trials`.
        abort_after: End the campaign when its first so many trials all failed for one cause; 0: never.
    """
    first = islice((t for t in trials if t.state not in ACTIVE_STATES), max(0, abort_after))
    reason = common_failure([_failure(t) for t in first], abort_after)
    if reason is not None:
        return Plan(end=CampaignState.FAILED, message=reason)
    complete = len(trials) >= budget.max_trials or exhausted
    if complete and not any(t.state in ACTIVE_STATES for t in reversed(trials)):
        return _ending(trials, budget.max_trials, exhausted)
    if budget.spent is not None:
        return out_of_time(trials, budget)
    if complete:
        return Plan()
    return Plan(remaining=budget.max_trials - len(trials))


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


def out_of_time(trials: Sequence[Trial], budget: Budget) -> Plan:
    """Return how a campaign ends whose budget in time is used up; to be asked again when nothing runs any more.

    Args:
        trials: All trials of the campaign.
        budget: What it may use and has used.
    """
    finished = sum(t.state is TrialState.FINISHED for t in trials)
    failed = sum(t.state is TrialState.FAILED for t in trials)
    state = CampaignState.FINISHED if finished or not failed else CampaignState.FAILED
    return Plan(end=state, message=f"{budget.spent}; {finished} of {budget.max_trials} trials finished", spent=budget)


def _failure(trial: Trial) -> tuple[str, str] | None:
    attempt = trial.failure
    if trial.state is not TrialState.FAILED or attempt is None:
        return None
    return attempt.cause or Cause.ERROR, attempt.message or ""


def device_use(trials: Iterable[Trial], now: datetime) -> tuple[float, float]:
    """Return (seconds of devices used by all attempts so far, number of devices in use now).

    An attempt uses its share of its device from its claim to its end.

    Args:
        trials: The trials with their attempts.
        now: The time on the database's clock, by which attempts that run are counted.
    """
    used_s = devices = 0.0
    for attempt in (a for t in trials for a in t.attempts):
        if attempt.started_at is None:
            continue
        used_s += max(0.0, ((attempt.ended_at or now) - attempt.started_at).total_seconds()) * attempt.share
        devices += attempt.share if attempt.ended_at is None else 0.0
    return used_s, devices


def schedule_mode(record: CampaignRecord) -> str:
    """Return ``min`` or ``max`` of the metric by which a campaign's schedule compares trials."""
    metric = (record.spec.get("schedule") or {}).get("metric") or record.metric
    return str(metric["mode"])


def members(trials: Iterable[Trial], mode: str) -> list[Member]:
    """Return what a schedule sees of the trials.

    Args:
        trials: The trials.
        mode: ``min`` or ``max``, of the schedule's metric.
    """
    sign = -1.0 if mode == "max" else 1.0
    return [
        Member(
            number=t.number,
            state=t.state,
            bracket=t.bracket,
            rung=t.rung,
            losses=tuple(math.nan if score is None else sign * score for score in t.rung_scores),
        )
        for t in trials
    ]


def spared(trials: Iterable[Trial], actions: Sequence[Action]) -> list[Action]:
    """Return what of the actions is done while the quota of checkpoints is used up.

    No new trial begins as long as something else is on its way, whose end may make room. Otherwise one does: a rung
    that waits for its last members would wait for ever.
    """
    moving = any(t.state in (TrialState.QUEUED, TrialState.RUNNING) for t in trials)
    moving = moving or any(isinstance(action, Promote) for action in actions)
    first = next((i for i, action in enumerate(actions) if isinstance(action, Propose) and not moving), None)
    return [action for i, action in enumerate(actions) if not isinstance(action, Propose) or i == first]


def target_of(schedule: Schedule, resource: int | None) -> int | None:
    """Return the step at which a trial is paused; at the schedule's maximum none is: the trial ends there by itself."""
    return None if resource == schedule.resources[-1] else resource


def place_of_next(spec: Mapping[str, Any], trials: Sequence[Trial], mode: str) -> tuple[int, int | None]:
    """Return (bracket, target) of one more trial.

    Args:
        spec: The campaign file as plain values.
        trials: The campaign's trials.
        mode: ``min`` or ``max``.
    """
    schedule = make_schedule(schedule_of(spec))
    place = schedule.place(members(trials, mode))
    return place.bracket, target_of(schedule, place.resource)


def rung_observations(trials: Sequence[Trial], mode: str, least: int) -> list[Observation]:
    """Return the history that a search algorithm sees under a schedule with rungs, as BOHB has it.

    The highest rung with enough results is modelled; losses at other rungs are never taken for losses there. What
    waits or was stopped below it is left out, but never proposed again.

    Args:
        trials: All trials.
        mode: ``min`` or ``max``, of the schedule's metric.
        least: So many results are enough; where no rung has them, the one with the most counts.
    """
    seen = members(trials, mode)
    counts = [0] * max((len(m.losses) for m in seen), default=0)
    for member in seen:
        for rung, loss in enumerate(member.losses):
            counts[rung] += math.isfinite(loss)
    rung = max((r for r, n in enumerate(counts) if n >= least), default=counts.index(max(counts)) if counts else 0)
    return [_at_rung(t, m, rung) for t, m in zip(trials, seen, strict=True)]


def _at_rung(trial: Trial, member: Member, rung: int) -> Observation:
    loss = member.losses[rung] if rung < len(member.losses) else math.nan
    state = str(trial.state)
    if math.isfinite(loss):
        state = str(TrialState.FINISHED)
    elif rung < len(member.losses) or trial.state is TrialState.FAILED:
        state = str(TrialState.FAILED)
    elif trial.state in (TrialState.PAUSED, TrialState.FINISHED):
        state = str(TrialState.PRUNED)
    return Observation(
        number=trial.number, params=trial.params, state=state, loss=loss if math.isfinite(loss) else None,
        infeasible=state == TrialState.FAILED and is_infeasible(trial),
    )  # fmt: skip


def observations(trials: Iterable[Trial], mode: str) -> list[Observation]:
    """Return the history that a search algorithm sees: losses are smaller-is-better."""
    sign = -1.0 if mode == "max" else 1.0
    return [
        Observation(
            number=t.number,
            params=t.params,
            state=str(t.state),
            loss=None if t.score is None or not math.isfinite(t.score) else sign * t.score,
            infeasible=is_infeasible(t),
        )
        for t in trials
    ]


def is_infeasible(trial: Trial) -> bool:
    """Return whether a trial failed for a cause that lies in its configuration and would come again."""
    failure = _failure(trial)
    return failure is not None and failure[0] in DETERMINISTIC


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

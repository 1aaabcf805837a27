"""What people do to a campaign while it runs or after it ended: pause, cancel, extend, enqueue, retry.

Each is idempotent: done a second time it says so and changes nothing. Each effective change is written down in the
campaign's events. Coordinators and workers learn of it from the store, wherever they run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.errors import DuplicateError, InputError, SpaceError, StateError
from autotune.local.companion import refuse_companion
from autotune.local.follow import who
from autotune.planning import place_of_next, trial_seed
from autotune.space import Space, parse_space
from autotune.store.base import CampaignRecord
from autotune.store.campaigns import ENDED, Extension, opened
from autotune.store.mongo import MongoStore
from autotune.trial import ACTIVE_STATES, CampaignState, Origin, Trial, TrialState

MAX_TRIALS = 1_000_000
RETRIED = (TrialState.FAILED, TrialState.CANCELLED)
"""States that a trial can be retried in."""
_NAMED = 1_000


@dataclass(frozen=True, kw_only=True)
class Extended:
    """What `extend` did.

    Attributes:
        changed: Whether the budget was another one before.
        reopened: Whether the campaign was finished and runs again.
        campaign: The campaign afterwards.
    """

    changed: bool
    reopened: bool
    campaign: CampaignRecord


@dataclass(frozen=True, kw_only=True)
class Enqueued:
    """What `enqueue` did.

    Attributes:
        number: Number of the trial with this configuration.
        new: Whether this call made it; else it was there already.
        state: State of the campaign afterwards.
    """

    number: int
    new: bool
    state: CampaignState


@dataclass(frozen=True, kw_only=True)
class Retried:
    """What `retry` did.

    Attributes:
        numbers: Numbers of the trials that are queued again; of a dry run, that would be.
        reopened: Whether the campaign had ended and runs again.
        state: State of the campaign afterwards.
    """

    numbers: tuple[int, ...]
    reopened: bool
    state: CampaignState


def pause(store: MongoStore, name: str) -> bool:
    """Start no more trials of a campaign; running ones go on to their end. Return whether this call paused it.

    Raises:
        NotFoundError: If there is no such campaign.
        StateError: If it has ended.
    """
    return store.campaigns.set_state(name, CampaignState.PAUSED, expected=[CampaignState.RUNNING], who=who())


def cancel(store: MongoStore, name: str) -> tuple[bool, int]:
    """End a campaign for good; return whether this call did anything, and how many trials were dropped.

    Raises:
        NotFoundError: If there is no such campaign.
        StateError: If it is finished or failed.
    """
    expected = [CampaignState.RUNNING, CampaignState.PAUSED]
    moved = store.campaigns.set_state(name, CampaignState.CANCELLED, expected=expected, who=who())
    dropped = store.trials.cancel(name, "the campaign was cancelled")
    return moved or dropped > 0, dropped


def extend(store: MongoStore, name: str, extension: Extension) -> Extended:
    """Give a campaign another budget: totals, not additions. A finished one that has room in it goes on.

    Raises:
        InputError: If no budget is given, or one is not a number above 0.
        NotFoundError: If there is no such campaign.
        StateError: If it is cancelled, is a benchmark, has more trials already, or its test part is open.
    """
    fields = extension.fields()
    if not fields:
        raise InputError("say what the budget shall be: --trials N, --hours H or --device-hours H, each a total")
    if not 1 <= fields.pop("max_trials", 1) <= MAX_TRIALS:
        raise InputError(f"the number of trials must be from 1 to {MAX_TRIALS}, not {extension.max_trials}")
    for key, hours in fields.items():
        if not (math.isfinite(hours) and hours > 0):
            raise InputError(f"{key} must be a number above 0, not {hours:g}")
    before = store.campaigns.get(name)
    refuse_companion(before, "extend")
    changed = store.campaigns.extend(name, extension, who())
    after = store.campaigns.get(name)
    reopened = changed and before.state is CampaignState.FINISHED and after.state is CampaignState.RUNNING
    return Extended(changed=changed, reopened=reopened, campaign=after)


def enqueue(store: MongoStore, name: str, params: Mapping[str, Any], *, like: int | None = None) -> Enqueued:
    """Queue a trial of a configuration that a person chose; one that is in the campaign already is left as it is.

    Args:
        store: An open store.
        name: The campaign.
        params: The configuration: parameter -> value.
        like: Number of a trial that parameters which are not in `params` are taken from.

    Raises:
        NotFoundError: If there is no such campaign or trial.
        SpaceError: If a parameter is unknown, missing, or its value is not in the space.
        StateError: If the campaign has ended, is a benchmark, has all the trials of its budget, or its test part is
            open.
    """
    record = store.campaigns.get(name)
    refuse_companion(record, "enqueue")
    space = parse_space(record.space)
    base = {} if like is None else store.trials.get(name, like).params
    chosen = _complete(space, {**base, **params})
    config_hash = space.hash(chosen)
    while True:
        trials = store.trials.heads(name)
        twin = next((t for t in trials if t.config_hash == config_hash), None)
        if twin is not None:
            return Enqueued(number=twin.number, new=False, state=record.state)
        number = _next_number(record, trials)
        seed = trial_seed(int(record.spec["search"]["seed"]), number)
        try:
            bracket, target = place_of_next(record.spec, trials, record.metric["mode"])
            store.trials.propose(
                name, number, chosen, config_hash, seed=seed, origin=Origin.PERSON, bracket=bracket, target=target
            )
        except DuplicateError:  # the coordinator, or another person, was quicker: look again
            record = store.campaigns.get(name)
            continue
        store.campaigns.audit(name, "enqueue", who(), {"number": number, "params": chosen})
        return Enqueued(number=number, new=True, state=_see_to(store, name))


def _complete(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    missing = [key for key in space.parameters if key not in params]
    if missing and all(key in space.parameters for key in params):
        raise SpaceError(
            f"parameter '{missing[0]}' is missing; write {missing[0]}=VALUE, or take what is not given from another "
            "trial with --like NUMBER"
        )
    return space.normalise(params)


def _next_number(record: CampaignRecord, trials: Sequence[Trial]) -> int:
    number = trials[-1].number + 1 if trials else 0
    name = record.name
    if record.unsealed_at is not None:
        raise opened(name)
    if record.state is CampaignState.FAILED:
        raise StateError(f"campaign '{name}' is failed: {record.message}; first: autotune retry {name} --all")
    if record.state is CampaignState.CANCELLED:
        raise StateError(f"campaign '{name}' is cancelled; launch it under another name")
    if record.state is CampaignState.FINISHED or number >= record.max_trials:
        raise StateError(
            f"campaign '{name}' has {number} trials of {record.max_trials}{_ended_text(record)}; "
            f"extend it first: autotune extend {name} --trials {max(number + 1, record.max_trials + 1)}"
        )
    return number


def _ended_text(record: CampaignRecord) -> str:
    if record.state is not CampaignState.FINISHED:
        return ""
    return f" and is finished ({record.message})" if record.message else " and is finished"


def retry(
    store: MongoStore, name: str, where: Sequence[str] = (), *, everything: bool = False, dry_run: bool = False
) -> Retried:
    """Queue failed and cancelled trials of a campaign again; one that finished or failed goes on with them.

    Args:
        store: An open store.
        name: The campaign.
        where: Conditions that the trials must all meet, as in ``autotune trials --where``.
        everything: Whether to retry all of them, instead of `where`.
        dry_run: Whether only to say which.

    Raises:
        InputError: If neither or both of `where` and `everything` are given.
        QueryError: If a condition is wrong.
        NotFoundError: If there is no such campaign.
        StateError: If it is cancelled, or its test part is open.
    """
    if bool(where) == everything:
        raise InputError("say which trials to retry: --where EXPR (repeatable), or --all for every failed or cancelled")
    record = store.campaigns.get(name)
    if record.state is CampaignState.CANCELLED:
        of = (record.evaluation or {}).get("of")
        raise StateError(
            f"campaign '{name}' is cancelled; " + (f"autotune benchmark {of}" if of else "launch it under another name")
        )
    if record.unsealed_at is not None:
        raise opened(name)
    chosen = _matching(store, record, where)
    if dry_run or not chosen:
        return Retried(numbers=tuple(chosen), reopened=False, state=record.state)
    # held paused while its trials change: a coordinator cancels what is queued in a failed campaign
    held = record.state in ENDED and store.campaigns.set_state(
        name, CampaignState.PAUSED, expected=[record.state], message="trials are being retried", who=who()
    )
    done = store.trials.retry(name, chosen)
    if done:
        detail = {"trials": len(done), "numbers": done[:_NAMED], "where": list(where)}
        store.campaigns.audit(name, "retry", who(), detail)
    if held:
        store.campaigns.set_state(name, CampaignState.RUNNING, expected=[CampaignState.PAUSED], who=who())
    return Retried(numbers=tuple(done), reopened=held, state=_see_to(store, name))


def _matching(store: MongoStore, record: CampaignRecord, where: Sequence[str]) -> list[int]:
    from autotune import history

    metric = record.metric["name"]
    wanted = history.parse_where(where)
    trials = store.trials.find(record.name)
    rows = history.query(history.frame(trials, metric), where=wanted, metric=metric, mode=record.metric["mode"])
    there = {t.number for t in trials if t.state in RETRIED}
    return [number for number in (int(n) for n in rows["number"]) if number in there]


def _see_to(store: MongoStore, name: str) -> CampaignState:
    """See to it that trials which were just queued are run, should the campaign have ended at that moment."""
    store.campaigns.touch(name)
    record = store.campaigns.get(name)
    if record.unsealed_at is not None:
        store.trials.cancel(name, "the test part of the campaign is open")
        raise opened(name)
    if record.state is CampaignState.FINISHED:
        if any(state in ACTIVE_STATES for state in store.trials.counts(name)):
            store.campaigns.set_state(name, CampaignState.RUNNING, expected=[CampaignState.FINISHED], who=who())
        return store.campaigns.get(name).state
    if record.state in ENDED:
        store.trials.cancel(name, f"the campaign is {record.state}")
        raise StateError(f"campaign '{name}' is {record.state}{': ' + record.message if record.message else ''}")
    return record.state

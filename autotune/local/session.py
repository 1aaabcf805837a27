"""Launches a campaign from this machine and follows it to its end; the public `launch` and `resume`."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.campaign import Campaign
from autotune.clock import SystemClock
from autotune.errors import InputError, StateError, StoreUnreachableError
from autotune.local.crew import Crew
from autotune.local.resolve import as_campaign, resolve
from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore, open_store
from autotune.trial import CampaignState, Trial, TrialState

if TYPE_CHECKING:
    import pandas as pd

    from autotune.report.report import Report

FOLLOW_S = 0.25


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a campaign is.

    Attributes:
        state: State of the campaign.
        counts: Number of trials in each state.
        max_trials: The budget.
        best: The best trial so far, or None.
    """

    state: CampaignState
    counts: Mapping[TrialState, int]
    max_trials: int
    best: Trial | None

    @property
    def ended(self) -> int:
        """Number of trials that have ended, finished or not."""
        active = (TrialState.QUEUED, TrialState.RUNNING, TrialState.PAUSED)
        return sum(n for state, n in self.counts.items() if state not in active)


@dataclass(frozen=True, kw_only=True)
class CampaignResult:
    """A campaign as it was when `launch` returned.

    Attributes:
        campaign: Its record.
        trials: All its trials, in order of number.
    """

    campaign: CampaignRecord
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The finished trial with the best score, or None when none finished."""
        return best_trial(self.trials, self.campaign.metric["mode"])

    def frame(self) -> pd.DataFrame:
        """Return all trials as a table, one row each."""
        from autotune.history import frame

        return frame(self.trials, self.campaign.metric["name"])

    def report(self) -> Report:
        """Return the tables of best and worst configurations and run times."""
        from autotune.report.report import Report

        return Report(campaign=self.campaign, trials=self.trials)


def best_trial(trials: tuple[Trial, ...] | list[Trial], mode: str) -> Trial | None:
    """Return the finished trial with the best score (the lowest number among equals), or None."""
    sign = -1.0 if mode == "max" else 1.0
    scored = [(sign * t.score, t.number, t) for t in trials if t.state is TrialState.FINISHED and t.score is not None]
    return min(scored)[2] if scored else None


def who() -> str:
    """Return who does something, for the audit: user, host, process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}:{os.getpid()}"


def launch(
    campaign: Campaign | Mapping[str, Any] | str | Path,
    *,
    store: str | MongoStore | None = None,
    workers: int = 1,
    devices: str = "auto",
    slots_per_device: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
) -> CampaignResult:
    """Run a campaign from this machine to its end.

    Launching the same definition again goes on where it stopped; a finished campaign is returned as it is.

    Args:
        campaign: A file, a mapping with the same keys, or a `Campaign`.
        store: URI of the store, or an open one; default: ``AUTOTUNE_STORE``, else the embedded store.
        workers: Number of local workers; they divide this machine's devices. 0: workers elsewhere do the work.
        devices: ``auto``, ``cpu`` or GPU numbers.
        slots_per_device: Number of trials at a time on each device.
        on_progress: Called a few times a second.

    Returns:
        The campaign with its trials.

    Raises:
        InputError: What is wrong with the campaign, one line; nothing has been written.
        StoreUnreachableError: If the store does not answer within 5 seconds.
        KeyboardInterrupt: On Ctrl-C; running trials went back to the store and the campaign is paused.
    """
    checked = as_campaign(campaign)
    with _opened(store) as opened:
        submit(opened, checked)
        crew = make_crew(opened, checked.name, workers, devices, slots_per_device)
        return follow(opened, checked.name, crew, on_progress)


def resume(
    name: str,
    *,
    store: str | MongoStore | None = None,
    workers: int = 1,
    devices: str = "auto",
    slots_per_device: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
) -> CampaignResult:
    """Go on with a campaign that was paused or lost its coordinator, to exactly its budget. Arguments as for `launch`.

    Raises:
        NotFoundError: If there is no such campaign.
        StateError: If it has ended.
    """
    with _opened(store) as opened:
        reopen(opened, name)
        crew = make_crew(opened, name, workers, devices, slots_per_device)
        return follow(opened, name, crew, on_progress)


def submit(store: MongoStore, campaign: Campaign) -> CampaignRecord:
    """Write a campaign into the store, or find the same definition there; a paused one goes on.

    Raises:
        InputError: What is wrong with the campaign, one line; nothing has been written.
        CampaignExistsError: If another definition has that name.
        StateError: If the same definition failed or was cancelled.
    """
    record = resolve(campaign)
    if not store.campaigns.create(record, who()):
        found = store.campaigns.get(record.name)
        if found.state is not CampaignState.FINISHED:
            reopen(store, record.name)
    return store.campaigns.get(record.name)


def reopen(store: MongoStore, name: str) -> None:
    """Let a paused campaign go on; one that runs is left as it is.

    Raises:
        NotFoundError: If there is no such campaign.
        StateError: If it has ended.
    """
    record = store.campaigns.get(name)
    if record.state not in (CampaignState.RUNNING, CampaignState.PAUSED):
        why = f" ({record.message})" if record.message else ""
        raise StateError(f"campaign '{name}' is {record.state}{why}; to run more, launch it under another name")
    store.campaigns.set_state(name, CampaignState.RUNNING, expected=[CampaignState.PAUSED], who=who())


def make_crew(store: MongoStore, name: str, workers: int, devices: str, slots_per_device: int) -> Crew:
    """Return the local processes of a campaign, not started.

    Raises:
        InputError: If a number is negative.
    """
    if workers < 0:
        raise InputError(f"workers must be 0 or more, not {workers}")
    return Crew(store_uri=store.uri, campaign=name, workers=workers, devices=devices, slots_per_device=slots_per_device)


def follow(
    store: MongoStore, name: str, crew: Crew, on_progress: Callable[[Progress], None] | None = None
) -> CampaignResult:
    """Start the crew and follow the campaign until it runs no more; the crew is stopped in any case.

    Raises:
        WorkerError: If the local processes cannot be kept running.
        KeyboardInterrupt: On Ctrl-C, after running trials went back to the store and the campaign was paused.
    """
    follower = Follower(store, name)
    clock, never = SystemClock(), threading.Event()
    try:
        if follower.progress().state is CampaignState.RUNNING:
            crew.start()
        while True:
            try:
                progress = follower.progress()
            except StoreUnreachableError:
                clock.wait(never, FOLLOW_S * 4)
                continue
            if on_progress is not None:
                on_progress(progress)
            if progress.state is not CampaignState.RUNNING:
                break
            crew.tend()
            clock.wait(never, FOLLOW_S)
        crew.stop()
    except KeyboardInterrupt:
        _interrupt(store, name, crew)
        raise
    except BaseException:
        _interrupt(store, name, crew, "the local processes could not be kept running")
        raise
    return CampaignResult(campaign=store.campaigns.get(name), trials=tuple(store.trials.find(name)))


def _interrupt(store: MongoStore, name: str, crew: Crew, why: str = "interrupted") -> None:
    """Pause the campaign and end the crew; a second Ctrl-C ends it by force."""
    try:
        crew.ask_to_stop()
        # it may have ended meanwhile, or the store be away: leases and the lead run out by themselves
        with contextlib.suppress(StateError, StoreUnreachableError):
            store.campaigns.set_state(
                name, CampaignState.PAUSED, expected=[CampaignState.RUNNING], message=why, who=who()
            )
        crew.stop()
    except KeyboardInterrupt:
        crew.kill()


class Follower:
    """Reads the progress of a campaign without reading ended trials again."""

    def __init__(self, store: MongoStore, name: str) -> None:
        self._store = store
        self._name = name
        self._best: Trial | None = None
        self._finished = -1

    def progress(self) -> Progress:
        """Return how far the campaign is now."""
        record = self._store.campaigns.get(self._name)
        counts = self._store.trials.counts(self._name)
        finished = counts.get(TrialState.FINISHED, 0)
        if finished != self._finished:
            self._best = self._store.trials.best(self._name, record.metric["mode"])
            self._finished = finished
        return Progress(state=record.state, counts=counts, max_trials=record.max_trials, best=self._best)


class _opened:
    """Opens a store for a ``with`` block; one that was given open is left open."""

    def __init__(self, store: str | MongoStore | None) -> None:
        self._given = store
        self._store: MongoStore | None = None

    def __enter__(self) -> MongoStore:
        if isinstance(self._given, MongoStore):
            return self._given
        self._store = open_store(self._given)
        return self._store

    def __exit__(self, *_: object) -> None:
        if self._store is not None:
            self._store.close()

"""Follows a campaign from this machine until it runs no more, and keeps its local processes going meanwhile."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from autotune.clock import SystemClock
from autotune.errors import AutotuneError, StateError, StoreUnreachableError
from autotune.local.crew import STOP_TIMEOUT_S, Crew
from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState, Trial, TrialState

FOLLOW_S = 0.25
_AWAY_S = 1.0
_HASTY_S = 10.0
_PAUSE = 10.0
"""Trials are counted again after so many times as long as that took the last time: it takes longer the more there are.
But at most `_LONGEST_PAUSE_S`."""
_LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a campaign is.

    Attributes:
        state: State of the campaign.
        counts: Number of trials in each state.
        max_trials: The budget.
        best: The best trial so far, or None.
        away_s: The store has not answered for so many seconds; the rest is what it said last.
    """

    state: CampaignState
    counts: Mapping[TrialState, int]
    max_trials: int
    best: Trial | None
    away_s: float = 0.0

    @property
    def ended(self) -> int:
        """Number of trials that have ended, finished or not."""
        active = (TrialState.QUEUED, TrialState.RUNNING, TrialState.PAUSED)
        return sum(n for state, n in self.counts.items() if state not in active)


def who() -> str:
    """Return who does something, for the audit: user, host, process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}:{os.getpid()}"


def follow(store: MongoStore, crew: Crew, on_progress: Callable[[Progress], None] | None = None) -> str:
    """Start the crew and follow its campaign until it runs no more; the crew is stopped in any case.

    When somebody pauses the campaign, the crew's running trials end first. While the store is away, what runs goes on
    and this waits; Ctrl-C ends the waiting.

    Returns:
        The name of the campaign.

    Raises:
        WorkerError: If the local processes cannot be kept running; the campaign is then paused.
        KeyboardInterrupt: On Ctrl-C, after running trials went back to the store and the campaign was paused.
    """
    follower = Follower(store, crew.campaign)
    clock, never = SystemClock(), threading.Event()
    show = on_progress or (lambda progress: None)
    try:
        progress = follower.progress()
        if progress.state is CampaignState.RUNNING:
            crew.start(store.campaigns.get(crew.campaign))
        while progress.state is CampaignState.RUNNING or (progress.state is CampaignState.PAUSED and crew.working()):
            show(progress)
            if progress.state is CampaignState.RUNNING and not progress.away_s:
                crew.tend()
            clock.wait(never, FOLLOW_S)
            progress = follower.progress()
        show(progress)
        crew.stop()
    except KeyboardInterrupt:
        _interrupt(store, crew, "interrupted")
        raise
    except AutotuneError as error:
        _interrupt(store, crew, str(error))
        raise
    except BaseException as error:
        _interrupt(store, crew, f"the launching process failed: {type(error).__name__}")
        raise
    return crew.campaign


def _interrupt(store: MongoStore, crew: Crew, why: str) -> None:
    """Pause the campaign and end the crew; a second Ctrl-C ends it by force."""
    timeout_s = STOP_TIMEOUT_S
    try:
        crew.ask_to_stop()
        try:
            # it may have ended meanwhile
            with contextlib.suppress(StateError):
                store.campaigns.set_state(
                    crew.campaign, CampaignState.PAUSED, expected=[CampaignState.RUNNING], message=why, who=who()
                )
        except StoreUnreachableError:
            timeout_s = _HASTY_S  # nobody can give anything back now: leases and the lead run out by themselves
        crew.stop(timeout_s)
    except KeyboardInterrupt:
        crew.kill()


class Follower:
    """Reads the progress of a campaign without reading ended trials again.

    Args:
        store: An open store.
        name: The campaign.
    """

    def __init__(self, store: MongoStore, name: str) -> None:
        self._store = store
        self._name = name
        self._clock = SystemClock()
        self._last: Progress | None = None
        self._heard_s = 0.0
        self._due_s = 0.0

    def progress(self) -> Progress:
        """Return how far the campaign is now; while the store is away, what it said last, with `Progress.away_s`.

        Raises:
            NotFoundError: If there is no such campaign.
            StoreUnreachableError: If the store has never answered.
        """
        try:
            self._last = self._read()
        except StoreUnreachableError:
            if self._last is None:
                raise
            self._clock.wait(threading.Event(), _AWAY_S)
            return replace(self._last, away_s=self._clock.monotonic_s() - self._heard_s)
        self._heard_s = self._clock.monotonic_s()
        return self._last

    def _read(self) -> Progress:
        record, last = self._store.campaigns.get(self._name), self._last
        began_s = self._clock.monotonic_s()
        if last is not None and record.state is last.state is CampaignState.RUNNING and began_s < self._due_s:
            return replace(last, max_trials=record.max_trials)
        counts = self._store.trials.counts(self._name)
        best = last.best if last is not None else None
        finished = counts.get(TrialState.FINISHED, 0)
        if last is None or finished != last.counts.get(TrialState.FINISHED, 0):
            best = self._store.trials.best(self._name, record.metric["mode"])
        now_s = self._clock.monotonic_s()
        self._due_s = now_s + min(_PAUSE * (now_s - began_s), _LONGEST_PAUSE_S)
        return Progress(state=record.state, counts=counts, max_trials=record.max_trials, best=best)

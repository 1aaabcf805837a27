"""Progress of a campaign: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

import click

from autotune.clock import SystemClock
from autotune.local.follow import Progress
from autotune.trial import TrialState

LINE_EVERY_S = 10.0


class ProgressDisplay:
    """Shows finished/total, the best score so far, and the time left, on standard error.

    Args:
        name: Name of the campaign.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._clock = SystemClock()
        self._started_s = self._clock.monotonic_s()
        self._first: int | None = None
        self._line_s = -LINE_EVERY_S
        self._last = ""
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task(self._name, total=None, note="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, progress: Progress) -> None:
        """Show how far it is now."""
        if self._first is None:
            self._first = progress.ended
        note = describe(progress, self._left_s(progress))
        if self._bar is not None:
            self._bar.update(self._task, completed=progress.ended, total=progress.max_trials, note=note)
            return
        now_s = self._clock.monotonic_s()
        if note != self._last and now_s - self._line_s >= LINE_EVERY_S:
            self._line_s, self._last = now_s, note
            click.echo(
                f"{self._name}: {progress.ended} of {progress.max_trials} trials ended{note and ', ' + note}", err=True
            )

    def _left_s(self, progress: Progress) -> float | None:
        done = progress.ended - (self._first or 0)
        if done < 1:
            return None
        elapsed_s = self._clock.monotonic_s() - self._started_s
        return elapsed_s / done * max(0, progress.max_trials - progress.ended)


def describe(progress: Progress, left_s: float | None) -> str:
    """Return the words behind the bar: best score, failures, time left."""
    parts = []
    if progress.away_s:
        parts.append(f"no answer from the store for {duration(progress.away_s)}")
    if progress.best is not None and progress.best.score is not None:
        parts.append(f"best {progress.best.score:.6g} (trial {progress.best.number})")
    running = progress.counts.get(TrialState.RUNNING, 0)
    if running:
        parts.append(f"{running} running")
    failed = progress.counts.get(TrialState.FAILED, 0)
    if failed:
        parts.append(f"{failed} failed")
    if left_s is not None and progress.ended < progress.max_trials:
        parts.append(f"about {duration(left_s)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return a duration as people say it: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

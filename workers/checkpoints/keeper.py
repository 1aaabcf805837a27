"""The training's side of checkpoints: when one is wanted, and what its end means. `Trial.checkpoint` of a worker."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from autotune.errors import DataError
from workers.checkpoints import folder as folders
from workers.reporting import TrialStopped

_log = logging.getLogger(__name__)


class Keeper:
    """Keeps the checkpoints of one attempt, and ends the attempt where its trial is to be paused.

    Safe to share between the training's thread, which calls `load`, `wanted`, `save` and `reported`, and the one that
    listens to the agent, which calls `ask`.

    Args:
        root: Folder of this attempt; made when the first checkpoint is written.
        earlier: Folder with the checkpoint that an earlier attempt left (manifest and files), or None.
        target: The step at which the trial is to be paused, or None: it goes on to its ordinary end.
        every: A checkpoint is wanted every so many steps, or None: only at the target and when asked for.
        saved: Told (step, folder) of each checkpoint that is whole.

    Attributes:
        paused_at: The last step reported when the trial reached its target, else None.
        saved_at: Step of the newest checkpoint of this attempt, or None.
    """

    def __init__(
        self,
        root: Path,
        *,
        earlier: Path | None = None,
        target: int | None = None,
        every: int | None = None,
        saved: Callable[[int, Path], None] = lambda step, folder: None,
    ) -> None:
        self._root = root
        self._earlier = earlier
        self._target = target
        self._every = every
        self._saved = saved
        self._asked: str | None = None
        self._used = False
        self._last = 0
        self._reached: int | None = None
        self.paused_at: int | None = None
        self.saved_at: int | None = None
        folders.tidy(root)

    def ask(self, reason: str) -> None:
        """Want a checkpoint after the next step, and the end of this attempt with it.

        Args:
            reason: Why, for the error that ends the attempt, for example ``the worker was stopped``.
        """
        self._asked = reason

    def load(self) -> Path | None:
        """Return the files of the earlier attempt, or None; damaged ones count as none, and the log says so.

        Raises:
            TrialStopped: If the earlier attempt had reached the target, and was lost before it could say so.
        """
        self._used = True
        if self._earlier is None:
            return None
        try:
            found = folders.verified(self._earlier)
        except DataError as error:
            _log.warning("the training begins anew: %s", error, extra={"action": "checkpoint-unusable"})
            return None
        self._last = found.step
        if self._target is not None and found.step >= self._target:
            self._pause(found.step)
        return found.files

    def wanted(self, step: int) -> bool:
        """Return whether the target is reached, the agent asked, or `every` steps have passed since the last one."""
        self._used = True
        due = self._every is not None and step - self._last >= self._every
        return due or self._asked is not None or (self._target is not None and step >= self._target)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Write a checkpoint; end the attempt if it is at its target or was asked to.

        A disk that does not take it costs the checkpoint, not the trial: the log says so, and the trial is paused or
        given back as it would be without one.

        Raises:
            TrialStopped: As said.
            DataError: If `write` left something that is no regular file or folder.
        """
        self._used = True
        try:
            saved = folders.publish(self._root, step, write)
        except OSError as error:
            _log.warning("the checkpoint of step %d was not kept: %s", step, error, extra={"action": "checkpoint-lost"})
        else:
            self.saved_at = step
            self._saved(step, saved.folder)
        self._last = step
        if self._target is not None and step >= self._target:
            self._pause(step)
        if self._asked is not None:
            raise TrialStopped(self._asked)

    def reported(self, step: int) -> None:
        """Take note of a report that was sent; to be called behind each.

        An objective that never touched its checkpoint is paused here at once. One that uses it is given the time to
        save, up to its next report beyond the target.

        Raises:
            TrialStopped: If the trial is to be paused and the objective keeps no checkpoint.
        """
        if self._target is None or step < self._target:
            return
        if not self._used or (self._reached is not None and step > self._reached):
            self._pause(step)
        self._reached = step if self._reached is None else self._reached

    def _pause(self, step: int) -> None:
        self.paused_at = step
        raise TrialStopped(f"paused at step {step}")

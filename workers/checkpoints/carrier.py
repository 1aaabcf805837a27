"""The agent's side of checkpoints: brings what an earlier attempt left, and carries what this one leaves.

One folder for each attempt, on a local disk: ``earlier`` is what was fetched, ``own`` is where the training writes.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from autotune.errors import DataError, NotFoundError
from autotune.store.artifacts import Artifacts, Pressure, Reference, pressure
from workers.checkpoints.folder import Saved, latest

_log = logging.getLogger(__name__)
_TRIES = 3


class Carrier:
    """Carries the checkpoints of one attempt between this host and where the campaign keeps them.

    Safe to be used by one thread at a time.

    Args:
        artifacts: Those of the campaign.
        folder: A folder of this attempt alone; made when it is needed, removed by `close`.
        reference: What the trial's document refers to when the attempt begins, or None.

    Attributes:
        own: The folder that the training writes into (`Keeper.root`).
    """

    def __init__(self, artifacts: Artifacts, folder: Path, reference: Reference | None = None) -> None:
        self._artifacts = artifacts
        self._folder = folder
        self._reference = reference
        self._carried: Saved | None = None
        self.own = folder / "own"

    @property
    def reference(self) -> Reference | None:
        """The newest reference: that of the last `carry`, or what the trial began with."""
        return self._reference

    def bring(self) -> Path | None:
        """Fetch the earlier attempt's checkpoint; return its folder (`Keeper.earlier`), or None: begin anew.

        One that is missing or damaged is logged and counts as none.

        Raises:
            StoreError: If this host cannot read what others can, for example because a shared folder is not mounted.
                Then the trial must go back, untouched, and this worker leave the campaign alone: beginning anew would
                throw work away. `StoreUnreachableError`: try again.
            OSError: If this host's disk does not take it; the same.
        """
        if self._reference is None:
            return None
        earlier = self._folder / "earlier"
        shutil.rmtree(earlier, ignore_errors=True)
        try:
            self._artifacts.fetch(self._reference, earlier)
        except (NotFoundError, DataError) as error:
            _log.warning("a trial begins anew: %s", error, extra={"action": "checkpoint-unusable"})
            self._reference = None
            return None
        return earlier

    def carry(self) -> Reference | None:
        """Keep the newest checkpoint of this attempt; return its reference, to be written into the trial.

        To be called when the attempt has ended, however it ended, and now and then while it trains. The training may
        replace its checkpoint meanwhile; then the newer one is carried.

        Returns:
            The reference, or None when there is nothing newer than at the last call; also when the training was faster
            three times in a row: the next call finds its newest.

        Raises:
            StoreError: If it cannot be kept now; call again while the folder is there.
            OSError: If this host's disk is full; the same.
        """
        for _ in range(_TRIES):
            saved = latest(self.own)
            if saved is None or saved == self._carried:
                return None
            reference = self._put(saved)
            if reference is not None:
                self._carried, self._reference = saved, reference
                return reference
        return None

    def is_there(self) -> bool:
        """Return whether the data of the last carried reference are there, for another time of grace.

        To be asked before a reference is written that was got more than some minutes ago. Where they are not, the next
        `carry` puts them again.
        """
        if self._reference is None or not self._artifacts.touch(self._reference):
            self._carried = None
            return False
        return True

    def has_room(self, max_gb: float | None) -> bool:
        """Return whether a checkpoint that nobody needs yet may be kept.

        Args:
            max_gb: The campaign's ``checkpoints.max_gb``, or None for no bound.

        Raises:
            StoreError: If the place of the checkpoints does not answer.
        """
        return max_gb is None or pressure(self._artifacts.usage(), int(max_gb * 1e9)) is not Pressure.HOLD

    def close(self) -> None:
        """Remove the folder of this attempt."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _put(self, saved: Saved) -> Reference | None:
        """Keep a checkpoint; None if the training took it away meanwhile, so that a part of it may be missing."""
        try:
            reference = self._artifacts.put(saved.folder, step=saved.step)
        except (OSError, DataError):
            if saved.folder.is_dir():
                raise
            return None
        return reference if saved.folder.is_dir() else None

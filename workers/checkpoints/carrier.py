"""The agent's side of checkpoints: brings the state of a trial to its training, and away from it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.errors import DataError, InputError, NotFoundError, StoreError, StoreUnreachableError
from autotune.store.artifacts import Artifacts, Reference, place_of
from autotune.store.base import CampaignRecord
from autotune.trial import Trial
from workers.checkpoints import folder as folders

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore

_log = logging.getLogger(__name__)


class Carrier:
    """Carries the checkpoints of one attempt between this host and where its campaign keeps them.

    Args:
        store: An open store.
        record: The campaign.
        trial: The trial, claimed.
        folder: For this attempt alone; removed by `close`.
    """

    def __init__(self, store: MongoStore, record: CampaignRecord, trial: Trial, folder: Path) -> None:
        self._store = store
        self._record = record
        self._trial = trial
        self._folder = folder
        self._settings = record.spec.get("checkpoints") or {}
        self._artifacts: Artifacts | None = None

    @property
    def root(self) -> Path:
        """The folder that the training writes its checkpoints into."""
        return self._folder / "own"

    def request(self) -> dict[str, Any]:
        """Return what the training's process must know of checkpoints; fetches the one to go on from.

        Raises:
            StoreUnreachableError: If the store is away.
        """
        earlier = self._fetch()
        return {
            "root": str(self.root), "earlier": None if earlier is None else str(earlier),
            "target": self._trial.target, "every": self._settings.get("every"),
        }  # fmt: skip

    def _fetch(self) -> Path | None:
        if self._trial.checkpoint is None:
            return None
        names = {"campaign": self._trial.campaign, "number": self._trial.number}
        target = self._folder / "earlier"
        try:
            reference = Reference.of(self._trial.checkpoint)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._of(reference.url).fetch(reference, target)
        except StoreUnreachableError:
            raise
        except (DataError, NotFoundError, InputError, StoreError, OSError) as error:
            _log.error("the trial begins anew: %s", error, extra={"action": "checkpoint-missing", **names})
            return None
        return target

    def put(self, step: int) -> Mapping[str, Any] | None:
        """Keep the newest checkpoint of the training, if it is of `step`; return the reference to it, or None.

        Raises:
            StoreUnreachableError: If it cannot be kept now.
        """
        saved = folders.latest(self.root)
        if saved is None or saved.step != step:
            return None
        try:
            return self._of(self._settings.get("url")).put(saved.folder, step=saved.step).document()
        except StoreUnreachableError:
            raise
        except (DataError, InputError, StoreError, OSError) as error:
            names = {"campaign": self._trial.campaign, "number": self._trial.number, "step": step}
            _log.error("a checkpoint was not kept: %s", error, extra={"action": "checkpoint-lost", **names})
            return None

    @property
    def newest(self) -> int | None:
        """Step of the newest checkpoint that the training has written, or None."""
        saved = folders.latest(self.root)
        return None if saved is None else saved.step

    def _of(self, url: str | None) -> Artifacts:
        if self._artifacts is None or self._artifacts.url != url:
            self._artifacts = Artifacts(self._store.connection, campaign=place_of(self._record), url=url)
        return self._artifacts

    def close(self) -> None:
        """Remove what lies on this host."""
        shutil.rmtree(self._folder, ignore_errors=True)

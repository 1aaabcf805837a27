"""Which checkpoints a campaign keeps: a coordinator removes the others, now and then."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autotune.clock import Clock
from autotune.errors import StoreError, StoreUnreachableError
from autotune.store.artifacts import GRACE_S, Artifacts, Holder, Pressure, place_of, pressure, references_to_keep
from autotune.store.base import CampaignRecord
from autotune.trial import ACTIVE_STATES, Trial

if TYPE_CHECKING:
    from autotune.mirror import Mirror
    from autotune.store.mongo import MongoStore

_log = logging.getLogger(__name__)

EVERY_S = 60.0
TIGHT_EVERY_S = 5.0
"""Where the quota is nearly used up, it looks that often."""
TIGHT_GRACE_S = 120.0
"""Where the quota is nearly used up, data that nothing refers to go after so many seconds."""


class Retention:
    """Removes the checkpoints that a campaign does not need, and says when there is no room for more.

    Args:
        store: An open store.
        clock: For the pauses between two looks.
    """

    def __init__(self, store: MongoStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._looked_s: float | None = None
        self._revision = 0
        self._any = False  # whether there has been a checkpoint
        self._pressure = Pressure.NONE

    def holds(self, record: CampaignRecord, mirror: Mirror) -> bool:
        """Look, if it is time, and return whether new trials must wait because the quota is used up.

        Args:
            record: The campaign.
            mirror: Its trials as a coordinator knows them; the same one each time.
        """
        changed, self._revision = mirror.changed_since(self._revision), mirror.revision
        self._any = self._any or any(t.checkpoint is not None for t in changed)
        now_s = self._clock.monotonic_s()
        calm = self._pressure is Pressure.NONE
        due = self._looked_s is None or now_s - self._looked_s >= (EVERY_S if calm else TIGHT_EVERY_S)
        if due and (self._any or not calm):
            self._looked_s = now_s
            try:
                self._look(record, mirror.trials)
            except StoreUnreachableError:
                raise
            except (StoreError, OSError) as error:
                extra = {"action": "retention-failed", "campaign": record.name}
                _log.warning("checkpoints were not looked at: %s", error, extra=extra)
        return self._pressure is Pressure.HOLD

    def end(self, record: CampaignRecord, trials: Sequence[Trial]) -> None:
        """Remove what an ended campaign does not keep; to be called when none of its trials runs any more."""
        if any(t.checkpoint is not None for t in trials):
            try:
                self._look(record, trials, grace_s=0.0)
            except (StoreError, OSError) as error:
                extra = {"action": "retention-failed", "campaign": record.name}
                _log.warning("checkpoints were not removed: %s", error, extra=extra)

    def _look(self, record: CampaignRecord, trials: Sequence[Trial], grace_s: float = GRACE_S) -> None:
        settings = record.spec.get("checkpoints") or {}
        artifacts = Artifacts(self._store.connection, campaign=place_of(record), url=settings.get("url"))
        quota = int(float(settings.get("max_gb", 20.0)) * 1e9)
        holders = [_holder(t, record.metric["mode"]) for t in trials if t.checkpoint is not None]
        keep = references_to_keep(holders, top=int(settings.get("keep_best", 1)))
        self._store.trials.forget_checkpoints(record.name, [h.number for h in holders if h.sha256 not in keep])
        tight = pressure(artifacts.usage(), quota) is not Pressure.NONE
        gone = artifacts.collect(keep, grace_s=min(grace_s, TIGHT_GRACE_S) if tight else grace_s)
        if gone:
            extra = {"action": "checkpoints-removed", "campaign": record.name, "count": len(gone)}
            _log.info("removed what is not needed any more", extra=extra)
        found = pressure(artifacts.usage(), quota) if tight else Pressure.NONE
        if found is Pressure.HOLD and self._pressure is not Pressure.HOLD:
            full = {"action": "quota", "campaign": record.name}
            _log.warning("the quota of checkpoints is used up (checkpoints.max_gb): new trials wait", extra=full)
        self._pressure = found


def _holder(trial: Trial, mode: str) -> Holder:
    loss = None if trial.score is None else (-trial.score if mode == "max" else trial.score)
    sha256 = str((trial.checkpoint or {}).get("sha256"))
    return Holder(number=trial.number, resumable=trial.state in ACTIVE_STATES, loss=loss, sha256=sha256)

"""The agent of a host: its slots reserve trials, run them and finish them. No signals here, and no torch."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autotune import home
from autotune.errors import AutotuneError, DataError, LeaseLostError, StoreError, StoreUnreachableError, WorkerError
from autotune.installed import versions
from autotune.store.artifacts import Artifacts, Reference, place_of
from autotune.store.base import CampaignRecord, WorkerRecord
from autotune.trial import CampaignState, Cause, Failure, Lease, Trial
from workers.admission import Admission
from workers.checkpoints.carrier import Carrier
from workers.children import Children
from workers.claimed import Claimed
from workers.crowd import Crowd
from workers.datasets import DatasetCache
from workers.delivery import deliver_left_over
from workers.devices import Slot
from workers.inline import InlineRunner, Loaded
from workers.journal import Journal
from workers.lease import Held, LeaseKeeper
from workers.lookout import Lookout
from workers.refusals import Key, Refusals
from workers.refusals import key_of as _key
from workers.runner import Runner
from workers.scratch import Scratch
from workers.sharing import DeviceShare
from workers.stopping import StopRequest

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore

_log = logging.getLogger(__name__)

_POLL_S = 0.2
_BACKOFF_S = 1.0
_MAX_SERVERS = 2
_THREAD_END_S = 2.0
_COURIER_S = 15.0
_AGAIN_S = 60.0
_CAMPAIGNS_S = 1.0
_UNHEARD_S = 0.25
_INLINE_GRACE_S = 10.0


class Agent:
    """Pulls trials from a store and runs them in its slots.

    Args:
        store: An open store.
        slots: What trials run on; one trial at a time in each.
        campaigns: Names of the campaigns to serve, or None for all.
        once: Whether to end when no campaign that it serves is running.
        grace_s: When it is asked to end, running trials may go on for so long.
        admission: Which campaigns it serves; default: those of installed workloads and the working directory.
        folder: Where journal, data and locks of this host lie; default: the service's folder.
    """

    def __init__(
        self,
        store: MongoStore,
        slots: Sequence[Slot],
        *,
        campaigns: Sequence[str] | None = None,
        once: bool = False,
        grace_s: float = 0.0,
        admission: Admission | None = None,
        folder: Path | None = None,
    ) -> None:
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._store = store
        self._slots = list(slots)
        self._campaigns = None if campaigns is None else list(campaigns)
        self._once = once
        self._stop = StopRequest(grace_s)
        self._admission = admission or Admission()
        place = (folder or home.home()) / "hosts" / socket.gethostname()
        self._journal = Journal(place / "journal", store.address)
        self._data = DatasetCache(store, None if folder is None else folder / "datasets")
        self._shares = {slot.device: DeviceShare(slot.device, place / "devices") for slot in self._slots}
        self._versions = versions()
        self._leases = LeaseKeeper(store, self.id)
        self._crowd = Crowd(store, len(self._slots))
        self._lookout = Lookout(store, self.id, self._crowd, self._leases, self._stop)
        self._servers: dict[Key, Children] = {}
        self._servers_lock = threading.Lock()
        self._tokens: list[str | None] = [None] * len(self._slots)
        self._running: list[Key | None] = [None] * len(self._slots)
        self._scratch: Scratch | None = None
        self._folder = Path()
        self._refusals = Refusals(store, self.id)
        self._loaded = Loaded()
        self._inline: list[Lease | None] = [None] * len(self._slots)
        self._served: tuple[float, int, dict[str, CampaignRecord]] | None = None
        self._blocked = [False] * len(self._slots)

    def stop(self) -> None:
        """Ask the agent to give its trials back and end. Safe to call from a signal handler."""
        self._stop.set()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, or with `once` until there is nothing left to do.

        Raises:
            StoreError: If the store cannot be reached at the start.
            NotFoundError: If a campaign that was named is not in the store.
            WorkerError: With `once`, if it cannot load the objective of a campaign that works elsewhere.
        """
        for name in self._campaigns or ():
            self._store.campaigns.get(name)
        self._register()
        self._scratch = Scratch()
        self._folder = self._scratch.path
        self._leases.start()
        self._deliver_once()  # before a slot begins anew with a trial whose result is at hand
        lookout = threading.Thread(target=self._lookout.run, name="lookout", daemon=True)
        courier = threading.Thread(target=self._deliver_left_over, name="courier", daemon=True)
        slots = [
            threading.Thread(target=self._serve, args=(slot,), name=f"slot-{slot.index}", daemon=True)
            for slot in self._slots
        ]
        for thread in (lookout, courier, *slots):
            thread.start()
        try:
            while not stop.wait(_POLL_S) and any(t.is_alive() for t in slots):
                pass
        finally:
            self._end(slots, [lookout, courier])
        if self._once and self._refusals.first is not None and not stop.is_set():
            raise WorkerError(self._refusals.first)

    def _end(self, slots: Sequence[threading.Thread], others: Sequence[threading.Thread]) -> None:
        self._stop.set()
        _log.info("claims no more trials", extra={"action": "worker-ends", "worker": self.id})
        self._lookout.call()
        for slot, thread in zip(self._slots, slots, strict=True):
            self._join(slot, thread)
        for server in self._servers.values():
            server.stop()
        self._leases.stop()
        try:
            self._store.workers.stopped(self.id)
        except StoreError as error:
            _log.warning("%s", error, extra={"action": "sign-off-failed"})
        for thread in others:
            thread.join(_THREAD_END_S)  # it may hang in a store that does not answer
        self._data.close()
        if self._scratch is not None:
            self._scratch.close()
        _log.info("ended", extra={"action": "worker-end", "worker": self.id})

    def _join(self, slot: Slot, thread: threading.Thread) -> None:
        """Wait for the end of a slot; a trial in this very process that does not come back is given back without it."""
        while thread.is_alive():
            thread.join(_POLL_S)
            lease = self._inline[slot.index]
            if thread.is_alive() and lease is not None and self._stop.expired_for(_INLINE_GRACE_S):
                self._give_back(lease, WorkerError("the worker was stopped"))
                return

    def _register(self) -> None:
        self._store.workers.register(
            WorkerRecord(
                id=self.id,
                host=socket.gethostname(),
                pid=os.getpid(),
                slots=len(self._slots),
                devices=tuple(slot.device for slot in self._slots),
                campaigns=None if self._campaigns is None else tuple(self._campaigns),
                versions=self._versions,
            )
        )
        extra = {"action": "worker-start", "worker": self.id, "slots": len(self._slots)}
        _log.info("serves %s", ", ".join(self._campaigns or ["all campaigns"]), extra=extra)

    def _deliver_left_over(self) -> None:
        """Bring what other workers of this host could not write into the store, every now and then."""
        while not self._stop.wait(_COURIER_S):
            self._deliver_once()

    def _deliver_once(self) -> None:
        try:
            if deliver_left_over(self._store, self._journal):
                self._lookout.call()
        except StoreError as error:
            _log.warning("%s", error, extra={"action": "store-away"})
        except Exception:  # noqa: BLE001 - what is left stays for the next round
            _log.exception("unexpected", extra={"action": "courier-error"})

    def _serve(self, slot: Slot) -> None:
        """Reserve, run and finish trials in one slot until the agent ends."""
        while not self._stop.is_set():
            calls = self._lookout.calls()
            try:
                running = self._running_campaigns()
                if self._once and not running:
                    return
                if self._one_trial(slot, running):
                    continue
            except StoreUnreachableError as error:
                _log.warning("%s", error, extra={"action": "store-away", "slot": slot.index})
                self._stop.wait(_BACKOFF_S)
                continue
            except AutotuneError as error:
                _log.error("%s", error, extra={"action": "slot-error", "slot": slot.index})
                self._stop.wait(_BACKOFF_S)
                continue
            except Exception:  # noqa: BLE001 - a slot that died would shrink the worker without a word
                _log.exception("unexpected", extra={"action": "slot-error", "slot": slot.index})
                self._stop.wait(_BACKOFF_S)
                continue
            self._lookout.wait(calls, blocked=self._blocked[slot.index])

    def _running_campaigns(self) -> dict[str, CampaignRecord]:
        """Return the running campaigns that this worker serves, as they were at their last change that it knows of."""
        calls, now_s = self._lookout.campaign_calls(), time.monotonic()
        if (served := self._served) is not None:
            read_s, seen, running = served
            if seen == calls and now_s - read_s < (_CAMPAIGNS_S if self._lookout.hears else _UNHEARD_S):
                return running
        running = self._read_campaigns()
        self._served = now_s, calls, running
        return running

    def _read_campaigns(self) -> dict[str, CampaignRecord]:
        """Return the running campaigns that this worker serves; which it refuses is written into the store."""
        idle = self._served is not None and not self._served[2]
        if idle and not self._store.campaigns.any([CampaignState.RUNNING]):
            return {}
        found = {r.name: r for r in self._store.campaigns.find([CampaignState.RUNNING])}
        served = [r for n, r in found.items() if self._campaigns is None or n in self._campaigns]
        for record in served:
            if not self._refusals.knows(record):
                reason = self._admission.refusal(record)
                self._refusals.set(record, reason, again_s=None if reason is None else _AGAIN_S)
        return {r.name: r for r in served if self._refusals.of(r) is None}

    def _one_trial(self, slot: Slot, running: dict[str, CampaignRecord]) -> bool:
        """Claim a trial and run it to its end; return False when there was none."""
        place = self._shares[slot.device].try_shared()
        self._blocked[slot.index] = place is None
        if place is None:
            return False  # a trial has this device for itself, or waits for that
        with place:
            trial = self._claim(slot, running)
            if trial is None or trial.lease is None:
                return False
            record = running[trial.campaign]
            names = {"campaign": trial.campaign, "number": trial.number, "slot": slot.index}
            _log.info("claimed", extra={"action": "claim", **names})
            held = self._leases.hold(trial.lease, float(record.spec["lease"]["renewal_s"]))
            self._running[slot.index] = _key(record)
            try:
                if trial.alone:
                    place.release()
                    self._run_alone(trial, record, slot, held)
                else:
                    self._run(trial, record, slot, held)
            except DataError as error:
                self._refuse(record, str(error), again_s=_AGAIN_S)
                self._give_back(trial.lease, error, here_alone=True)
            except Exception as error:
                self._give_back(trial.lease, error)
                raise
            finally:
                self._running[slot.index] = None
                self._leases.drop(trial.lease)
        return True

    def _claim(self, slot: Slot, running: dict[str, CampaignRecord]) -> Trial | None:
        """Claim a trial; where the store's reply was lost, the next call asks with the same token what became of it."""
        kept = self._tokens[slot.index]
        token = self._tokens[slot.index] = kept or secrets.token_hex(16)
        trial = self._store.trials.claim(
            running,
            owner=self.id,
            token=token,
            duration_s={n: float(r.spec["lease"]["duration_s"]) for n, r in running.items()},
            host=socket.gethostname(),
            device=slot.device,
            share=slot.share,
            threads=slot.threads,
            versions=self._versions,
            mismatch={n: self._admission.mismatch(r) for n, r in running.items()},
            repeated=kept is not None,
        )
        self._tokens[slot.index] = None
        if trial is None and kept is not None:  # what is queued may be what that token has lost
            return self._claim(slot, running)
        return trial

    def _run_alone(self, trial: Trial, record: CampaignRecord, slot: Slot, held: Held) -> None:
        """Run a trial, that ran out of memory before, when nothing else runs on its device."""
        _log.info("waits for the device", extra={"action": "alone", "campaign": trial.campaign, "number": trial.number})
        place = self._shares[slot.device].alone(self._stop, held.lost.is_set)
        if place is None:
            if not held.lost.is_set():
                self._give_back(held.lease, WorkerError("the worker was stopped"))
            return
        with place:
            self._run(trial, record, slot, held)

    def _run(self, trial: Trial, record: CampaignRecord, slot: Slot, held: Held) -> None:
        inline = record.spec.get("isolation") == "none"
        children = None if inline else self._children(record)
        journal = self._journal.open_attempt(held.lease)
        claimed = Claimed(
            store=self._store, spec=record.spec if children is None else children.spec, metric=record.metric,
            trial=trial, slot=slot, held=held, journal=journal, carrier=self._carrier(trial, record, held),
            crowd=self._crowd, stop=self._stop,
        )  # fmt: skip
        runner: Runner | InlineRunner
        if children is not None:
            runner = Runner(claimed, children)
        else:
            runner = InlineRunner(claimed, lambda: self._loaded.of(_key(record), record.spec))
            self._inline[slot.index] = held.lease
        try:
            runner.run()
        finally:
            self._inline[slot.index] = None
            journal.close()
        if runner.refusal is not None:
            self._refuse(record, runner.refusal)

    def _refuse(self, record: CampaignRecord, reason: str, *, again_s: float | None = None) -> None:
        self._refusals.set(record, reason, again_s=again_s)
        self._served = None

    def _carrier(self, trial: Trial, record: CampaignRecord, held: Held) -> Carrier:
        url = (record.spec.get("checkpoints") or {}).get("url")
        artifacts = Artifacts(self._store.connection, campaign=place_of(record), url=url)
        reference = None if trial.checkpoint is None else Reference.of(trial.checkpoint)
        return Carrier(artifacts, self._folder / f"state-{held.lease.token}", reference)

    def _give_back(self, lease: Lease, error: Exception, *, here_alone: bool = False) -> None:
        """End an attempt that this worker could not carry out; the trial goes to another, but not for ever.

        Args:
            lease: The attempt's lease.
            error: Why.
            here_alone: Whether that can only be a fault of this host, which will not take the trial again.
        """
        stopped = self._stop.is_set()
        failure = Failure(
            cause=Cause.PREEMPTED if stopped else Cause.LOST,
            message="the worker was stopped" if stopped else f"the worker failed: {error}",
            traceback=None if isinstance(error, AutotuneError) else "".join(traceback.format_exception(error)),
        )
        try:
            self._store.trials.end_attempt(lease, failure, process_killed=not stopped and not here_alone)
        except (StoreError, LeaseLostError) as refused:
            extra = {"action": "give-back-failed", "campaign": lease.campaign, "number": lease.number}
            _log.warning("%s", refused, extra=extra)

    def _children(self, record: CampaignRecord) -> Children:
        """Return the fork server of a campaign, started or not; those of campaigns that no slot serves are ended.

        Raises:
            DataError: If this host lacks the campaign's data and cannot fetch them.
        """
        key = _key(record)
        with self._servers_lock:
            is_new = key not in self._servers
        spec = self._data.localise(record.spec, self._stop) if is_new else record.spec
        with self._servers_lock:
            children = self._servers.pop(key, None) or Children(spec, self._folder)
            self._servers[key] = children
            idle = [k for k in self._servers if k not in self._running]
            for old in idle[: max(0, len(self._servers) - _MAX_SERVERS)]:
                gone = self._servers.pop(old)
                gone.stop()
                self._data.release(gone.spec)
        return children

"""Runs a trial of a campaign once more, outside the campaign: nothing is written to the store."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.errors import AutotuneError, WorkerError
from autotune.store.artifacts import Artifacts, Reference, place_of
from autotune.trial import Attempt, Result, Trial
from workers.channel import Message
from workers.children import Children
from workers.datasets import DatasetCache
from workers.devices import Slot, make_slots
from workers.ending import cause_of_death, kernel_oom_kills, result_of
from workers.objectives import SAVE, request_of
from workers.training import Child

if TYPE_CHECKING:
    from autotune.store.base import CampaignRecord
    from autotune.store.mongo import MongoStore

_log = logging.getLogger(__name__)

_GRACE_S = 3.0
_POLL_S = 0.25


def finisher(trial: Trial) -> Attempt | None:
    """Return the attempt that brought a trial's result, or None when it is not known."""
    return next((a for a in reversed(trial.attempts) if a.ended_at is not None and a.cause is None), None)


def slot_like(trial: Trial, devices: str | None = None, threads: int | None = None) -> Slot:
    """Return a place of this host that is like the one where a trial was finished.

    Sums depend on the number of threads in their last bits, and training makes that large. So the number is that of the
    finishing attempt, whatever this host has; this host's cores where nobody wrote it down.

    Args:
        trial: The trial.
        devices: ``auto`` (the first GPU, else the CPU), ``cpu`` or a GPU number; None: the CPU for a trial that was
            finished on one, else ``auto``.
        threads: CPU threads; None: as said.

    Raises:
        InputError: If a device is named that is not there, or a number is not positive.
    """
    attempt = finisher(trial)
    if devices is None:
        devices = "cpu" if attempt is not None and attempt.device == "cpu" else "auto"
    return make_slots(devices, 1, threads if threads is not None else threads_of(attempt))[0]


def threads_of(attempt: Attempt | None) -> int | None:
    """Return the CPU threads that an attempt had, or None when nobody wrote them down."""
    return attempt.threads or None if attempt is not None else None


def unlike(trial: Trial, slot: Slot) -> list[str]:
    """Return in which points a trial was trained elsewhere than on `slot`, so that its last bits may differ."""
    trained = [a for a in trial.attempts if a.ended_at is not None]
    threads = sorted({n for a in trained if (n := threads_of(a)) is not None})
    devices = sorted({"cpu" if a.device == "cpu" else "a GPU" for a in trained if a.device})
    here = "a GPU" if slot.visible else "cpu"
    found = []
    if threads and threads != [slot.threads]:
        found.append(f"it was trained with {' and '.join(map(str, threads))} CPU threads, here with {slot.threads}")
    if trained and not threads:
        found.append(f"nobody wrote down with how many CPU threads it was trained, here with {slot.threads}")
    if devices and devices != [here]:
        found.append(f"it was trained on {' and '.join(devices)}, here on {here}")
    return found


def run_again(
    store: MongoStore,
    record: CampaignRecord,
    trial: Trial,
    slot: Slot,
    stop: threading.Event,
    *,
    folder: Path | None = None,
) -> Result:
    """Run a trial's configuration with its seed in a child process, as a worker does; nothing is written to the store.

    Args:
        store: Where the data come from, if this host lacks them.
        record: The campaign.
        trial: The trial.
        slot: What to run it on.
        stop: When set, the training is ended.
        folder: An empty folder that gets the trained model; the training then goes on from the trial's checkpoint,
            where the campaign keeps one. None: the score alone is wanted, and the training begins at its beginning.

    Raises:
        DataError: If the campaign's data are not to be had.
        WorkerError: If the training did not return a result; says why.
    """
    with _served(store, record, stop) as (children, work):
        request = request_of(children.spec, record.metric, trial, slot, attempt=max(0, trial.claims - 1))
        if folder is not None:
            request = {**request, "task": SAVE, "folder": str(folder), **_checkpoint(store, record, trial, work)}
        children.start(stop)
        ooms = kernel_oom_kills()
        child = children.spawn(request, slot.environment())
        try:
            last = _last_message(child, stop)
            if last is not None and "result" in last:
                return result_of(last)
            raise WorkerError(f"trial {trial.number} of '{trial.campaign}', run again, {_why(child, last, stop, ooms)}")
        finally:
            child.terminate(_GRACE_S)
            child.close()


@contextmanager
def _served(store: MongoStore, record: CampaignRecord, stop: threading.Event) -> Iterator[tuple[Children, Path]]:
    """Give the campaign's children, and a folder for as long."""
    folder = Path(tempfile.mkdtemp(prefix="autotune-again-"))
    data = DatasetCache(store)
    children: Children | None = None
    try:
        children = Children(data.localise(record.spec, stop), folder / "logs")
        yield children, folder
    finally:
        if children is not None:
            children.stop()
        data.close()
        shutil.rmtree(folder, ignore_errors=True)


def _checkpoint(store: MongoStore, record: CampaignRecord, trial: Trial, work: Path) -> dict[str, Any]:
    """Fetch the checkpoint that the campaign keeps of a trial; one that is not to be had costs time, nothing else."""
    if trial.checkpoint is None:
        return {}
    earlier = work / "earlier"
    try:
        url = (record.spec.get("checkpoints") or {}).get("url")
        artifacts = Artifacts(store.connection, campaign=place_of(record), url=url)
        artifacts.fetch(Reference.of(trial.checkpoint), earlier)
    except (AutotuneError, OSError) as error:
        extra = {"action": "checkpoint-unusable", "campaign": trial.campaign, "number": trial.number}
        _log.warning("the training begins anew: %s", error, extra=extra)
        return {}
    return {"checkpoint": {"root": str(work / "own"), "earlier": str(earlier)}}


def _last_message(child: Child, stop: threading.Event) -> Message | None:
    """Read a training's messages; return its last one, or None when it died or was stopped before."""
    while not stop.is_set():
        message = child.channel.receive(_POLL_S)
        if message is not None and _is_last(message):
            return message
        child.trim_log()
        if message is None and (child.channel.closed or child.ended.is_set()):
            while (message := child.channel.receive(0.0)) is not None:
                if _is_last(message):
                    return message
            return None
    return None


def _is_last(message: Message) -> bool:
    return not {"report", "checkpoint"} & set(message)


def _why(child: Child, last: Message | None, stop: threading.Event, ooms: int) -> str:
    if last is not None:
        return f"failed ({last['failed']['cause']}): {last['failed']['message']}"
    if stop.is_set():
        return "was stopped"
    child.ended.wait(_GRACE_S)
    return f"failed: {cause_of_death(child.status, oom_killed=kernel_oom_kills() > ooms)[1]}"

"""The trained model of a trial as a folder of files, which appears whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.errors import InputError, ObjectiveError, WorkerError
from autotune.installed import versions
from autotune.trial import Result, Trial
from workers.again import run_again
from workers.devices import Slot
from workers.workloads.registry import get_workload

if TYPE_CHECKING:
    from autotune.store.base import CampaignRecord
    from autotune.store.mongo import MongoStore

CARD = "autotune.json"
"""What every saved model has beside it: where it comes from."""


def save_model(
    store: MongoStore,
    record: CampaignRecord,
    trial: Trial,
    folder: Path,
    slot: Slot,
    stop: threading.Event,
    *,
    force: bool = False,
) -> Result:
    """Write a trial's model into a folder: trained again with its seed, from its checkpoint on where one was kept.

    Args:
        store: The campaign's store; nothing is written to it.
        record: The campaign.
        trial: The trial.
        folder: Where the model goes; its parents are made.
        slot: What to train on.
        stop: When set, the training is ended and no folder appears.
        force: Whether a model that is there already is replaced.

    Returns:
        Score, metrics and facts of the model that was saved.

    Raises:
        InputError: If the folder has something else in it, or cannot be written.
        ObjectiveError: If the campaign's objective saves no models.
        DataError: If the campaign's data are not to be had.
        WorkerError: If the training failed; says why.
    """
    check_saves(record)
    with published(folder, force=force) as writing:
        result = run_again(store, record, trial, slot, stop, folder=writing)
        if not any(writing.iterdir()):
            raise WorkerError(f"trial {trial.number} of '{trial.campaign}' was run again and left no files")
        _add_card(writing / CARD, record, trial, result)
    return result


def _add_card(file: Path, record: CampaignRecord, trial: Trial, result: Result) -> None:
    """Say beside the model where it comes from, where its workload did not."""
    if file.exists():
        return
    card = {
        "campaign": record.name,
        "number": trial.number,
        "objective": record.spec["objective"],
        "params": {**trial.params, **(record.spec.get("fixed") or {})},
        "seed": trial.seed,
        "metric": dict(record.metric),
        "score": result.score,
        "data_sha256": (record.spec.get("data") or {}).get("sha256"),
        "versions": versions(),
    }
    file.write_text(json.dumps(card, indent=1, sort_keys=True, allow_nan=False) + "\n")


def check_saves(record: CampaignRecord) -> None:
    """Refuse a benchmark, and a workload that cannot save; of ``module:callable`` the training's process says it.

    Raises:
        ObjectiveError: As said.
    """
    if of := (record.spec.get("evaluation") or {}).get("of"):
        raise ObjectiveError(
            f"'{record.name}' is a benchmark; write 'autotune best {of} --save DIR' for the best model"
        )
    objective = str(record.spec["objective"])
    if ":" not in objective and not callable(getattr(get_workload(objective), "save", None)):
        raise ObjectiveError(f"the workload '{objective}' saves no models; without --save the configuration is printed")


@contextmanager
def published(folder: Path, *, force: bool = False) -> Iterator[Path]:
    """Give an empty folder beside `folder` to write into; it takes that name when the block ends without an error.

    Args:
        folder: The name; a link is followed.
        force: Whether a model that is there is replaced. Other files never are.

    Raises:
        InputError: If something is there that may not be replaced, or the disk does not take it.
    """
    target = folder.expanduser().resolve()
    check_free(target, force=force)
    writing = target.parent / f".{target.name}.{secrets.token_hex(6)}"
    try:
        with _explained(target):
            writing.mkdir(parents=True)
        yield writing
        check_free(target, force=force)  # training took its time
        with _explained(target):
            _sync(writing)
            _put(writing, target)
    finally:
        shutil.rmtree(writing, ignore_errors=True)


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Say in one line what the disk did not take."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write the model to {target}: {error.strerror or error}") from error


def check_free(folder: Path, *, force: bool = False) -> None:
    """Check that a model may be written to a folder.

    Raises:
        InputError: If it is a file, or has files in it and is no model, or is one and `force` is not given.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder for the model")
    if not any(folder.iterdir()):
        return
    if not (folder / CARD).is_file():
        raise InputError(f"{folder} has files in it that are no model of ours: name another folder")
    if not force:
        raise InputError(f"{folder} holds a model already: name another folder, or replace it with --force")


def _put(writing: Path, target: Path) -> None:
    """Give a whole folder its name; what had it goes only when that is done."""
    if not target.exists() or not any(target.iterdir()):
        os.replace(writing, target)
        return
    old = target.parent / f".{target.name}.{secrets.token_hex(6)}"
    os.replace(target, old)
    try:
        os.replace(writing, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Have a folder's files on disk before it gets its name."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def how_to_open(folder: Path, record: CampaignRecord) -> list[str]:
    """Return lines of Python that open a saved model with scvi-tools; none for a model of something else."""
    card, place = read_card(folder), str(folder.expanduser().absolute())
    if not str(card.get("class", "")).startswith("scvi."):
        return []
    data = record.spec.get("data") or {}
    path = str(data.get("path", ""))
    reads = f"anndata.read_h5ad({path!r})" if path.endswith(".h5ad") else "...  # the campaign's cells as AnnData"
    opens = f"model = {card['class']}.load({place!r}, adata="
    if not data.get("genes"):
        return ["import anndata, scvi", f"adata = {reads}", f"{opens}adata)"]
    genes = f"genes = json.load(open({str(Path(place) / CARD)!r}))['genes']"
    return ["import anndata, json, scvi", f"adata = {reads}", genes, f"{opens}adata[:, genes].copy())"]


def read_card(folder: Path) -> dict[str, Any]:
    """Return what stands beside a saved model: ``class``, ``params``, ``genes`` ..., as its workload wrote it."""
    return dict(json.loads((folder.expanduser() / CARD).read_text()))

"""A checkpoint on disk: a folder that is there whole or not at all.

``step-N/manifest.json`` says what ``step-N/files`` must hold. It is written under another name, each file and folder
synced, and then renamed: whoever sees the name sees all of it, whatever was killed meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.errors import DataError

FORMAT = 1
MANIFEST = "manifest.json"
FILES = "files"
_WRITING = ".writing-"
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A whole checkpoint.

    Attributes:
        folder: The folder with the manifest.
        step: Steps trained when it was written.
    """

    folder: Path
    step: int

    @property
    def files(self) -> Path:
        """The folder of the objective's own files."""
        return self.folder / FILES


def publish(root: Path, step: int, write: Callable[[Path], None]) -> Saved:
    """Write a checkpoint; when this returns it is whole and on disk, and older ones in `root` are gone.

    Args:
        root: Folder of one attempt; made if it is missing.
        step: Steps trained.
        write: Writes the files into the empty folder that it is given.

    Raises:
        DataError: If `write` left something that is no regular file or folder.
        OSError: If the disk does not take it; then nothing has changed.
    """
    root.mkdir(parents=True, exist_ok=True)
    writing = root / f"{_WRITING}{secrets.token_hex(6)}"
    try:
        files = writing / FILES
        files.mkdir(parents=True)
        write(files)
        found = {path.relative_to(files).as_posix(): _measured(path) for path in _regular_files(files)}
        manifest = {"format": FORMAT, "step": step, "files": found}
        (writing / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        for path in (writing, *writing.rglob("*")):
            _sync(path)
        target = root / f"step-{step}"
        if target.exists():  # the same step once more: the objective counts, not we
            os.replace(target, root / f"{_WRITING}{secrets.token_hex(6)}")
        os.replace(writing, target)
        _sync(root)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    tidy(root, keep=target)
    return Saved(folder=target, step=step)


def latest(root: Path) -> Saved | None:
    """Return the newest whole checkpoint in a folder of one attempt, or None."""
    with contextlib.suppress(OSError):
        steps = [int(m[1]) for name in os.listdir(root) if (m := re.fullmatch(r"step-(\d+)", name))]
        if steps:
            return Saved(folder=root / f"step-{max(steps)}", step=max(steps))
    return None


def tidy(root: Path, keep: Path | None = None) -> None:
    """Remove what a killed writer left, and checkpoints other than `keep` where that is given."""
    with contextlib.suppress(OSError):
        for path in list(root.iterdir()):
            if path.name.startswith(_WRITING) or (keep is not None and path != keep and path.name.startswith("step-")):
                shutil.rmtree(path, ignore_errors=True)


def verified(folder: Path) -> Saved:
    """Return the checkpoint in a folder, all its files compared with its manifest.

    Raises:
        DataError: If anything is missing, too much or changed, or another version wrote it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        found = {path.relative_to(folder / FILES).as_posix(): path for path in _regular_files(folder / FILES)}
        if manifest["format"] != FORMAT:
            raise DataError(f"the checkpoint in {folder} has format {manifest['format']}, this version knows {FORMAT}")
        wrong = sorted(set(found) ^ set(manifest["files"]))
        wrong = wrong or sorted(name for name in found if _measured(found[name]) != manifest["files"][name])
        step = int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the checkpoint in {folder} is not readable: {type(error).__name__}: {error}") from error
    if wrong:
        raise DataError(f"the checkpoint in {folder} is damaged: {wrong[0]} is not as it was written")
    return Saved(folder=folder, step=step)


def _regular_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise DataError(f"{path.name} in a checkpoint is no regular file: write plain files and folders alone")
        if path.is_file():
            yield path


def _measured(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while piece := source.read(_PIECE):
            digest.update(piece)
        return {"size": source.tell(), "sha256": digest.hexdigest()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

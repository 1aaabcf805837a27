"""A shelf in a folder that the hosts of a campaign share."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from autotune.errors import StoreError, StoreSetupError
from autotune.store.archives import PIECE, Archive
from autotune.store.shelf import PART, SUFFIX, hash_of, missing

_DOOMED = ".doomed-"
_LOOKS = 40
_PAUSE_S = 0.05


class FolderShelf:
    """Archives as files of a folder that all hosts of the campaign see, for example on a network file system.

    Ages are told by the file server's own clock: a fresh file is compared with an old one.

    Args:
        root: An existing folder; the campaign gets one of its own in it.
        campaign: Name of that folder.
    """

    def __init__(self, root: Path, campaign: str) -> None:
        self._root = root
        self._folder = root / campaign

    def touch(self, sha256: str, size: int) -> bool:
        """Return whether an archive is there; its time of grace begins anew."""
        with self._mapped(), suppress(FileNotFoundError):
            os.utime(self._file(sha256))
            return self._file(sha256).stat().st_size == size
        return False

    def write(self, archive: Archive) -> None:
        """Write under another name, read it back, rename."""
        with self._mapped():
            self._check_root()
            self._folder.mkdir(exist_ok=True)
            part = self._folder / f"{PART}{secrets.token_hex(8)}"
            try:
                with part.open("wb") as target:
                    for piece in archive.pieces():
                        target.write(piece)
                    target.flush()
                    os.fsync(target.fileno())
                if hash_of(_pieces_of(part)) != archive.sha256:
                    raise StoreError(f"{self._folder} does not give back what was written; check its disk")
                os.replace(part, self._file(archive.sha256))
            finally:
                part.unlink(missing_ok=True)
            handle = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def read(self, sha256: str) -> Iterator[bytes]:
        """Yield the bytes of an archive; raises `NotFoundError`."""
        with self._mapped():
            self._check_root()
            for _ in range(_LOOKS - 1):
                if self._file(sha256).exists():
                    break
                time.sleep(_PAUSE_S)  # a collector that takes it aside puts it back at once if it was touched
            try:
                yield from _pieces_of(self._file(sha256))
            except FileNotFoundError:
                raise missing(sha256, str(self._folder)) from None

    def sizes(self) -> dict[str, int]:
        """Return the archives that are there: hash -> bytes."""
        found = {}
        with self._mapped():
            for path in self._folder.glob(f"*{SUFFIX}") if self._folder.is_dir() else ():
                with suppress(FileNotFoundError):
                    found[path.stem] = path.stat().st_size
        return found

    def collect(self, keep: Set[str], grace_s: float) -> list[str]:
        """Remove archives that are not in `keep`, and parts that nobody writes any more."""
        removed: list[str] = []
        if not self._folder.is_dir():
            return removed
        with self._mapped():
            now = self._now()
            for path in list(self._folder.iterdir()):
                if path.suffix == SUFFIX and path.stem in keep:
                    continue
                with suppress(FileNotFoundError):
                    if now - path.stat().st_mtime >= grace_s and self._remove(path, now - grace_s):
                        removed += [path.stem] if path.suffix == SUFFIX else []
        return removed

    def _check_root(self) -> None:
        if not self._root.is_dir():
            raise StoreSetupError(f"there is no folder {self._root} on this host: mount it, or create it")

    def _remove(self, path: Path, before: float) -> bool:
        """Remove a file, unless somebody touched it at the last moment: it is taken aside, looked at, and put back."""
        aside = path.with_name(f"{_DOOMED}{secrets.token_hex(8)}")
        os.replace(path, aside)
        if aside.stat().st_mtime > before:
            os.replace(aside, path)
            return False
        aside.unlink()
        return True

    def _now(self) -> float:
        marker = self._folder / f"{PART}{secrets.token_hex(8)}"
        try:
            marker.touch()
            return marker.stat().st_mtime
        finally:
            marker.unlink(missing_ok=True)

    def _file(self, sha256: str) -> Path:
        return self._folder / f"{sha256}{SUFFIX}"

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"the checkpoints in {self._folder} do not answer: {error.strerror or error}") from error


def _pieces_of(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while piece := source.read(PIECE):
            yield piece

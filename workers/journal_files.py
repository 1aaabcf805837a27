"""The files of a worker's journal: their lines, their locks, and how they reach the disk."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

VERSION = 1
"""Of the format; files of another one are left alone."""

_LOCK_TRIES = 100
_LOCK_PAUSE_S = 0.01


def encode(value: Mapping[str, Any]) -> bytes:
    """Return a value as one line: checksum, JSON, line end. NaN and infinities are kept.

    Raises:
        TypeError: If it is not plain JSON; also ValueError and RecursionError.
    """
    text = json.dumps(value, separators=(",", ":"), default=_plain).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not plain JSON")


def decode(content: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield (line, value) of the lines that are whole; torn and damaged ones are passed over."""
    for line in content.split(b"\n")[:-1]:
        checksum, _, text = line.partition(b" ")
        if checksum != b"%08x" % zlib.crc32(text):
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield line + b"\n", value


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class JournalFile:
    """An open file that this caller has locked.

    Args:
        path: Its path.
        fd: Its descriptor, which this object closes.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self._size = os.fstat(fd).st_size

    def __del__(self) -> None:
        self.release()

    @classmethod
    def opened(cls, path: Path) -> JournalFile | None:
        """Return an existing file; None if it is gone or another has it."""
        try:
            file = cls(path, os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
        except FileNotFoundError:
            return None
        if file.lock():
            return file
        file.release()
        return None

    @classmethod
    def created(cls, path: Path) -> JournalFile:
        """Return a new file; one that a scanner sees before it is locked is deleted by that scanner: then try again."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        for _ in range(_LOCK_TRIES):
            try:
                file = cls(path, os.open(path, flags, 0o600))
            except FileExistsError:
                time.sleep(_LOCK_PAUSE_S)
                continue
            if file.lock():
                return file
            file.release()
        raise OSError(f"{path.name} is in use")

    def lock(self) -> bool:
        """Take the lock; return whether it was free and the path still names this file."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            named, own = os.stat(self.path, follow_symlinks=False), os.fstat(self.fd)
        except (BlockingIOError, FileNotFoundError):
            return False
        return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)

    def content(self) -> bytes:
        """Return all that it holds."""
        parts, offset = [], 0
        while part := os.pread(self.fd, 2**20, offset):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def append(self, data: bytes) -> None:
        """Write at the end, and wait until the disk has it; what could not be written whole leaves nothing."""
        offset, rest = self._size, memoryview(data)
        try:
            while rest:
                written = os.pwrite(self.fd, rest, offset)
                offset, rest = offset + written, rest[written:]
            os.fsync(self.fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, self._size)
            raise
        self._size = offset

    def truncate(self, size: int) -> None:
        """Keep the first `size` bytes."""
        os.ftruncate(self.fd, size)
        self._size = size

    def remove(self) -> bool:
        """Delete it, and return True; without the lock do nothing and return False."""
        if self.fd < 0:
            return False
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        sync_folder(self.path.parent)
        return True

    def release(self) -> None:
        """Give the lock back; does nothing when called again."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)  # a process that is being started may still have a copy
            os.close(fd)


def trimmed(file: JournalFile, *, keep_bytes: int, keep_count: int) -> JournalFile:
    """Replace a file, at once, by one with its latest reports only; return that one, locked.

    Lines that are not reports stay. The file that was given is released.

    Args:
        file: The file.
        keep_bytes: The reports that stay take at most so much.
        keep_count: At most so many stay.

    Raises:
        OSError: If the disk refuses; then the file stays as it was.
    """
    lines = list(decode(file.content()))
    kept: list[bytes] = []
    for line, value in reversed(lines):
        if "step" in value:
            keep_bytes, keep_count = keep_bytes - len(line), keep_count - 1
            if keep_bytes < 0 or keep_count < 0:
                continue
        kept.append(line)
    new = JournalFile.created(file.path.with_suffix(".tmp"))
    try:
        new.append(b"".join(reversed(kept)))
        new.path.rename(file.path)
        new.path = file.path
        sync_folder(file.path.parent)
    except OSError:
        if new.path.suffix == ".tmp":
            with contextlib.suppress(OSError):
                new.remove()
            new.release()
            raise
    file.release()
    return new


def without_reports(file: JournalFile) -> JournalFile:
    """Return a file that its worker left, without its reports; deleted and released if it holds nothing else."""
    values = [value for _, value in decode(file.content())]
    if values and values[0].get("version", VERSION) != VERSION:
        return file
    if file.path.suffix == ".tmp" or not any("end" in value for value in values):
        file.remove()
        file.release()
        return file
    return trimmed(file, keep_bytes=0, keep_count=0) if any("step" in value for value in values) else file

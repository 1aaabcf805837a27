"""A folder as one archive: the same files give the same bytes, so that a hash names them; unpacked with distrust."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from autotune.errors import DataError

PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A packed folder.

    Attributes:
        source: The archive, open for reading.
        sha256: Of its bytes.
        size: Bytes.
    """

    source: IO[bytes]
    sha256: str
    size: int

    def pieces(self, length: int = PIECE) -> Iterator[bytes]:
        """Yield its bytes from the beginning, `length` at a time."""
        self.source.seek(0)
        while piece := self.source.read(length):
            yield piece


@contextmanager
def packed(folder: Path) -> Iterator[Archive]:
    """Pack a folder into a temporary file beside it.

    Names, sizes and contents alone go in: no times, owners or modes.

    Raises:
        DataError: If there is no such folder, or something in it is neither file nor folder.
        OSError: If it cannot be read, for example because it was removed meanwhile, or the disk is full.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    with tempfile.TemporaryFile(dir=folder.parent) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix()):
                _add(tar, path, path.relative_to(folder).as_posix())
        file.seek(0)
        digest = hashlib.sha256()
        while piece := file.read(PIECE):
            digest.update(piece)
        yield Archive(source=file, sha256=digest.hexdigest(), size=file.tell())


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    entry = tarfile.TarInfo(name)
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        raise DataError(f"{path} is no regular file: only files and folders can be kept")
    if path.is_dir():
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(entry)
        return
    with path.open("rb") as source:
        entry.size, entry.mode = os.fstat(source.fileno()).st_size, 0o644
        tar.addfile(entry, source)


def unpack(pieces: Iterable[bytes], sha256: str, size: int, folder: Path) -> None:
    """Check an archive and unpack it into a folder that does not exist yet; it appears whole or not at all.

    Nothing is unpacked before the hash of all is right. Even then only plain files and folders below `folder` are
    written: links, devices, absolute names and names with ``..`` are refused. Files are read only.

    Raises:
        DataError: If it is damaged, or holds anything else.
        OSError: If the disk does not take it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder.parent) as file:
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
            if file.tell() > size:
                break
        if file.tell() != size or digest.hexdigest() != sha256:
            raise DataError(f"checkpoint {sha256[:12]} is damaged: its content is not what its hash says")
        file.seek(0)
        unpacked = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unpacking-"))
        try:
            _extract(file, unpacked)
            os.rename(unpacked, folder)
        except BaseException:
            shutil.rmtree(unpacked, ignore_errors=True)
            raise


def _extract(file: IO[bytes], folder: Path) -> None:
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                _write(tar, member, folder)
    except (tarfile.TarError, FileExistsError, NotADirectoryError, EOFError) as error:
        raise DataError(f"a checkpoint is no archive of ours: {error}") from error


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write one member. Since links are refused, a name without ``..`` cannot lead out of the folder."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or not name.parts or ".." in name.parts or "\\" in member.name or "\0" in member.name:
        raise DataError(f"a checkpoint holds the name {member.name!r}, which leads out of its folder")
    target = folder / name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    source = tar.extractfile(member) if member.isreg() and member.sparse is None else None
    if source is None:
        raise DataError(f"a checkpoint holds {member.name!r}, which is no plain file")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as copy:
        shutil.copyfileobj(source, copy, PIECE)
    target.chmod(0o444)

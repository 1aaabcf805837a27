"""Reading a backup: every way in which a file can be damaged, cut short or foreign becomes one clear line."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import bson
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument

from autotune.errors import InputError, StoreSetupError
from autotune.store.backup import COLLECTIONS, DATASETS, FORMAT, FORMAT_VERSION, MANIFEST, Manifest, Part
from autotune.store.schema import SCHEMA_VERSION

_MANIFEST_BYTES = 64_000_000
_DOCUMENT_BYTES = 17_000_000
_BROKEN = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, KeyError, ValueError, TypeError,
    struct.error, BSONError, RecursionError, OverflowError,
)  # fmt: skip
"""What reading a damaged archive, JSON or BSON raises."""


class BackupFile:
    """A backup, open for reading. Usable as a context manager.

    Args:
        path: The file.

    Raises:
        InputError: If it cannot be read, is damaged or cut short, or is no backup.
        StoreSetupError: If a newer autotune wrote it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: IO[bytes] = open(path, "rb")  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from None
        try:
            with self._readable():
                self._archive = zipfile.ZipFile(self._file)
                content = self._content()
            self.manifest = self._manifest(content)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> BackupFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._archive.close()
        self._file.close()

    def documents(self, part: Part) -> Iterator[RawBSONDocument]:
        """Yield the documents of a part, as they were written.

        Raises:
            InputError: If the part is damaged, as far as that shows before its end.
        """
        with self._readable():
            member = self._archive.open(f"{part.collection}.bson")
        with member:
            left = part.size
            while left:
                with self._readable():
                    document = self._next(member, left)
                left -= len(document.raw)
                yield document

    def verify(self, progress: Callable[[int], None]) -> None:
        """Read all of it, and compare with what the manifest says.

        Args:
            progress: Called with the number of bytes read so far.

        Raises:
            InputError: If anything is not as it was written.
        """
        known, done = set(self.manifest.campaigns), 0
        for part in self.manifest.parts:
            digest, count, size = hashlib.sha256(), 0, 0
            for document in self.documents(part):
                digest.update(document.raw)
                count += 1
                size += len(document.raw)
                if part.collection not in DATASETS and self._campaign_of(part, document) not in known:
                    raise self._damaged(f"{part.collection} holds a campaign that the manifest does not name")
                progress(done + size)
            done += size
            if (digest.hexdigest(), count) != (part.sha256, part.documents):
                raise self._damaged(f"the SHA-256 of {part.collection} is another one than was written down")

    def _campaign_of(self, part: Part, document: RawBSONDocument) -> str:
        with self._readable():
            content: dict[str, Any] = bson.decode(document.raw)
            return str(content["_id" if part.collection == "campaigns" else "campaign"])

    def _next(self, member: IO[bytes], left: int) -> RawBSONDocument:
        head = member.read(4)
        size = int.from_bytes(head, "little")
        if len(head) < 4 or not 5 <= size <= min(left, _DOCUMENT_BYTES):
            raise ValueError("a document has a wrong length")
        raw = head + member.read(size - 4)
        if len(raw) != size:
            raise ValueError("it ends within a document")
        return RawBSONDocument(raw)

    def _content(self) -> dict[str, Any]:
        with self._archive.open(MANIFEST) as member:
            text = member.read(_MANIFEST_BYTES + 1)
        if len(text) > _MANIFEST_BYTES:
            raise ValueError("its manifest is too long")
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError("its manifest is not one of a backup")
        return content

    def _manifest(self, content: dict[str, Any]) -> Manifest:
        """Return what the file holds; a file of a newer autotune is told from a damaged one."""
        with self._readable():
            newer = int(content["format_version"]) > FORMAT_VERSION or int(content["schema_version"]) > SCHEMA_VERSION
        if newer:
            raise StoreSetupError(
                f"{self.path} was written by a newer autotune ({content.get('autotune')}, schema "
                f"{content['schema_version']}; this one knows {SCHEMA_VERSION}); upgrade this installation"
            )
        with self._readable():
            parts = tuple(Part(**part) for part in content["parts"])
            if sorted(p.collection for p in parts) not in (sorted(COLLECTIONS), sorted(COLLECTIONS + DATASETS)):
                raise ValueError("its parts are not those of a backup")
            if not all(type(n) is int and n >= 0 for part in parts for n in (part.documents, part.size)):
                raise ValueError("its manifest has wrong numbers")
            if datetime.fromisoformat(content["taken_at"]).tzinfo is None:
                raise ValueError("its time has no zone")
            return Manifest(
                id=str(content["id"]),
                taken_at=str(content["taken_at"]),
                schema_version=int(content["schema_version"]),
                autotune=str(content["autotune"]),
                store=str(content["store"]),
                consistent=bool(content["consistent"]),
                campaigns=tuple(str(name) for name in content["campaigns"]),
                parts=parts,
            )

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn what reading a damaged file raises into one line."""
        try:
            yield
        except _BROKEN as error:
            raise self._damaged(str(error) or type(error).__name__) from None
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror or error}") from None

    def _damaged(self, why: str) -> InputError:
        return InputError(f"{self.path} is not a backup of autotune, or is damaged or cut short ({why[:120]}); "
                          "nothing was written: use another backup")  # fmt: skip

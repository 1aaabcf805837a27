"""A shelf keeps archives of one campaign under the hash of their bytes, each of them whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Set
from typing import Protocol

from autotune.errors import NotFoundError
from autotune.store.archives import Archive

SUFFIX = ".tar"
PART = ".part-"
"""How the names of files begin that are being written."""


class Shelf(Protocol):
    """Archives of one campaign."""

    def touch(self, sha256: str, size: int) -> bool:
        """Return whether an archive is there; its time of grace begins anew."""
        ...

    def write(self, archive: Archive) -> None:
        """Put an archive there, checked; when it returns, the archive is there to stay."""
        ...

    def read(self, sha256: str) -> Iterator[bytes]:
        """Yield the bytes of an archive; raises `NotFoundError`."""
        ...

    def sizes(self) -> dict[str, int]:
        """Return the archives that are there: hash -> bytes."""
        ...

    def collect(self, keep: Set[str], grace_s: float) -> list[str]:
        """Remove archives that are not in `keep` and were not touched for `grace_s`, and what writers left behind.

        Returns the hashes of the archives that were removed.
        """
        ...


def hash_of(pieces: Iterable[bytes]) -> str:
    """Return the SHA-256 of bytes that come in pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def missing(sha256: str, where: str) -> NotFoundError:
    """Return the error for an archive that is not where it should be."""
    return NotFoundError(f"there is no checkpoint {sha256[:12]} in {where}: its trial begins anew")

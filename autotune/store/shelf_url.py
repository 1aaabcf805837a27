"""A shelf behind a URL that fsspec knows. The only module that names fsspec, which is not installed with autotune."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from typing import Any

from autotune.errors import InputError, StoreError, StoreSetupError
from autotune.store.archives import PIECE, Archive
from autotune.store.shelf import PART, SUFFIX, missing


class UrlShelf:
    """Archives behind a URL that fsspec knows, for example ``s3://bucket/folder``.

    A finished upload is taken for whole if its size is right; the hash is checked at each read. Ages are told by the
    server's own times. Between looking at an age and removing there is no lock: only the time of grace protects.
    """

    def __init__(self, url: str, campaign: str) -> None:
        try:
            fsspec = importlib.import_module("fsspec")
            self._fs, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise StoreSetupError(
                f"checkpoints under {url} need a package that is not here ({error}): pip install fsspec, and what it "
                "needs for this kind of URL"
            ) from error
        except ValueError as error:
            raise InputError(f"checkpoints.url {url} is not usable: {error}") from error
        self._url = url
        self._folder = f"{root.rstrip('/')}/{campaign}"

    def touch(self, sha256: str, size: int) -> bool:
        """Return whether an archive is there; its time of grace begins anew, by a copy if the server has no touch."""
        with self._mapped():
            if self._size(sha256) != size:
                return False
            try:
                self._fs.touch(self._path(sha256), truncate=False)
            except FileNotFoundError:
                return False
            except (NotImplementedError, ValueError):
                part = f"{self._folder}/{PART}{secrets.token_hex(8)}"
                self._fs.cp_file(self._path(sha256), part)
                self._fs.mv(part, self._path(sha256))
            return True

    def write(self, archive: Archive) -> None:
        """Upload under another name, compare the size, then give it its name."""
        with self._mapped():
            self._fs.makedirs(self._folder, exist_ok=True)
            part = f"{self._folder}/{PART}{secrets.token_hex(8)}"
            with self._fs.open(part, "wb") as target:
                for piece in archive.pieces():
                    target.write(piece)
            if self._fs.size(part) != archive.size:
                raise StoreError(f"{self._url} does not hold what was written")
            self._fs.mv(part, self._path(archive.sha256))

    def read(self, sha256: str) -> Iterator[bytes]:
        """Yield the bytes of an archive; raises `NotFoundError`."""
        with self._mapped():
            try:
                with self._fs.open(self._path(sha256), "rb") as source:
                    while piece := source.read(PIECE):
                        yield piece
            except FileNotFoundError:
                raise missing(sha256, self._url) from None

    def sizes(self) -> dict[str, int]:
        """Return the archives that are there: hash -> bytes."""
        return {_stem(e["name"]): int(e["size"]) for e in self._entries() if e["name"].endswith(SUFFIX)}

    def collect(self, keep: Set[str], grace_s: float) -> list[str]:
        """Remove archives that are not in `keep`, and parts that nobody writes any more."""
        removed = []
        entries = [e["name"] for e in self._entries()]
        if not entries:
            return []
        with self._mapped():
            marker = f"{self._folder}/{PART}{secrets.token_hex(8)}"
            self._fs.pipe_file(marker, b".")
            now = self._fs.modified(marker)
            self._fs.rm_file(marker)
            for path in entries:
                if path.endswith(SUFFIX) and _stem(path) in keep:
                    continue
                with suppress(FileNotFoundError):
                    if (now - self._fs.modified(path)).total_seconds() >= grace_s:
                        self._fs.rm_file(path)
                        removed += [_stem(path)] if path.endswith(SUFFIX) else []
        return removed

    def _entries(self) -> list[dict[str, Any]]:
        with self._mapped(), suppress(FileNotFoundError):
            self._fs.invalidate_cache()
            return [e for e in self._fs.ls(self._folder, detail=True) if e["type"] == "file"]
        return []

    def _size(self, sha256: str) -> int | None:
        with suppress(FileNotFoundError):
            self._fs.invalidate_cache()
            return int(self._fs.size(self._path(sha256)))
        return None

    def _path(self, sha256: str) -> str:
        return f"{self._folder}/{sha256}{SUFFIX}"

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"the checkpoints under {self._url} do not answer: {error}") from error


def _stem(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(SUFFIX)

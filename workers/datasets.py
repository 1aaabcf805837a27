"""Data files of this host that came from the store: a bounded cache shared by all workers and slots of a user.

The folder holds, for each content: ``HASH.h5ad``, whole and checked, or ``HASH.SIZE.part``, as far as it was fetched;
and two locks. Who uses or fetches a content holds ``HASH.use`` shared, for as long as it uses it; who fetches it holds
``HASH.fetch`` alone. A file is evicted only by who gets ``HASH.use`` alone. The kernel drops the locks of a process
that is killed, so nothing stays blocked. The time of change of ``HASH.use`` is that of the last use.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from autotune.errors import DataError, InputError, StoreError, StoreUnreachableError, WorkerError
from autotune.home import home
from workers.workloads.cells.named import by_path

if TYPE_CHECKING:
    from autotune.store.datasets import Dataset, Datasets

_log = logging.getLogger(__name__)
_R = TypeVar("_R")

FOLDER_VARIABLE = "AUTOTUNE_CACHE"
BYTES_VARIABLE = "AUTOTUNE_CACHE_BYTES"
DEFAULT_BYTES = 50 * 10**9

_POLL_S = 0.1
_BACKOFF_S = (0.2, 5.0)
_SAY_EVERY_S = 30.0
_BLOCK = 1 << 20
_HASH = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"([0-9a-f]{64})\.(?:h5ad|(\d+)\.part)")
_MORE_DISK = f"free disk space, or set {FOLDER_VARIABLE} to a folder on a larger disk"
_STOPPED = "the worker was stopped before its data were there"


class HasDatasets(Protocol):
    """A store that holds data files."""

    datasets: Datasets


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A file of the cache: its content's hash, the bytes it may take, those it takes now, when it was last used."""

    sha256: str
    file: Path
    reserved: int
    written: int
    used_at: float


class DatasetCache:
    """Finds the data of campaigns on this host, and fetches from the store what is not there.

    Safe to share between the threads of a process. What it returned stays on disk until `release`, `close` or the end
    of the process.

    Args:
        store: An open store.
        folder: Of the cache; default: ``AUTOTUNE_CACHE``, else ``datasets`` in ``AUTOTUNE_HOME``. Made when needed.
        max_bytes: What all files in it may take together; default: ``AUTOTUNE_CACHE_BYTES``, else 50 GB.

    Raises:
        InputError: If ``AUTOTUNE_CACHE_BYTES`` is not a number of bytes.
    """

    def __init__(self, store: HasDatasets, folder: Path | None = None, max_bytes: int | None = None) -> None:
        self._store = store
        given = os.environ.get(FOLDER_VARIABLE)
        self._folder = folder or (Path(given).expanduser().absolute() if given else None)
        self._max_bytes = _bytes_of_environment() if max_bytes is None else max_bytes
        self._lock = threading.Lock()
        self._held: dict[str, tuple[int, set[str]]] = {}
        self._judged: dict[tuple[Path, str], tuple[tuple[int, ...], bool]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """The folder, made if it is missing.

        Raises:
            DataError: If it cannot be made.
        """
        folder = self._folder or home() / "datasets"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            text = f"cannot create {folder} for data from the store ({error.strerror})"
            raise DataError(f"{text}; set {FOLDER_VARIABLE} to a folder of yours") from None
        return folder

    def localise(self, spec: Mapping[str, Any], stop: threading.Event) -> Mapping[str, Any]:
        """Return a campaign's file with a ``data.path`` that this host can read.

        That is `spec` itself where ``data.path`` is a readable file, unless the file has another content while the
        store has the right one; otherwise the path of the copy in the cache, which is fetched if need be. Waits while
        the store is away. Quick when called again. Of a public data set (``data.dataset``) likewise; where neither this
        host nor the store has it, `spec` is returned, and who loads it fetches it.

        Args:
            spec: The campaign file as plain values.
            stop: When set, waiting and fetching end; what was fetched is kept for the next time.

        Raises:
            DataError: If the content is nowhere, or the bound or the disk is too small; says what to do.
            WorkerError: If `stop` was set.
        """
        data = by_path(spec.get("data") or {})
        path, sha256 = data.get("path"), str(data.get("sha256") or "").lower()
        if not path or not sha256:
            return spec
        if not _HASH.fullmatch(sha256):
            raise DataError(f"data.sha256 must be 64 hexadecimal digits, not '{sha256[:80]}'")
        local = Path(path).expanduser()
        try:
            if self._serves(local, sha256, stop):
                return spec
            dataset = (spec.get("data") or {}).get("dataset")
            if dataset and self._patiently(partial(self._store.datasets.find, sha256), stop) is None:
                return spec  # a public data set that the store lacks: who loads it fetches it from where it is public
            file = self._cached(local, sha256, str(spec["name"]), stop)
        except OSError as error:
            where = error.filename or self.folder
            raise DataError(f"cannot read or write {where}: {error.strerror or error}") from error
        return {**spec, "data": {**data, "path": str(file), "name": data.get("name") or local.stem}}

    def release(self, spec: Mapping[str, Any]) -> None:
        """Say that a campaign's data are not needed any more; they stay until the space is."""
        self._let_go(str((spec.get("data") or {}).get("sha256") or "").lower(), str(spec["name"]))

    def close(self) -> None:
        """Release everything."""
        with self._lock:
            for handle, _ in self._held.values():
                os.close(handle)
            self._held.clear()

    def _serves(self, local: Path, sha256: str, stop: threading.Event) -> bool:
        """Return whether to leave the judgement of a file on this host to who loads it."""
        if any(os.path.isfile(local / name) for name in ("matrix.mtx", "matrix.mtx.gz")):
            return True  # a 10x folder: the store holds files only
        if not os.path.isfile(local) or not os.access(local, os.R_OK):
            return False
        try:
            known = self._store.datasets.find(sha256)
        except StoreError as error:
            _log.warning("%s", error, extra={"action": "store-away"})
            return True
        if known is None or (_size(local) == known.size and self._has_content(local, sha256, stop)):
            return True
        text = "%s differs from the campaign's data (sha256 %s); the store's copy is used"
        _log.warning(text, local, sha256[:12], extra={"action": "data-differ"})
        return False

    def _has_content(self, file: Path, sha256: str, stop: threading.Event) -> bool:
        """Return whether a file has a content; an unchanged file is read once only."""
        if not file.exists():
            return False
        stamp = _stamp(file)
        judged = self._judged.get((file, sha256))
        if judged is None or judged[0] != stamp:
            digest = hashlib.sha256()
            _add(digest, file, _size(file), stop)
            judged = self._judged[(file, sha256)] = (stamp, digest.hexdigest() == sha256)
        return judged[1]

    def _cached(self, local: Path, sha256: str, owner: str, stop: threading.Event) -> Path:
        """Return the cached file of a content, held for `owner`; fetch it if it is missing or damaged."""
        file = self.folder / f"{sha256}.h5ad"
        self._hold(sha256, owner, stop)
        try:
            if self._has_content(file, sha256, stop):
                return file
            with self._alone(f"{sha256}.fetch", stop):
                if self._has_content(file, sha256, stop):  # another worker was faster
                    return file
                if file.exists():
                    _log.warning("%s is damaged; it is fetched again", file, extra={"action": "data-damaged"})
                    file.unlink()
                dataset = self._patiently(partial(self._store.datasets.find, sha256), stop)
                if dataset is None:
                    address = self._store.datasets.connection.address
                    raise DataError(
                        f"{socket.gethostname()} has no readable data file {local}, and the store at {address} has no"
                        f" dataset {sha256[:12]}: `autotune data push FILE` where it is, or put it at that path"
                    )
                self._fetch(dataset, file, stop)
        except BaseException:
            self._let_go(sha256, owner)
            raise
        return file

    def _fetch(self, dataset: Dataset, file: Path, stop: threading.Event) -> None:
        """Fetch a dataset, going on where a fetch before stopped; its file appears when it is whole and checked."""
        part = file.with_name(f"{dataset.sha256}.{dataset.size}.part")
        with self._alone("room", stop):
            resumed = _size(part) > 0
            self._make_room(part, dataset)
            part.touch(0o600)  # from here on it counts as whole
        started_s = time.monotonic()
        extra = {"action": "data-fetch", "dataset": dataset.sha256, "bytes": dataset.size}
        _log.info("fetches %s from the store", dataset.name, extra=extra)
        try:
            good = self._fill(dataset, part, stop)
            if not good and resumed:
                _log.warning("what was fetched before is damaged; starts anew", extra={"action": "data-damaged"})
                os.truncate(part, 0)
                good = self._fill(dataset, part, stop)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise DataError(f"cannot write {part}: {error.strerror or error}; {_MORE_DISK}") from error
        if not good:
            part.unlink(missing_ok=True)
            raise self._store.datasets.damaged(dataset)
        part.chmod(0o400)  # trials read it; none may change it for the others
        part.replace(file)
        self._judged[(file, dataset.sha256)] = (_stamp(file), True)
        _log.info("has fetched %s in %.1f s", dataset.name, time.monotonic() - started_s, extra=extra)

    def _fill(self, dataset: Dataset, part: Path, stop: threading.Event) -> bool:
        """Append to a partial file what it lacks; return whether the whole has the right hash."""
        digest = hashlib.sha256()
        number = min(_size(part), dataset.size) // dataset.chunk_size
        os.truncate(part, number * dataset.chunk_size)
        _add(digest, part, number * dataset.chunk_size, stop)
        said_s = time.monotonic()
        with part.open("ab") as target:
            while number < dataset.n_chunks:
                for chunk in self._patiently(partial(self._store.datasets.read, dataset, number), stop):
                    target.write(chunk)
                    digest.update(chunk)
                    number += 1
                if time.monotonic() - said_s > _SAY_EVERY_S:
                    said_s = time.monotonic()
                    percent = 100 * number // dataset.n_chunks
                    _log.info("%s: %d%%", dataset.name, percent, extra={"action": "data-fetch"})
            target.flush()
            os.fsync(target.fileno())
        return digest.hexdigest() == dataset.sha256

    def _make_room(self, part: Path, dataset: Dataset) -> None:
        """Evict files that nobody uses, the longest unused first, until a dataset fits into the bound and the disk.

        Raises:
            DataError: If it does not fit all the same.
        """
        size, missing = dataset.size, dataset.size - _size(part)
        others = sorted((e for e in self._entries() if e.sha256 != dataset.sha256), key=lambda e: e.used_at)
        while True:
            taken = sum(e.reserved for e in others)
            free = shutil.disk_usage(part.parent).free - sum(e.reserved - e.written for e in others)
            if size + taken <= self._max_bytes and missing <= free:
                return
            hopeless = size > self._max_bytes or missing > free + sum(e.reserved for e in others)
            evicted = None if hopeless else next((e for e in others if self._evict(e)), None)
            if evicted is None:
                break
            others.remove(evicted)
        if missing > free:
            have = f"needs {_gb(missing)} and the disk of {part.parent} has {_gb(max(0, free))} left"
            raise DataError(f"dataset {dataset.name} {have}: {_MORE_DISK}")
        used = f", of which {_gb(taken)} are in use" if size <= self._max_bytes else ""
        have = f"has {_gb(size)} and the cache in {part.parent} is bounded to {_gb(self._max_bytes)}{used}"
        raise DataError(f"dataset {dataset.name} {have}: set {BYTES_VARIABLE} to more bytes")

    def _entries(self) -> Iterator[_Entry]:
        for file in self.folder.iterdir():
            match = _FILE.fullmatch(file.name)
            if match is None:
                continue
            with suppress(FileNotFoundError):
                found = file.stat()
                use = file.with_name(f"{match[1]}.use")
                used_at = (use if use.exists() else file).stat().st_mtime
                size = found.st_size
                yield _Entry(sha256=match[1], file=file, reserved=int(match[2] or size), written=size, used_at=used_at)

    def _evict(self, entry: _Entry) -> bool:
        """Remove a file of the cache; return False when somebody uses or fetches it."""
        handle = _open_lock(self.folder / f"{entry.sha256}.use")
        try:
            if not _try_lock(handle, fcntl.LOCK_EX):
                return False
            entry.file.unlink(missing_ok=True)
        finally:
            os.close(handle)
        _log.info("evicts %s", entry.file, extra={"action": "data-evict", "bytes": entry.written})
        return True

    def _hold(self, sha256: str, owner: str, stop: threading.Event) -> None:
        """Keep a content from being evicted, for `owner`; note that it is used now."""
        file = self.folder / f"{sha256}.use"
        with self._lock:
            if sha256 not in self._held:
                handle = _open_lock(file)
                try:
                    _wait_lock(handle, fcntl.LOCK_SH, stop)  # others hold it alone only while they evict
                except BaseException:
                    os.close(handle)
                    raise
                self._held[sha256] = (handle, set())
            self._held[sha256][1].add(owner)
        os.utime(file)

    def _let_go(self, sha256: str, owner: str) -> None:
        with self._lock:
            handle, owners = self._held.get(sha256, (-1, {owner}))
            owners.discard(owner)
            if not owners and self._held.pop(sha256, None) is not None:
                os.close(handle)

    @contextmanager
    def _alone(self, name: str, stop: threading.Event) -> Iterator[None]:
        """Hold a lock of the cache that one thread of the host has at a time."""
        handle = _open_lock(self.folder / name)
        try:
            _wait_lock(handle, fcntl.LOCK_EX, stop)
            yield
        finally:
            os.close(handle)

    def _patiently(self, call: Callable[[], _R], stop: threading.Event) -> _R:
        """Call, again while the store is away.

        Raises:
            WorkerError: If `stop` was set.
        """
        pause_s = _BACKOFF_S[0]
        while not stop.is_set():
            try:
                return call()
            except StoreUnreachableError as error:
                _log.warning("%s", error, extra={"action": "store-away"})
                stop.wait(pause_s)
                pause_s = min(_BACKOFF_S[1], pause_s * 2)
        raise WorkerError(_STOPPED)


def _bytes_of_environment() -> int:
    text = os.environ.get(BYTES_VARIABLE)
    if not text:
        return DEFAULT_BYTES
    if not text.strip().isdecimal():
        raise InputError(f"{BYTES_VARIABLE} must be a number of bytes, for example 50000000000, not '{text}'")
    return int(text)


def _add(digest: Any, file: Path, size: int, stop: threading.Event) -> None:
    """Add the first `size` bytes of a file to a digest."""
    with file.open("rb") as source:
        while size > 0 and (data := source.read(min(_BLOCK, size))):
            if stop.is_set():
                raise WorkerError(_STOPPED)
            digest.update(data)
            size -= len(data)


def _open_lock(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_lock(handle: int, kind: int, stop: threading.Event) -> None:
    while not _try_lock(handle, kind):
        if stop.wait(_POLL_S):
            raise WorkerError(_STOPPED)


def _stamp(file: Path) -> tuple[int, ...]:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"

"""What a worker could not write into the store yet, on local disk: it outlives an outage, and the worker too.

One file per attempt, named by the token of its lease. Each line is a checksum and one JSON value, so that a line that
was torn by a kill or a full disk is recognised and dropped. A worker keeps the files of its running attempts locked;
the lock goes with its process, and then whoever looks next may deliver what the file holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.clock import Clock, SystemClock
from autotune.trial import Cause, Failure, Lease, Report, Result
from workers.journal_files import VERSION, JournalFile, decode, encode, sync_folder, trimmed, without_reports

_log = logging.getLogger(__name__)

MAX_BYTES = 64 * 2**20
"""So much one store's journal holds on this host, all workers together."""
MAX_RESULT_BYTES = 16 * 2**20
"""A larger result would not go into the store either."""
MAX_REPORTS = 10_000
"""So many of the latest reports of an attempt are kept, at the least; older ones go when there are twice as many."""
MAX_AGE_S = 30 * 86_400.0

_TOKEN = re.compile(r"[0-9a-f]{8,64}")
_FILE = re.compile(r"[0-9a-f]{8,64}\.(journal|tmp)")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one attempt left behind. It is this caller's alone until `done`, `close`, or the end of its process.

    Attributes:
        lease: The lease of the attempt; without the time at which it ran out.
        reports: Reports that may not be in the store.
        result: Its result, or None.
        failure: Why it has none, or None; both None: only reports are known.
        process_killed: As in `workers.runner.Ended`; of a failure.
        timing: Seconds per phase.
    """

    lease: Lease
    reports: tuple[Report, ...] = ()
    result: Result | None = None
    failure: Failure | None = None
    process_killed: bool = False
    timing: Mapping[str, float] = field(default_factory=dict)
    _file: JournalFile = field(repr=False, compare=False)

    def done(self) -> bool:
        """Delete it: the store has it, or will never take it. Returns False after `close`, or if the disk refused."""
        try:
            return self._file.remove()
        except OSError as error:
            _failed(self.lease, f"cannot delete {self._file.path}: {error}")
            return False
        finally:
            self.close()

    def close(self) -> None:
        """Leave it for later, or for another worker. Does nothing after `done`."""
        self._file.release()


class Journal:
    """The journal of one store on this host. Safe to use from many threads and processes.

    Args:
        folder: Where journals of all stores lie; created at the first write, for this user alone.
        store_key: The store's address, without a password.
        max_bytes: When the files take more, the oldest reports are thrown away; results and failures never are.
        clock: For the age of files.
    """

    def __init__(self, folder: Path, store_key: str, *, max_bytes: int = MAX_BYTES, clock: Clock | None = None) -> None:
        self.folder = folder / hashlib.sha256(store_key.encode()).hexdigest()[:16]
        self._max_bytes = max_bytes
        self._clock = clock or SystemClock()
        self._lock = threading.RLock()
        self._open: dict[str, AttemptJournal] = {}

    def open_attempt(self, lease: Lease) -> AttemptJournal:
        """Return the journal of an attempt of this worker; nothing is written before its first entry.

        Raises:
            ValueError: If the lease's token is not 8 to 64 lower-case hex digits.
        """
        if not _TOKEN.fullmatch(lease.token):
            raise ValueError("the token of a lease is 8 to 64 lower-case hex digits")
        return AttemptJournal(self, lease)

    def left_over(self) -> Iterator[Entry]:
        """Yield what attempts left behind whose worker is gone or has closed them, oldest first.

        No two callers get the same entry at once. Files that are too old, or hold nothing usable, are deleted.
        """
        for path in self._files():
            try:
                entry = self._entry(path)
            except OSError as error:
                _log.warning("cannot read %s: %s", path, error, extra={"action": "journal-failed"})
                continue
            if entry is not None:
                yield entry

    def _files(self) -> list[Path]:
        """Return the journal's files, oldest first."""
        found = []
        try:
            for path in self.folder.iterdir():
                if _FILE.fullmatch(path.name) and not path.is_symlink():
                    with contextlib.suppress(FileNotFoundError):
                        found.append((path.stat().st_mtime, path))
        except FileNotFoundError:
            return []
        except OSError as error:
            _log.warning("cannot read %s: %s", self.folder, error, extra={"action": "journal-failed"})
        return [path for _, path in sorted(found)]

    def _entry(self, path: Path) -> Entry | None:
        """Return what a file holds, with its lock; None if it is not to be had, or was deleted as useless."""
        file = JournalFile.opened(path)
        if file is None:
            return None
        entry = None
        try:
            entry = self._read(file)
            return entry
        finally:
            if entry is None:
                file.release()

    def _read(self, file: JournalFile) -> Entry | None:
        age_s = self._clock.now().timestamp() - os.fstat(file.fd).st_mtime
        values = [value for _, value in decode(file.content())]
        if values and values[0].get("version", VERSION) != VERSION:
            return None  # of another release, which may come back
        entry = None
        if file.path.suffix == ".journal":
            entry = _entry(values, file)
            if entry is None and (len(values) > 1 or (values and "version" not in values[0])):
                _log.warning("deleted %s: it cannot be read", file.path, extra={"action": "journal-damaged"})
        if entry is not None and age_s > MAX_AGE_S:
            _log.warning(
                "threw away what was not delivered in %.0f days: %d reports, result: %s",
                MAX_AGE_S / 86_400, len(entry.reports), entry.result is not None,
                extra={"action": "journal-expired", **_names(entry.lease)},
            )  # fmt: skip
            entry = None
        if entry is None:
            file.remove()
        return entry

    def latest(self, lines: Sequence[bytes]) -> Sequence[bytes]:
        """Return the last lines that together take at most half of the journal."""
        first, free = len(lines), self._max_bytes // 2
        while first and (free := free - len(lines[first - 1])) >= 0:
            first -= 1
        return lines[first:]

    def make_room(self, needed: int) -> bool:
        """Throw reports away, the oldest first, until `needed` more bytes fit; return whether they do.

        Raises:
            OSError: If the disk refuses.
        """
        excess = self._size() + needed - self._max_bytes
        if excess > 0:
            self._drop_left_reports(excess)
        while (excess := self._size() + needed - self._max_bytes) > 0:
            biggest = max(self._open.values(), key=lambda a: a.report_bytes, default=None)
            if biggest is None or biggest.report_bytes == 0:
                return False
            biggest.trim(biggest.report_bytes // 2)
        return True

    def _size(self) -> int:
        size = 0
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
        return size

    def _drop_left_reports(self, excess: int) -> None:
        """Drop the reports of attempts whose worker is gone, the oldest file first, until `excess` bytes are free."""
        for path in self._files():
            file = JournalFile.opened(path)
            if file is None:
                continue
            before = os.fstat(file.fd).st_size
            try:
                file = without_reports(file)
                excess -= before - (os.fstat(file.fd).st_size if file.fd >= 0 else 0)
            finally:
                file.release()
            if excess <= 0:
                return


class AttemptJournal:
    """What one running attempt could not write. Its methods are thread-safe and never raise for a bad disk.

    Attributes:
        report_bytes: Size of the reports in its file.
    """

    def __init__(self, journal: Journal, lease: Lease) -> None:
        self._journal = journal
        self._lease = lease
        self._file: JournalFile | None = None
        self._closed = False
        self._warned = False
        self._count = 0
        self.report_bytes = 0

    def reports(self, reports: Sequence[Report]) -> bool:
        """Keep reports; return whether they are safe on disk, but for older ones that had to go for lack of room."""
        if not reports:
            return True
        values = [{"step": r.step, "attempt": r.attempt, "metrics": dict(r.metrics)} for r in reports[-MAX_REPORTS:]]
        return self._guarded(lambda: self._add_reports([encode(value) for value in values]))

    def result(self, result: Result, timing: Mapping[str, float] | None = None) -> bool:
        """Keep the attempt's result; return whether it is safe on disk."""
        kept = {"score": result.score, "metrics": result.metrics, "facts": result.facts}
        return self._guarded(lambda: self._add_end({"end": "result", "result": kept, "timing": dict(timing or {})}))

    def failure(self, failure: Failure, process_killed: bool, timing: Mapping[str, float] | None = None) -> bool:
        """Keep how the attempt failed; return whether it is safe on disk."""
        kept = {
            "cause": str(failure.cause), "message": failure.message, "traceback": failure.traceback,
            "log_tail": failure.log_tail, "exit_code": failure.exit_code,
        }  # fmt: skip
        return self._guarded(
            lambda: self._add_end(
                {"end": "failure", "failure": kept, "killed": process_killed, "timing": dict(timing or {})}
            )
        )

    def discard(self) -> None:
        """Delete what was kept: the store has it. More may be kept afterwards."""

        with self._journal._lock:
            self._guarded(lambda: self._file is None or self._file.remove())
            self._release()

    def close(self) -> None:
        """Leave what was kept to whoever looks next; from now on nothing is kept. Does nothing when called again."""
        with self._journal._lock:
            self._closed = True
            self._release()

    def trim(self, keep_bytes: int) -> None:
        """Throw away all but the latest reports that fit in `keep_bytes`.

        Raises:
            OSError: If the disk refuses.
        """
        with self._journal._lock:
            if self._file is not None:
                self._file = trimmed(self._file, keep_bytes=keep_bytes, keep_count=MAX_REPORTS)
                sizes = [len(line) for line, value in decode(self._file.content()) if "step" in value]
                self._count, self.report_bytes = len(sizes), sum(sizes)

    def _guarded(self, act: Callable[[], bool]) -> bool:
        """Act under the journal's lock; what the disk or the values refuse is logged once, until it works again."""
        with self._journal._lock:
            if self._closed:
                return False
            try:
                done = act()
            except OSError as error:
                return self._refuse(f"cannot write to {self._journal.folder}: {error.strerror or error}")
            except (TypeError, ValueError, RecursionError) as error:
                return self._refuse(f"not plain JSON: {error}")
            if done:
                self._warned = False
            return done

    def _refuse(self, message: str) -> bool:
        if not self._warned:
            _failed(self._lease, message)
        self._warned = True
        return False

    def _add_reports(self, lines: list[bytes]) -> bool:
        data = b"".join(self._journal.latest(lines))
        self._opened()
        if not self._journal.make_room(len(data)):
            return self._refuse("the journal is full; reports are dropped until the store is back")
        self._opened().append(data)
        self._count += data.count(b"\n")
        self.report_bytes += len(data)
        if self._count >= 2 * MAX_REPORTS:
            self.trim(self.report_bytes)
        return True

    def _add_end(self, value: Mapping[str, Any]) -> bool:
        data = encode(value)
        if len(data) > MAX_RESULT_BYTES:
            return self._refuse(f"a result of {len(data) / 2**20:.1f} MB is too large; at most 16 MB can be stored")
        self._opened()
        with contextlib.suppress(OSError):  # results are kept even where no room can be made
            self._journal.make_room(len(data))
        file = self._opened()
        try:
            file.append(data)
        except OSError:
            if not self._count:
                raise
            file.truncate(len(self._head()))  # the reports make room on a full disk
            self._count = self.report_bytes = 0
            file.append(data)
        return True

    def _head(self) -> bytes:
        lease = self._lease
        return encode(
            {
                "version": VERSION, "campaign": lease.campaign, "number": lease.number, "owner": lease.owner,
                "token": lease.token, "attempt": lease.attempt, "duration_s": lease.duration_s,
            }
        )  # fmt: skip

    def _opened(self) -> JournalFile:
        """Return the attempt's file, which is created if there is none."""
        if self._file is None:
            folder = self._journal.folder
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                sync_folder(folder.parent)
            file = JournalFile.created(folder / f"{self._lease.token}.journal")
            try:
                file.append(self._head())
                sync_folder(folder)
            except OSError:
                with contextlib.suppress(OSError):
                    file.remove()
                file.release()
                raise
            self._file = file
            self._journal._open[self._lease.token] = self
        return self._file

    def _release(self) -> None:
        if self._file is not None:
            self._file.release()
        self._file = None
        self._count = self.report_bytes = 0
        self._journal._open.pop(self._lease.token, None)


def _entry(values: Sequence[Mapping[str, Any]], file: JournalFile) -> Entry | None:
    """Return what the lines of a file say; None if they say nothing usable."""
    try:
        head, *rest = values
        lease = Lease(
            campaign=str(head["campaign"]), number=int(head["number"]), owner=str(head["owner"]),
            token=str(head["token"]), attempt=int(head["attempt"]), duration_s=float(head["duration_s"]),
        )  # fmt: skip
        reports = [
            Report(step=int(value["step"]), attempt=int(value["attempt"]), metrics=dict(value["metrics"]))
            for value in rest
            if "step" in value
        ]
        end: Mapping[str, Any] = next((value for value in reversed(rest) if "end" in value), {})
        result = Result(**end["result"]) if end.get("end") == "result" else None
        failed = end["failure"] if end.get("end") == "failure" else None
        failure = None if failed is None else Failure(**{**failed, "cause": Cause(failed["cause"])})
    except (KeyError, TypeError, ValueError):
        return None
    if lease.token != file.path.stem or not (reports or end):
        return None
    return Entry(
        lease=lease, reports=tuple(reports), result=result, failure=failure,
        process_killed=bool(end.get("killed")), timing=dict(end.get("timing") or {}), _file=file,
    )  # fmt: skip


def _names(lease: Lease) -> dict[str, Any]:
    return {"campaign": lease.campaign, "number": lease.number, "attempt": lease.attempt}


def _failed(lease: Lease, message: str) -> None:
    _log.error("the journal failed: %s", message, extra={"action": "journal-failed", **_names(lease)})

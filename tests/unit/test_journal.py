"""What a worker could not write into the store waits on disk, whole, bounded, and for one deliverer only."""

from __future__ import annotations

import errno
import math
import os
import signal
import stat
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.clock import ManualClock, SystemClock
from autotune.trial import Cause, Failure, Lease, Report, Result
from workers import journal as journal_module
from workers import journal_files
from workers.journal import Journal
from workers.journal_files import JournalFile, decode, encode

ADDRESS = "mongodb://localhost:27017/autotune"
RESULT = Result(score=0.25, metrics={"loss": {"value": 0.25, "se": None}}, facts={"cells": 12, "note": "µ"})
FAILURE = Failure(cause=Cause.ERROR, message="boom", traceback="a\nb", log_tail="tail", exit_code=1)
TIMING = {"train_s": 1.5}


def make_lease(token: str = "ab" * 16, number: int = 3) -> Lease:
    return Lease(campaign="c", number=number, owner="w-1", token=token, attempt=2, duration_s=30.0)


def make_reports(first: int, end: int, attempt: int = 2, size: int = 0) -> list[Report]:
    return [Report(step=i, metrics={"loss": i / 7, "x" * size: 0.0}, attempt=attempt) for i in range(first, end)]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path, ADDRESS)


def files(journal: Journal) -> list[Path]:
    return sorted(journal.folder.iterdir()) if journal.folder.exists() else []


def test_nothing_is_on_disk_before_the_first_write(journal: Journal) -> None:
    attempt = journal.open_attempt(make_lease())
    attempt.discard()
    attempt.close()
    assert list(journal.left_over()) == []
    assert not journal.folder.exists()


def test_reports_and_a_result_come_back_as_they_were(journal: Journal) -> None:
    attempt = journal.open_attempt(make_lease())
    assert attempt.reports(make_reports(0, 3))
    assert attempt.reports(make_reports(3, 5))
    assert attempt.result(RESULT, TIMING)
    attempt.close()
    (entry,) = journal.left_over()
    assert entry.lease == make_lease()
    assert list(entry.reports) == make_reports(0, 5)
    assert (entry.result, entry.failure, entry.timing) == (RESULT, None, TIMING)
    assert entry.done()
    assert files(journal) == []
    assert list(journal.left_over()) == []


def test_a_failure_comes_back_as_it_was(journal: Journal) -> None:
    attempt = journal.open_attempt(make_lease())
    assert attempt.failure(FAILURE, True, TIMING)
    attempt.close()
    (entry,) = journal.left_over()
    assert (entry.result, entry.failure, entry.process_killed, entry.timing) == (None, FAILURE, True, TIMING)
    assert isinstance(entry.failure, Failure)
    assert isinstance(entry.failure.cause, Cause)


def test_numbers_that_are_none_survive(journal: Journal) -> None:
    attempt = journal.open_attempt(make_lease())
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 5e-324, "e": 2**62}
    attempt.reports([Report(step=1, metrics=values)])
    attempt.close()
    (entry,) = journal.left_over()
    metrics = dict(entry.reports[0].metrics)
    assert math.isnan(metrics.pop("a"))
    assert metrics == {"b": math.inf, "c": -math.inf, "d": 5e-324, "e": 2**62}
    assert (entry.result, entry.failure) == (None, None)


def test_what_was_delivered_is_deleted_and_the_next_outage_starts_anew(journal: Journal) -> None:
    attempt = journal.open_attempt(make_lease())
    attempt.reports(make_reports(0, 3))
    attempt.discard()
    assert files(journal) == []
    attempt.reports(make_reports(3, 4))
    attempt.close()
    (entry,) = journal.left_over()
    assert [r.step for r in entry.reports] == [3]


def test_only_the_user_may_read_it(journal: Journal) -> None:
    attempt = journal.open_attempt(make_lease())
    attempt.result(RESULT)
    assert stat.S_IMODE(files(journal)[0].stat().st_mode) == 0o600
    assert stat.S_IMODE(journal.folder.stat().st_mode) == 0o700
    attempt.close()


def test_journals_of_two_stores_are_apart(tmp_path: Path) -> None:
    attempt = Journal(tmp_path, ADDRESS).open_attempt(make_lease())
    attempt.result(RESULT)
    attempt.close()
    assert list(Journal(tmp_path, "mongodb://elsewhere:27017/autotune").left_over()) == []
    assert len(list(Journal(tmp_path, ADDRESS).left_over())) == 1


@pytest.mark.parametrize("token", ["", "../../etc/passwd", "AB" * 16, "ab", "g" * 32, "ab" * 33, "ab" * 8 + "\n"])
def test_a_token_that_is_no_hex_never_becomes_a_file_name(journal: Journal, token: str) -> None:
    with pytest.raises(ValueError, match="hex digits"):
        journal.open_attempt(make_lease(token))


def test_nothing_is_kept_after_close(journal: Journal) -> None:
    attempt = journal.open_attempt(make_lease())
    attempt.close()
    assert not attempt.reports(make_reports(0, 1))
    assert not attempt.result(RESULT)
    assert files(journal) == []


def test_a_running_attempt_is_left_alone(journal: Journal, tmp_path: Path) -> None:
    attempt = journal.open_attempt(make_lease())
    attempt.reports(make_reports(0, 1))
    assert list(Journal(tmp_path, ADDRESS).left_over()) == []
    assert list(journal.left_over()) == []
    assert attempt.result(RESULT)
    attempt.close()


def test_an_entry_is_for_one_scanner_until_it_is_closed(journal: Journal, tmp_path: Path) -> None:
    other = Journal(tmp_path, ADDRESS)
    attempt = journal.open_attempt(make_lease())
    attempt.result(RESULT)
    attempt.close()
    (entry,) = journal.left_over()
    assert list(other.left_over()) == []
    entry.close()
    (again,) = other.left_over()
    assert again.done()
    assert not entry.done()
    assert list(journal.left_over()) == []


def test_a_lock_on_a_file_that_was_replaced_meanwhile_counts_for_nothing(journal: Journal) -> None:
    attempt = journal.open_attempt(make_lease())
    attempt.result(RESULT)
    attempt.close()
    (path,) = files(journal)
    slow = JournalFile(path, os.open(path, os.O_RDWR))
    (entry,) = journal.left_over()
    assert entry.done()
    assert not slow.lock()
    attempt = journal.open_attempt(make_lease())
    attempt.result(RESULT)
    assert not slow.lock()
    slow.release()
    attempt.close()


def test_many_scanners_at_once_get_each_entry_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path, ADDRESS)
    for number in range(40):
        attempt = journal.open_attempt(make_lease(f"{number:032x}", number))
        attempt.result(RESULT)
        attempt.close()
    got: list[int] = []
    begin = threading.Barrier(4)

    def scan() -> None:
        begin.wait(30)
        for entry in Journal(tmp_path, ADDRESS).left_over():
            got.append(entry.lease.number)
            assert entry.done()

    threads = [threading.Thread(target=scan) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(got) == list(range(40))


def test_writers_and_scanners_at_once_lose_nothing(tmp_path: Path) -> None:
    got: list[int] = []
    over = threading.Event()

    def scan() -> None:
        while not over.is_set():
            for entry in Journal(tmp_path, ADDRESS).left_over():
                assert entry.result == RESULT
                got.append(entry.lease.number)
                entry.done()

    thread = threading.Thread(target=scan)
    thread.start()
    try:
        journal = Journal(tmp_path, ADDRESS)
        for number in range(60):
            attempt = journal.open_attempt(make_lease(f"{number:032x}", number))
            assert attempt.reports(make_reports(0, 2))
            assert attempt.result(RESULT)
            attempt.close()
    finally:
        over.set()
        thread.join(60)
    got += [entry.lease.number for entry in Journal(tmp_path, ADDRESS).left_over()]
    assert sorted(got) == list(range(60))


def test_a_torn_file_gives_what_was_whole_at_every_offset(tmp_path: Path) -> None:
    journal = Journal(tmp_path, ADDRESS)
    attempt = journal.open_attempt(make_lease())
    attempt.reports(make_reports(0, 3))
    attempt.result(RESULT, TIMING)
    attempt.close()
    (path,) = files(journal)
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == 10]
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        whole = sum(end <= cut for end in ends)
        found = list(journal.left_over())
        assert len(found) == (whole >= 2)
        for entry in found:
            assert list(entry.reports) == make_reports(0, whole - 1)
            assert entry.result is None
            entry.close()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(), json_values, max_size=4), min_size=1, max_size=4), st.binary(max_size=40),
    st.data(),
)  # fmt: skip
def test_any_lines_come_back_and_any_tail_is_dropped(values: list[dict[str, Any]], junk: bytes, data: Any) -> None:
    content = b"".join(encode(value) for value in values)
    assert [value for _, value in decode(content)] == values
    assert [value for _, value in decode(content + junk)][: len(values)] == values
    cut = data.draw(st.integers(0, len(content)))
    whole = content[:cut].count(b"\n")
    assert [value for _, value in decode(content[:cut])] == values[:whole]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_byte_costs_its_lines_only(data: Any) -> None:
    values = [{"step": i, "metrics": {"loss": i / 3}} for i in range(4)]
    content = bytearray(b"".join(encode(value) for value in values))
    index = data.draw(st.integers(0, len(content) - 1))
    content[index] ^= data.draw(st.integers(1, 255))
    found = [value for _, value in decode(bytes(content))]
    assert all(value in values for value in found)
    assert len(found) >= 2


def test_junk_in_the_folder_is_deleted_or_passed_over(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    journal.folder.mkdir(parents=True)
    head = {"version": 1, "campaign": "c", "number": 1, "owner": "w", "token": "cd" * 16, "attempt": 0, "duration_s": 1}
    contents = {
        "ab" * 16: b"",
        "bc" * 16: b"\x00\xff" * 50,
        "cd" * 16: encode(head) + encode({"end": "result", "result": {"score": 1, "metrics": {}, "other": 2}}),
        "de" * 16: encode(head) + encode({"end": "result", "result": {"score": 1.0, "metrics": {}}}),
        "ef" * 16: encode({**head, "token": "ef" * 16}) + encode({"step": "one", "attempt": 0, "metrics": {}}),
    }
    for token, content in contents.items():
        (journal.folder / f"{token}.journal").write_bytes(content)
    (journal.folder / f"{'12' * 16}.tmp").write_bytes(encode(head))
    (journal.folder / "README").write_text("hands off")
    (journal.folder / f"{'34' * 16}.journal").write_bytes(encode({**head, "version": 2}))
    (journal.folder / f"{'45' * 16}.journal").symlink_to(journal.folder / "README")
    assert list(journal.left_over()) == []
    assert {path.name for path in files(journal)} == {"README", f"{'34' * 16}.journal", f"{'45' * 16}.journal"}
    assert [r.__dict__["action"] for r in caplog.records] == ["journal-damaged"] * 3


def test_too_old_files_are_thrown_away_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    attempt = Journal(tmp_path, ADDRESS).open_attempt(make_lease())
    attempt.result(RESULT)
    attempt.close()
    young = Journal(tmp_path, ADDRESS, clock=ManualClock(SystemClock().now() + timedelta(days=29)))
    for entry in young.left_over():
        entry.close()
    assert len(files(young)) == 1
    old = Journal(tmp_path, ADDRESS, clock=ManualClock(SystemClock().now() + timedelta(days=31)))
    assert list(old.left_over()) == []
    assert files(old) == []
    assert [r.__dict__["action"] for r in caplog.records] == ["journal-expired"]


def size(journal: Journal) -> int:
    return sum(path.stat().st_size for path in files(journal))


def test_a_full_journal_drops_its_oldest_reports(tmp_path: Path) -> None:
    journal = Journal(tmp_path, ADDRESS, max_bytes=20_000)
    attempt = journal.open_attempt(make_lease())
    for first in range(0, 2_000, 10):
        assert attempt.reports(make_reports(first, first + 10))
        assert size(journal) <= 20_000
    assert attempt.result(RESULT)
    attempt.close()
    (entry,) = journal.left_over()
    steps = [report.step for report in entry.reports]
    assert steps == list(range(steps[0], 2_000))
    assert len(steps) > 50
    assert entry.result == RESULT


def test_reports_of_the_dead_go_before_those_of_the_living(tmp_path: Path) -> None:
    journal = Journal(tmp_path, ADDRESS, max_bytes=20_000)
    for number, with_result in enumerate([False, True]):
        dead = journal.open_attempt(make_lease(f"{number:032x}", number))
        dead.reports(make_reports(0, 60))
        if with_result:
            dead.result(RESULT)
        dead.close()
    alive = journal.open_attempt(make_lease("ff" * 16, 9))
    for first in range(0, 200, 10):
        assert alive.reports(make_reports(first, first + 10))
    alive.close()
    found = {entry.lease.number: entry for entry in journal.left_over()}
    assert set(found) == {1, 9}
    assert (found[1].reports, found[1].result) == ((), RESULT)
    assert [r.step for r in found[9].reports] == list(range(200))


def test_the_attempt_with_the_most_reports_makes_room_for_the_others(tmp_path: Path) -> None:
    journal = Journal(tmp_path, ADDRESS, max_bytes=20_000)
    greedy, modest = journal.open_attempt(make_lease("aa" * 16)), journal.open_attempt(make_lease("bb" * 16))
    for first in range(0, 240, 20):
        greedy.reports(make_reports(first, first + 20))
    assert size(journal) > 14_000
    assert modest.reports(make_reports(0, 100))
    assert greedy.reports(make_reports(240, 241))
    greedy.close()
    modest.close()
    found = {entry.lease.token[:2]: [r.step for r in entry.reports] for entry in journal.left_over()}
    assert found["bb"] == list(range(100))
    assert found["aa"][-1] == 240
    assert found["aa"][0] > 0
    assert len(found["aa"]) > 50


def test_of_too_many_reports_at_once_the_latest_are_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path, ADDRESS, max_bytes=20_000)
    attempt = journal.open_attempt(make_lease())
    assert attempt.reports(make_reports(0, 2_000))
    attempt.close()
    (entry,) = journal.left_over()
    steps = [r.step for r in entry.reports]
    assert steps == list(range(steps[0], 2_000))
    assert 50 < len(steps) < 300


def test_results_and_failures_are_never_thrown_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path, ADDRESS, max_bytes=1_000)
    for number in range(20):
        attempt = journal.open_attempt(make_lease(f"{number:032x}", number))
        assert attempt.result(RESULT) if number % 2 else attempt.failure(FAILURE, False)
        attempt.close()
    late = journal.open_attempt(make_lease("ff" * 16, 99))
    assert not late.reports(make_reports(0, 1))
    assert not late.reports(make_reports(1, 2))
    late.close()
    assert [r.__dict__["action"] for r in caplog.records] == ["journal-failed"]
    found = list(journal.left_over())
    assert sorted(entry.lease.number for entry in found) == list(range(20))
    assert all((entry.result == RESULT) == bool(entry.lease.number % 2) for entry in found)


def test_only_the_latest_reports_are_kept(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_REPORTS", 10)
    attempt = journal.open_attempt(make_lease())
    for step in range(35):
        attempt.reports(make_reports(step, step + 1))
    attempt.close()
    (entry,) = journal.left_over()
    steps = [report.step for report in entry.reports]
    assert steps == list(range(steps[0], 35))
    assert 10 <= len(steps) < 20


def test_a_result_that_no_store_takes_is_refused(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    attempt = journal.open_attempt(make_lease())
    assert not attempt.result(Result(score=1.0, metrics={}, facts={"text": "x" * (17 * 2**20)}))
    assert "17.0 MB is too large; at most 16 MB" in caplog.text
    attempt.close()
    assert list(journal.left_over()) == []


def test_what_is_not_json_is_refused(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    attempt = journal.open_attempt(make_lease())
    assert not attempt.result(Result(score=1.0, metrics={}, facts={"a": object()}))
    assert "not plain JSON" in caplog.text
    assert attempt.result(RESULT)
    attempt.close()


class FullDisk:
    """Takes `free` bytes, then refuses, also in the middle of a write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 10**9
        self._real = os.pwrite
        monkeypatch.setattr(journal_files.os, "pwrite", self.pwrite)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        if not self.free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._real(fd, bytes(data)[: self.free], offset)
        self.free -= written
        return written


@pytest.mark.parametrize("free", [0, 1, 50, 100])
def test_a_full_disk_is_reported_and_goes_on_when_there_is_room(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: int
) -> None:
    disk = FullDisk(monkeypatch)
    attempt = journal.open_attempt(make_lease())
    assert attempt.reports(make_reports(0, 2))
    before = size(journal)
    disk.free = free
    assert not attempt.reports(make_reports(2, 100))
    assert size(journal) == before
    assert not attempt.reports(make_reports(2, 100))
    assert [r.__dict__["action"] for r in caplog.records] == ["journal-failed"]
    assert "No space left" in caplog.text
    disk.free = 10**9
    assert attempt.reports(make_reports(100, 102))
    attempt.close()
    (entry,) = journal.left_over()
    assert [r.step for r in entry.reports] == [0, 1, 100, 101]


def test_a_disk_that_is_full_from_the_start_leaves_nothing(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(monkeypatch)
    disk.free = 20
    attempt = journal.open_attempt(make_lease())
    assert not attempt.result(RESULT)
    assert files(journal) == []
    disk.free = 10**9
    assert attempt.result(RESULT)
    attempt.close()


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    attempt = Journal(tmp_path / "file", ADDRESS).open_attempt(make_lease())
    assert not attempt.result(RESULT)
    assert "cannot write to" in caplog.text
    attempt.close()
    assert list(Journal(tmp_path / "file", ADDRESS).left_over()) == []


PROGRAM = """
import resource, sys, threading
from pathlib import Path
from autotune.trial import Lease, Report, Result
from workers.journal import Journal

lease = Lease(campaign="c", number=3, owner="w-1", token="ab" * 16, attempt=2, duration_s=30.0)
attempt = Journal(Path(sys.argv[1]), sys.argv[2]).open_attempt(lease)
limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    done = [attempt.reports([Report(step=i, metrics={"loss": 1.0}, attempt=2)]) for i in range(100)]
    print(sum(done), attempt.result(Result(score=0.5, metrics={})), flush=True)
    attempt.close()
else:
    step = 0
    while True:
        assert attempt.reports([Report(step=step, metrics={"loss": 1.0}, attempt=2)])
        print(step, flush=True)
        step += 1
"""


def start(tmp_path: Path, limit: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path), ADDRESS, str(limit)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_on_a_full_disk_reports_make_room_for_the_result(tmp_path: Path) -> None:
    with start(tmp_path, 2_000) as program:
        out, _ = program.communicate(timeout=60)
    kept, result = out.split()
    assert 5 < int(kept) < 100
    assert result == "True"
    (entry,) = Journal(tmp_path, ADDRESS).left_over()
    assert entry.result == Result(score=0.5, metrics={})
    assert entry.reports == ()


@pytest.mark.parametrize("after", [1, 7, 40])
def test_a_killed_worker_leaves_all_that_it_said_was_safe(tmp_path: Path, after: int) -> None:
    journal = Journal(tmp_path, ADDRESS)
    with start(tmp_path, 0) as program:
        assert program.stdout is not None
        for _ in range(after):
            program.stdout.readline()
        assert list(journal.left_over()) == []  # it lives
        program.send_signal(signal.SIGKILL)
        said = after + len(program.stdout.read().splitlines())
        assert program.wait(30) == -signal.SIGKILL
    (entry,) = journal.left_over()
    steps = [report.step for report in entry.reports]
    assert steps == list(range(len(steps)))
    assert said <= len(steps) <= said + 1
    assert entry.done()
    assert files(journal) == []


def test_threads_of_one_attempt_write_whole_lines(journal: Journal) -> None:
    attempt = journal.open_attempt(make_lease())
    threads = [
        threading.Thread(target=lambda first=first: [attempt.reports(make_reports(i, i + 1)) for i in first])
        for first in (range(0, 20), range(20, 40), range(40, 60))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    attempt.close()
    (entry,) = journal.left_over()
    assert sorted(r.step for r in entry.reports) == list(range(60))

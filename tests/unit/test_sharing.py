"""A device is used by many or by one alone, across threads and processes; the dead hold nothing."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.errors import WorkerError
from workers.sharing import DeviceShare, Hold

DEVICE = "cuda:GPU-1"
DEADLINE_S = 30.0

PROGRAM = """
import sys, threading
from pathlib import Path
from workers.sharing import DeviceShare

share = DeviceShare(sys.argv[1], Path(sys.argv[2]))
if sys.argv[3] == "shared":
    hold = share.try_shared()
else:
    print("waits", flush=True)
    hold = share.alone(threading.Event())
print("holds" if hold else "none", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def share(tmp_path: Path) -> DeviceShare:
    return DeviceShare(DEVICE, tmp_path)


class Processes:
    """Other workers of this host."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(self, kind: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, DEVICE, str(self._folder), kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.started.append(process)
        return process


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()


def until(condition: object, what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline_s, what
        time.sleep(0.005)


def held(hold: Hold | None) -> Hold:
    assert hold is not None
    return hold


def refuses(share: DeviceShare) -> bool:
    hold = share.try_shared()
    if hold is not None:
        hold.release()
    return hold is None


class Alone:
    """A thread that wants the device alone."""

    def __init__(self, share: DeviceShare) -> None:
        self.stop = threading.Event()
        self.interrupted = False
        self.hold: Hold | None = None
        self.thread = threading.Thread(target=self._run, args=(share,))
        self.thread.start()

    def _run(self, share: DeviceShare) -> None:
        self.hold = share.alone(self.stop, lambda: self.interrupted)

    def join(self) -> None:
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()


def test_many_share_and_one_alone_shuts_all_out(share: DeviceShare) -> None:
    one, two = held(share.try_shared()), held(share.shared(threading.Event()))
    assert not one.alone
    one.release()
    two.release()
    with held(share.alone(threading.Event())) as alone:
        assert alone.alone
        assert refuses(share)
    assert not refuses(share)


def test_devices_do_not_mind_each_other(share: DeviceShare, tmp_path: Path) -> None:
    with held(share.alone(threading.Event())):
        assert not refuses(DeviceShare("cpu", tmp_path))


def test_alone_waits_for_the_others_and_lets_nobody_new_pass(share: DeviceShare) -> None:
    one, two = held(share.try_shared()), held(share.try_shared())
    alone = Alone(share)
    until(lambda: refuses(share), "the gate was not closed")
    one.release()
    assert refuses(share)
    assert alone.thread.is_alive()
    two.release()
    alone.join()
    assert refuses(share)
    held(alone.hold).release()
    assert not refuses(share)


@pytest.mark.parametrize("how", ["stop", "interrupt"])
def test_who_gives_up_opens_the_gate_again(share: DeviceShare, how: str) -> None:
    with held(share.try_shared()):
        alone = Alone(share)
        until(lambda: refuses(share), "the gate was not closed")
        if how == "stop":
            alone.stop.set()
        else:
            alone.interrupted = True
        alone.join()
        assert alone.hold is None
        assert not refuses(share)


def test_nobody_waits_after_a_stop(share: DeviceShare) -> None:
    stop = threading.Event()
    stop.set()
    assert share.shared(stop) is None
    assert share.alone(stop) is None
    assert share.alone(threading.Event(), lambda: True) is None
    with held(share.alone(threading.Event())):
        waiting = threading.Event()
        thread = threading.Thread(target=lambda: share.shared(waiting))
        thread.start()
        waiting.set()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_a_release_counts_once(share: DeviceShare) -> None:
    one, two = held(share.try_shared()), held(share.try_shared())
    one.release()
    one.release()
    alone = Alone(share)
    until(lambda: refuses(share), "the gate was not closed")
    assert alone.thread.is_alive()
    two.release()
    alone.join()
    held(alone.hold).release()


def test_alone_is_not_starved_by_ever_new_users(share: DeviceShare) -> None:
    over = threading.Event()

    def use() -> None:
        while not over.is_set():
            hold = share.shared(over)
            if hold is not None:
                with hold:
                    over.wait(0.002)

    users = [threading.Thread(target=use) for _ in range(8)]
    for user in users:
        user.start()
    try:
        for _ in range(3):
            alone = Alone(share)
            alone.join()
            held(alone.hold).release()
    finally:
        over.set()
        for user in users:
            user.join(DEADLINE_S)


def test_no_two_are_alone_and_none_beside_one(share: DeviceShare) -> None:
    inside: list[str] = []
    wrong: list[list[str]] = []
    lock = threading.Lock()
    never = threading.Event()

    def work(kind: str) -> None:
        for _ in range(10):
            with held(share.alone(never) if kind == "alone" else share.shared(never)):
                with lock:
                    inside.append(kind)
                    if "alone" in inside and len(inside) > 1:
                        wrong.append(list(inside))
                time.sleep(0.001)
                with lock:
                    inside.remove(kind)

    threads = [threading.Thread(target=work, args=(kind,)) for kind in ("alone", "alone", "shared", "shared", "shared")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_a_killed_shared_user_holds_nothing(share: DeviceShare, processes: Processes) -> None:
    other = processes.start("shared")
    assert line(other) == "holds"
    alone = Alone(share)
    until(lambda: refuses(share), "the gate was not closed")
    assert alone.hold is None
    other.send_signal(signal.SIGKILL)
    alone.join()
    held(alone.hold).release()


def test_one_killed_alone_holds_nothing(share: DeviceShare, processes: Processes) -> None:
    other = processes.start("alone")
    assert [line(other), line(other)] == ["waits", "holds"]
    assert refuses(share)
    other.send_signal(signal.SIGKILL)
    held(share.shared(threading.Event())).release()
    held(share.alone(threading.Event())).release()


def test_one_killed_while_it_waits_opens_the_gate(share: DeviceShare, processes: Processes) -> None:
    with held(share.try_shared()):
        other = processes.start("alone")
        assert line(other) == "waits"
        until(lambda: refuses(share), "the gate was not closed")
        other.send_signal(signal.SIGKILL)
        held(share.shared(threading.Event())).release()


def test_a_program_that_was_started_meanwhile_keeps_no_lock(share: DeviceShare) -> None:
    hold = held(share.alone(threading.Event()))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False) as program:
        hold.release()
        assert not refuses(share)
        program.communicate(b"\n")


def test_lock_files_are_the_users_own(share: DeviceShare, tmp_path: Path) -> None:
    nested = DeviceShare("cuda:GPU-../../x", tmp_path / "devices")
    held(nested.try_shared()).release()
    assert stat.S_IMODE((tmp_path / "devices").stat().st_mode) == 0o700
    names = [path.name for path in (tmp_path / "devices").iterdir()]
    assert len(names) == 2
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (tmp_path / "devices").iterdir())


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkerError, match="AUTOTUNE_HOME"):
        DeviceShare("cpu", tmp_path / "file").try_shared()

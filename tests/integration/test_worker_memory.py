"""Trials that run out of memory are tried again once, alone on their device; with real processes."""

from __future__ import annotations

import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from autotune import home
from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState, Trial, TrialState
from tests.objectives.support import (
    ENDINGS,
    QUICK_LEASE,
    ROOT,
    assert_exact,
    coordinating,
    process,
    process_of,
    run_out,
    wait_until,
    worker_command,
    working,
)
from workers.sharing import DeviceShare

Launch = Callable[..., CampaignRecord]

CGROUP = Path("/sys/fs/cgroup/memory")
LIMIT_BYTES = 64 * 2**20


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def launch(make_campaign: Callable[..., CampaignRecord], tmp_path: Path) -> Launch:
    """Writes a campaign whose trials all do one of the things in `endings`."""

    def write(do: str, *, hungry: list[int] | None = None, **changes: Any) -> CampaignRecord:
        fixed = {"do": do, "folder": str(tmp_path), "hungry": hungry or [], "group": changes.pop("group", ""),
                 "together": changes.pop("together", 0)}  # fmt: skip
        settings = {"objective": f"{ENDINGS}:chosen", "fixed": fixed, "search": {"algorithm": "random", "seed": 0}}
        return make_campaign(**{**settings, **changes})

    return write


def wait_for_campaign(store: MongoStore, state: CampaignState) -> None:
    wait_until(lambda: store.campaigns.get("demo").state is state, f"campaign {state}", 60)


def causes(trial: Trial) -> list[str | None]:
    return [a.cause for a in trial.attempts]


def spans(folder: Path) -> dict[tuple[int, int], tuple[float, float]]:
    """Return (trial, attempt) -> when it began and ended."""
    found = {}
    for file in folder.glob("span-*"):
        _, number, attempt = file.name.split("-")
        began_s, ended_s = map(float, file.read_text().split())
        found[int(number), int(attempt)] = (began_s, ended_s)
    return found


def beside(folder: Path, number: int, attempt: int) -> list[tuple[int, int]]:
    """Return what ran at the same time as an attempt."""
    found = spans(folder)
    began_s, ended_s = found.pop((number, attempt))
    return [who for who, (b, e) in found.items() if b < ended_s and e > began_s]


@pytest.mark.parametrize(("workers", "slots"), [(1, 3), (2, 2)])
def test_second_try_has_the_device_for_itself(
    store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path, workers: int, slots: int
) -> None:
    """Also where two of them wait for it at once, and others train in another worker process of the host."""
    together = workers * slots
    launch("hungry_first", hungry=[1, 2], together=together, max_trials=20)

    def propose(numbers: range) -> None:
        for number in numbers:
            store.trials.propose("demo", number, {"x": number / 10}, f"hash-{number}", seed=number)

    command = worker_command("--once", "--campaign", "demo", "--slots-per-device", str(slots), "--allow-mismatch")
    with ExitStack() as stack:
        for index in range(workers):
            stack.enter_context(process(command, store_uri, tmp_path / f"{index}.log"))
        wait_until(lambda: len(store.workers.live("demo")) == workers, "the workers", 60)
        propose(range(together))
        for number in range(together):  # each slot has one
            process_of(tmp_path / f"running-{number}-0")
        propose(range(together, 10))
        (tmp_path / "go").touch()
        wait_until(lambda: all(store.trials.get("demo", n).state is TrialState.FINISHED for n in (1, 2)), "both", 60)
        propose(range(10, 20))
        with coordinating(store):
            wait_for_campaign(store, CampaignState.FINISHED)
    trials = assert_exact(store, 20)
    assert [causes(t) for t in trials[1:3]] == [["out-of-memory", None]] * 2
    assert {t.number: t.claims for t in trials if t.claims > 1} == {1: 2, 2: 2}
    assert len({a.owner for t in trials for a in t.attempts}) == workers
    for number in (1, 2):
        assert beside(tmp_path, number, 1) == []
    together = [who for who in spans(tmp_path) if beside(tmp_path, *who)]
    assert len(together) > 5  # the others did run at the same time, so that means something


def test_out_of_memory_again_fails(store: MongoStore, launch: Launch) -> None:
    launch("hungry_always", hungry=[0, 2], max_trials=6)
    with coordinating(store), working(store, 2):
        wait_for_campaign(store, CampaignState.FINISHED)
    trials = store.trials.find("demo")
    failed = [t for t in trials if t.state is TrialState.FAILED]
    assert [t.number for t in failed] == [0, 2]
    for trial in failed:
        assert causes(trial) == ["out-of-memory", "out-of-memory"]
        assert trial.attempts[1].message == "MemoryError: too much"
        assert trial.ends == {"out-of-memory": 2}
    assert [causes(t) for t in trials if t not in failed] == [[None]] * 4


def test_stop_while_it_waits_for_the_device_gives_it_back(
    store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path
) -> None:
    launch("holds_beside_hungry", max_trials=3)
    command = worker_command("--slots-per-device", "2", "--grace", "0", "--allow-mismatch")
    with coordinating(store), process(command, store_uri, tmp_path / "log") as worker:
        process_of(tmp_path / "running-0-0")
        waits(store)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
        assert not (tmp_path / "running-1-1").exists()
        trial = store.trials.get("demo", 1)
        assert (trial.state, causes(trial)) == (TrialState.QUEUED, ["out-of-memory", "preempted"])
        assert trial.alone
        (tmp_path / "go").touch()
        with process(command, store_uri, tmp_path / "log"):
            wait_for_campaign(store, CampaignState.FINISHED)
    assert causes(assert_exact(store, 3)[1]) == ["out-of-memory", "preempted", None]
    assert beside(tmp_path, 1, 2) == []


def test_killed_worker_that_waited_for_the_device_blocks_nobody(
    store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path
) -> None:
    launch("holds_beside_hungry", max_trials=4, lease=QUICK_LEASE)
    share = DeviceShare("cpu", home.home() / "hosts" / socket.gethostname() / "devices")
    command = worker_command("--allow-mismatch")
    with coordinating(store), process(command, store_uri, tmp_path / "first.log") as holder:
        process_of(tmp_path / "running-0-0")
        with process(command, store_uri, tmp_path / "second.log") as waiting:
            second = waits(store)
            assert store.trials.get("demo", 0).attempts[0].owner != second.attempts[1].owner
            wait_until(lambda: not is_free(share), "that it waits for the device")
            waiting.kill()
            waiting.wait()
        run_out(store, 1)
        wait_until(lambda: is_free(share), "that others may use the device")
        (tmp_path / "go").touch()
        wait_for_campaign(store, CampaignState.FINISHED)
        assert holder.poll() is None
    trials = assert_exact(store, 4)
    assert causes(trials[1]) == ["out-of-memory", "lost", None]
    assert beside(tmp_path, 1, 2) == []


def is_free(share: DeviceShare) -> bool:
    hold = share.try_shared()
    if hold is not None:
        hold.release()
    return hold is not None


def waits(store: MongoStore) -> Trial:
    """Wait until trial 1 has been claimed for the second time, and return it."""
    return wait_until(  # type: ignore[no-any-return]
        lambda: next((t for t in store.trials.heads("demo") if t.number == 1 and t.claims == 2 and t.lease), None),
        "second claim of trial 1",
    )


def test_limit_of_the_address_space(store: MongoStore, launch: Launch) -> None:
    launch("address_space", max_trials=1)
    with coordinating(store), working(store):
        wait_for_campaign(store, CampaignState.FINISHED)
    assert causes(assert_exact(store, 1)[0]) == ["out-of-memory", None]


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group whose processes may use 64 MB; skipped where none can be made."""
    group = CGROUP / f"autotune-test-{secrets.token_hex(4)}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("cannot make a control group for memory here")
    try:
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
        swap = group / "memory.memsw.limit_in_bytes"
        if swap.exists():
            swap.write_text(str(LIMIT_BYTES))
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "end of the processes in the group")
        os.rmdir(group)


def test_kill_by_the_kernel_for_lack_of_memory(store: MongoStore, launch: Launch, small_group: Path) -> None:
    launch("killed_for_memory", max_trials=1, group=str(small_group))
    with coordinating(store), working(store):
        wait_for_campaign(store, CampaignState.FINISHED)
    first, second = assert_exact(store, 1)[0].attempts
    assert (first.cause, second.cause) == ("out-of-memory", None)
    assert first.message == "the kernel killed the training process: the host ran out of memory"
    assert store.trials.get("demo", 0).attempts[0].exit_code == -signal.SIGKILL

"""The fork server and its children: real processes that end in every way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import WorkerError
from tests.objectives.support import ENDINGS, ROOT, alive, wait_for_end, wait_until
from workers import training
from workers.channel import Message
from workers.children import Children
from workers.server_process import ServerProcess
from workers.training import Child

MakeChildren = Callable[..., Children]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeChildren]:
    made: list[Children] = []

    def start(objective: str = f"{ENDINGS}:chosen") -> Children:
        children = Children({"name": "demo", "objective": objective}, tmp_path / "logs")
        made.append(children)
        children.start(threading.Event())
        return children

    yield start
    for children in made:
        pid = children.server_pid
        children.stop()
        if pid is not None:
            wait_for_end([pid])
    assert not list((tmp_path / "logs").glob("*"))


def spawn(children: Children, name: str = "square", folder: Path | None = None, **changes: Any) -> Child:
    """Start a child for one of the functions in `endings`, or for another objective that the server has loaded."""
    params = {"x": 2.0, "folder": str(folder or ""), "do": name}
    spec = {"name": "demo", "objective": name if ":" in name else f"{ENDINGS}:chosen"}
    trial = {"params": params, "number": 0, "attempt": 0, "threads": 1, **changes}
    request = {"spec": spec, "metric": {"name": "loss", "mode": "min"}, "trial": trial}
    return children.spawn(request, {"CUDA_VISIBLE_DEVICES": "GPU-1"})


def last_message(child: Child) -> Message | None:
    """Read to the child's last message or its end."""
    while (message := child.channel.receive(30)) is not None and "report" in message:
        pass
    return message


def run(children: Children, name: str, folder: Path | None = None, **changes: Any) -> tuple[Message | None, Child]:
    child = spawn(children, name, folder, **changes)
    try:
        message = last_message(child)
        assert child.ended.wait(30)
    finally:
        child.close()
    return message, child


def test_result(make: MakeChildren) -> None:
    children = make()
    message, child = run(children, "square")
    assert message is not None
    assert message["result"] == {"score": 4.0, "metrics": {"loss": {"value": 4.0}}, "facts": {}}
    assert {"load_s", "run_s"} <= message["timing"].keys()
    assert child.status == 0
    assert child.peak_rss_kb is not None
    assert not child.log.exists()


def test_objective_is_loaded_in_the_fork_server(make: MakeChildren) -> None:
    children = make()
    message, child = run(children, "loaded_by")
    assert message is not None
    assert int(message["result"]["facts"]["importer"]) == children.server_pid != child.pid


def test_slot_is_seen_by_the_child(make: MakeChildren) -> None:
    message, _ = run(make(), "environment", threads=3, device="cuda:0")
    assert message is not None
    facts = message["result"]["facts"]
    assert facts["seen"] == {
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
    }
    assert facts["device"] == "cuda:0"


def test_loaded_libraries_keep_to_the_threads_of_the_slot(make: MakeChildren) -> None:
    pytest.importorskip("threadpoolctl")
    children = make("tests.objectives.numeric:pools")
    for threads in (1, 2):
        message, _ = run(children, "tests.objectives.numeric:pools", threads=threads)
        assert message is not None
        assert set(message["result"]["facts"]["pools"]) == {threads}


@pytest.mark.parametrize(
    ("name", "cause", "text"),
    [
        ("fails", "error", "ValueError: no such thing"),
        ("exits", "error", "SystemExit: 3"),
        ("not_a_number", "not-a-number", "FloatingPointError: loss is nan"),
        ("bad_text", "error", "OSError: cannot read f?"),
        ("huge_fact", "error", "64 bits as 'count'"),
        ("cancelled", "error", "CancelledError"),
    ],
)
def test_failure_has_cause_message_and_traceback(make: MakeChildren, name: str, cause: str, text: str) -> None:
    message, child = run(make(), name)
    assert message is not None
    assert message["failed"]["cause"] == cause
    assert text in message["failed"]["message"]
    assert "Traceback" in message["failed"]["traceback"]
    assert child.status == 1


@pytest.mark.parametrize(
    ("name", "status"),
    [("exits_hard", 9), ("segfaults", -signal.SIGSEGV), ("killed", -signal.SIGKILL), ("terminated", -signal.SIGTERM)],
)
def test_death_without_a_word(make: MakeChildren, name: str, status: int) -> None:
    children = make()
    message, child = run(children, name)
    assert message is None
    assert child.status == status
    after, _ = run(children, "square")
    assert after is not None  # the server lives on


@pytest.mark.parametrize(("name", "status"), [("hangs", -signal.SIGTERM), ("hangs_deaf", -signal.SIGKILL)])
def test_terminate(make: MakeChildren, tmp_path: Path, name: str, status: int) -> None:
    child = spawn(make(), name, tmp_path)
    wait_until((tmp_path / "running-0-0").exists, "start of the trial")
    child.terminate(0.3)
    assert child.ended.wait(10)
    assert child.status == status
    child.terminate(0.3)  # nothing happens twice
    child.close()


def test_a_child_that_nobody_reads_any_more_ends(make: MakeChildren, tmp_path: Path) -> None:
    child = spawn(make(), "hangs", tmp_path)
    wait_until((tmp_path / "running-0-0").exists, "start of the trial")
    child.close()
    assert child.ended.wait(10)
    assert child.status == 71


@pytest.mark.parametrize("end", ["terminate", "kill the child"])
def test_family_ends_with_its_trial(make: MakeChildren, tmp_path: Path, end: str) -> None:
    child = spawn(make(), "family", tmp_path)
    wait_until((tmp_path / "running-0-0").exists, "start of the trial")
    family = [int(pid) for pid in (tmp_path / "family").read_text().split()]
    assert all(alive(pid) for pid in family)
    assert child.pid is not None
    if end == "terminate":
        child.terminate(3)
    else:
        os.kill(child.pid, signal.SIGKILL)
    assert child.ended.wait(10)
    wait_for_end(family)
    child.close()


def test_family_of_a_trial_that_returned_ends(make: MakeChildren, tmp_path: Path) -> None:
    message, _ = run(make(), "leaves_family", tmp_path)
    assert message is not None
    assert message["result"]["score"] == 1.0
    wait_for_end([int(pid) for pid in (tmp_path / "family").read_text().split()])


def test_log_tail_is_the_end_of_what_was_printed(make: MakeChildren) -> None:
    child = spawn(make(), "prints_much")
    message = last_message(child)
    assert message is not None
    assert "after much talk" in message["failed"]["message"]
    assert child.ended.wait(10)
    tail = child.log_tail()
    assert tail.endswith("the last line")
    assert 1_000 < len(tail) <= training.LOG_CHARS
    child.close()


def test_log_on_disk_is_bounded(make: MakeChildren, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOG_LIMIT", 500_000)
    child = spawn(make(), "prints_much", tmp_path)

    def trimmed_to_its_end() -> bool:
        child.trim_log()
        return (tmp_path / "running-0-0").exists()

    wait_until(trimmed_to_its_end, "end of the printing")
    child.trim_log()
    assert child.log.stat().st_size <= 500_000
    (tmp_path / "go").touch()
    assert child.ended.wait(30)
    assert child.log_tail().endswith("x\nthe last line")
    child.close()


def test_cut_log_still_shows_what_came_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOG_LIMIT", 100)
    child = Child(channel=None, log=tmp_path / "log")  # type: ignore[arg-type]
    child.log.write_text("a\n" * 10_000 + "before\n")
    child.trim_log()
    assert child.log.stat().st_size == 0
    with open(child.log, "a") as file:
        file.write("after\n")
    assert child.log_tail().endswith("a\nbefore\nafter")


def test_log_that_is_no_text(make: MakeChildren) -> None:
    child = spawn(make(), "prints_bytes")
    last_message(child)
    assert child.ended.wait(10)
    assert child.log_tail() == "caf� ��"
    child.close()


def test_killed_server_takes_its_children_along_and_is_started_again(make: MakeChildren, tmp_path: Path) -> None:
    children = make()
    child = spawn(children, "family", tmp_path)
    wait_until((tmp_path / "running-0-0").exists, "start of the trial")
    pid, _, group, _ = (child.pid, *map(int, (tmp_path / "family").read_text().split()))
    server = children.server_pid
    assert pid is not None
    assert server is not None
    os.kill(server, signal.SIGKILL)
    assert child.ended.wait(10)
    assert child.status is None
    assert last_message(child) is None
    wait_for_end([pid, server, group])
    child.close()
    with pytest.raises(WorkerError, match="the fork server is gone"):
        spawn(children)
    children.start(threading.Event())
    assert children.server_pid != server
    message, _ = run(children, "square")
    assert message is not None
    os.kill(int((tmp_path / "family").read_text().split()[2]), signal.SIGKILL)  # in a session of its own: nobody's now


def test_children_of_a_new_server_do_not_die_with_the_old(make: MakeChildren, tmp_path: Path) -> None:
    children = make()
    for round_number in range(5):
        server = children.server_pid
        assert server is not None
        os.kill(server, signal.SIGKILL)
        wait_for_end([server])
        children.start(threading.Event())
        message, child = run(children, "square", number=round_number)
        assert message is not None
        assert child.status == 0


def test_server_that_another_thread_is_about_to_reap_is_dead(tmp_path: Path) -> None:
    """`Popen.poll` says of a dead process that it runs while another thread is in `Popen.wait`."""
    server = ServerProcess(None, tmp_path / "logs")
    assert server.answer(threading.Event())["ready"]
    assert server.alive
    with server._process._waitpid_lock:  # type: ignore[attr-defined]  # the listener cannot reap it yet
        os.kill(server.pid, signal.SIGKILL)
        wait_for_end([server.pid])
        assert not server.alive
    server.stop()
    assert not server.alive


def test_stuck_server_is_replaced(make: MakeChildren, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.server_process.SPAWN_TIMEOUT_S", 0.3)
    children = make()
    server = children.server_pid
    assert server is not None
    os.kill(server, signal.SIGSTOP)
    with pytest.raises(WorkerError, match="the fork server is gone"):
        spawn(children)
    wait_for_end([server])
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    children.start(threading.Event())
    message, _ = run(children, "square")
    assert message is not None


def test_module_that_appears_later(make: MakeChildren, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
    children = make("comes_later:f")
    server = children.server_pid
    message, _ = run(children, "comes_later:f")
    assert message is not None
    assert "cannot import the objective 'comes_later:f'" in message["failed"]["message"]
    assert "ModuleNotFoundError" in message["failed"]["traceback"]
    (tmp_path / "comes_later.py").write_text("def f(trial):\n    return 1.0\n")
    message, _ = run(children, "comes_later:f")
    assert message is not None
    assert message["result"]["score"] == 1.0
    assert children.server_pid == server


def test_module_without_the_function(make: MakeChildren) -> None:
    message, _ = run(make(f"{ENDINGS}:missing"), f"{ENDINGS}:missing")
    assert message is not None
    assert message["failed"]["message"] == f"module '{ENDINGS}' has no callable 'missing'"


def test_module_with_an_error(make: MakeChildren, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
    (tmp_path / "broken_module.py").write_text("import sys\nsys.exit(7)\n")
    message, _ = run(make("broken_module:f"), "broken_module:f")
    assert message is not None
    assert "SystemExit: 7" in message["failed"]["message"]
    assert "broken_module.py" in message["failed"]["traceback"]


def test_module_that_starts_a_thread_is_not_loaded_in_the_server(
    make: MakeChildren, caplog: pytest.LogCaptureFixture
) -> None:
    children = make("tests.objectives.threaded:square")
    assert "left threads: stray" in caplog.text
    message, _ = run(children, "tests.objectives.threaded:square")
    assert message is not None
    assert message["result"]["score"] == 4.0


def test_stop_does_not_wait_for_a_slow_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOW_IMPORT_FOLDER", str(tmp_path))
    children = Children({"name": "demo", "objective": "tests.objectives.slow_import:square"}, tmp_path / "logs")
    stop, errors = threading.Event(), []

    def start() -> None:
        try:
            children.start(stop)
        except WorkerError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until((tmp_path / "loading").exists, "start of the import")
    stop.set()
    for thread in threads:
        thread.join(5)
    assert errors == ["the worker was stopped before the fork server was ready"] * 2
    wait_for_end([int((tmp_path / "loading").read_text())])
    children.stop()


AGENT = """
import sys, threading
from pathlib import Path
from tests.integration.test_children import spawn
from workers.children import Children
folder = Path(sys.argv[1])
children = Children({"name": "demo", "objective": sys.argv[2]}, folder / "logs")
children.start(threading.Event())
spawn(children, "family", folder)
threading.Event().wait()
"""


@pytest.mark.parametrize("moment", ["while loading", "while training"])
def test_killed_agent_leaves_nothing_running(tmp_path: Path, moment: str) -> None:
    objective = f"{ENDINGS}:chosen" if moment == "while training" else "tests.objectives.slow_import:square"
    environment = {**os.environ, "SLOW_IMPORT_FOLDER": str(tmp_path)}
    agent = subprocess.Popen([sys.executable, "-c", AGENT, str(tmp_path), objective], env=environment, cwd=ROOT)
    try:
        file = tmp_path / ("running-0-0" if moment == "while training" else "loading")
        wait_until(lambda: file.exists() and file.read_text(), f"the file {file.name}")
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
        pids = [int(file.read_text()), *map(int, children.read_text().split())]
        if moment == "while training":
            pids += [int(pid) for pid in (tmp_path / "family").read_text().split()]
    finally:
        agent.kill()
        agent.wait()
    wait_for_end(pids)


FIFTY = """
import os, sys, threading
from pathlib import Path
from tests.integration.test_children import run
from tests.objectives.support import wait_until
from workers.children import Children
children = Children({"name": "demo", "objective": sys.argv[2]}, Path(sys.argv[1]))
children.start(threading.Event())
run(children, "square")

def count():
    server = Path(f"/proc/{children.server_pid}/fd")
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(os.listdir(server))

before, opened = count(), set()
for number in range(50):
    message, _ = run(children, "environment", number=number)
    opened.add(message["result"]["metrics"]["open"]["value"])
wait_until(lambda: count() == before, f"descriptors and threads as before, {before}, not {count()}")
assert len(opened) == 1, opened
children.stop()
print("done")
"""


def test_fifty_children_leave_no_descriptors_and_no_threads(tmp_path: Path) -> None:
    """Counted in a process in which nothing else comes and goes."""
    command = [sys.executable, "-c", FIFTY, str(tmp_path), f"{ENDINGS}:chosen"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "done\n", done.stderr


def test_many_children_at_once(make: MakeChildren, tmp_path: Path) -> None:
    children = make()
    started = [spawn(children, "holds", tmp_path, number=n) for n in range(12)]
    wait_until(lambda: len(list(tmp_path.glob("running-*"))) == 12, "start of twelve trials")
    (tmp_path / "go").touch()
    for child in started:
        message = last_message(child)
        assert message is not None
        assert message["result"]["score"] == 4.0
        assert child.ended.wait(10)
        child.close()


def test_large_requests_from_two_slots(make: MakeChildren) -> None:
    children = make()
    scores: list[float] = []

    def train() -> None:
        for _ in range(5):
            message, _ = run(children, "square", campaign="x" * 300_000)
            scores.append(message["result"]["score"] if message else 0.0)

    threads = [threading.Thread(target=train) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert scores == [4.0] * 10


def test_server_helpers_outlive_trials(make: MakeChildren, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
    (tmp_path / "with_helper.py").write_text(
        "import subprocess, sys\n"
        "helper = subprocess.Popen([sys.executable, '-c', 'import threading; threading.Event().wait()'])\n"
        "def f(trial):\n    return float(helper.pid)\n"
    )
    children = make("with_helper:f")
    for _ in range(2):
        message, _ = run(children, "with_helper:f")
        assert message is not None
        helper = int(message["result"]["score"])
        assert alive(helper)
    os.kill(helper, signal.SIGKILL)

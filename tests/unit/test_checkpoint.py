"""Checkpoints on a worker's host: whole or not at all; when one is wanted, and what its end means."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autotune.errors import DataError
from workers.checkpoints import folder as folders
from workers.checkpoints.folder import latest, publish, tidy, verified
from workers.checkpoints.keeper import Keeper
from workers.reporting import NoCheckpoint, Trial, TrialStopped

ROOT = Path(__file__).parents[2]


def writing(**files: str) -> Callable[[Path], None]:
    """Return a writer of files: name -> text; ``__`` in a name stands for a folder."""

    def write(folder: Path) -> None:
        for name, text in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    return write


def test_what_was_written_is_found(tmp_path: Path) -> None:
    saved = publish(tmp_path / "a", 3, writing(state="x", deep__er="y"))
    assert latest(tmp_path / "a") == verified(saved.folder) == saved
    assert (saved.step, (saved.files / "deep" / "er").read_text()) == (3, "y")
    manifest = json.loads((saved.folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {"state", "deep/er"}


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    for step in (9, 10):
        publish(tmp_path, step, writing(state=str(step)))
    assert os.listdir(tmp_path) == ["step-10"]
    publish(tmp_path, 10, writing(state="again"))
    saved = latest(tmp_path)
    assert saved is not None
    assert (saved.files / "state").read_text() == "again"
    assert os.listdir(tmp_path) == ["step-10"]


def test_a_writer_that_fails_leaves_the_older_one(tmp_path: Path) -> None:
    kept = publish(tmp_path, 1, writing(state="x"))

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        publish(tmp_path, 2, fail)
    assert os.listdir(tmp_path) == ["step-1"]
    assert verified(kept.folder) == kept


def test_links_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="link in a checkpoint is no regular file"):
        publish(tmp_path, 1, lambda folder: (folder / "link").symlink_to("/etc/hostname"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "files" / "state").write_text("y"), "state is not as it was written"),
        (lambda f: (f / "files" / "state").unlink(), "state is not as it was written"),
        (lambda f: (f / "files" / "more").write_text("y"), "more is not as it was written"),
        (lambda f: (f / "manifest.json").unlink(), "not readable"),
        (lambda f: (f / "manifest.json").write_text("[]"), "not readable"),
        (lambda f: (f / "manifest.json").write_text('{"format": 99, "files": {}, "step": 1}'), "format 99"),
    ],
)
def test_damage_is_seen(tmp_path: Path, damage: Callable[[Path], object], says: str) -> None:
    saved = publish(tmp_path / "a", 1, writing(state="x"))
    damage(saved.folder)
    with pytest.raises(DataError, match=says):
        verified(saved.folder)
    assert Keeper(tmp_path / "b", earlier=saved.folder).load() is None


KILLED = """
import sys
from pathlib import Path
from workers.checkpoints.folder import publish
root = Path(sys.argv[1])
step = 0
while True:
    step += 1
    publish(root, step, lambda folder: [(folder / str(n)).write_bytes(bytes([step % 256]) * 5000) for n in range(20)])
    print(step, flush=True)
"""


@pytest.mark.parametrize("after", [1, 7, 20])
def test_a_killed_writer_leaves_a_whole_one(tmp_path: Path, after: int) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert writer.stdout is not None
    try:
        for _ in range(after):
            assert writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        told = [after, *(int(line) for line in writer.stdout)]
    finally:
        writer.kill()
        writer.communicate()
    saved = latest(tmp_path)
    assert saved is not None
    assert saved.step in (told[-1], told[-1] + 1)
    assert verified(saved.folder) == saved
    tidy(tmp_path, keep=saved.folder)
    assert os.listdir(tmp_path) == [saved.folder.name]


def test_nothing_to_load_at_a_first_attempt(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "never made")
    assert keeper.load() is None
    assert not keeper.wanted(1)
    assert not (tmp_path / "never made").exists()


@pytest.mark.parametrize(("every", "steps"), [(None, []), (1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4])])
def test_wanted_every_so_many_steps(tmp_path: Path, every: int | None, steps: list[int]) -> None:
    keeper, saved = Keeper(tmp_path, every=every), list[int]()
    for step in range(1, 7):
        keeper.reported(step)
        if keeper.wanted(step):
            keeper.save(step, writing(state="x"))
            saved.append(step)
    assert saved == steps


def test_steps_since_the_earlier_attempt_count(tmp_path: Path) -> None:
    earlier = publish(tmp_path / "a", 5, writing(state="x"))
    keeper = Keeper(tmp_path / "b", earlier=earlier.folder, every=3)
    assert keeper.load() == earlier.files
    assert [step for step in range(6, 10) if keeper.wanted(step)] == [8, 9]


@pytest.mark.parametrize("target", [4, 5])
def test_a_trial_that_was_lost_at_its_target_is_paused_without_another_step(tmp_path: Path, target: int) -> None:
    """Else its rung would compare it by a step that the others did not have."""
    earlier = publish(tmp_path / "a", 5, writing(state="x"))
    keeper = Keeper(tmp_path / "b", earlier=earlier.folder, target=target)
    with pytest.raises(TrialStopped, match="paused at step 5"):
        keeper.load()
    assert (keeper.paused_at, keeper.saved_at) == (5, None)


def test_target_ends_the_attempt_when_the_state_is_kept(tmp_path: Path) -> None:
    told: list[tuple[int, bool]] = []
    keeper = Keeper(tmp_path, target=3, saved=lambda step, folder: told.append((step, folder.is_dir())))
    keeper.load()
    for step in (1, 2, 3):
        keeper.reported(step)
        assert keeper.wanted(step) == (step == 3)
    with pytest.raises(TrialStopped, match="paused at step 3"):
        keeper.save(3, writing(state="x"))
    assert (keeper.paused_at, keeper.saved_at, told) == (3, 3, [(3, True)])


def test_an_objective_without_checkpoints_is_paused_at_its_target(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, target=3)
    keeper.reported(2)
    with pytest.raises(TrialStopped, match="paused at step 3"):
        keeper.reported(3)
    assert (keeper.paused_at, keeper.saved_at) == (3, None)


def test_an_objective_that_asked_but_does_not_save_is_paused_one_report_later(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, target=3)
    keeper.load()
    keeper.reported(4)  # it reports every other step
    keeper.reported(4)  # and says so twice
    with pytest.raises(TrialStopped):
        keeper.reported(6)
    assert keeper.paused_at == 6


def test_asked_for_the_next_step_ends_the_attempt_without_a_pause(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, target=9)
    keeper.ask("the worker was stopped")
    assert keeper.wanted(4)
    with pytest.raises(TrialStopped, match="the worker was stopped"):
        keeper.save(4, writing(state="x"))
    assert (keeper.paused_at, keeper.saved_at) == (None, 4)


def test_a_full_disk_costs_the_checkpoint_not_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "_sync", full)
    keeper = Keeper(tmp_path, target=2, every=1)
    keeper.save(1, writing(state="x"))
    with pytest.raises(TrialStopped):
        keeper.save(2, writing(state="x"))
    assert (keeper.paused_at, keeper.saved_at) == (2, None)
    assert "step 1 was not kept" in caplog.text
    assert os.listdir(tmp_path) == []


def test_leftovers_of_a_killed_attempt_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".writing-abc" / "files").mkdir(parents=True)
    kept = publish(tmp_path / "x", 1, writing(state="x"))
    Keeper(tmp_path)
    assert os.listdir(tmp_path) == ["x"]
    assert verified(kept.folder) == kept


def test_a_trial_by_hand_has_a_checkpoint_that_keeps_nothing() -> None:
    trial, seen = Trial(params={}), list[Path]()
    assert trial.checkpoint.load() is None
    assert not trial.checkpoint.wanted(1)
    trial.checkpoint.save(1, seen.append)
    assert not seen[0].exists()
    assert isinstance(trial.checkpoint, NoCheckpoint)

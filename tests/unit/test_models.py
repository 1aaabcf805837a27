"""A model's folder appears whole or not at all, and never in the place of something else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autotune.errors import InputError
from workers.models import CARD, published


def _write(folder: Path, text: str, *, force: bool = False) -> None:
    with published(folder, force=force) as writing:
        (writing / CARD).write_text("{}")
        (writing / "model").write_text(text)


def _only(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_the_folder_appears_when_all_is_written(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with published(target) as writing:
        (writing / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert _only(tmp_path / "deep", "model")


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with published(tmp_path / "model") as writing:
            (writing / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert _only(tmp_path)


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    _write(tmp_path / "model", "new")
    assert (tmp_path / "model" / "model").read_text() == "new"


def test_a_model_is_replaced_only_by_force_and_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    _write(target, "old")
    (target / "left over").touch()
    with pytest.raises(InputError, match="replace it with --force"):
        _write(target, "new")
    assert (target / "model").read_text() == "old"
    _write(target, "new", force=True)
    assert (target / "model").read_text() == "new"
    assert _only(target, CARD, "model")
    assert _only(tmp_path, "model")


@pytest.mark.parametrize("force", [False, True])
def test_other_files_are_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").touch()
    with pytest.raises(InputError, match="no model of ours"):
        _write(tmp_path / "thesis", "new", force=force)
    with pytest.raises(InputError, match="is a file"):
        _write(tmp_path / "thesis" / "chapter", "new", force=force)
    assert _only(tmp_path / "thesis", "chapter")
    assert _only(tmp_path, "thesis")


def test_what_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    def overtaken() -> None:
        with published(tmp_path / "model") as writing:
            (writing / "a").touch()
            (tmp_path / "model").mkdir()
            (tmp_path / "model" / "mine").touch()

    with pytest.raises(InputError, match="no model of ours"):
        overtaken()
    assert _only(tmp_path / "model", "mine")
    assert _only(tmp_path, "model")


def test_the_old_model_stays_where_the_new_one_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, replace = tmp_path / "model", os.replace
    _write(target, "old")
    moved: list[Path] = []

    def failing(source: Path, destination: Path) -> None:
        moved.append(Path(source))
        if len(moved) == 2:
            raise OSError(28, "No space left on device")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(InputError, match="No space left"):
        _write(target, "new", force=True)
    assert (target / "model").read_text() == "old"
    assert _only(tmp_path, "model")


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    _write(tmp_path / "model", "new")
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "disk" / "model").read_text() == "new"


def test_a_disk_that_does_not_take_it_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write the model"):
        _write(tmp_path / "file" / "model", "new")

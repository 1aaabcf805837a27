"""A worker imports only what it was told to, and serves only what its code and packages are equal to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import InputError
from autotune.store.base import CampaignRecord
from workers import admission as admission_module
from workers.admission import Admission
from workers.versions import environment

BOMB = "raise SystemExit('imported')\n"


def make_record(objective: Any, **more: Any) -> CampaignRecord:
    return CampaignRecord(
        name="c", spec={"objective": objective}, spec_hash="h", space={}, metric={"name": "x", "mode": "min"},
        max_trials=1, **more,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with modules that must never be imported; in `sys.path`, as a worker has it."""
    (tmp_path / "work" / "pkg_here").mkdir(parents=True)
    work = tmp_path / "work"
    for name in ("train_here.py", "pkg_here/__init__.py", "pkg_here/train.py"):
        (work / name).write_text(BOMB)
    monkeypatch.setattr(sys, "path", [str(work), *sys.path])
    return work


def test_installed_workloads_are_always_served(folder: Path) -> None:
    assert Admission(folder=folder).refusal(make_record("baseline")) is None
    assert Admission(folder=folder).refusal(make_record("scvi")) is None
    refusal = Admission(folder=folder).refusal(make_record("no-such"))
    assert refusal is not None
    assert "no workload 'no-such' here" in refusal


@pytest.mark.parametrize("objective", ["train_here:f", "pkg_here.train:Model.fit", "pkg_here:f"])
def test_modules_of_the_working_directory_are_served(folder: Path, objective: str) -> None:
    assert Admission(folder=folder).refusal(make_record(objective)) is None
    assert not {"train_here", "pkg_here"} & set(sys.modules)


def test_the_working_directory_is_the_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert Admission().refusal(make_record("train_here:f")) is None
    monkeypatch.chdir(folder.parent)
    assert Admission().refusal(make_record("train_here:f")) is not None


@pytest.mark.parametrize(
    "objective",
    [
        "os:system", "builtins:eval", "sys:exit", "subprocess:run", "json.decoder:JSONDecoder", "numpy:loads",
        "pytest:main", "autotune.sources:source_hash", "workers.child:main", "__main__:f", "nowhere_at_all:f",
        "a..b:c", "../x:y", ".train_here:f", "train_here.:f", "train_here", ":f", "train_here:", "", ":", "::",
        "train_here:f:g", "train_here:f()", "train_here:f.__globals__", "train_here :f", "train_here\n:f",
        "trаin_here:f", "ｔrain_here:f", "train_here\u200b:f", "train_here\0:f", "train_here/../x:f",
        "pkg_here.import:f", "pkg_here.missing:f", "train_here.f:g", None, 7, ["train_here:f"], {"a": 1},
        "x" * 100_000 + ":f",
    ],
)  # fmt: skip
def test_everything_else_is_refused_in_one_line(folder: Path, objective: Any) -> None:
    refusal = Admission(["allowed_mod", "lab.part"], folder=folder).refusal(make_record(objective))
    assert refusal is not None
    assert refusal.startswith("this worker does not serve campaign 'c': ")
    assert refusal.isprintable()
    assert len(refusal) < 400


def test_the_refusal_names_the_flag(folder: Path) -> None:
    refusal = Admission(folder=folder).refusal(make_record("os:system"))
    assert refusal is not None
    assert "--allow-objective os" in refusal


@pytest.mark.parametrize(
    ("objective", "served"),
    [
        ("lab.part:f", True), ("lab.part.deep.train:f", True), ("single:f", True), ("single.sub:f", True),
        ("lab:f", False), ("lab.parting:f", False), ("lab.other:f", False), ("singles:f", False),
    ],
)  # fmt: skip
def test_allowed_modules_and_all_below_them(folder: Path, objective: str, served: bool) -> None:
    assert (Admission(["lab.part", "single"], folder=folder).refusal(make_record(objective)) is None) is served


@pytest.mark.parametrize("name", ["", "a:b", "a/b", "a..b", "*", "a.*", "а", "a b", "__main__"])
def test_an_allowed_name_must_be_a_module(name: str) -> None:
    with pytest.raises(InputError, match="--allow-objective takes a module"):
        Admission([name])


def test_a_module_that_an_import_takes_from_elsewhere_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "train_here.py").write_text(BOMB)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), *sys.path])
    assert Admission(folder=folder).refusal(make_record("train_here:f")) is not None
    assert Admission(folder=folder).refusal(make_record("pkg_here:f")) is None


def test_a_module_that_no_import_finds_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", sys.path[1:])
    assert Admission(folder=folder).refusal(make_record("train_here:f")) is not None


def test_a_shadow_of_a_standard_module_opens_nothing(folder: Path) -> None:
    (folder / "os.py").write_text(BOMB)
    (folder / "sys.py").write_text(BOMB)
    assert Admission(folder=folder).refusal(make_record("os:system")) is not None
    assert Admission(folder=folder).refusal(make_record("sys:exit")) is not None


def test_links_that_lead_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "m.py").write_text(BOMB)
    (folder / "linked_file.py").symlink_to(tmp_path / "outside" / "m.py")
    (folder / "linked_folder").symlink_to(tmp_path / "outside")
    admission = Admission(folder=folder)
    assert admission.refusal(make_record("linked_file:f")) is not None
    assert admission.refusal(make_record("linked_folder.m:f")) is not None


def test_a_working_directory_that_is_a_link_serves_its_modules(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert Admission(folder=tmp_path / "link").refusal(make_record("train_here:f")) is None


def test_packages_installed_below_the_folder_do_not_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = folder / ".venv" / "lib" / "python3.11" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "bought.py").write_text(BOMB)
    monkeypatch.setattr(sys, "path", [*sys.path, str(installed)])
    assert Admission(folder=folder).refusal(make_record("bought:f")) is not None
    assert Admission(folder=installed).refusal(make_record("bought:f")) is not None


def test_the_standard_library_and_the_root_are_no_working_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    library = Path(json.__file__).parent.parent
    assert Admission(folder=library).refusal(make_record("json:loads")) is not None
    monkeypatch.setattr(sys, "path", ["/", *sys.path])
    for module in (".".join(Path(__file__).with_suffix("").parts[1:]), "tmp.evil"):
        assert Admission(folder="/").refusal(make_record(f"{module}:f")) is not None


def test_a_namespace_that_others_share_serves_the_parts_of_the_folder_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (folder, tmp_path / "other"):
        (place / "shared_ns").mkdir(parents=True)
        (place / "shared_ns" / f"in_{place.name}.py").write_text(BOMB)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "other")])
    admission = Admission(folder=folder)
    assert admission.refusal(make_record("shared_ns.in_work:f")) is None
    assert admission.refusal(make_record("shared_ns.in_other:f")) is not None


def test_an_equal_environment_is_served(folder: Path) -> None:
    for objective in ("baseline", "train_here:f"):
        record = make_record(objective, environment=environment(objective))
        assert Admission(folder=folder).refusal(record) is None
        assert Admission(folder=folder).mismatch(record) == []


def test_another_version_is_refused_unless_allowed(folder: Path) -> None:
    launched = environment("baseline")
    launched["versions"] = {**launched["versions"], "numpy": "0.9"}
    record = make_record("baseline", environment=launched)
    refusal = Admission(folder=folder).refusal(record)
    assert refusal is not None
    assert "numpy" in refusal
    assert "here, 0.9 in the campaign" in refusal
    assert "--allow-mismatch" in refusal
    lenient = Admission(folder=folder, allow_mismatch=True)
    assert lenient.refusal(record) is None
    assert len(lenient.mismatch(record)) == 1


def test_a_mismatch_that_is_allowed_does_not_allow_an_objective(folder: Path) -> None:
    assert Admission(folder=folder, allow_mismatch=True).refusal(make_record("os:system")) is not None


def test_changed_source_is_refused_and_repaired_source_is_served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make_record("train_here:f", environment=environment("train_here:f"))
    admission = Admission(folder=folder)
    assert admission.refusal(record) is None
    monkeypatch.setattr(admission_module, "_KEEP_S", 0.0)
    (folder / "train_here.py").write_text(BOMB + "# changed\n")
    refusal = admission.refusal(record)
    assert refusal is not None
    assert "source of 'train_here:f'" in refusal
    (folder / "train_here.py").write_text(BOMB)
    assert admission.refusal(record) is None


def test_the_comparison_is_kept_for_a_while(folder: Path) -> None:
    record = make_record("train_here:f", environment=environment("train_here:f"))
    admission = Admission(folder=folder)
    assert admission.mismatch(record) == []
    (folder / "train_here.py").write_text(BOMB + "# changed\n")
    assert admission.mismatch(record) == []
    assert len(Admission(folder=folder).mismatch(record)) == 1

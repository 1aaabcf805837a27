"""The hash of an objective's source: found without importing, equal for equal files, different for any other."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path

import pytest

from autotune import sources
from autotune.sources import find_module, folder_hash, source_hash, split_objective
from workers.versions import PACKAGES, differences, environment, versions, workload_hash

BOMB = "raise SystemExit('imported')\n"


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


PACKAGE = {
    "lab/__init__.py": BOMB,
    "lab/models/__init__.py": BOMB,
    "lab/models/train.py": BOMB + "def f(trial): return 1.0\n",
    "lab/data.py": BOMB,
}


@pytest.mark.parametrize("objective", ["lab.models.train:f", "lab:f", "lab.models:f", "lab.data:f"])
def test_a_package_counts_as_a_whole_wherever_it_lies(tmp_path: Path, objective: str) -> None:
    one, two = write(tmp_path / "one", PACKAGE), write(tmp_path / "two" / "deep", PACKAGE)
    (one / "beside.py").write_text("x = 1")
    first = source_hash(objective, [str(one)])
    assert first is not None
    assert first == source_hash(objective, [str(two)]) == source_hash("lab:f", [str(one)])
    assert not any(name.split(".")[0] == "lab" for name in sys.modules)


@pytest.mark.parametrize(
    "change",
    [
        {"lab/data.py": BOMB + "\n"},
        {"lab/data.py": BOMB.replace("\n", "\r\n")},
        {"lab/more.py": ""},
        {"lab/scripts/run.py": "pass"},
    ],
)
def test_any_change_of_a_package_changes_its_hash(tmp_path: Path, change: dict[str, str]) -> None:
    write(tmp_path, PACKAGE)
    before = source_hash("lab.models.train:f", [str(tmp_path)])
    for name, text in change.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    assert source_hash("lab.models.train:f", [str(tmp_path)]) not in (before, None)


def test_a_renamed_or_a_split_file_changes_the_hash(tmp_path: Path) -> None:
    hashes = {
        source_hash("lab:f", [str(write(tmp_path / str(i), {"lab/__init__.py": "", **files}))])
        for i, files in enumerate(
            [{"lab/a.py": "bc"}, {"lab/ab.py": "c"}, {"lab/a.py": "b", "lab/c.py": ""}, {"lab/a.py": "bc.py"}]
        )
    }
    assert len(hashes - {None}) == 4


def test_caches_and_hidden_files_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, PACKAGE)
    before = source_hash("lab:f", [str(tmp_path)])
    for name in ("__pycache__/data.py", ".ipynb_checkpoints/data.py", "notes.txt", ".#data.py"):
        write(tmp_path / "lab", {name: "x"})
    assert source_hash("lab:f", [str(tmp_path)]) == before


def test_of_a_single_file_that_file_counts(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"train_single.py": BOMB, "helper.py": "1"})
    two = write(tmp_path / "two", {"train_single.py": BOMB, "helper.py": "2"})
    first = source_hash("train_single:f", [str(one)])
    assert first is not None
    assert first == source_hash("train_single:f", [str(two)]) == source_hash("train_single:g.h", [str(two)])
    (two / "train_single.py").write_text(BOMB + " ")
    assert source_hash("train_single:f", [str(two)]) != first


def test_a_folder_without_init_is_a_package_too(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"spread_ns/part/train.py": BOMB, "spread_ns/part/helper.py": "1"})
    two = write(tmp_path / "two", {"spread_ns/other.py": "1"})
    folders = [str(two), str(one)]
    assert find_module("spread_ns.part.train", folders) == one / "spread_ns/part/train.py"
    assert find_module("spread_ns.other", folders) == two / "spread_ns/other.py"
    first = source_hash("spread_ns.part.train:f", folders)
    assert first == folder_hash(one / "spread_ns") is not None
    assert source_hash("spread_ns:f", folders) is None
    assert source_hash("spread_ns.part:f", folders) is None


def test_folders_are_looked_at_in_order_as_an_import_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write(tmp_path / "one", {"both_m.py": "1", "as_package.py": "1"})
    two = write(tmp_path / "two", {"both_m.py": "2", "as_package/__init__.py": "2", "ns_late/a.py": "2"})
    write(two, {"as_package.py": "3"})
    monkeypatch.setattr(sys, "path", [str(two), *sys.path])
    assert find_module("both_m", [str(one), str(two)]) == one / "both_m.py"
    assert find_module("both_m", None) == two / "both_m.py"
    assert find_module("as_package", [str(two), str(one)]) == two / "as_package/__init__.py"
    assert source_hash("both_m:f", [str(one)]) != source_hash("both_m:f")
    monkeypatch.chdir(one)
    assert find_module("both_m", [""]) == one / "both_m.py"


@pytest.mark.parametrize(
    "objective",
    [
        "nowhere_at_all:f", "nowhere_at_all.b:f", "sys:exit", "builtins:eval", "math:fsum",
        "json.nothing:f", "baseline", "", ":", "a:", ":b", "a..b:c", "../x:y", "a/b:c", "/etc/passwd:x", "a.b.:c",
        ".a:c", "a:b:c",
        "a b:c", "a:b()",
        "а.b:c", "a:ｅval", "a\n:b", "a:b\n", "__main__:f", "a:__class__.x", "lambda:f", "a" * 1000 + ":f", "a\0:b",
    ],
)  # fmt: skip
def test_what_has_no_source_has_no_hash(objective: str, tmp_path: Path) -> None:
    assert source_hash(objective, [str(tmp_path), str(tmp_path / "missing"), "/dev/null"]) is None


def test_installed_modules_have_one() -> None:
    assert source_hash("json.decoder:JSONDecoder") == source_hash("json:loads") is not None
    assert source_hash("autotune.sources:source_hash") == folder_hash(Path(sources.__file__).parent)


def test_a_module_that_is_odd_in_memory_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "odd_in_memory", types.ModuleType("odd_in_memory"))
    assert source_hash("odd_in_memory:f") is None


def test_too_much_source_has_no_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, PACKAGE)
    monkeypatch.setattr(sources, "MAX_FILES", 4)
    assert source_hash("lab:f", [str(tmp_path)]) is not None
    monkeypatch.setattr(sources, "MAX_FILES", 3)
    assert source_hash("lab:f", [str(tmp_path)]) is None
    monkeypatch.setattr(sources, "MAX_FILES", 4)
    monkeypatch.setattr(sources, "MAX_BYTES", 60)
    assert source_hash("lab:f", [str(tmp_path)]) is None


def test_names_are_plain() -> None:
    assert split_objective("pkg.train:Model.fit_2") == ("pkg.train", "Model.fit_2")
    assert split_objective("pkg.train:_private") == ("pkg.train", "_private")
    assert split_objective("pkg.train:fit.__globals__") is None


def test_workloads_that_ship_have_one_hash(tmp_path: Path) -> None:
    import workers.workloads

    assert workload_hash("baseline") == workload_hash("scvi") is not None
    assert workload_hash("nothing-like-it") is None
    copy = tmp_path / "elsewhere"
    shutil.copytree(Path(workers.workloads.__path__[0]), copy)
    assert folder_hash(copy) == workload_hash("baseline")


def test_an_environment_differs_in_nothing_from_itself(tmp_path: Path) -> None:
    write(tmp_path, {"train_env.py": "1"})
    for objective in ("baseline", "scvi", "train_env:f"):
        here = environment(objective, [str(tmp_path)])
        assert here["versions"] == versions()
        assert isinstance(here["objective_hash"], str)
        assert differences(here, here, objective) == []


def env(objective_hash: str | None = None, **packages: str) -> dict[str, object]:
    return {"versions": {k.replace("_", "-"): v for k, v in packages.items()}, "objective_hash": objective_hash}


def test_differences_name_package_and_both_versions() -> None:
    assert differences(env(torch="2.13.0"), env(torch="2.12.0"), "m:f") == ["torch 2.12.0 here, 2.13.0 in the campaign"]
    assert differences(env(python="3.12.1"), env(python="3.11.7"), "baseline") == [
        "python 3.11 here, 3.12 in the campaign"
    ]
    assert differences(env("ab" * 32), env("cd" * 32), "m:f") == [
        "source of 'm:f' cdcdcdcd here, abababab in the campaign"
    ]


@pytest.mark.parametrize(
    ("theirs", "here"),
    [
        (env(torch="2.13.0+cu126"), env(torch="2.13.0")),
        (env(python="3.11.2"), env(python="3.11.7")),
        (env(torch="2.13.0"), env()),
        (env(), env(torch="2.13.0")),
        (env("ab" * 32), env()),
        (env(), env("ab" * 32)),
        (env(left_pad="1"), env(left_pad="2")),
        ({}, env("ab" * 32, torch="2")),
    ],
)
def test_what_one_does_not_know_or_does_not_matter_is_no_difference(theirs: dict, here: dict) -> None:
    assert differences(theirs, here, "m:f") == []


def test_each_workload_minds_its_own_packages() -> None:
    theirs = env(**{name.replace("-", "_"): "1" for name in ("python", *PACKAGES)})
    here = env(**{name.replace("-", "_"): "2" for name in ("python", *PACKAGES)})

    def minded(objective: str) -> set[str]:
        return {text.split()[0] for text in differences(theirs, here, objective)}

    assert minded("baseline") == {"python", "autotune", "numpy", "scipy", "anndata", "scikit-learn"}
    assert minded("scvi") == minded("baseline") | {"torch", "scvi-tools", "lightning"}
    assert minded("m:f") == {"python", *PACKAGES}


@pytest.mark.parametrize(
    "theirs",
    [
        {"versions": None}, {"versions": ["torch"]}, {"versions": {"torch": 2}}, {"versions": {"torch": "\x1b[2J"}},
        {"versions": {}, "objective_hash": 7}, {"objective_hash": ""},
    ],
)  # fmt: skip
def test_a_broken_environment_is_no_difference(theirs: dict) -> None:
    assert differences(theirs, env("ab" * 32, torch="2"), "m:f") == []


def test_a_long_or_strange_value_stays_short_and_plain() -> None:
    (one, two) = differences(env("x\n" * 5000, torch="9" * 5000), env("ab" * 32, torch="2"), "m:f")
    assert len(one) < 120
    assert len(two) < 120
    assert "\n" not in two

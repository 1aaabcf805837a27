"""The arrows between folders point one way, drivers stay at their edge, and importing the package is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import autotune

ROOT = Path(__file__).resolve().parent.parent.parent

LAYERS = [
    {"errors", "clock", "yaml_reader", "home", "logs", "processes", "installed", "sources"},
    {"space"},
    {"trial", "lifecycle"},
    {"search", "schedule"},
    {"store"},
    {"campaign", "planning", "mirror", "retention", "coordinator", "history"},
    {"report"},
    {"local"},
    {"cli", "testing"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
ONLY_UNDER = {
    "pymongo": ("autotune/store", "autotune/testing"),
    "bson": ("autotune/store", "autotune/testing"),
    "gridfs": ("autotune/store", "autotune/testing"),
    "hyperopt": ("autotune/search",),
    "click": ("autotune/cli", "workers/cli.py", "workers/data_cli.py", "workers/replay_cli.py", "workers/best_cli.py"),
    "matplotlib": ("autotune/report/figures", "autotune/report/report.py"),
    "sklearn": ("autotune/report/importance.py", "workers/workloads"),
    "pytest": ("autotune/testing",),
}
NEVER_IN_AUTOTUNE = {"workers", "torch", "anndata", "scvi", "ray", "lightning"}


def _modules(package: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _part(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "autotune" and len(parts) > 1 and parts[1] in RANK else None


def test_each_module_has_a_layer() -> None:
    found = {p.stem for p in (ROOT / "autotune").glob("*.py")} | {
        p.parent.name for p in (ROOT / "autotune").glob("*/__init__.py")
    }
    assert found - {"__init__"} == set(RANK)


def test_imports_point_down() -> None:
    wrong = []
    for path, tree in _modules("autotune"):
        own = path.split("/")[1].removesuffix(".py")
        if own == "__init__":
            continue
        wrong += [f"{path} imports {n}" for n in _imports(tree) if (part := _part(n)) and RANK[part] > RANK[own]]
    assert wrong == []


def test_autotune_never_imports_workers_or_model_libraries() -> None:
    wrong = [
        f"{path} imports {name}"
        for path, tree in _modules("autotune")
        for name in _imports(tree)
        if name.split(".")[0] in NEVER_IN_AUTOTUNE
    ]
    assert wrong == []


def test_workloads_know_the_reporting_interface_only() -> None:
    allowed = ("workers.reporting", "workers.workloads", "autotune.errors", "autotune.home")
    wrong = [
        f"{path} imports {name}"
        for path, tree in _modules("workers/workloads")
        for name in _imports(tree)
        if name.split(".")[0] in ("autotune", "workers")
        and name not in ("autotune", "workers")
        and not name.startswith(allowed)
    ]
    assert wrong == []


@pytest.mark.parametrize("library", sorted(ONLY_UNDER))
def test_drivers_stay_at_their_edge(library: str) -> None:
    wrong = [
        path
        for package in ("autotune", "workers")
        for path, tree in _modules(package)
        if library in {name.split(".")[0] for name in _imports(tree)} and not path.startswith(ONLY_UNDER[library])
    ]
    assert wrong == []


def test_wall_time_is_read_in_the_clock_only() -> None:
    wrong = []
    for path, tree in _modules("autotune"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                called = (node.value.id, node.attr)
                if called in {("time", "time"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}:
                    wrong.append(f"{path}:{node.lineno} uses {'.'.join(called)}")
    assert [w for w in wrong if not w.startswith("autotune/clock.py")] == []


def test_no_module_is_a_god_file() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for package in ("autotune", "workers")
        for path in (ROOT / package).rglob("*.py")
    }
    assert {p: n for p, n in lengths.items() if n > 500} == {}


def test_the_public_surface_is_small_sorted_and_there() -> None:
    assert autotune.__all__ == sorted(autotune.__all__)
    assert len(autotune.__all__) <= 20
    assert all(getattr(autotune, name) is not None for name in autotune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lanch'"):
        autotune.lanch  # noqa: B018


@pytest.mark.parametrize("statement", ["import autotune", "from autotune.cli.main import cli; cli.get_help"])
def test_importing_is_light(statement: str) -> None:
    heavy = ["torch", "anndata", "pandas", "hyperopt", "scipy", "pymongo", "numpy", "rich"]
    code = f"import sys\n{statement}\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"

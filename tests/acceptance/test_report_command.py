"""``autotune report``: the page, figures and tables of a real campaign."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.support import one_line, write_campaign

Cli = Callable[..., subprocess.CompletedProcess[str]]

CURVES = """

def learning(trial):
    for epoch in range(1, 6):
        trial.report(epoch, loss=trial.params["x"] ** 2 + 1 / epoch)
    return trial.params["x"] ** 2 + 1 / 5
"""


def test_a_report_of_a_real_campaign(run_cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    space = {"x": {"float": [-2, 2]}, "kind": {"choice": ["a", "b"]}}
    file = write_campaign(tmp_path, name="learn", objective="objectives:learning", space=space)
    with (tmp_path / "objectives.py").open("a") as module:
        module.write(CURVES)
    done = run_cli("launch", str(file))
    assert done.returncode == 0, done.stderr
    done = run_cli("report", "learn", "--out", "out", "--parameter", "kind")
    assert done.returncode == 0, done.stderr
    assert "Run time" in done.stdout
    assert "wrote 7 figures" in done.stderr
    out = tmp_path / "out"
    assert len((out / "figures" / "history.csv").read_text().splitlines()) == 1 + 8 * 5
    text = (out / "report.md").read_text()
    assert text.index("figures/score_by_kind.png") < text.index("figures/history.png")
    assert text.index("figures/history.png") < text.index("figures/score_by_x.png")
    assert (out / "report.html").read_text().count("<figure>") == 7


def test_no_figures_and_a_parameter_that_is_none(run_cli: Cli, tmp_path: Path) -> None:
    assert run_cli("launch", str(write_campaign(tmp_path))).returncode == 0
    done = run_cli("report", "sine", "--out", "out", "--no-figures")
    assert done.returncode == 0, done.stderr
    assert "figures" not in done.stderr
    assert not (tmp_path / "out" / "figures").exists()
    pytest.importorskip("matplotlib")
    done = run_cli("report", "sine", "--out", "other", "--parameter", "xx")
    assert done.returncode != 0
    assert "'xx' is no parameter of 'sine'" in one_line(done.stderr)
    assert not (tmp_path / "other").exists()

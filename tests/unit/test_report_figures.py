"""Figures: what they hold, where marks lie, and that nothing breaks them."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import matplotlib as mpl
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from autotune.errors import InputError
from autotune.report import Report
from autotune.report.curves import Curve, Line, line, metric_of, mode_of, sample
from autotune.report.figures import Drawing, figures
from autotune.report.figures.drawing import Scene
from autotune.report.figures.histories import history, limits
from autotune.report.figures.marks import rows
from autotune.report.figures.scales import scales, tick
from autotune.report.figures.scores import BEYOND, FAILURE, FINISHED, PRUNED, ScoreAxis
from autotune.report.figures.style import FIRST_TO_LAST, plain
from autotune.report.importance import LEAST, MOST, importance
from autotune.report.progress import progress
from autotune.report.ranking import rank
from autotune.store.base import CampaignRecord
from autotune.trial import Attempt, Cause, Trial, TrialState
from autotune.trial import Report as Reported

START = datetime(2026, 1, 1, tzinfo=UTC)
SPACE: dict[str, Any] = {
    "n_layers": {"int": [1, 5]},
    "lr": {"log_float": [1e-4, 1e-1]},
    "loss": {"choice": ["zinb", "nb"]},
    "n_hidden": {"choice": [256, 64, 128]},
    "model": {"choice": [{"kind": "linear"}, {"kind": "mlp", "depth": {"int": [1, 4]}}]},
    "note": {"const": "same"},
}
NESTED = ["n_layers", "n_hidden", "lr", "loss", "model.kind", "model.depth"]


def campaign(**values: Any) -> CampaignRecord:
    defaults: dict[str, Any] = {"spec": {}, "spec_hash": "", "space": SPACE, "max_trials": 10}
    defaults["metric"] = {"name": "marginal_ll", "mode": "min"}
    return CampaignRecord(name="c", **(defaults | values))


def params(i: int) -> dict[str, Any]:
    model = {"kind": "linear"} if i % 2 else {"kind": "mlp", "depth": 1 + i % 4}
    shape = {"n_layers": 1 + i % 5, "lr": 10.0 ** (-4 + 3 * (i * 7 % 11) / 10), "n_hidden": (64, 128, 256)[i % 3]}
    return shape | {"loss": ("zinb", "nb")[i % 3 % 2], "model": model, "note": "same"}


def trial(number: int, score: float | None, state: TrialState = TrialState.FINISHED, **values: Any) -> Trial:
    start = START + timedelta(minutes=number)
    cause = Cause.NOT_A_NUMBER if state is TrialState.FAILED else None
    ended = None if state is TrialState.RUNNING else start + timedelta(seconds=90)
    tried = Attempt(token="t", owner="w", host="h", device="cpu", started_at=start, ended_at=ended, cause=cause)
    defaults: dict[str, Any] = {"params": params(number), "config_hash": str(number), "facts": {"n_epochs": 10}}
    defaults |= {"attempts": (tried,), "started_at": start, "ended_at": ended}
    return Trial(campaign="c", number=number, score=score, state=state, **(defaults | values))


def some(count: int = 20) -> list[Trial]:
    """Finished trials, one that failed, one pruned, one that is far off, one that runs."""
    made = [trial(i, 1200.0 + 10 * (i % 5) + i / 10) for i in range(count - 4)]
    made += [trial(count - 4, None, TrialState.FAILED), trial(count - 3, 1300.0, TrialState.PRUNED)]
    return [*made, trial(count - 2, 99999.0), trial(count - 1, None, TrialState.RUNNING)]


def curve(values: Sequence[float], name: str = "elbo_validation") -> Curve:
    return [Reported(step=i, metrics={name: value}) for i, value in enumerate(values, start=1)]


def curves(trials: Sequence[Trial]) -> dict[int, Curve]:
    return {t.number: curve([5000.0, 2000.0, 1210.0 + t.number, 1205.0 + t.number]) for t in trials}


def by_name(drawings: Sequence[Drawing]) -> Mapping[str, Drawing]:
    return {drawing.name: drawing for drawing in drawings}


@pytest.fixture(scope="module")
def drawings() -> list[Drawing]:
    trials = some()
    return figures(campaign(), trials, curves(trials), curve([3000.0, 1500.0, 1250.0, 1240.0, 1239.0]))


def test_all_figures_are_there_and_readable_files(drawings: list[Drawing]) -> None:
    names = [drawing.name for drawing in drawings]
    assert names[:6] == [
        "score_by_n_layers", "history", "best_so_far", "parallel_coordinates", "importance", "slices",
    ]  # fmt: skip
    assert set(names[6:]) == {f"score_by_{name}" for name in NESTED[1:]}
    for drawing in drawings:
        picture = imread(io.BytesIO(drawing.png))
        assert 89 / 25.4 * 200 - 2 <= picture.shape[1] <= 183 / 25.4 * 200 + 2
        assert picture[..., :3].std() > 0.02
        assert ET.fromstring(drawing.svg).tag.endswith("svg")
        assert b"<date" not in drawing.svg.lower()
        assert drawing.alt
        assert drawing.caption.endswith(".")
        assert len(drawing.svg) < 1_000_000


def test_same_input_same_bytes(drawings: list[Drawing]) -> None:
    trials = some()
    again = figures(campaign(), trials[::-1], curves(trials), curve([3000.0, 1500.0, 1250.0, 1240.0, 1239.0]))
    for first, second in list(zip(drawings, again, strict=True))[:6]:
        assert (first.name, first.caption, first.png, first.svg) == (
            second.name, second.caption, second.png, second.svg,
        )  # fmt: skip
        pd.testing.assert_frame_equal(first.data, second.data)


def test_curves_that_are_not_known_are_not_drawn() -> None:
    assert "history" not in by_name(figures(campaign(), some()))
    assert "No trial has reported" in by_name(figures(campaign(), some(), {}))["history"].caption


def test_settings_of_the_user_change_nothing_and_are_left_alone(drawings: list[Drawing]) -> None:
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "text.usetex": False}):
        made = by_name(figures(campaign(), some()))["best_so_far"]
        assert mpl.rcParams["font.size"] == 20
    assert made.png == by_name(drawings)["best_so_far"].png


def test_no_window_and_no_pyplot() -> None:
    code = "import sys, autotune.report.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_marks_are_where_the_scores_are() -> None:
    scene = Scene(campaign=campaign(), trials=some())
    table = rows(scene, next(s for s in scene.scales if s.name == "lr"), "n_epochs").set_index("number")
    assert table.loc[0, ["x", "y", "mark"]].tolist() == [1e-4, 1200.0, FINISHED]
    assert table.loc[16, "mark"] == FAILURE
    assert table.loc[16, "cause"] == "not-a-number"
    assert table.loc[17, "mark"] == PRUNED
    assert table.loc[18, ["score", "mark"]].tolist() == [99999.0, BEYOND]
    worst = scene.scores.ends[1]
    assert worst < table.loc[18, "y"] < table.loc[16, "y"]
    assert 19 not in table.index
    assert "1 lies above" in scene.scores.sentence()
    assert "1 failed" in scene.scores.sentence()


def test_max_is_upside_down() -> None:
    entries = rank([trial(i, 0.9 - i / 1000) for i in range(10)] + [trial(10, -500.0)], "max")
    axis = ScoreAxis.of(campaign(metric={"name": "f1", "mode": "max"}), entries)
    assert axis.ends == (0.9, 0.891)
    assert axis.place(entries[-1])[0] < 0.891
    assert "below" in axis.sentence()


def test_jitter_stays_in_its_category_and_depends_on_the_number_alone() -> None:
    scene = Scene(campaign=campaign(), trials=some())
    scale = scene.scales[0]
    table = rows(scene, scale, "number")
    assert (table["x"] - table["value"]).abs().max() < 0.3
    fewer = rows(Scene(campaign=campaign(), trials=some()[:5]), scale, "number")
    assert fewer["x"].tolist() == table["x"].tolist()[:5]


def test_scales_are_those_of_the_space() -> None:
    found = {scale.name: scale for scale in scales(campaign(), rank(some(), "min"))}
    assert list(found) == NESTED
    assert [found[name].kind for name in NESTED] == [
        "linear", "categorical", "log", "categorical", "categorical", "linear",
    ]  # fmt: skip
    assert found["loss"].options == ("zinb", "nb")
    assert found["n_hidden"].options == (64, 128, 256)
    assert found["lr"].unit(1e-2, 1e-4, 1e-1) == pytest.approx(2 / 3)
    assert math.isnan(found["model.depth"].place(None))


def test_a_conditional_parameter_shows_those_that_have_it() -> None:
    made = by_name(figures(campaign(), some()))["score_by_model.depth"]
    assert set(made.data["number"]) == {i for i in range(19) if i % 2 == 0}
    assert "9 without this parameter are not drawn" in made.caption


def test_null_is_a_category_where_the_space_has_it() -> None:
    space = {"patience": {"choice": [None, 25]}}
    trials = [trial(i, float(i), params={"patience": (None, 25)[i % 2]}) for i in range(4)]
    [scale] = scales(campaign(space=space), rank(trials, "min"))
    assert [scale.place(None), scale.place(25)] == [0.0, 1.0]


def test_which_parameter_comes_first() -> None:
    assert figures(campaign(), some(), parameter="lr")[0].name == "score_by_lr"
    without = [replace(t, params={"units": t.number}) for t in some()]
    assert figures(campaign(space={"units": {"int": [0, 99]}}), without)[0].name == "score_by_units"
    with pytest.raises(InputError, match=r"'n_layer' is no parameter of 'c'.*n_layers"):
        figures(campaign(), some(), parameter="n_layer")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_trials(count: int) -> None:
    trials = [trial(i, 1.0 + i) for i in range(count)]
    made = by_name(figures(campaign(), trials, curves(trials)))
    assert len(made["importance"].data) == 0
    assert "too few" in made["importance"].caption
    assert len(made["best_so_far"].data) == count


def test_nothing_has_finished() -> None:
    trials = [trial(i, None, TrialState.FAILED) for i in range(3)] + [trial(3, None, TrialState.RUNNING)]
    made = by_name(figures(campaign(), trials, {0: curve([math.nan]), 3: curve([2.0])}))
    assert made["best_so_far"].data["best"].isna().all()
    assert set(made["slices"].data["mark"]) == {FAILURE}


def test_scores_that_are_not_finite_or_all_the_same() -> None:
    odd = [trial(0, math.nan), trial(1, math.inf), trial(2, -math.inf), trial(3, 5.0), trial(4, 5.0)]
    made = by_name(figures(campaign(), odd))
    assert made["score_by_lr"].data["mark"].tolist() == [FAILURE] * 3 + [FINISHED] * 2
    same = by_name(figures(campaign(), [trial(i, 5.0) for i in range(25)]))
    assert "All scores are the same" in same["importance"].caption


def test_odd_names_are_drawn() -> None:
    names = ["$x_1$", "<b>", "\u4e2d\u6587", "two\nlines", "x" * 200, "\u202e", "A/../b", "a/../B"]
    trials = [
        trial(i, float(i), params={name: (("$y$", "\u4e2d", "z" * 99)[i % 3] if j % 2 else i) for j, name in
                                   enumerate(names)}, facts={})
        for i in range(5)
    ]  # fmt: skip
    data = {"data": {"name": "\u4e2d <i>"}}
    drawings = figures(campaign(space={}, metric={"name": "$m$", "mode": "max"}, facts=data), trials)
    files = [drawing.name.lower() for drawing in drawings]
    assert len(set(files)) == len(files)
    assert not any("/" in name or ".." in name for name in files)
    for drawing in [d for d in drawings if d.name in ("slices", "parallel_coordinates", "best_so_far")]:
        assert drawing.png
        assert ET.fromstring(drawing.svg) is not None
    assert plain("\u4e2d$a$\n") == "U+4E2D$a$"
    assert len(plain("x" * 200)) <= 28


def test_simulated_data_are_marked_in_the_figure() -> None:
    trials = some()
    real = campaign(facts={"data": {"name": "cortex"}})
    simulated = campaign(facts={"data": {"name": "cortex", "simulated": True}})
    assert "cortex" in Scene(campaign=real, trials=trials).head()
    assert "SIMULATED DATA" in Scene(campaign=simulated, trials=trials).head()
    for first, second in list(zip(figures(real, trials, curves(trials)), figures(simulated, trials, curves(trials)),
                                  strict=True))[:4]:  # fmt: skip
        assert first.png != second.png
        assert "The data are simulated" in second.caption


def test_histories_say_what_is_cut_off() -> None:
    trials = some()
    made = history(Scene(campaign=campaign(), trials=trials), curves(trials), curve([1.0, 2.0]))
    assert made.data["state"].value_counts()["default"] == 2
    assert len(made.data) == 4 * len(trials) + 2
    assert "of the values lie beyond it" in made.caption
    assert "Blue: the default configuration" in made.caption


def test_limits_of_histories() -> None:
    lines = [line(i, curve([9000.0, 100.0 + i, 90.0 + i]), "elbo_validation") for i in range(20)]
    low, high = limits(lines, "min")
    assert low < 90
    assert 109 < high < 500
    turned = [Line(number=one.number, steps=one.steps, values=tuple(-v for v in one.values)) for one in lines]
    assert limits(turned, "max") == pytest.approx((-high, -low))
    assert limits([Line(number=0, steps=(1,), values=(math.nan,))], "min") == (0.0, 1.0)


def test_which_metric_is_drawn() -> None:
    both = {0: [Reported(step=1, metrics={"a_train": 1.0, "b_validation": 2.0})]}
    assert metric_of(campaign(), both) == "b_validation"
    assert metric_of(campaign(metric={"name": "a_train", "mode": "max"}), both) == "a_train"
    schedule = campaign(spec={"schedule": {"metric": {"name": "a_train", "mode": "max"}}})
    assert (metric_of(schedule, both), mode_of(schedule, "a_train")) == ("a_train", "max")
    assert metric_of(campaign(), {}) is None


def test_many_curves_are_thinned() -> None:
    assert sample(range(10_000), 5) == [0, 2500, 5000, 7499, 9999]
    assert sample([3, 1], 5) == [1, 3]
    assert len(line(0, curve([1.0] * 5000), "elbo_validation").steps) == 400


def _lightness(linear: np.ndarray) -> np.ndarray:
    """Return L* of CIELAB of linear RGB, shape (n, 3)."""
    return np.asarray(116 * np.cbrt(np.clip(linear, 0, 1) @ np.array([0.2126, 0.7152, 0.0722])) - 16)


def test_first_to_last_is_an_order_also_without_red_and_green() -> None:
    colors = np.array([to_rgb(color) for color in FIRST_TO_LAST])
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    deuteranopia = np.array(  # Machado, Oliveira, Fernandes (2009), severity 1.0
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    )
    protanopia = np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    )
    for matrix in (np.eye(3), deuteranopia, protanopia):
        lightness = _lightness(linear @ matrix.T)
        assert (np.diff(lightness) < -3).all()
        assert lightness[0] - lightness[-1] > 30


def test_progress_counts_device_time_by_shares() -> None:
    def ran(number: int, first: float, last: float, score: float | None, share: float = 0.5) -> Trial:
        start, end = START + timedelta(hours=first), START + timedelta(hours=last)
        tried = Attempt(token="t", owner="w", device="cpu", share=share, started_at=start, ended_at=end)
        state = TrialState.FAILED if score is None else TrialState.FINISHED
        return trial(number, score, state, attempts=(tried,), started_at=start, ended_at=end)

    trials = [ran(0, 0, 4, 3.0), ran(1, 0, 2, 5.0), ran(2, 2, 3, None), ran(3, 4, 5, 4.0, share=1.0)]
    table = progress(rank(trials, "min"), trials, "min")
    assert table["number"].tolist() == [1, 2, 0, 3]
    assert table["best"].tolist() == [5.0, 5.0, 3.0, 3.0]
    assert table["device_hours"].tolist() == pytest.approx([2.0, 3.0, 3.5, 4.5])
    assert progress([], [], "min").empty


def test_importance_finds_what_matters() -> None:
    rng = np.random.default_rng(0)
    x, y, noise = rng.random(80), rng.random(80), rng.random(80)
    depth = np.where(rng.random(80) < 0.5, rng.integers(1, 5, 80), np.nan)
    score = 10 * x + 2 * np.nan_to_num(depth, nan=0.0) + 0.01 * y
    found = importance({"noise": noise, "x": x, "depth": depth, "y": y}, list(score))
    assert found.table["parameter"].tolist()[:2] == ["x", "depth"]
    values = found.table.set_index("parameter")
    assert values.loc["x", "importance"] > 5 * abs(values.loc["noise", "importance"])
    assert 0.3 < values.loc["depth", "active"] < 0.7
    assert (found.table["spread"] > 0).all()
    assert found.explained > 0.6
    assert found.warning == ""
    again = importance({"noise": noise, "x": x, "depth": depth, "y": y}, list(score))
    pd.testing.assert_frame_equal(found.table, again.table)


def test_importance_does_not_hide_that_it_means_nothing() -> None:
    rng = np.random.default_rng(1)
    random = importance({"x": rng.random(40), "y": rng.random(40)}, list(rng.random(40)))
    assert "too little" in random.warning
    assert importance({"x": [1.0] * (LEAST - 1)}, [1.0] * (LEAST - 1)).table.empty
    assert importance({}, list(rng.random(LEAST))).warning
    wide = {f"p{i}": rng.random(LEAST) for i in range(9)}
    assert importance(wide | {"x": np.arange(LEAST)}, list(range(LEAST))).warning


def test_importance_is_not_moved_by_a_few_very_bad_scores() -> None:
    x = np.linspace(0, 1, 60)
    spoilt = [1e9 if i in (5, 40) else v for i, v in enumerate(x)]
    found = importance({"x": x, "z": np.random.default_rng(0).random(60)}, spoilt)
    assert found.table["parameter"].tolist()[0] == "x"
    assert found.explained > 0.5


def test_importance_of_very_many_is_bounded() -> None:
    found = importance({"x": np.arange(2 * MOST)}, list(range(2 * MOST)))
    assert found.used == MOST


def test_ten_thousand_trials_stay_small() -> None:
    rng = np.random.default_rng(0)
    trials = [trial(i, float(rng.normal()), params={"x": float(rng.random())}) for i in range(10_000)]
    made = by_name(figures(campaign(space={"x": {"float": [0, 1]}}), trials))
    for name in ("score_by_x", "best_so_far", "slices", "parallel_coordinates"):
        assert len(made[name].svg) < 2_000_000
        assert len(made[name].png) < 1_000_000
    assert made["parallel_coordinates"].data["number"].nunique() == 1000


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0001, "0.0001"), (0.00002, "2e-5"), (0.01, "0.01"), (0, "0"), (1500, "1500"), (2.5e7, "2.5e7"), (-0.5, "-0.5")],
)
def test_ticks(value: float, text: str) -> None:
    assert tick(value) == text


def test_files_of_figures(tmp_path: Path) -> None:
    trials = some()
    report = Report(campaign=campaign(), trials=trials, curves=curves(trials))
    paths = report.write(tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in paths}
    for name in ("history", "slices", "score_by_n_layers"):
        assert {f"figures/{name}.{kind}" for kind in ("png", "svg", "csv")} <= names
    table = pd.read_csv(tmp_path / "figures" / "history.csv")
    assert table.columns.tolist() == ["number", "state", "step", "value"]
    text = (tmp_path / "report.md").read_text()
    assert "](figures/history.png)" in text
    assert all((tmp_path / "figures" / f"{d.name}.png").exists() for d in report.figures)

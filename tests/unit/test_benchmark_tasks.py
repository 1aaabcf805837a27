"""What a trial's process is asked to do, and what is found out about an objective before a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autotune.errors import CampaignError, ObjectiveError
from workers import objectives
from workers.evaluation import inspect
from workers.reporting import Result, Trial

SPEC = {"name": "c", "objective": "tests.objectives.evaluated:train"}
PLAIN = {"name": "d", "objective": "math:fsum"}
TRIAL = Trial(params={"x": 1.0}, seed=3)


def question(spec: dict[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    return {"spec": spec or SPEC, "given": given, "allowed": ["tests.objectives", "math"]}


def test_the_task_of_a_campaign() -> None:
    assert objectives.task_of(SPEC) == {"task": "run"}
    spec = {**SPEC, "evaluation": {"of": "c", "settings": {"a": 1}}}
    assert objectives.task_of(spec) == {"task": "evaluate", "settings": {"a": 1}}


def test_each_task_is_carried_out(tmp_path: Path) -> None:
    objective = objectives.load(SPEC)
    for request in ({}, {"task": "run"}):
        trained = objective.perform(request, TRIAL)
        assert isinstance(trained, Result)
        assert set(trained.metrics) == {"loss"}
    evaluated = objective.perform({"task": "evaluate", "settings": {"noise": 0.5}}, TRIAL)
    assert set(evaluated.metrics) == {"loss", "loss_test"}
    assert evaluated.facts["settings"] == {"noise": 0.5}
    saved = objective.perform({"task": "save", "folder": str(tmp_path)}, TRIAL)
    assert saved.metrics["loss"].value == trained.metrics["loss"].value
    assert (tmp_path / "model.txt").read_text() == "1.0"


@pytest.mark.parametrize("task", ["evaluate", "save", "something"])
def test_a_task_that_is_not_offered(task: str) -> None:
    with pytest.raises(ObjectiveError, match=f"this objective cannot '{task}'"):
        objectives.load(PLAIN).perform({"task": task, "folder": "/nowhere"}, TRIAL)


def test_what_is_found_of_a_module() -> None:
    found = inspect(question(flavour="strong"))
    assert found == {
        "settings": {"noise": 0.1, "flavour": "strong"},
        "metrics": {"loss_test": {"mode": "min"}, "loss": {"mode": "min"}},
        "defaults": {"x": 0.0},
    }


def test_what_is_found_of_scvi() -> None:
    found = inspect(question({"name": "c", "objective": "scvi"}, imputation="binomial"))
    assert found["settings"]["imputation"] == "binomial"
    assert {"marginal_ll_test", "elbo_test", "imputation_median", "imputation_mean"} <= set(found["metrics"])
    assert found["defaults"]["max_epochs"] == 400
    with pytest.raises(CampaignError):
        inspect(question({"name": "c", "objective": "scvi"}, imputation_rate=7))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (question(PLAIN), "its module has no function 'evaluate'"),
        (question({"name": "c", "objective": "baseline"}), "its workload has no function 'evaluate'"),
        (question(nois=1), "no evaluation setting 'nois'; did you mean 'noise'"),
        ({**question(), "allowed": ["other"]}, "is not allowed here"),
        (question({"name": "c", "objective": "nothing"}), "there is no workload 'nothing'"),
    ],
)
def test_what_is_refused(asked: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a module of the working directory is allowed in any case
    with pytest.raises((ObjectiveError, CampaignError)) as caught:
        inspect(asked)
    assert message in str(caught.value)

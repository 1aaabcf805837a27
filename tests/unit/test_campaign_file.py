"""The campaign file: what is read, what is refused, and what makes two of them the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.campaign import apply_override, load_campaign, parse_campaign
from autotune.errors import CampaignError
from autotune.local.resolve import as_campaign, callable_name, definition_hash, objective_paths, resolve
from autotune.yaml_reader import read_yaml
from workers.reporting import as_float

BASE: dict[str, Any] = {
    "name": "c",
    "objective": "math:fsum",
    "metric": {"name": "loss", "mode": "min"},
    "space": {"x": {"float": [0, 1]}},
    "budget": {"max_trials": 3},
}


def test_defaults() -> None:
    campaign = parse_campaign(BASE)
    assert campaign.lease.duration_s == 30
    assert campaign.lease.renewal_s == 10
    assert campaign.failures.abort_after == 10
    assert campaign.schedule == {"algorithm": "none"}
    record = resolve(campaign)
    assert record.spec["search"]["algorithm"] == "tpe"
    assert record.spec["search"]["startup"] == 10
    assert record.max_trials == 3
    json.dumps(record.spec, allow_nan=False)


def test_how_trials_run_is_in_the_definition_only_where_it_is_not_the_default() -> None:
    """Definitions of before there was a choice stay the same."""
    plain = parse_campaign(BASE)
    assert not {"isolation", "ahead"} & plain.to_json().keys()
    assert definition_hash(parse_campaign({**BASE, "isolation": "process"}).to_json()) == definition_hash(
        plain.to_json()
    )
    other = parse_campaign({**BASE, "isolation": "none", "ahead": 3}).to_json()
    assert (other["isolation"], other["ahead"]) == ("none", 3)
    assert definition_hash(other) != definition_hash(plain.to_json())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lease": {"duration_s": 10}}, "lease.renewal_s"),
        ({"lease": {"duration_s": 0.1}}, "lease.duration_s"),
        ({"budget": {"max_trials": True}}, "budget.max_trials"),
        ({"budget": {"max_trials": 2.5}}, "budget.max_trials"),
        ({"budget": 3}, "budget"),
        ({"fixed": {"a.b": 1}}, "keys are text without"),
        ({"fixed": {"$a": 1}}, "keys are text without"),
        ({"fixed": {"a": float("nan")}}, "not plain JSON"),
        ({"fixed": {"a": object()}}, "not plain JSON"),
        ({"metric": {"name": "a.b"}}, "metric.name"),
        ({"failures": {"abort_after": -1}}, "failures.abort_after"),
        ({"search": {"algorithm": "tpe", "sed": 1}}, "did you mean 'seed'?"),
        ({"search": {"algorithm": "tpe", "seed": -1}}, "seed"),
        ({"isolation": "thread"}, "isolation"),
        ({"isolation": "none", "objective": "scvi"}, "the workload 'scvi' trains in a process of its own"),
        ({"isolation": "none", "data": {"path": "/a.h5ad"}}, "data is loaded into a process of its own"),
        ({"isolation": "none", "limits": {"trial_s": 5}}, "cannot be ended by limits"),
        ({"isolation": "none", "schedule": {"algorithm": "asha", "maximum": 9}}, "cannot be paused, as the schedule"),
        ({"ahead": -1}, "ahead"),
        (
            {"ahead": 1, "schedule": {"algorithm": "hyperband", "maximum": 9}},
            "the schedule 'hyperband' says who is next",
        ),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CampaignError) as caught:
        resolve(parse_campaign({**BASE, **changes}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "optimised", "shown"),
    [
        ({"name": "loss", "mode": "max"}, {"name": "loss", "mode": "max"}, None),
        ([{"name": "loss", "mode": "max"}, "a", "b"], {"name": "loss", "mode": "max"}, ["loss", "a", "b"]),
        ({"name": "loss", "mode": "min", "also": ["a"]}, {"name": "loss", "mode": "min"}, ["loss", "a"]),
        ([{"name": "loss", "mode": "min"}], {"name": "loss", "mode": "min"}, None),
    ],
)
def test_metrics_of_a_function(metric: Any, optimised: dict[str, str], shown: list[str] | None) -> None:
    spec = resolve(parse_campaign({**BASE, "metric": metric})).spec
    assert spec["metric"] == optimised
    assert spec.get("metrics") == shown


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("loss", "which way is loss better?"),
        (["loss", "a"], "which way is loss better?"),
        ([], "the list is empty"),
        (["a", "b", "a"], "'a' is named twice"),
        ([{"name": "a", "mode": "min"}, "a"], "'a' is named twice"),
        (["a", {"name": "b"}], "metric.also"),
        ([3], "metric.name"),
        (3, "metric"),
        ("a.b", "metric.name"),
        ({"name": "a", "mod": "min"}, "did you mean 'mode'"),
    ],
)
def test_metrics_that_are_refused(metric: Any, message: str) -> None:
    with pytest.raises(CampaignError) as caught:
        resolve(parse_campaign({**BASE, "metric": metric}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_metrics_of_a_workload_are_checked(tmp_path: Path) -> None:
    pytest.importorskip("anndata")
    from workers.workloads.cells.simulate import simulate_cells

    simulate_cells(60, 40, 2, seed=1).write_h5ad(tmp_path / "cells.h5ad")
    cells = {"path": str(tmp_path / "cells.h5ad"), "labels": "cell_type"}
    base = {"name": "c", "objective": "baseline", "data": cells, "budget": {"max_trials": 1}}
    spec = resolve(parse_campaign({**base, "metric": ["accuracy", "macro_f1"]})).spec
    assert (spec["metric"], spec["metrics"]) == ({"name": "accuracy", "mode": "max"}, ["accuracy", "macro_f1"])
    assert resolve(parse_campaign({**base, "metric": "accuracy"})).spec["metric"]["mode"] == "max"
    with pytest.raises(CampaignError, match="has no metric 'acuracy'; did you mean 'accuracy'"):
        resolve(parse_campaign({**base, "metric": ["macro_f1", "acuracy"]}))


@pytest.mark.parametrize("value", [True, False, None])
def test_a_campaign_file_cannot_open_the_test_part(value: bool | None) -> None:
    with pytest.raises(CampaignError, match=r"split\.unsealed is not for campaign files"):
        resolve(parse_campaign({**BASE, "split": {"unsealed": value}}))


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_anything_else_is_one_clear_error(content: Any) -> None:
    with pytest.raises(CampaignError) as caught:
        parse_campaign(content)
    assert "\n" not in str(caught.value)


@given(
    key=st.sampled_from(sorted(BASE)),
    value=st.none() | st.booleans() | st.integers() | st.lists(st.text()) | st.dictionaries(st.text(), st.integers()),
)
def test_a_wrong_value_anywhere_is_a_campaign_error_or_fine(key: str, value: Any) -> None:
    caught = None
    try:
        resolve(parse_campaign({**BASE, key: value}))
    except CampaignError as error:
        caught = str(error)
    assert caught is None or "\n" not in caught


def test_overrides_reach_every_key(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps(BASE))
    campaign = load_campaign(file, ["budget.max_trials=12", "space.y={int: [1, 3]}", "search.seed=4", "fixed.lr=1e-3"])
    assert campaign.budget.max_trials == 12
    assert campaign.space["y"] == {"int": [1, 3]}
    assert campaign.search == {"seed": 4}
    assert campaign.fixed == {"lr": 0.001}
    for wrong in ("budget", "=3", "name.x=1", "budget.max_trials=[1"):
        with pytest.raises(CampaignError):
            load_campaign(file, [wrong])
    content: dict[str, Any] = {}
    apply_override(content, "a.b.c=1")
    assert content == {"a": {"b": {"c": 1}}}


def test_a_relative_data_path_is_found_beside_the_file_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "cells.h5ad").touch()
    file = tmp_path / "files" / "c.yaml"
    file.write_text(json.dumps({**BASE, "data": {"path": "cells.h5ad"}}))
    monkeypatch.chdir(tmp_path)
    assert (load_campaign(file).data or {})["path"] == str(tmp_path / "cells.h5ad")
    (tmp_path / "files" / "cells.h5ad").touch()
    assert (load_campaign(file).data or {})["path"] == str(tmp_path / "files" / "cells.h5ad")


def test_json_with_tabs_is_read() -> None:
    assert read_yaml('{\n\t"a": 1e-4,\n\t"b": [true]\n}', "f") == {"a": 1e-4, "b": [True]}
    assert read_yaml("{a: 1}", "f") == {"a": 1}
    with pytest.raises(CampaignError, match="given twice"):
        read_yaml('{"a": 1, "a": 2}', "f")


def test_yaml_reads_numbers_as_people_write_them() -> None:
    assert read_yaml("[1e-4, 1E5, 1.5, .5, 3, -2.0e+3, 0x10, '1e-4', x1e4]", "f") == [
        1e-4, 1e5, 1.5, 0.5, 3, -2000.0, 16, "1e-4", "x1e4",
    ]  # fmt: skip
    for text in ("a: 1\na: 2", "a: [", "{[1]: 2}", "!!python/object/apply:os.system ['true']", "\x00"):
        with pytest.raises(CampaignError):
            read_yaml(text, "f")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_yaml_reads_back_every_float(value: float) -> None:
    assert read_yaml(repr(value), "f") == value


def test_the_definition_is_what_counts() -> None:
    def hash_of(**changes: Any) -> str:
        return resolve(parse_campaign({**BASE, **changes})).spec_hash

    assert hash_of() == hash_of(description="other words")
    assert hash_of() == hash_of(search={"algorithm": "tpe", "seed": 0, "startup": 10})
    different = [hash_of(), hash_of(budget={"max_trials": 4}), hash_of(search={"seed": 1}), hash_of(fixed={"a": 1})]
    assert len(set(different)) == 4
    here, there = ({"data": {"path": p, "sha256": "ab"}} for p in ("/a/x", "/b/x"))
    assert definition_hash(here) == definition_hash(there)
    assert definition_hash({"data": {"path": "/a/x"}}) != definition_hash({"data": {"path": "/b/x"}})


def test_a_mapping_may_hold_functions_and_expressions() -> None:
    campaign = as_campaign({**BASE, "objective": as_float})
    assert campaign.objective == "workers.reporting:as_float"
    assert objective_paths({**BASE, "objective": as_float})[0] == str(Path(__file__).parents[2])
    assert objective_paths("sub/c.yaml")[0] == str(Path.cwd() / "sub")
    plain = as_campaign({**BASE, "data": {"path": Path("/a/b")}, "fixed": {"n": np.int64(3), "x": (np.float64(0.5),)}})
    assert plain.data == {"path": "/a/b"}
    assert plain.fixed == {"n": 3, "x": [0.5]}
    for nothing in (None, [1], 3):
        with pytest.raises(CampaignError, match="a campaign is a file or a mapping"):
            as_campaign(nothing)  # type: ignore[arg-type]
    for wrong in (lambda trial: 0.0, BASE.get):
        with pytest.raises(CampaignError, match="not importable"):
            callable_name(wrong)

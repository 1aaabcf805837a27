"""Every message about a wrong definition or configuration."""

from __future__ import annotations

import math
from typing import Any

import pytest

from autotune.errors import SpaceError
from autotune.space import parse_space

DEFINITIONS: list[tuple[Any, str]] = [
    ({}, "space has no parameters"),
    ([1], "the space is a mapping from parameter name to definition"),
    ({"lr": 0.1}, r"parameter 'lr': 0.1 alone is no definition; write \{const: 0.1\}"),
    ({"lr": [1, 2]}, r"parameter 'lr': a list alone is no definition; write \{choice: \[1, 2\]\}"),
    ({"lr": {}}, "parameter 'lr': the definition is empty"),
    ({"lr": {"log_flaot": [1, 2]}}, "parameter 'lr': unknown kind 'log_flaot'; did you mean 'log_float'?"),
    ({"lr": {"float": [1, 2], "stpe": 1}}, "parameter 'lr': unknown option 'stpe' of float; did you mean 'step'?"),
    ({"lr": {"const": 1, "step": 1}}, "unknown option 'step' of const; const has no options"),
    ({"lr": {"int": [1, 2], "float": [1, 2]}}, "parameter 'lr': has two kinds, int and float"),
    ({"lr": {"int": 3}}, r"parameter 'lr': 3 is not a pair; write \{int: \[low, high\]\}"),
    ({"lr": {"normal": [1]}}, r"is not a pair; write \{normal: \[mu, sigma\]\}"),
    ({"lr": {"int": [5, 1]}}, "parameter 'lr': lower bound 5 is above upper bound 1"),
    ({"lr": {"float": [5, 1]}}, "lower bound 5.0 is above upper bound 1.0"),
    ({"lr": {"log_int": [5, 1]}}, "lower bound 5 is above upper bound 1"),
    ({"lr": {"int": [1.5, 3]}}, "lower bound 1.5 is not a whole number"),
    ({"lr": {"int": [1, 2**60]}}, r"is beyond 2\*\*53"),
    ({"lr": {"int": [True, 3]}}, "lower bound true is not a number"),
    ({"lr": {"float": ["1e-4", 1]}}, r'lower bound "1e-4" is not a number; it is text, write 0.0001 without quotes'),
    ({"lr": {"float": ["low", 1]}}, 'lower bound "low" is not a number$'),
    ({"lr": {"float": [math.nan, 1]}}, "lower bound nan is not a finite number"),
    ({"lr": {"float": [0, math.inf]}}, "upper bound inf is not a finite number"),
    ({"lr": {"float": [-1e308, 1e308]}}, "too wide"),
    ({"lr": {"log_float": [0, 1]}}, "lower bound 0.0 is not positive; a log kind takes the values, not their logs"),
    ({"lr": {"log_int": [0, 1]}}, "lower bound 0 is not positive"),
    ({"lr": {"log_float": [0.1, 0.9], "step": 1}}, "no multiple of step lies within the bounds"),
    ({"lr": {"log_int": [6, 9], "step": 5}}, "no multiple of step lies within the bounds"),
    ({"lr": {"int": [1, 2], "step": 0}}, "step 0 is not positive"),
    ({"lr": {"float": [1, 2], "step": -0.1}}, "step -0.1 is not positive"),
    ({"lr": {"log_float": [1, 2], "step": 0}}, "step 0.0 is not positive"),
    ({"lr": {"normal": [1, 2], "step": 0}}, "step 0.0 is not positive"),
    ({"lr": {"normal": [1, 0]}}, "sigma 0.0 is not positive"),
    ({"lr": {"float": [1, 2], "step": None}}, "step null is not a number; leave it out"),
    ({"lr": {"float": [1, 2], "step": 1e-12}}, "gives more than 1000000000 values"),
    ({"lr": {"log_float": [1, 2], "step": 1e-12}}, "gives more than 1000000000 values"),
    ({"lr": {"normal": [0, 1], "step": 1e-300}}, "step 1e-300 is too small for this mu and sigma"),
    ({"lr": {"float": [0, 10**400]}}, "upper bound is a whole number beyond 64 bits"),
    ({"lr": {"choice": []}}, "parameter 'lr': the choice has no options"),
    ({"lr": {"choice": "abc"}}, r'parameter \'lr\': "abc" is not a list; write \{choice:'),
    ({"lr": {"choice": [1, 2, 1]}}, "parameter 'lr': options 0 and 2 are the same: 1"),
    ({"lr": {"choice": [0.0, -0.0]}}, "options 0 and 1 are the same"),
    ({"lr": {"choice": [{"a": {"float": [0, 1]}}, {"a": {"float": [0, 1]}}]}}, "options 0 and 1 are the same"),
    ({"lr": {"choice": [{"int": [1, 5]}, 3]}}, "options 0 and 1 can give the same value"),
    ({"lr": {"choice": [{"a": {"int": [1, 5]}}, {"a": {"choice": [7, 5]}}]}}, "can give the same value"),
    ({"lr": {"choice": [{"int": [1, 10**6]}, {"int": [10**5, 10**7]}]}}, "can give the same value"),
    ({"lr": {"choice": [[{"int": [1, 5]}], [{"float": [0, 1], "step": 0.5}]]}}, "can give the same value"),
    ({"lr": {"choice": [1, 2], "weights": [1]}}, "parameter 'lr': 1 weights for 2 options"),
    ({"lr": {"choice": [1, 2], "weights": [1, 0]}}, "a weight is not positive"),
    ({"lr": {"choice": [1, 2], "weights": 3}}, "weights 3 is not a list"),
    ({"lr": {"choice": [1, 2], "weights": [1, "a"]}}, 'weight "a" is not a number'),
    ({"lr": {"choice": [{1, 2}]}}, r"parameter 'lr\[0\]': .* \(set\) is not a JSON value"),
    ({"lr": {"choice": [math.nan]}}, "nan is not a JSON value"),
    ({"lr": {"choice": [2**70]}}, "does not fit into 64 bits"),
    ({"lr": {"choice": ["\ud800"]}}, "is not valid Unicode"),
    ({"lr": {"choice": [{"a.b": 1}]}}, r"parameter 'lr\[0\]': the name 'a.b' contains '.' or '\$'"),
    ({"lr": {"const": {"a$b": 1}}}, r"parameter 'lr': .*the name 'a\$b' contains"),
    ({"lr": {"choice": [{"d": {"int": [1, 0]}}]}}, r"parameter 'lr\[0\].d': lower bound 1 is above"),
    ({"lr": {"choice": [{"d": {"int": [1, 5], "stpe": 2}}]}}, r"parameter 'lr\[0\].d': unknown option 'stpe' of int"),
    ({"lr": {"choice": [{"const": {1: 2}}]}}, "the name 1 is not text"),
    ({"lr": {"nested": 3}}, "parameter 'lr': 3 is not a mapping; nested takes"),
    ({"": {"int": [1, 2]}}, "a name is empty"),
    ({" a": {"int": [1, 2]}}, "starts or ends with whitespace"),
    ({"a\n": {"int": [1, 2]}}, "starts or ends with whitespace"),
    ({"a\0b": {"int": [1, 2]}}, "contains a character that cannot be stored"),
    ({"a.b": {"int": [1, 2]}}, r"the name 'a.b' contains '.' or '\$'; use '_'"),
    ({"$a": {"int": [1, 2]}}, r"contains '.' or '\$'"),
    ({3: {"int": [1, 2]}}, "the name 3 is not text; quote it"),
    ({"m": {"choice": [1, {"int": [5, 6]}]}, "m[1]": {"int": [1, 2]}}, r"two parameters have the label 'm\[1\]'"),
]


@pytest.mark.parametrize(("definition", "message"), DEFINITIONS, ids=range(len(DEFINITIONS)))
def test_a_wrong_definition_is_refused(definition: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        parse_space(definition)
    assert "\n" not in str(caught.value)


SPACE = parse_space(
    {
        "n": {"int": [1, 9], "step": 2},
        "lr": {"log_float": [0.001, 0.1]},
        "g": {"float": [0, 1], "step": 0.25},
        "q": {"log_normal": [0, 1], "step": 0.5},
        "m": {"choice": [1, "a", {"kind": "mlp", "depth": {"int": [1, 5]}, "w": [{"int": [1, 2]}, 3]}]},
        "li": {"log_int": [2, 20], "step": 2},
        "lq": {"log_float": [0.5, 2], "step": 0.5},
        "k": {"const": [1]},
        "one": {"float": [2, 2]},
    }
)
GOOD: dict[str, Any] = {
    "n": 3,
    "lr": 0.01,
    "g": 0.5,
    "q": 1.5,
    "m": {"kind": "mlp", "depth": 3, "w": [1, 3]},
    "li": 4,
    "lq": 1,
    "k": [1],
    "one": 2,
}
VALUES: list[tuple[dict[str, Any], str]] = [
    ({"lrr": 1}, "unknown parameter 'lrr'; did you mean 'lr'?"),
    ({"n": 10}, "parameter 'n': 10 is not within 1 to 9"),
    ({"n": 4}, "parameter 'n': 4 is not on the grid 1, 3"),
    ({"n": 3.5}, "parameter 'n': the value 3.5 is not a whole number"),
    ({"n": True}, "parameter 'n': the value true is not a number"),
    ({"n": None}, "parameter 'n': the value null is not a number"),
    ({"lr": 0.2}, "parameter 'lr': 0.2 is not within 0.001 to 0.1"),
    ({"lr": "0.01"}, "parameter 'lr': .* is not a number"),
    ({"lr": math.nan}, "parameter 'lr': nan is not a JSON value"),
    ({"g": 0.3}, "parameter 'g': 0.3 is not on the grid 0.0, 0.25"),
    ({"g": 1.25}, "parameter 'g': 1.25 is not within 0.0 to 1.0"),
    ({"q": 0.7}, "parameter 'q': 0.7 is not a multiple of 0.5"),
    ({"q": -0.5}, "parameter 'q': -0.5 is not positive"),
    ({"li": 5}, "parameter 'li': 5 is not a multiple of 2"),
    ({"li": 22}, "parameter 'li': 22 is not within 2 to 20"),
    ({"lq": 2.5}, "parameter 'lq': 2.5 is not within 0.5 to 2.0"),
    ({"m": True}, "parameter 'm': true is not an option; options: 1, "),
    ({"m": 1.0}, "parameter 'm': 1.0 is not an option"),
    ({"m": {"kind": "mlp", "depth": 6, "w": [1, 3]}}, r"parameter 'm\[2\].depth': 6 is not within 1 to 5"),
    ({"m": {"kind": "mlp", "depth": 3, "w": [1]}}, "parameter 'm': .* is not an option"),
    ({"m": {"kind": "mlp", "depth": 3}}, "parameter 'm': .* is not an option"),
    ({"k": [1.0]}, r"parameter 'k.0': 1.0 is not 1"),
    ({"k": 3}, r"parameter 'k': 3 is not a list of 1 values"),
    ({"one": 3}, "parameter 'one': 3.0 is not within 2.0 to 2.0"),
]


@pytest.mark.parametrize(("change", "message"), VALUES, ids=range(len(VALUES)))
def test_a_wrong_value_is_refused(change: dict[str, Any], message: str) -> None:
    SPACE.validate(GOOD)
    for call in (SPACE.validate, SPACE.normalise, SPACE.encode, SPACE.hash):
        with pytest.raises(SpaceError, match=message):
            call({**GOOD, **change})


def test_missing_parameters_and_decisions_are_named() -> None:
    with pytest.raises(SpaceError, match="parameter 'lr' is missing"):
        SPACE.validate({k: v for k, v in GOOD.items() if k != "lr"})
    with pytest.raises(SpaceError, match="a configuration is a mapping from name to value, not list"):
        SPACE.validate([])  # type: ignore[arg-type]
    raw = SPACE.encode(GOOD)
    with pytest.raises(SpaceError, match=r"parameter 'm\[2\].depth': the decision is missing"):
        SPACE.decode({k: v for k, v in raw.items() if k != "m[2].depth"})
    with pytest.raises(SpaceError, match="parameter 'm': option index 3 is not within 0 to 2"):
        SPACE.decode({**raw, "m": 3})
    with pytest.raises(SpaceError, match="parameter 'n': 12 is not within"):
        SPACE.decode({**raw, "n": 12})


def test_grid_of_an_infinite_space_names_the_parameter() -> None:
    space = parse_space({"n": {"int": [1, 2]}, "m": {"choice": ["a", {"lr": {"float": [0, 1]}}]}})
    with pytest.raises(SpaceError, match=r"parameter 'm\[1\].lr' has infinitely many values; give it a step"):
        space.grid()


def test_a_literal_that_looks_like_a_definition_is_written_as_constant() -> None:
    literal = {"int": [1, 2]}
    space = parse_space({"c": {"choice": [{"const": literal}, {"float": "x", "also": 1}]}, "k": {"const": literal}})
    assert space.size == 2
    both = parse_space({"c": {"choice": [{"const": {"a": literal}}, {"a": literal}]}})
    assert [p["c"] for p in both.grid()] == [{"a": literal}, {"a": 1}, {"a": 2}]
    assert [p["c"] for p in space.grid()] == [literal, {"float": "x", "also": 1}]
    assert parse_space(space.to_json()) == space

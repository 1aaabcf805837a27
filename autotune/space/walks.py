"""Walks over templates: what values they have, and which value is which.

Places have *labels*: the name of the parameter, ``.key`` for a key of a mapping, ``.0`` for a place in a
list and ``[1]`` for an option of a choice, for example ``model[1].depth``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from autotune.errors import SpaceError, nearest
from autotune.space.canonical import canonical, show
from autotune.space.choices import (
    Choice,
    Template,
    is_literal,
    parts_of,
    render,
    shaped_like,
    size,
    unwrap,
)
from autotune.space.numeric import Number, Numeric, Parameter, whole

Raw = dict[str, int | float]


class Leaf(NamedTuple):
    """One decision that a search algorithm has to make.

    Attributes:
        parameter: A `Numeric` or a `Choice`.
        condition: None, or the label of the enclosing choice and the option that makes this active.
    """

    parameter: Parameter
    condition: tuple[str, int] | None


def point(template: Template, index: int) -> Any:
    """Return the value number ``index`` of a finite template; the last part varies fastest."""
    template = unwrap(template)
    if isinstance(template, Numeric):
        limits = template.limits or (0, 0)
        return template.at(limits[0] + index)
    if isinstance(template, Choice):
        for option in template.options:
            count = size(option) or 0
            if index < count:
                return point(option, index)
            index -= count
        raise IndexError(index)
    parts = [part for _, part in parts_of(template, "")]
    if not parts:
        return copy.deepcopy(template)
    values = []
    for part in reversed(parts):
        index, rest = divmod(index, size(part) or 1)
        values.append(point(part, rest))
    return shaped_like(template, values[::-1])


def sample(template: Template, rng: np.random.Generator) -> Any:
    """Draw a value of a template from its prior."""
    template = unwrap(template)
    if isinstance(template, Numeric):
        return template.sample(rng)
    if isinstance(template, Choice):
        return sample(template.options[int(rng.choice(len(template.options), p=template.weights))], rng)
    if isinstance(template, dict | list):
        return shaped_like(template, [sample(part, rng) for _, part in parts_of(template, "")])
    return template


def leaves(template: Template, label: str, condition: tuple[str, int] | None) -> Iterator[tuple[str, Leaf]]:
    """Yield label and leaf of every parameter in a template, parents before children."""
    template = unwrap(template)
    if isinstance(template, Numeric | Choice):
        yield label, Leaf(template, condition)
    if isinstance(template, Choice):
        for i, option in enumerate(template.options):
            yield from leaves(option, f"{label}[{i}]", (label, i))
    for place, part in parts_of(template, label):
        yield from leaves(part, place, condition)


def build(template: Template, raw: Mapping[str, Any], label: str) -> Any:
    """Return the value that the decisions ``raw`` select in a template.

    Raises:
        SpaceError: An active decision is missing or not allowed.
    """
    template = unwrap(template)
    if isinstance(template, Numeric | Choice):
        if label not in raw:
            raise SpaceError(f"parameter '{label}': the decision is missing")
        try:
            if isinstance(template, Numeric):
                return template.normalise(raw[label])
            chosen = whole(raw[label], "option index")
            if not 0 <= chosen < len(template.options):
                raise SpaceError(f"option index {chosen} is not within 0 to {len(template.options) - 1}")
        except SpaceError as error:
            raise SpaceError(f"parameter '{label}': {error}") from None
        return build(template.options[chosen], raw, f"{label}[{chosen}]")
    if isinstance(template, dict | list):
        return shaped_like(template, [build(part, raw, place) for place, part in parts_of(template, label)])
    return template


def read(template: Template, value: Any, label: str, raw: Raw) -> Any:
    """Match a plain value against a template.

    Args:
        template: What is allowed.
        value: A plain JSON value.
        label: The label of the place.
        raw: Filled with the active decisions, by label.

    Returns:
        The value with the types of the definition.

    Raises:
        SpaceError: The value does not match; names the parameter.
    """
    template = unwrap(template)
    if isinstance(template, Numeric):
        raw[label] = normalised = _read_number(template, value, label)
        return normalised
    if isinstance(template, Choice):
        return _read_choice(template, value, label, raw)
    if isinstance(template, dict):
        if not isinstance(value, dict):
            raise SpaceError(f"parameter '{label}': {show(value)} is not a mapping")
        check_keys(template, value, f"parameter '{label}': ", "key")
        return {k: read(part, value[k], f"{label}.{k}", raw) for k, part in template.items()}
    if isinstance(template, list):
        if not isinstance(value, list) or len(value) != len(template):
            raise SpaceError(f"parameter '{label}': {show(value)} is not a list of {len(template)} values")
        return [read(part, value[i], f"{label}.{i}", raw) for i, part in enumerate(template)]
    if canonical(template) != canonical(value):
        raise SpaceError(f"parameter '{label}': {show(value)} is not {show(template)}")
    return template


def check_keys(known: Mapping[str, Any], given: Mapping[str, Any], where: str, what: str) -> None:
    """Refuse unknown and missing names.

    Raises:
        SpaceError: Names the first such name and, for an unknown one, the nearest known one.
    """
    for key in given:
        if key not in known:
            raise SpaceError(f"{where}unknown {what} '{key}'{nearest(key, known)}")
    for key in known:
        if key not in given:
            raise SpaceError(f"{where}{what} '{key}' is missing")


def _read_number(parameter: Numeric, value: Any, label: str) -> Number:
    try:
        return parameter.normalise(value)
    except SpaceError as error:
        raise SpaceError(f"parameter '{label}': {error}") from None


def _read_choice(choice: Choice, value: Any, label: str, raw: Raw) -> Any:
    chosen = choice.literal_index(value)
    if chosen is not None:
        raw[label] = chosen
        return copy.deepcopy(unwrap(choice.options[chosen]))
    alike: list[SpaceError] = []
    for i, option in enumerate(choice.options):
        if is_literal(option):
            continue
        inner: Raw = {}
        try:
            normalised = read(option, value, f"{label}[{i}]", inner)
        except SpaceError as error:
            if _same_shape(option, value):
                alike.append(error)
            continue
        raw[label] = i
        raw.update(inner)
        return normalised
    if len(alike) == 1:
        raise alike[0]
    options = ", ".join(show(render(option), 30) for option in choice.options[:12])
    more = ", ..." if len(choice.options) > 12 else ""
    raise SpaceError(f"parameter '{label}': {show(value)} is not an option; options: {options}{more}")


def _same_shape(template: Template, value: Any) -> bool:
    """Whether a value differs from a template at most where the template has parameters."""
    template = unwrap(template)
    if isinstance(template, Parameter):
        return True
    if isinstance(template, dict):
        return (
            isinstance(value, dict)
            and template.keys() == value.keys()
            and all(_same_shape(part, value[k]) for k, part in template.items())
        )
    if isinstance(template, list):
        return (
            isinstance(value, list)
            and len(template) == len(value)
            and all(_same_shape(part, v) for part, v in zip(template, value, strict=True))
        )
    return canonical(template) == canonical(value)

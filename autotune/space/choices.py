"""Choices, constants and nested mappings.

A *template* is a plain JSON value in which a `Parameter` may stand at any place. An option of a choice is
a template, so parameters can be conditional on the choice.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from autotune.errors import SpaceError
from autotune.space.canonical import canonical, check_key, plain, show
from autotune.space.numeric import Numeric, Parameter, assign, number

Template = Any

_ENUMERATED = 4096  # up to so many values the overlap of two numeric options is looked up one by one


@dataclass(frozen=True, kw_only=True, eq=False)
class Const(Parameter):
    """A literal JSON value."""

    kind: ClassVar[str] = "const"
    value: Any

    def __post_init__(self) -> None:
        assign(self, value=plain(self.value, "the constant"))

    def to_json(self) -> dict[str, Any]:
        """Return ``{const: value}``."""
        return {"const": copy.deepcopy(self.value)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Nested(Parameter):
    """A mapping that holds parameters, as a value of the configuration (top level only)."""

    kind: ClassVar[str] = "nested"
    value: Template

    def __post_init__(self) -> None:
        assign(self, value=template_of(self.value, "the mapping"))

    def to_json(self) -> dict[str, Any]:
        """Return ``{nested: mapping}``."""
        return {"nested": render(self.value)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice(Parameter):
    """One of several options, each a template.

    Attributes:
        options: At least one; no two of them may give the same value.
        weights: Prior probabilities, one per option, scaled to sum 1; None means equal.

    Raises:
        SpaceError: No option, two options with the same value, or weights that do not fit.
    """

    kind: ClassVar[str] = "choice"
    options: tuple[Template, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        options = tuple(template_of(option, "an option") for option in self.options)
        if not options:
            raise SpaceError("the choice has no options; give at least one")
        texts: dict[str, int] = {}
        for i, option in enumerate(options):
            literal = is_literal(option)
            text = canonical(unwrap(option) if literal else {"open": render(unwrap(option))})
            first = texts.setdefault(f"{literal} {text}", i)
            if first != i:
                raise SpaceError(f"options {first} and {i} are the same: {show(render(option))}; remove one")
        assign(self, options=options, weights=_scaled(self.weights, len(options)))
        assign(self, _by_text={canonical(unwrap(o)): i for i, o in enumerate(options) if is_literal(o)})
        open_ones = [i for i, o in enumerate(options) if not is_literal(o)]
        for i in open_ones:
            for j, other in enumerate(options):
                if i != j and _overlap(options[i], other):
                    raise SpaceError(f"options {min(i, j)} and {max(i, j)} can give the same value; make them differ")

    def to_json(self) -> dict[str, Any]:
        """Return ``{choice: options}`` with the weights if there are any."""
        definition: dict[str, Any] = {"choice": [render(option) for option in self.options]}
        if self.weights is not None:
            definition["weights"] = list(self.weights)
        return definition

    def literal_index(self, value: Any) -> int | None:
        """Return the option that is exactly this plain value, if there is one without parameters."""
        by_text: dict[str, int] = self.__dict__["_by_text"]
        return by_text.get(canonical(value))


def _scaled(weights: tuple[float, ...] | None, count: int) -> tuple[float, ...] | None:
    if weights is None:
        return None
    values = [float(number(w, "weight")) for w in weights]
    if len(values) != count:
        raise SpaceError(f"{len(values)} weights for {count} options; give one weight per option")
    if any(w <= 0 for w in values):
        raise SpaceError("a weight is not positive; leave the option out instead")
    total = sum(values)
    # Weights that sum to 1 already stay as they are, so that a definition read back is the same one.
    return tuple(values) if abs(total - 1.0) < 1e-12 else tuple(w / total for w in values)


def template_of(value: Any, where: str) -> Template:
    """Return a copy of ``value`` with plain JSON around the parameters in it.

    Raises:
        SpaceError: Something in it is neither JSON nor a parameter.
    """
    if isinstance(value, Parameter):
        return value
    if isinstance(value, Mapping):
        return {check_key(k, where): template_of(v, where) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [template_of(v, where) for v in value]
    return plain(value, where)


def unwrap(template: Template) -> Template:
    """Return what is inside a constant or nested mapping, else the template itself."""
    return template.value if isinstance(template, (Const, Nested)) else template  # a union takes twice as long


def is_literal(template: Template) -> bool:
    """Whether there is no choice or numeric parameter in a template."""
    template = unwrap(template)
    if isinstance(template, Parameter):
        return False
    if isinstance(template, dict):
        return all(is_literal(v) for v in template.values())
    return not isinstance(template, list) or all(is_literal(v) for v in template)


def _overlap(a: Template, b: Template) -> bool:
    """Whether two templates with finitely many values share one (infinite ones count as apart)."""
    a, b = unwrap(a), unwrap(b)
    if isinstance(a, Choice):
        return any(_overlap(option, b) for option in a.options)
    if isinstance(b, Choice):
        return any(_overlap(a, option) for option in b.options)
    if isinstance(a, Numeric) and isinstance(b, Numeric):
        return _numeric_overlap(a, b)
    if isinstance(b, Numeric):
        a, b = b, a
    if isinstance(a, Numeric):
        return a.size is not None and _accepts(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_overlap(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_overlap(x, y) for x, y in zip(a, b, strict=True))
    return not isinstance(a, dict | list) and not isinstance(b, dict | list) and canonical(a) == canonical(b)


def _accepts(parameter: Numeric, value: Any) -> bool:
    try:
        parameter.normalise(value)
    except SpaceError:
        return False
    return True


def _numeric_overlap(a: Numeric, b: Numeric) -> bool:
    if a.limits is None or b.limits is None or a.size is None or b.size is None:
        return False
    if b.size < a.size:
        a, b = b, a
    if a.limits is not None and a.size is not None and a.size <= _ENUMERATED:
        return any(_accepts(b, a.at(i)) for i in range(a.limits[0], a.limits[1] + 1))
    (a_first, a_last), (b_first, b_last) = a.limits or (0, 0), b.limits or (0, 0)
    return a.at(a_first) <= b.at(b_last) and b.at(b_first) <= a.at(a_last)


def parts_of(template: Template, label: str) -> Iterator[tuple[str, Template]]:
    """Yield label and template of each direct part of a mapping or list."""
    if isinstance(template, dict):
        for key, part in template.items():
            yield f"{label}.{key}", part
    elif isinstance(template, list):
        for i, part in enumerate(template):
            yield f"{label}.{i}", part


def shaped_like(template: Template, parts: list[Any]) -> Any:
    """Put the parts back into the shape of a mapping or list template."""
    return dict(zip(template, parts, strict=True)) if isinstance(template, dict) else parts


def render(template: Template) -> Any:
    """Return the plain JSON definition of a template."""
    if isinstance(template, Parameter):
        return template.to_json()
    if isinstance(template, dict | list):
        return shaped_like(template, [render(part) for _, part in parts_of(template, "")])
    return template


def size(template: Template) -> int | None:
    """Return the number of values of a template; None if infinite."""
    template = unwrap(template)
    if isinstance(template, Numeric):
        return template.size
    if isinstance(template, Choice):
        sizes = [size(option) for option in template.options]
        return None if None in sizes else sum(s for s in sizes if s is not None)
    product = 1
    for _, part in parts_of(template, ""):
        count = size(part)
        if count is None:
            return None
        product *= count
    return product

"""The written form of a space, as in a campaign file, and `parse_space` for every accepted form."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from autotune.errors import SpaceError, nearest
from autotune.space import hyperopt_reader, ray_reader
from autotune.space.canonical import check_key, plain, show
from autotune.space.choices import Choice, Const, Nested, Template
from autotune.space.floats import Float, LogFloat, LogNormal, Normal
from autotune.space.integers import Int, LogInt
from autotune.space.kinds import OPTIONS, is_definition, looks_defined
from autotune.space.numeric import Parameter
from autotune.space.space import Space

_BOUNDED: dict[str, Callable[..., Parameter]] = {
    "int": Int,
    "log_int": LogInt,
    "float": Float,
    "log_float": LogFloat,
}
_NORMAL: dict[str, Callable[..., Parameter]] = {"normal": Normal, "log_normal": LogNormal}


def parse_space(obj: Any) -> Space:
    """Return the space that ``obj`` defines.

    Args:
        obj: A `Space`; a mapping from name to definition (``{int: [lo, hi]}``, ``{log_int: ...}``,
            ``{float: ...}``, ``{log_float: ...}``, ``{normal: [mu, sigma]}``, ``{log_normal: ...}``, all with
            an optional ``step``; ``{choice: [...]}`` with optional ``weights``; ``{const: ...}``;
            ``{nested: {...}}`` for a mapping that holds definitions); a hyperopt expression that gives a
            mapping; or a mapping that holds hyperopt or Ray Tune objects. In the last case a plain value
            is a constant.

    Raises:
        SpaceError: The definition is wrong; names the parameter and what to write.
    """
    if isinstance(obj, Space):
        return obj
    if hyperopt_reader.is_expression(obj):
        obj = hyperopt_reader.read_root(obj)
    if not isinstance(obj, Mapping):
        raise SpaceError(
            f"the space is a mapping from parameter name to definition, such as {{lr: {{log_float: [0.001, 0.1]}}}}, "
            f"not {type(obj).__name__}"
        )
    if any(_holds_foreign(value) for value in obj.values()):
        obj = _translate(obj)
    parameters = {}
    for name, definition in obj.items():
        check_key(name, f"parameter {name!r}")
        parameters[str(name)] = _top(str(name), definition)
    return Space(parameters=parameters)


def _holds_foreign(value: Any) -> bool:
    if hyperopt_reader.is_expression(value) or ray_reader.is_domain(value):
        return True
    if isinstance(value, Mapping):
        return any(_holds_foreign(v) for v in value.values())
    return isinstance(value, list | tuple) and any(_holds_foreign(v) for v in value)


def _translate(space: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a mapping with hyperopt and Ray Tune objects in our form, and constants marked."""
    labels = hyperopt_reader.Labels()
    written: dict[Any, Any] = {}
    for name, value in space.items():
        translated = _translate_value(value, str(name), labels)
        if isinstance(value, Mapping) and not is_definition(translated) and _holds_foreign(value):
            written[name] = {"nested": translated}
        else:
            written[name] = translated if is_definition(translated) else {"const": translated}
    return written


def _translate_value(value: Any, where: str, labels: hyperopt_reader.Labels) -> Any:
    if hyperopt_reader.is_expression(value):
        return hyperopt_reader.read_expression(value, where, labels)
    if ray_reader.is_domain(value):
        return ray_reader.read_domain(value, where, lambda v, at: _translate_value(v, at, labels))
    if isinstance(value, Mapping):
        return {k: _translate_value(v, f"{where}.{k}", labels) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_translate_value(v, f"{where}.{i}", labels) for i, v in enumerate(value)]
    return value


def _top(name: str, definition: Any) -> Parameter:
    where = f"parameter '{name}'"
    if isinstance(definition, Parameter):
        return definition
    if isinstance(definition, list | tuple):
        raise SpaceError(
            f"{where}: a list alone is no definition; write {{choice: {show(definition)}}} or {{const: ...}}"
        )
    if not isinstance(definition, Mapping):
        raise SpaceError(f"{where}: {show(definition)} alone is no definition; write {{const: {show(definition)}}}")
    kinds = [k for k in definition if k in OPTIONS]
    if not kinds:
        if not definition:
            raise SpaceError(f"{where}: the definition is empty; known: {', '.join(sorted(OPTIONS))}")
        first = next(iter(definition))
        raise SpaceError(f"{where}: unknown kind '{first}'{nearest(str(first), OPTIONS)}")
    if len(kinds) > 1:
        raise SpaceError(f"{where}: has two kinds, {kinds[0]} and {kinds[1]}; keep one")
    for key in definition:
        if key != kinds[0] and key not in OPTIONS[kinds[0]]:
            known = OPTIONS[kinds[0]]
            hint = nearest(str(key), known) if known else f"; {kinds[0]} has no options"
            raise SpaceError(f"{where}: unknown option '{key}' of {kinds[0]}{hint}")
    return _definition(definition, name)


def _definition(definition: Mapping[str, Any], where: str) -> Parameter:
    """Return the parameter of a mapping that `is_definition` or is checked to be one."""
    kind = next(k for k in definition if k in OPTIONS)
    body = definition[kind]
    options = {k: v for k, v in definition.items() if k != kind}
    if kind == "choice":
        return _choice(body, options, where)
    try:
        if kind == "const":
            return Const(value=body)
        if kind == "nested":
            if not isinstance(body, Mapping):
                raise SpaceError(f"{show(body)} is not a mapping; nested takes a mapping that holds definitions")
            return Nested(value=_template(body, where))
        names = ("mu", "sigma") if kind in _NORMAL else ("low", "high")
        if not isinstance(body, list | tuple) or len(body) != 2:
            raise SpaceError(f"{show(body)} is not a pair; write {{{kind}: [{', '.join(names)}]}}")
        if "step" in options and options["step"] is None:
            raise SpaceError("step null is not a number; leave it out")
        return (_NORMAL | _BOUNDED)[kind](**dict(zip(names, body, strict=True)), **options)
    except SpaceError as error:
        raise _named(error, where) from None


def _named(error: SpaceError, where: str) -> SpaceError:
    """Put the name of the parameter before a message that has none yet."""
    return error if str(error).startswith("parameter '") else SpaceError(f"parameter '{where}': {error}")


def _choice(body: Any, options: dict[str, Any], where: str) -> Choice:
    weights = options.get("weights")
    try:
        if not isinstance(body, list | tuple):
            raise SpaceError(f"{show(body)} is not a list; write {{choice: [first, second]}}")
        if "weights" in options and not isinstance(weights, list | tuple):
            raise SpaceError(f"weights {show(weights)} is not a list; give one weight per option")
        templates = tuple(_template(option, f"{where}[{i}]") for i, option in enumerate(body))
        return Choice(options=templates, weights=None if weights is None else tuple(weights))
    except SpaceError as error:
        raise _named(error, where) from None


def _template(value: Any, where: str) -> Template:
    """Return a value in which the definitions, wherever they stand, are parameters."""
    if isinstance(value, Parameter):
        return value
    if isinstance(value, Mapping):
        if is_definition(value, nested=False):
            parameter = _definition(value, where)
            # A constant is only needed where its value would otherwise be read as a definition.
            if isinstance(parameter, Const) and not looks_defined(parameter.value):
                return parameter.value
            return parameter
        _refuse_misspelt(value, where)
        return {check_key(k, f"parameter '{where}'"): _template(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_template(v, f"{where}.{i}") for i, v in enumerate(value)]
    return plain(value, f"parameter '{where}'")


def _refuse_misspelt(value: Mapping[Any, Any], where: str) -> None:
    """Refuse a literal mapping that is a definition but for a misspelt option, such as ``stpe``."""
    kinds = [k for k in value if k in OPTIONS and isinstance(value[k], list)]
    if len(kinds) != 1 or not OPTIONS[kinds[0]]:
        return
    known = OPTIONS[kinds[0]]
    wrong = [str(k) for k in value if k != kinds[0] and k not in known]
    if wrong and all(difflib.get_close_matches(k, known, n=1, cutoff=0.5) for k in wrong):
        raise SpaceError(
            f"parameter '{where}': unknown option '{wrong[0]}' of {kinds[0]}{nearest(wrong[0], known)} "
            "(a literal mapping is written {const: ...})"
        )

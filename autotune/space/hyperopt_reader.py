"""Reads hyperopt search spaces by the attributes of their graph nodes; hyperopt is not imported.

A node of hyperopt's expression graph has ``name``, ``pos_args`` and ``named_args``; a literal has ``obj``.
Quantised kinds give ``round(x / q) * q``, which may lie outside the bounds by up to q / 2; our bounds are
the outermost values that hyperopt gives with positive probability (for the log kind without 0).
hyperopt's labels are dropped: a parameter is named by its place. The exception is a choice as the root of
the whole expression, which becomes one parameter with hyperopt's label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from autotune.errors import SpaceError
from autotune.space.kinds import escape, is_definition
from autotune.space.numeric import ceil_index, floor_index, round12

_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "uniform": ("low", "high"),
    "quniform": ("low", "high", "q"),
    "loguniform": ("low", "high"),
    "qloguniform": ("low", "high", "q"),
    "normal": ("mu", "sigma"),
    "qnormal": ("mu", "sigma", "q"),
    "lognormal": ("mu", "sigma"),
    "qlognormal": ("mu", "sigma", "q"),
    "randint": ("low", "high"),
    "categorical": ("p",),
}

Path = tuple[tuple[int, int], ...]  # (id of the switch node, option) from the outside inwards


class Labels:
    """Where each hyperopt label was met, to refuse one decision at two places."""

    def __init__(self) -> None:
        self._seen: dict[str, list[Path]] = {}

    def add(self, label: str, path: Path, where: str) -> None:
        """Note a label.

        Raises:
            SpaceError: The label was met before, and both places can be active at the same time.
        """
        for other in self._seen.setdefault(label, []):
            mine, theirs = dict(path), dict(other)
            if all(mine[node] == theirs[node] for node in mine.keys() & theirs.keys()):
                raise SpaceError(
                    f"parameter '{where}': hyperopt label '{label}' is used at two places; use it once, with its "
                    "own label"
                )
        self._seen[label].append(path)


def is_expression(value: Any) -> bool:
    """Whether ``value`` is a node of a hyperopt expression graph."""
    return (
        not isinstance(value, type)
        and isinstance(getattr(value, "name", None), str)
        and isinstance(getattr(value, "pos_args", None), list)
        and isinstance(getattr(value, "named_args", None), list)
    )


def read_root(node: Any) -> dict[str, Any]:
    """Return the mapping form of an expression that gives a mapping, or of a choice.

    Raises:
        SpaceError: It gives something else, or holds an unsupported node.
    """
    labels = Labels()
    if node.name == "dict" and not node.pos_args:
        written = {}
        for name, value in node.named_args:
            translated = read_expression(value, name, labels)
            if is_definition(translated):
                written[name] = translated
            else:
                inner = isinstance(translated, Mapping) and not _constant(value)
                written[name] = {"nested" if inner else "const": translated}
        return written
    if node.name == "switch":
        label = _label(node.pos_args[0], "root")
        return {label: read_expression(node, label, labels)}
    raise SpaceError(f"the hyperopt expression is a '{node.name}' node; give a dict from name to expression")


def read_expression(node: Any, where: str, labels: Labels) -> Any:
    """Return our form of the expression at one place.

    Args:
        node: A graph node.
        where: Name of the parameter, for messages.
        labels: Shared by all expressions of one space.

    Raises:
        SpaceError: The graph holds a node that has no counterpart here; names it.
    """
    return _read(node, where, labels, ())


def _constant(node: Any) -> bool:
    if node.name == "literal":
        return True
    inner = [*node.pos_args, *(arg for _, arg in node.named_args)]
    return node.name in ("dict", "pos_args") and all(_constant(arg) for arg in inner)


def _read(node: Any, where: str, labels: Labels, path: Path) -> Any:
    if _constant(node):
        return escape(_value(node, where))
    if node.name == "dict" and not node.pos_args:
        inner = {k: _read(v, f"{where}.{k}", labels, path) for k, v in node.named_args}
        if is_definition(inner):
            raise SpaceError(f"parameter '{where}': the key '{next(iter(inner))}' is a kind of ours; rename it")
        return inner
    if node.name == "pos_args":
        return [_read(v, f"{where}.{i}", labels, path) for i, v in enumerate(node.pos_args)]
    if node.name == "switch":
        return _switch(node, where, labels, path)
    if node.name == "hyperopt_param":
        labels.add(_label(node, where), path, where)
        return _distribution(node.pos_args[1], where)
    if node.name == "float":
        return _read(node.pos_args[0], where, labels, path)
    if node.name == "int":
        return _whole(_read(node.pos_args[0], where, labels, path), where)
    if node.name == "add":
        return _add([_read(arg, where, labels, path) for arg in node.pos_args], where)
    raise _unsupported(node, where)


def _unsupported(node: Any, where: str) -> SpaceError:
    return SpaceError(
        f"parameter '{where}': hyperopt node '{node.name}' is not supported; define the values directly "
        "(only a whole number added to randint or uniformint is read)"
    )


def _label(node: Any, where: str) -> str:
    if node.name != "hyperopt_param":
        raise _unsupported(node, where)
    return str(node.pos_args[0].obj)


def _switch(node: Any, where: str, labels: Labels, path: Path) -> dict[str, Any]:
    index, options = node.pos_args[0], node.pos_args[1:]
    labels.add(_label(index, where), path, where)
    law = index.pos_args[1]
    definition: dict[str, Any] = {
        "choice": [_read(option, f"{where}[{i}]", labels, (*path, (id(node), i))) for i, option in enumerate(options)]
    }
    if law.name == "categorical":
        definition["weights"] = _arguments(law, where)["p"]
    elif law.name != "randint":
        raise _unsupported(law, where)
    return definition


def _arguments(node: Any, where: str) -> dict[str, Any]:
    names = _ARGUMENTS.get(node.name)
    if names is None:
        raise _unsupported(node, where)
    given = dict(zip(names, node.pos_args, strict=False)) | dict(node.named_args)
    return {name: _value(arg, where) for name, arg in given.items() if name in names}


def _value(node: Any, where: str) -> Any:
    if node.name == "literal":
        return node.obj.tolist() if hasattr(node.obj, "tolist") else node.obj
    if node.name == "pos_args":
        return [_value(arg, where) for arg in node.pos_args]
    if node.name == "dict" and not node.pos_args:
        return {k: _value(arg, where) for k, arg in node.named_args}
    raise _unsupported(node, where)


def _distribution(node: Any, where: str) -> dict[str, Any]:
    given = _arguments(node, where)
    name: str = node.name
    q: Any = given.get("q")
    if name == "randint":
        low, high = (0, given["low"]) if given.get("high") is None else (given["low"], given["high"])
        return {"int": [low, high - 1]}
    if name == "uniform":
        return {"float": [given["low"], given["high"]]}
    if name == "loguniform":
        return {"log_float": [math.exp(given["low"]), math.exp(given["high"])]}
    if name == "quniform":
        first, last = _multiples(given["low"], given["high"], q)
        return {"float": [round12(first * q), round12(last * q)], "step": q}
    if name == "qloguniform":
        first, last = _multiples(math.exp(given["low"]), math.exp(given["high"]), q)
        return {"log_float": [round12(max(first, 1) * q), round12(last * q)], "step": q}
    if name == "categorical":
        raise _unsupported(node, where)
    kind = "log_normal" if name.endswith("lognormal") else "normal"
    definition: dict[str, Any] = {kind: [given["mu"], given["sigma"]]}
    return definition if q is None else definition | {"step": q}


def _multiples(low: float, high: float, q: float) -> tuple[int, int]:
    """Return the first and last m with m * q = round(x / q) * q for more than one x within the bounds."""
    return floor_index(low / q - 0.5) + 1, ceil_index(high / q + 0.5) - 1


def _whole(definition: Any, where: str) -> dict[str, Any]:
    """Return the definition of ``int(expression)``."""
    if is_definition(definition):
        kind = next(k for k in definition if k not in ("step", "weights"))
        step = definition.get("step")
        if kind == "int":
            return dict(definition)
        if kind in ("float", "log_float") and step is not None and step == int(step):
            low, high = (int(bound) for bound in definition[kind])
            written: dict[str, Any] = {"int" if kind == "float" else "log_int": [low, high]}
            return written if step == 1 else written | {"step": int(step)}
    raise SpaceError(
        f"parameter '{where}': hyperopt node 'int' is only supported around randint, uniformint and quniform or "
        "qloguniform with a whole q"
    )


def _add(terms: list[Any], where: str) -> dict[str, Any]:
    constants = [t for t in terms if isinstance(t, int) and not isinstance(t, bool)]
    ranges = [t for t in terms if is_definition(t) and "int" in t]
    if len(constants) != 1 or len(ranges) != 1:
        raise SpaceError(
            f"parameter '{where}': hyperopt node 'add' is only supported for a whole number and randint or uniformint"
        )
    low, high = ranges[0]["int"]
    return dict(ranges[0]) | {"int": [low + constants[0], high + constants[0]]}

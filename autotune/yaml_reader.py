"""Reads YAML the way people write it: ``1e-4`` is a number, and a key given twice is an error."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from autotune.errors import CampaignError

MAX_DEPTH = 100
"""Lists and mappings within each other."""
MAX_NODES = 1_000_000
"""Values in a file, each alias counted as what it stands for: a few lines of aliases can say billions."""


class _Loader(yaml.SafeLoader):
    """The safe loader, with the floats of YAML 1.2, no silent duplicates, and bounds on depth and size."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class declares it so
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Build a node, not too deep."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"more than {MAX_DEPTH} lists and mappings within each other", None
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        """Build the only document, not too large."""
        node = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, refusing a key that is given twice."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (dict, list)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for."""
    if id(node) not in known:
        known[id(node)] = MAX_NODES + 1  # as long as it is being counted: whoever meets it again is inside it
        inner = (
            [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
            if isinstance(node, yaml.CollectionNode)
            else []
        )
        known[id(node)] = 1 + sum(_count(part, known) for part in inner)
    if known[id(node)] > MAX_NODES:
        raise yaml.composer.ComposerError(None, None, "an alias stands for too much, or for itself", node.start_mark)
    return known[id(node)]


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+)(?:[eE][-+]?[0-9]+)$"
        r"|^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


class _DuplicateKeyError(ValueError):
    """A key of a JSON object is given twice."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise _DuplicateKeyError(f"the key '{key}' is given twice")
        seen[key] = value
    return seen


def read_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML text.

    Args:
        text: YAML or JSON.
        source: What to call it in an error.

    Raises:
        CampaignError: If it is not valid YAML; says the line.
    """
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text, object_pairs_hook=_no_duplicates)
        except RecursionError:
            raise CampaignError(f"{source}: lists and objects are too deep within each other") from None
        except ValueError as error:
            if isinstance(error, _DuplicateKeyError):
                raise CampaignError(f"{source}: {error}") from None
    try:
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CampaignError(f"{source} is not valid YAML: {error}") from None

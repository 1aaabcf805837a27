"""Reads YAML the way people write it: ``1e-4`` is a number, and a key given twice is an error."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from autotune.errors import CampaignError


class _Loader(yaml.SafeLoader):
    """The safe loader, with the floats of YAML 1.2 and no silent duplicates."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class declares it so
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

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
        except ValueError as error:
            if isinstance(error, _DuplicateKeyError):
                raise CampaignError(f"{source}: {error}") from None
    try:
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CampaignError(f"{source} is not valid YAML: {error}") from None

"""The space: named parameters, and everything that is asked of configurations in it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from autotune.errors import SpaceError
from autotune.space import walks
from autotune.space.canonical import canonical, check_key, digest, plain
from autotune.space.choices import Choice
from autotune.space.choices import size as count_of
from autotune.space.numeric import Parameter
from autotune.space.walks import Leaf, Raw


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """The set of configurations of a campaign.

    A configuration is a plain mapping from parameter name to value: values, never indices.

    Attributes:
        parameters: Definition by name. The order is kept: it is the order of `grid`, and of the draws
            of `sample`, so two spaces with the same parameters in another order are not equal.

    Raises:
        SpaceError: No parameters, a name that cannot be stored, or two parameters with one label.
    """

    parameters: Mapping[str, Parameter]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", dict(self.parameters))
        if not self.parameters:
            raise SpaceError("space has no parameters; define at least one")
        seen: set[str] = set()
        for name, parameter in self.parameters.items():
            check_key(name, f"parameter {name!r}")
            for label, _ in walks.leaves(parameter, name, None):
                if label in seen:
                    raise SpaceError(f"two parameters have the label '{label}'; rename one")
                seen.add(label)

    def __eq__(self, other: object) -> bool:
        """Compare by definition, order included."""
        return self._text == other._text if isinstance(other, Space) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    @cached_property
    def _text(self) -> str:
        return canonical(list(self.to_json().items()))

    @cached_property
    def _leaves(self) -> dict[str, Leaf]:
        return {
            label: leaf
            for name, parameter in self.parameters.items()
            for label, leaf in walks.leaves(parameter, name, None)
        }

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON definition; `parse_space` makes an equal space of it."""
        return {name: parameter.to_json() for name, parameter in self.parameters.items()}

    @cached_property
    def size(self) -> int | None:
        """Number of distinct configurations; None if infinite.

        The options of a choice add up, all other parameters multiply.
        """
        return count_of(dict(self.parameters))

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw a configuration from the prior."""
        return {name: walks.sample(p, rng) for name, p in self.parameters.items()}

    def point(self, index: int) -> dict[str, Any]:
        """Return configuration number ``index`` of `grid`, without walking there.

        Raises:
            SpaceError: The space is infinite, or the index is not within 0 to size - 1.
        """
        size = self._finite_size()
        if not 0 <= index < size:
            raise SpaceError(f"grid index {index} is not within 0 to {size - 1}")
        configuration: dict[str, Any] = walks.point(dict(self.parameters), index)
        return configuration

    def grid(self) -> Iterator[dict[str, Any]]:
        """Return all configurations, made one at a time.

        The first parameter varies slowest and the last fastest. A numeric parameter runs upwards, a choice
        through its options in order, each with all values of the parameters inside it.

        Raises:
            SpaceError: The space is infinite; names the first parameter without a step.
        """
        size = self._finite_size()
        return (self.point(i) for i in range(size))

    def _finite_size(self) -> int:
        if self.size is None:
            label = next(
                label
                for label, leaf in self._leaves.items()
                if not isinstance(leaf.parameter, Choice) and count_of(leaf.parameter) is None
            )
            raise SpaceError(
                f"parameter '{label}' has infinitely many values; give it a step within bounds or use another "
                "algorithm than grid"
            )
        return self.size

    def normalise(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return a configuration with the types of the definition.

        A whole-number parameter gives int, a real one float (on the grid if there is a step), a choice the
        option's own value. Keys are in the order of the definition.

        Raises:
            SpaceError: A parameter is unknown, missing or has a value that is not allowed; names it.
        """
        return self._read(params)[0]

    def validate(self, params: Mapping[str, Any]) -> None:
        """Check a configuration.

        Raises:
            SpaceError: As `normalise`.
        """
        self._read(params)

    def encode(self, params: Mapping[str, Any]) -> Raw:
        """Return the active decisions of a configuration by label.

        The value of a numeric parameter is the number itself, that of a choice the index of the option.
        Labels: the parameter's name, then ``[1]`` inside option 1 of a choice, ``.key`` inside a mapping
        and ``.0`` inside a list, as in ``model[1].depth``. Constants have none.

        Raises:
            SpaceError: As `normalise`.
        """
        return self._read(params)[1]

    def decode(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of decisions made by label; inactive ones are ignored.

        Raises:
            SpaceError: An active decision is missing or not allowed.
        """
        return {name: walks.build(p, raw, name) for name, p in self.parameters.items()}

    def leaves(self) -> Mapping[str, Leaf]:
        """Return every decision by label, as `Leaf` (parameter, condition), parents before children."""
        return dict(self._leaves)

    def hash(self, params: Mapping[str, Any]) -> str:
        """Return the identity of a configuration: 32 hex digits, the same on every machine and version.

        It is the start of the SHA-256 of the canonical JSON text of `normalise`: sorted keys, no spaces,
        ASCII, shortest exact floats.

        Raises:
            SpaceError: As `normalise`.
        """
        return digest(self._read(params)[0])

    def identify(self, params: Mapping[str, Any]) -> tuple[str, Raw]:
        """Return `hash` and `encode` of a configuration, which is read once.

        Raises:
            SpaceError: As `normalise`.
        """
        normalised, raw = self._read(params)
        return digest(normalised), raw

    def flatten(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return dotted columns for tables: nested mappings are flattened, lists stay JSON values."""
        columns: dict[str, Any] = {}
        for key, value in params.items():
            if isinstance(value, Mapping) and value:
                columns |= {f"{key}.{inner}": v for inner, v in self.flatten(value).items()}
            else:
                columns[key] = copy.deepcopy(value)
        return columns

    def _read(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], Raw]:
        if not isinstance(params, Mapping):
            raise SpaceError(f"a configuration is a mapping from name to value, not {type(params).__name__}")
        walks.check_keys(self.parameters, params, "", "parameter")
        raw: Raw = {}
        normalised = {}
        for name, parameter in self.parameters.items():
            value = plain(params[name], f"parameter '{name}'")
            normalised[name] = walks.read(parameter, value, name, raw)
        return normalised, raw

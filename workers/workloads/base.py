"""What the service asks of a model family (a *workload*).

A workload is stateless: one instance may serve any number of campaigns. Everything that can be wrong with what
the user wrote is found before any trial, by `Workload.check_space`, `Workload.check_fixed` and
`Workload.inspect`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from workers.reporting import Result, Trial


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """What a metric of a workload is.

    Attributes:
        mode: Whether lower (``min``) or higher (``max``) is better.
        split: The part of the cells it is measured on: ``train`` or ``validation``.
        description: One line: what it is, and its unit.
    """

    mode: Literal["min", "max"]
    split: str
    description: str


@runtime_checkable
class Workload(Protocol):
    """A model family that can be tuned.

    Attributes:
        name: Name in campaign files.
        preload: Modules that a fork server imports before trials are forked.
        default_metric: Name of the metric that a campaign optimises when it names none.
    """

    name: str
    preload: tuple[str, ...]
    default_metric: str

    def default_space(self) -> dict[str, dict[str, list[Any]]]:
        """Return the default search space in plain form.

        Returns:
            Name -> ``{"int": [lo, hi]}``, ``{"float": [lo, hi]}``, ``{"log_float": [lo, hi]}`` (both ends
            included) or ``{"choice": [...]}``.
        """
        ...

    def metrics(self) -> Mapping[str, MetricSpec]:
        """Return every metric that `run` returns."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return the settings (what is not searched by default) and their default values."""
        ...

    def check_fixed(self, fixed: Mapping[str, Any]) -> None:
        """Check values that the campaign holds fixed.

        Args:
            fixed: Parameter or setting -> value.

        Raises:
            CampaignError: On an unknown name, or a value of the wrong type or out of range.
        """
        ...

    def check_space(self, names: Iterable[str]) -> None:
        """Check the parameter names of a user's space.

        Raises:
            CampaignError: If the model never reads a parameter of that name, or it is not one to search.
        """
        ...

    def inspect(self, data: Mapping[str, Any], split: Mapping[str, Any]) -> dict[str, Any]:
        """Check data and split at launch, without training libraries.

        Args:
            data: The campaign's ``data`` section.
            split: The campaign's ``split`` section.

        Returns:
            ``{"data": {...}, "split": {...}}``, plain JSON, kept with the campaign.

        Raises:
            CampaignError: On an unknown key or an impossible value.
            DataError: If the file, or what is asked of it, is wrong.
        """
        ...

    def prepare(self, data: Mapping[str, Any], split: Mapping[str, Any]) -> Any:
        """Load and split the cells: once per host and campaign, before trials are forked.

        Starts no thread and leaves the accelerator alone. Trials get the returned object as `Trial.data`.

        Raises:
            CampaignError: As `inspect`.
            DataError: As `inspect`.
        """
        ...

    def run(self, trial: Trial) -> Result:
        """Train and score one configuration.

        Raises:
            TrialStopped: Passed on from `Trial.report`.
            FloatingPointError: If training or scoring gave NaN or infinity.
        """
        ...

"""What the service asks of a model family (a *workload*).

A workload is stateless: one instance may serve any number of campaigns. Everything that can be wrong with what
the user wrote is found before any trial, by `Workload.check_space`, `Workload.check_fixed` and
`Workload.inspect`.

What only some workloads offer are protocols of their own, looked up by the names of their methods: `Reporting`,
`Checking`, `Evaluating`, `Saving`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from workers.reporting import Result, Trial


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """What a metric of a workload is.

    Attributes:
        mode: Whether lower (``min``) or higher (``max``) is better.
        split: The part of the cells it is measured on: ``train``, ``validation`` or ``test``.
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
        """Return every metric that `run` can return; the default metric is always there."""
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

        Starts no thread and leaves the accelerator alone. Trials get the returned object as `Trial.data`. The test
        part of the cells is left out of it, unless the service says ``unsealed: true`` in `split`.

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


class Reporting(Protocol):
    """Offered by a workload whose trials report as they train, so that a schedule can compare them."""

    def reports(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a schedule compares trials by.

        Args:
            settings: All settings of the campaign.

        Returns:
            ``{"maximum": most steps, "metric": {"name", "mode"}, "metrics": {name: mode}}``; empty: nothing.
        """
        ...


class Checking(Protocol):
    """Offered by a workload whose parameters, data and metrics ask things of each other."""

    def check_together(
        self, values: Mapping[str, Sequence[Any]], data: Mapping[str, Any], metrics: Iterable[str]
    ) -> None:
        """Check at launch that all that a campaign can try goes together.

        Args:
            values: Parameter or setting -> values that trials can have: options of a choice, both ends of a range, the
                fixed value or the default.
            data: The campaign's ``data`` section.
            metrics: Names of the campaign's metrics.

        Raises:
            CampaignError: What does not go together, one line.
        """
        ...


class Evaluating(Protocol):
    """Offered by a workload that `autotune benchmark` can compare configurations of."""

    def evaluate(self, trial: Trial, settings: Mapping[str, Any]) -> Result:
        """Train `Trial.params` as `Workload.run` does and score the test part too.

        Args:
            trial: One configuration; its cells come from `Workload.prepare` with the test part unsealed.
            settings: Those of `evaluation_settings`, some of them changed.

        Returns:
            The metrics of `Workload.run` and those of `evaluation_metrics`.

        Raises:
            TrialStopped: Passed on from `Trial.report`.
            FloatingPointError: If training or scoring gave NaN or infinity.
        """
        ...

    def evaluation_settings(self) -> dict[str, Any]:
        """Return the settings of `evaluate` and their default values."""
        ...

    def evaluation_metrics(self) -> Mapping[str, MetricSpec]:
        """Return every metric that `evaluate` can return beside those of `Workload.metrics`."""
        ...

    def check_evaluation(self, settings: Mapping[str, Any]) -> None:
        """Check settings of `evaluate`.

        Raises:
            CampaignError: On an unknown name or a wrong value.
        """
        ...


class Saving(Protocol):
    """Offered by a workload whose models can be kept."""

    def save(self, trial: Trial, folder: Path) -> Result:
        """Train as `Workload.run` does, with the same score, and write the model that was scored.

        Args:
            trial: One configuration.
            folder: Where to write, in the format of the model's own library.

        Raises:
            TrialStopped: Passed on from `Trial.report`.
            FloatingPointError: If training or scoring gave NaN or infinity.
        """
        ...

"""When an epoch is the best so far and when to stop. Pure: no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(kw_only=True)
class BestEpoch:
    """Follows one metric, lower is better, over epochs.

    An epoch is better only if it is strictly lower than all before it. Training stops after `patience` epochs in a
    row that were not better (the rule of Lightning and scvi-tools; scVI of 2019 waited one epoch more).

    Attributes:
        patience: Number of epochs without a better one after which to stop; None to never stop.
        epoch: Number of epochs trained when the metric was best (1 for the first epoch), 0 before any.
        value: Best value so far.
        waited: Number of epochs since the best one.
    """

    patience: int | None
    epoch: int = 0
    value: float = math.inf
    waited: int = 0

    def update(self, epoch: int, value: float) -> bool:
        """Take in the value after `epoch` epochs; return whether it is the best so far."""
        if value < self.value:
            self.epoch, self.value, self.waited = epoch, value, 0
            return True
        self.waited += 1
        return False

    @property
    def should_stop(self) -> bool:
        """Whether to stop now."""
        return self.patience is not None and self.waited >= self.patience

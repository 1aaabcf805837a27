"""When an epoch is the best so far, which epochs made progress, and when to stop. Pure: no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(kw_only=True)
class BestEpoch:
    """Follows a held-out score, lower is better, over epochs, and beside it a steadier one if there is one.

    An epoch is better only if its score is strictly lower than all before it. An epoch makes progress if its score or
    its steady score is. Training stops after `patience` epochs in a row without progress (with one score the rule of
    Lightning and scvi-tools; scVI of 2019 waited one epoch more).

    Why two: the score decides which weights are kept, so it must be of the model as it is used; but in evaluation mode
    it jumps for tens of epochs (see `early.batch_elbo`), and one lucky epoch then hides all that the next ones learn.

    Attributes:
        patience: Number of epochs without progress after which to stop; None to never stop.
        epoch: Number of epochs trained when the score was best (1 for the first epoch), 0 before any.
        value: Best score so far.
        steady: Best steady score so far.
        waited: Number of epochs since the last one that made progress.
        progressed: Number of epochs that made progress.
    """

    patience: int | None
    epoch: int = 0
    value: float = math.inf
    steady: float = math.inf
    waited: int = 0
    progressed: int = 0

    def update(self, epoch: int, value: float, steady: float = math.nan) -> bool:
        """Take in the scores after `epoch` epochs; return whether this is the best epoch so far."""
        better, steadier = value < self.value, steady < self.steady
        if better:
            self.epoch, self.value = epoch, value
        if steadier:
            self.steady = steady
        if better or steadier:
            self.waited, self.progressed = 0, self.progressed + 1
        else:
            self.waited += 1
        return better

    @property
    def should_stop(self) -> bool:
        """Whether to stop now."""
        return self.patience is not None and self.waited >= self.patience

"""The contract of a trial store as a suite of tests; `autotune.store.base` says it in prose.

A test module makes its own subclass and gives it a fixture ``store``: an open, empty store.

    class TestMongo(StoreContract):
        pass
"""

from __future__ import annotations

from autotune.testing.contract_attempts import AttemptContract
from autotune.testing.contract_campaigns import CampaignContract
from autotune.testing.contract_ends import EndContract
from autotune.testing.contract_schedule import ScheduleContract
from autotune.testing.contract_steering import SteeringContract
from autotune.testing.contract_trials import TrialContract


class StoreContract(TrialContract, AttemptContract, EndContract, CampaignContract, SteeringContract, ScheduleContract):
    """All that a store must do."""

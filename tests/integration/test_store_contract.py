"""The store on a real MongoDB keeps the contract of stores."""

from __future__ import annotations

from autotune.testing.contract import StoreContract


class TestMongoStore(StoreContract):
    """Runs with the fixture ``store`` of conftest."""

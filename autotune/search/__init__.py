"""Search algorithms: what to try next, as a pure function of what was tried."""

from __future__ import annotations

from autotune.search.base import Observation, Search
from autotune.search.history import History
from autotune.search.hyperopt_tpe import warm_up
from autotune.search.settings import make_search, search_settings, stored_settings

__all__ = ["History", "Observation", "Search", "make_search", "search_settings", "stored_settings", "warm_up"]

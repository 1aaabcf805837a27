"""Reports of a campaign: best and worst configurations, run time, and what the scores are.

Pure: takes a `autotune.store.base.CampaignRecord` and `autotune.trial.Trial` values, never a store.
"""

from autotune.report.report import Report

__all__ = ["Report"]

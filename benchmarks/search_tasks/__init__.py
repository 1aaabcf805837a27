"""Tasks of `search_quality`: functions, COCO's bbob-mixint, and tables of real models."""

from __future__ import annotations

from search_tasks.base import Task
from search_tasks.bbob import bbob_tasks
from search_tasks.functions import function_tasks
from search_tasks.tables import table_tasks

__all__ = ["Task", "all_tasks"]


def all_tasks() -> dict[str, Task]:
    """Return all tasks by name; those of bbob-mixint only where coco-experiment is installed."""
    return {task.name: task for task in [*function_tasks(), *table_tasks(), *bbob_tasks()]}

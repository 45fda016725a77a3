"""Layers keep their input alone, and are computed again whole, exchanges included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.policies.protocols import Kept
from moesim.schedules.schedule import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """Run every layer's forward again before its backward (Chen et al., arXiv 1604.06174)."""

    keeps: ClassVar[Kept] = "inputs"

    def __call__(self, task: Task) -> bool:
        """Say yes, but for what lies at the ends of the model."""
        return task.name not in ("embed", "head")


policy = Full

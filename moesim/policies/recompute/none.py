"""All that the backward pass needs is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.policies.protocols import Kept
from moesim.schedules.schedule import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """Run nothing again; attention's scores are never kept, as fused kernels make them anew."""

    keeps: ClassVar[Kept] = "all"

    def __call__(self, task: Task) -> bool:
        """Say no."""
        return False


policy = Nothing

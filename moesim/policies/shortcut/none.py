"""No shortcut: the model as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.plans.layout import Layout
from moesim.schedules.schedule import Schedule
from moesim.world.model import Moe


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanged:
    """Leave every mixture and every block as it is."""

    changes_model: ClassVar[bool] = False
    joins: ClassVar[bool] = False

    def mixture(self, moe: Moe) -> Moe:
        """Return the mixture."""
        return moe

    def __call__(self, block: Schedule, layout: Layout) -> tuple[Schedule, ...]:
        """Return the block, without alternatives."""
        return (block,)


policy = Unchanged

"""No overlap: the schedule stays as it was lowered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.plans.layout import Layout
from moesim.schedules.schedule import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanged:
    """Leave every block as it is; only what streams allow by themselves runs side by side."""

    halves: ClassVar[int] = 1

    def block(self, block: Schedule, layout: Layout) -> tuple[Schedule, ...]:
        """Return the block, without alternatives."""
        return (block,)

    def whole(self, halves: tuple[Schedule, ...]) -> Schedule:
        """Return the only sub-batch."""
        (only,) = halves
        return only


policy = Unchanged

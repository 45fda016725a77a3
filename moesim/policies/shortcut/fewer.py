"""Fewer routed experts per token: standard top-k gating with a smaller k."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from moesim.plans.layout import Layout
from moesim.schedules.schedule import Schedule
from moesim.world.model import Moe


@dataclass(frozen=True, slots=True, kw_only=True)
class Fewer:
    """Choose fewer experts; nothing is reordered.

    Attributes
    ----------
    routed : experts per token; a mixture that has no more is left as it is
    """

    changes_model: ClassVar[bool] = True
    joins: ClassVar[bool] = False

    routed: int = 1

    def __post_init__(self) -> None:
        """Check the range."""
        if self.routed < 1:
            raise ValueError(f"routed = {self.routed}; give at least 1")

    def mixture(self, moe: Moe) -> Moe:
        """Lower the mixture's k."""
        return replace(moe, topk=min(moe.topk, self.routed))

    def __call__(self, block: Schedule, layout: Layout) -> tuple[Schedule, ...]:
        """Return the block, without alternatives."""
        return (block,)


policy = Fewer

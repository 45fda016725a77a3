"""A shared expert in place of a routed one, reading what the routed ones read: nothing is reordered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from moesim.plans.layout import Layout
from moesim.policies.shortcut.fewer import Fewer
from moesim.schedules.schedule import Schedule
from moesim.world.model import Moe


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared(Fewer):
    """Route to fewer experts, and send every token through one more of the same width (ScMoE, arXiv 2404.05019).

    Attributes
    ----------
    routed : experts per token besides the shared one
    """

    changes_model: ClassVar[bool] = True
    joins: ClassVar[bool] = False

    def mixture(self, moe: Moe) -> Moe:
        """Lower the mixture's k; give it a shared expert where it has none."""
        return replace(moe, topk=min(moe.topk, self.routed), shared_width=moe.shared_width or moe.width)

    def __call__(self, block: Schedule, layout: Layout) -> tuple[Schedule, ...]:
        """Return the block, without alternatives."""
        return (block,)


policy = Shared

"""Two-batch overlap: the batch is halved, and while one half communicates the other computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.plans.layout import Layout
from moesim.schedules.schedule import Schedule, beside


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoBatch:
    """Run two half batches beside each other (SGLang's two-batch, vLLM's dual-batch overlap, DeepSeek's serving).

    Each half is drawn and priced on its own, so the smaller products cost what smaller products cost.
    """

    halves: ClassVar[int] = 2

    def block(self, block: Schedule, layout: Layout) -> tuple[Schedule, ...]:
        """Return the block, without alternatives."""
        return (block,)

    def whole(self, halves: tuple[Schedule, ...]) -> Schedule:
        """Merge the two halves in proportion."""
        first, second = halves
        return beside(first, second)


policy = TwoBatch

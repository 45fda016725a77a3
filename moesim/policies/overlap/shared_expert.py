"""Shared-expert overlap: the shared expert computes while the routed rows travel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.plans.layout import Layout
from moesim.policies.routed import beside_backbone, parted
from moesim.schedules.schedule import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedExpert:
    """Issue the dispatch before the shared expert, and the experts before it or after it, whichever is faster.

    Megatron-Core's shared-expert overlap; the model is unchanged. A layer without a shared expert stays as it is.
    """

    halves: ClassVar[int] = 1

    def block(self, block: Schedule, layout: Layout) -> tuple[Schedule, ...]:
        """Return two schedules: the shared expert behind the dispatch, or behind the combine."""
        parts = parted(block)
        if parts is None or parts.names[-1][1] != "shared":
            return (block, block)
        tap = len(parts.operators) - 1
        return tuple(beside_backbone(block, parts, tap, slot) for slot in (tap + 1, tap))

    def whole(self, halves: tuple[Schedule, ...]) -> Schedule:
        """Return the only sub-batch."""
        (only,) = halves
        return only


policy = SharedExpert

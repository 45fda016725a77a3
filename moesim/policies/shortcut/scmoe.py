"""Shortcut-connected experts: the routed stream reads an earlier layer's state and runs beside what lies between."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from moesim.plans.layout import Layout
from moesim.policies.routed import Parted, beside_backbone, parted
from moesim.schedules.schedule import Schedule
from moesim.world.model import Moe


@dataclass(frozen=True, slots=True, kw_only=True)
class Scmoe:
    """Decouple the routed experts from the attention before them (ScMoE, ICML 2025, arXiv 2404.05019).

    A block is a dense layer and the MoE layer after it. The routed stream starts at the tap, its dispatch hides behind
    the operators up to the experts' slot, its combine behind those after it; one schedule per slot. A MoE layer without
    a dense one before it taps its own input, which is position 1.

    Attributes
    ----------
    position : where the tap is: 1, the output of the layer before; 2, the state after its attention; 3, its input
    routed : routed experts per token; a shared expert of one expert's width is added where the model has none
    """

    changes_model: ClassVar[bool] = True
    joins: ClassVar[bool] = True

    position: int = 2
    routed: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.position not in (1, 2, 3):
            raise ValueError(f"position = {self.position}; give 1, 2 or 3")
        if self.routed < 1:
            raise ValueError(f"routed = {self.routed}; give at least 1")

    def mixture(self, moe: Moe) -> Moe:
        """Lower the mixture's k; give it a shared expert where it has none."""
        return replace(moe, topk=min(moe.topk, self.routed), shared_width=moe.shared_width or moe.width)

    def __call__(self, block: Schedule, layout: Layout) -> tuple[Schedule, ...]:
        """Return one schedule per slot of the experts among the operators after the tap."""
        parts = parted(block)
        if parts is None:
            return (block,)
        tap = self._tap(parts)
        slots = range(tap + 1, len(parts.operators) + 1)
        return tuple(beside_backbone(block, parts, tap, slot) for slot in slots)

    def _tap(self, parts: Parted) -> int:
        """Count the operators before the tap: those of the layer before up to its position."""
        home = max(layer for layer, _ in parts.names)
        before = [name for layer, name in parts.names if layer < home]
        if self.position == 1 or not before:
            return len(before)
        return 0 if self.position == 3 else before.index("attention") + 1


policy = Scmoe

"""Contiguous placement: expert s lives in slot s, whatever the load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from moesim.policies.placement.greedy import rounded_slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Contiguous:
    """Number slots as experts; the extra slots, which come last, copy experts at even distances.

    Extra slot i of x holds expert ``i experts // x``, so that no expert has two copies more than another.

    Attributes
    ----------
    redundant : copies beyond one per expert
    """

    balances: ClassVar[bool] = False

    redundant: int = 0

    def __post_init__(self) -> None:
        """Check the range."""
        if self.redundant < 0:
            raise ValueError(f"redundant = {self.redundant}; give 0 or more")

    def slots(self, experts: int, ranks: int) -> int:
        """Round experts and redundant copies up to a multiple of `ranks`."""
        return rounded_slots(experts + self.redundant, ranks)

    def __call__(
        self,
        load: Float[np.ndarray, "step layer expert"],
        slots: int,
        ranks: int,
        nodes: int,
        rng: np.random.Generator,
    ) -> Int[np.ndarray, "layer slot"]:
        """Place every layer alike."""
        _, layers, experts = load.shape
        extra = slots - experts
        expert_of_slot = np.concatenate([np.arange(experts), np.arange(extra) * experts // max(extra, 1)])
        return np.tile(expert_of_slot, (layers, 1))


policy = Contiguous

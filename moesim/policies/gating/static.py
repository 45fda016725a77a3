"""Static gating: every rank sends every expert a fixed number of rows, padded where short and dropped where over."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Shaped

from moesim.plans.layout import NO_LIMIT
from moesim.policies.capacities import ROUNDING, capacity
from moesim.policies.protocols import Counts, Gated


@dataclass(frozen=True, slots=True, kw_only=True)
class Static:
    """Give each expert a capacity of C rows on every source rank.

    Attributes
    ----------
    factor : Tutel's f, relative to an even spread (Hwang et al., "Tutel", MLSys 2023). f > 0: C = ceil(topk f T / E)
        for T tokens. f = 0: the smallest C that drops nothing, found in every pass as the largest count of any expert
        on any rank. f < 0: the same, but at most the C of -f
    fraction : share of the rank's tokens instead: C = ceil(fraction T), as fairseq does in evaluation (Huang et al.,
        static gating); it computes E fraction / topk times the rows that were routed. None: `factor` decides
    sparse : Tutel's fast encode and decode, which gather rows and build no mask
    flexible : Tutel's flexible all-to-all, whose rows of one expert lie side by side, (Eg, W Cg, D); without it they
        lie by source, (W, Eg, Cg, D), and an expert multiplies the Cg rows of every source by themselves
    """

    EVEN: ClassVar[float] = 1.0

    factor: float = EVEN
    fraction: float | None = None
    sparse: bool = False
    flexible: bool = True

    def __post_init__(self) -> None:
        """Check that one rule sets a capacity."""
        if self.fraction is None:
            return
        if not self.fraction > 0:
            problem = f"fraction = {self.fraction} is a capacity of zero rows or less"
            raise ValueError(f"{problem}; give a positive share of the tokens, or leave it out to use `factor`")
        if self.factor != self.EVEN:
            raise ValueError(f"factor = {self.factor} and fraction = {self.fraction} are two rules; give one of them")

    @property
    def changes_model(self) -> bool:
        """Whether assignments may be dropped: unless capacity follows the need, or has room for all of the tokens."""
        return self.factor != 0 if self.fraction is None else self.fraction < 1

    @property
    def follows(self) -> bool:
        """Whether the capacity follows the largest count, which all ranks have to agree on first."""
        return self.fraction is None and self.factor <= 0

    def capacity(self, tokens: int, experts: int, topk: int) -> int:
        """Round the capacity up, forgiving the last digit of a product of decimals; for f = 0 there is no limit.

        Examples
        --------
        >>> Static(fraction=0.05).capacity(512, 512, 2), Static(fraction=0.07).capacity(100, 8, 2)
        (26, 7)
        >>> Static(factor=1.25).capacity(4096, 64, 2)
        160
        """
        if self.fraction is not None:
            return math.ceil(self.fraction * tokens - ROUNDING)
        return capacity(abs(self.factor), topk, experts, tokens) if self.factor else NO_LIMIT

    def __call__(
        self,
        counts: Counts,
        capacity: Shaped[np.ndarray, "*#lead #rank expert"],
        tokens: Shaped[np.ndarray, "*#lead #rank"],
    ) -> Gated:
        """Pad every expert to its capacity on every source rank; the mask has tokens x experts x capacity elements."""
        room = np.broadcast_to(capacity, counts.shape)
        if self.follows:
            room = np.minimum(room, counts.max(axis=(-2, -1), keepdims=True))
        room = room.astype(counts.dtype)
        mask = 0 if self.sparse else tokens * room.sum(axis=-1)
        return Gated(
            rows=room,
            kept=np.minimum(counts, room),
            mask=np.broadcast_to(np.asarray(mask, dtype=float), counts.shape[:-1]),
            sizes=self.follows,
            apart=not self.flexible,
        )


policy = Static

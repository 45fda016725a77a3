"""Static gating: every rank sends every expert a fixed number of rows, padded where short and dropped where over."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Shaped

from moesim.policies.protocols import Counts, Gated

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Static:
    """Give each expert a capacity of C rows on every source rank.

    Attributes
    ----------
    factor : Tutel's f, relative to an even spread: C = ceil(topk f T / E) for T tokens (Hwang et al., "Tutel",
        MLSys 2023)
    fraction : share of the rank's tokens instead: C = ceil(fraction T), as fairseq does in evaluation (Huang et al.,
        static gating); it computes E fraction / topk times the rows that were routed. 0: `factor` decides
    sparse : Tutel's fast encode and decode, which gather rows and build no mask
    """

    EVEN: ClassVar[float] = 1.0

    factor: float = EVEN
    fraction: float = 0.0
    sparse: bool = False

    def __post_init__(self) -> None:
        """Check that one rule sets a positive capacity."""
        if self.fraction < 0 or self.factor <= 0:
            raise ValueError(
                f"factor = {self.factor} and fraction = {self.fraction} must be positive (fraction may be 0)"
            )
        if self.fraction > 0 and self.factor != self.EVEN:
            raise ValueError(f"factor = {self.factor} and fraction = {self.fraction} are two rules; give one of them")

    @property
    def changes_model(self) -> bool:
        """Whether assignments may be dropped: always, unless an expert has room for all of a rank's tokens."""
        return self.fraction < 1

    def capacity(self, tokens: int, experts: int, topk: int) -> int:
        """Round the capacity up, forgiving the last digit of a product of decimals.

        Examples
        --------
        >>> Static(fraction=0.05).capacity(512, 512, 2), Static(fraction=0.07).capacity(100, 8, 2)
        (26, 7)
        >>> Static(factor=1.25).capacity(4096, 64, 2)
        160
        """
        share = self.fraction if self.fraction > 0 else topk * self.factor / experts
        return math.ceil(share * tokens - _ROUNDING)

    def __call__(
        self, counts: Counts, capacity: Shaped[np.ndarray, "expert"], tokens: Shaped[np.ndarray, "*#lead #rank"]
    ) -> Gated:
        """Pad every expert to its capacity on every source rank; the mask has tokens x experts x capacity elements."""
        room = capacity.astype(counts.dtype)
        mask = 0 if self.sparse else tokens * capacity.sum()
        return Gated(
            rows=np.broadcast_to(room, counts.shape),
            kept=np.minimum(counts, room),
            mask=np.broadcast_to(np.asarray(mask, dtype=float), counts.shape[:-1]),
            sizes=False,
        )


policy = Static

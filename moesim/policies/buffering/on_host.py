"""Experts on the host: the most popular ones are on the gpu, and the CPU computes the others where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Shaped

from moesim.ground.errors import PolicyError
from moesim.plans.layout import NO_LIMIT
from moesim.policies.protocols import CacheView


@dataclass(frozen=True, slots=True, kw_only=True)
class OnHost:
    """Send rows to the host rather than weights to the gpu, for experts with few rows.

    A decoded token's row is some KB and its expert tens of MB, so the CPU, bound by its memory, is done before a copy
    would be; with many rows the copy is quicker (Kamahori et al., "Fiddler", arXiv 2402.07033; Chen et al.,
    "KTransformers", SOSP 2025; Huang et al., arXiv 2303.06182, name it as an alternative to expert buffering).

    Attributes
    ----------
    resident : expert slots on the gpu per MoE layer and rank, those used most over the whole routing; 0: none
    rows : an expert with more rows than this in a pass is fetched instead; 0: none is, however many it has
    """

    tier: ClassVar[str] = "host"

    resident: int = 1
    rows: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.resident < 0:
            raise ValueError(f"resident = {self.resident}; give 0 slots or more")
        if self.rows < 0:
            raise ValueError(f"rows = {self.rows}; give 1 or more, or 0 to fetch nothing")

    @property
    def hosted(self) -> int:
        """Up to so many rows an expert is computed on the host."""
        return self.rows or NO_LIMIT

    def resident_of(self, slots: int) -> int:
        """Return the resident slots, which must be fewer than the rank's experts: else nothing is left to the host."""
        if self.resident >= slots:
            raise PolicyError(
                f"on_host keeps resident = {self.resident} of the {slots} experts a rank has in a layer, which leaves"
                f" none to the host; give 0 to {slots - 1}, or `resident` as the policy"
            )
        return self.resident

    def __call__(self, seen: CacheView) -> Shaped[np.ndarray, "cache expert"]:
        """Rank by popularity."""
        return seen.share


policy = OnHost

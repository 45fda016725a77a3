"""Everything resident: each rank keeps all of its expert slots on the gpu, and nothing ever leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Shaped

from moesim.policies.protocols import CacheView


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """Keep all slots."""

    tier: ClassVar[str] = "host"
    hosted: ClassVar[int] = 0

    def resident_of(self, slots: int) -> int:
        """Keep them all."""
        return slots

    def __call__(self, seen: CacheView) -> Shaped[np.ndarray, "cache expert"]:
        """Rank nothing: nothing ever has to leave."""
        return np.zeros(seen.used.shape)


policy = Resident

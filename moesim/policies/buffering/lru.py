"""LRU: the expert whose last use is longest ago leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from moesim.policies.buffering._cache import Cache
from moesim.policies.protocols import CacheView


@dataclass(frozen=True, slots=True, kw_only=True)
class Lru(Cache):
    """Keep what was used last. Where experts run in order of their number and more are used than fit, it never hits."""

    def __call__(self, seen: CacheView) -> Shaped[np.ndarray, "cache expert"]:
        """Rank by last use."""
        return seen.used


policy = Lru

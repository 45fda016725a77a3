"""LFU: the expert used least often leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from moesim.policies.buffering._cache import Cache
from moesim.policies.protocols import CacheView


@dataclass(frozen=True, slots=True, kw_only=True)
class Lfu(Cache):
    """Keep what was used most often since the start."""

    def __call__(self, seen: CacheView) -> Shaped[np.ndarray, "cache expert"]:
        """Rank by number of uses."""
        return seen.count


policy = Lfu

"""LFRU: the expert with the fewest uses per unit of time since its last one leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from moesim.policies.buffering._cache import Cache
from moesim.policies.protocols import CacheView


@dataclass(frozen=True, slots=True, kw_only=True)
class Lfru(Cache):
    """Weigh how often an expert was used by how recently: uses over age (vLLM pull request 37190)."""

    def __call__(self, seen: CacheView) -> Shaped[np.ndarray, "cache expert"]:
        """Rank by uses over age."""
        return np.asarray(seen.count / (seen.now - seen.used))


policy = Lfru

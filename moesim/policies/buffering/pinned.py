"""Pinned by popularity: the expert that is used least over a long history leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from moesim.policies.buffering._cache import Cache
from moesim.policies.protocols import CacheView


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned(Cache):
    """Hold the most popular experts of a recorded history; what else is used passes through one slot."""

    def __call__(self, seen: CacheView) -> Shaped[np.ndarray, "cache expert"]:
        """Rank by popularity."""
        return seen.share


policy = Pinned

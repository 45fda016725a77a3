"""Belady's rule: the expert whose next use is furthest away leaves. It knows the future: a rival, not a choice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from moesim.policies.buffering._cache import Cache
from moesim.policies.protocols import CacheView


@dataclass(frozen=True, slots=True, kw_only=True)
class Belady(Cache):
    """Miss least of all policies that copy in what they miss (Belady, IBM Systems Journal 5(2), 1966)."""

    def __call__(self, seen: CacheView) -> Shaped[np.ndarray, "cache expert"]:
        """Rank by next use, the furthest first."""
        return -seen.next_use


policy = Belady

"""Inactive first, then LIFO: experts the batch does not use leave before others; then the one that came in last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from moesim.policies.buffering._cache import FIRST, Cache
from moesim.policies.protocols import CacheView


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifo(Cache):
    """Serve batches whose experts run in order of their number: what came in first will be first to be used again.

    Huang et al., arXiv 2303.06182, expert buffering.
    """

    def __call__(self, seen: CacheView) -> Shaped[np.ndarray, "cache expert"]:
        """Rank by use in this batch, then the other way round by when an expert came in."""
        return np.asarray(np.where(seen.needed, 0, FIRST) - seen.inserted)


policy = Lifo

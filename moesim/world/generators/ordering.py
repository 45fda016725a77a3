"""Which token gets which set: what is on a token's mind decides part of its choices, in every layer and for a while.

Every token has a *thought*, a number in [0, 1) that the next token often keeps. In each layer some tokens are *linked*:
their sets are dealt out in the order of their thoughts, so that equal thoughts get the same expert. That gives repeats
from token to token and from layer to layer, and leaves the sets and therefore all counts as they were drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Links:
    """How strongly thoughts decide.

    Attributes
    ----------
    share : of the tokens, that are linked
    first : share of the linked tokens whose first choice the thought decides; for the others it is a later one
    place : of each expert along the thoughts, a permutation per layer
    keep : chance that the next token keeps the thought
    """

    share: Float[np.ndarray, "layer"]
    first: Float[np.ndarray, "layer"]
    place: Int[np.ndarray, "layer expert"]
    keep: float

    def only(self, layers: Sequence[int]) -> Links:
        """Keep some of the layers."""
        kept = list(layers)
        return replace(self, share=self.share[kept], first=self.first[kept], place=self.place[kept])

    def thoughts(self, tokens: Int[np.ndarray, "rank"], rng: np.random.Generator) -> Float[np.ndarray, "token"]:
        """Draw a fresh thought for some tokens; the others keep the one before, on their own rank."""
        rank = np.repeat(np.arange(len(tokens)), tokens)
        fresh: Bool[np.ndarray, "token"] = rng.random(len(rank)) >= self.keep
        fresh |= np.diff(rank, prepend=-1) > 0
        source = np.maximum.accumulate(np.where(fresh, np.arange(len(rank)), 0))
        return np.asarray(rng.random(len(rank))[source])

    def ordered(
        self,
        layer: int,
        sets: Int[np.ndarray, "token topk"],
        tokens: Int[np.ndarray, "rank"],
        thoughts: Float[np.ndarray, "token"],
        rng: np.random.Generator,
    ) -> Int[np.ndarray, "token topk"]:
        """Deal one layer's sets out anew, each rank's among its own tokens.

        Parameters
        ----------
        sets : in any order, rank after rank; the first column is the first choice
        """
        rank = np.repeat(np.arange(len(tokens)), tokens)
        linked = np.flatnonzero(rng.random(len(rank)) < self.share[layer])
        held = sets[linked]
        key = self._key(held, layer, rng)
        by_thought = np.argsort(rank[linked] + thoughts[linked], kind="stable")
        by_place = np.lexsort((self.place[layer][key], rank[linked]))
        out = sets.copy()
        out[linked[by_thought]] = held[by_place]
        return out

    def _key(
        self, sets: Int[np.ndarray, "token topk"], layer: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "token"]:
        """Choose which of a token's experts its thought decides."""
        count, topk = sets.shape
        later = rng.integers(1, topk, size=count) if topk > 1 else np.zeros(count, dtype=int)
        first = rng.random(count) < self.first[layer]
        return np.asarray(sets[np.arange(count), np.where(first, 0, later)])

"""How tokens spread over experts: a distribution that can be drawn at any batch size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int


@runtime_checkable
class Routing(Protocol):
    """A routing distribution. Axis `layer` counts MoE layers only.

    Every method is a pure function of its arguments: the random generator is the caller's.
    """

    @property
    def layers(self) -> int:
        """MoE layers described."""
        ...

    @property
    def experts(self) -> int:
        """Logical experts per layer."""
        ...

    @property
    def topk(self) -> int:
        """Experts per token."""
        ...

    @property
    def alike(self) -> bool:
        """Whether all layers follow one distribution up to the experts' names, so that one stands for all."""
        ...

    @property
    def independent(self) -> bool:
        """Whether a step's tokens choose independently, so that counts of parts of a batch add up to counts of it."""
        ...

    @property
    def period(self) -> int:
        """Steps for which draws follow one law, before there may be another; 0 where the law never changes."""
        ...

    def only(self, layers: Sequence[int]) -> Routing:
        """Describe some of the layers, in that order; a layer named twice is drawn twice, independently if random."""
        ...

    def shares(self, step: int) -> Float[np.ndarray, "layer expert"]:
        """Mean share of the assignments each expert gets; each row sums to 1."""
        ...

    def draw(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer rank expert"]:
        """Draw how many of each rank's tokens choose each expert; rows sum to tokens x topk, no cell above tokens."""
        ...

    def assign(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer token topk"]:
        """Draw the choices themselves, ranks one after another; counts equal `draw`'s for an equal generator."""
        ...

    def distinct(self, group_of_expert: Int[np.ndarray, "expert"]) -> Float[np.ndarray, "layer"]:
        """Mean number of different groups among one token's experts (copies of which share nothing)."""
        ...

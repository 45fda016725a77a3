"""Every expert gets the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from moesim.world.generators.law import SetLaw, check_limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Balanced:
    """Every expert gets the same: counts of a draw differ by at most one, per rank and over all ranks.

    Which experts get the odd rows turns with layer and step, and nothing is random but who goes where.
    """

    layers: int
    experts: int
    topk: int
    groups: int = 1
    group_topk: int = 1

    def __post_init__(self) -> None:
        """Check that a token finds enough experts."""
        check_limits(self._law.limits)

    @property
    def alike(self) -> bool:
        """One layer stands for all."""
        return True

    @property
    def independent(self) -> bool:
        """Tokens are dealt in turn."""
        return False

    @property
    def period(self) -> int:
        """The law never changes."""
        return 0

    def only(self, layers: Sequence[int]) -> Balanced:
        """Describe some of the layers."""
        return replace(self, layers=len(layers))

    def shares(self, step: int) -> Float[np.ndarray, "layer expert"]:
        """Give each expert the same share."""
        return np.full((self.layers, self.experts), 1 / self.experts)

    def draw(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer rank expert"]:
        """Deal each layer's assignments to the experts in turn, rank after rank."""
        turn = (np.arange(self.layers) + step * self.layers) * self.topk % self.experts
        place = (np.arange(self.experts) - turn[:, None]) % self.experts  # of each expert in the first round
        ends = np.concatenate([[0], np.cumsum(tokens)]) * self.topk
        dealt = (ends[:, None] + self.experts - 1 - place[:, None, :]) // self.experts  # so far, by the end of a rank
        return np.diff(dealt, axis=1)

    def assign(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer token topk"]:
        """Deal the counts out to tokens at random."""
        return np.stack([self._law.choices(0, counts, tokens, rng) for counts in self.draw(tokens, step, rng)])

    def distinct(self, group_of_expert: Int[np.ndarray, "expert"]) -> Float[np.ndarray, "layer"]:
        """Count groups among `topk` experts drawn evenly without replacement."""
        return np.repeat(self._law.touched(group_of_expert), self.layers)

    @property
    def _law(self) -> SetLaw:
        """One token's choices in one layer."""
        even = np.ones((1, self.experts))
        return SetLaw(weights=even, topk=self.topk, groups=self.groups, group_topk=self.group_topk)

"""Anti-correlation placement: greedy, but experts that are busy at the same time avoid each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from moesim.policies.placement.greedy import copies, rounded_slots


@dataclass(frozen=True, slots=True, kw_only=True)
class AntiCorrelation:
    """Give each expert, heaviest first, to the rank with a free slot where mean load and correlation add up to least.

    A rank's load as expert a sees it is the sum over its experts m of (mean_m + weight x S_am), S the Pearson
    correlation of a's and m's shares over the recorded steps (Huang et al., arXiv 2303.06182, load balancing; there
    weight = 0.5 and shares are of all tokens of a batch). Without two different steps it is greedy.

    Attributes
    ----------
    weight : what a correlation of 1 counts for, in shares of all tokens
    redundant : copies beyond one per expert
    """

    balances: ClassVar[bool] = False

    weight: float = 0.5
    redundant: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.weight < 0:
            raise ValueError(f"weight = {self.weight}; give 0 or more")
        if self.redundant < 0:
            raise ValueError(f"redundant = {self.redundant}; give 0 or more")

    def slots(self, experts: int, ranks: int) -> int:
        """Round experts and redundant copies up to a multiple of `ranks`."""
        return rounded_slots(experts + self.redundant, ranks)

    def __call__(
        self,
        load: Float[np.ndarray, "step layer expert"],
        slots: int,
        ranks: int,
        nodes: int,
        rng: np.random.Generator,
    ) -> Int[np.ndarray, "layer slot"]:
        """Place each layer by its own record."""
        share = load / load.sum(axis=-1, keepdims=True)
        listed = copies(share.mean(axis=0), slots)
        return np.stack([self._layer(share[:, layer], listed[layer], ranks) for layer in range(share.shape[1])])

    def _layer(
        self, share: Float[np.ndarray, "step expert"], listed: Int[np.ndarray, "slot"], ranks: int
    ) -> Int[np.ndarray, "slot"]:
        """Deal one layer's copies out."""
        mean = share.mean(axis=0) / np.bincount(listed, minlength=share.shape[1])
        pull = self.weight * correlation(share)
        room = len(listed) // ranks
        held: list[list[int]] = [[] for _ in range(ranks)]
        for expert in listed[np.argsort(-mean[listed], kind="stable")]:
            seen = [
                np.inf if len(members) == room else mean[members].sum() + pull[expert, members].sum()
                for members in held
            ]
            held[int(np.argmin(seen))].append(int(expert))
        return np.array(held).ravel()


policy = AntiCorrelation


def correlation(share: Float[np.ndarray, "step expert"]) -> Float[np.ndarray, "expert expert"]:
    """Pearson correlation of the experts' shares over the steps; 0 where an expert's share never changes.

    Examples
    --------
    >>> correlation(np.array([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2]])).round(6).tolist()
    [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    apart = share - share.mean(axis=0)
    apart = np.where(np.abs(apart) < 1e-12, 0.0, apart)
    size = np.sqrt((apart**2).sum(axis=0))
    scaled = np.divide(apart, size, out=np.zeros_like(apart), where=size > 0)
    return np.asarray(scaled.T @ scaled)

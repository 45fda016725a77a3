"""The law of a token's set of experts: fixed size, largest entropy, perhaps from few groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import factorial

import numpy as np
from jaxtyping import Float, Int

from moesim.ground.errors import Fault, WorkloadError
from moesim.world.generators.choosing import Limits, moved, proposed
from moesim.world.generators.tree import Tree, grown, weight_of_sets

_SELDOM = 1 / 50
"""Share of free proposals kept below which tokens go down the tree one by one: slower, and never hopeless."""

_MANY_RANKS, _FEW_TOKENS = 8, 32
"""From how many ranks on, of up to how many tokens, tokens are drawn one by one. With 256 experts a rank costs the tree
60 us, and a token costs 0.8 us."""


@dataclass(frozen=True, kw_only=True, eq=False)  # without slots, for the cached tables
class SetLaw:
    """One token's choices: a permitted set has a chance proportional to the product of its experts' weights.

    That is the law of largest entropy with given inclusion chances (conditional Poisson sampling; Chen, Dempster and
    Liu, Biometrika 1994), conditioned, where a router looks at few groups, on touching at most `group_topk` of them.
    DeepSeek's routers pick groups by their two best scores (arXiv 2412.19437, section 2.1.2; V2 by the best,
    2405.04434): with independent scores a token then touches 3.97 of 4 groups (2.995 of 3), here 3.90 (2.95).

    Attributes
    ----------
    weights : not negative; only their ratios within a row matter
    topk : experts per token
    groups, group_topk : equal runs of experts, and how many of them a token may touch
    """

    weights: Float[np.ndarray, "row expert"]
    topk: int
    groups: int = 1
    group_topk: int = 1

    def __post_init__(self) -> None:
        """Check that a token finds enough experts, and protect the weights."""
        check_limits(self.limits)
        self.weights.flags.writeable = False

    @property
    def limits(self) -> Limits:
        """Which sets are permitted."""
        return Limits(
            experts=int(self.weights.shape[1]), topk=self.topk, groups=self.groups, group_topk=self.group_topk
        )

    def inclusion(self) -> Float[np.ndarray, "row expert"]:
        """Chance that a token's experts include each one; rows sum to `topk`.

        Examples
        --------
        >>> SetLaw(weights=np.array([[2.0, 1.0, 1.0]]), topk=2).inclusion().round(9).tolist()  # sets weigh 2, 2 and 1
        [[0.8, 0.6, 0.6]]
        """
        return self._tree.descend(np.ones(1), lambda tokens, chance: tokens[..., None] * chance)[:, 0]

    def touched(self, group_of_expert: Int[np.ndarray, "expert"]) -> Float[np.ndarray, "row"]:
        """Mean number of different groups (any grouping, such as ranks) among a token's experts.

        Each group counts unless all experts lie outside it.

        Examples
        --------
        >>> halves = np.array([0, 0, 1, 1])
        >>> SetLaw(weights=np.ones((1, 4)), topk=2).touched(halves).round(9).tolist()  # 2 of 6 pairs share a half
        [1.666666667]
        """
        groups = np.unique(group_of_expert)
        if len(groups) == 1:
            return np.ones(len(self.weights))
        anywhere, outside = np.full_like(group_of_expert, True, dtype=bool), group_of_expert != groups[:, None]
        permitted = self._scaled[:, None, :] * np.stack([anywhere, *outside])
        total, *elsewhere = weight_of_sets(permitted, self.topk, self.groups, self.group_topk).T
        return np.asarray(sum(1 - each / total for each in elsewhere))

    def counts(
        self, tokens: Int[np.ndarray, "*#row rank"], rng: np.random.Generator
    ) -> Int[np.ndarray, "row rank expert"]:
        """Draw how many of each rank's tokens choose each expert; all rows have the same tokens, or each its own."""
        if tokens.ndim == 1 and len(tokens) >= _MANY_RANKS and tokens.max() <= _FEW_TOKENS:
            return np.stack([self._counted(row, tokens, rng) for row in range(len(self.weights))])
        return self._tree.descend(tokens, rng.multinomial)

    def choices(
        self,
        row: int,
        counts: Int[np.ndarray, "rank expert"],
        tokens: Int[np.ndarray, "rank"],
        rng: np.random.Generator,
    ) -> Int[np.ndarray, "token topk"]:
        """Draw one row's sets that add up to the counts: drawn freely, then a few moved."""
        return moved(self._free(row, int(tokens.sum()), rng), counts, tokens, self.limits, rng)

    def _counted(
        self, row: int, tokens: Int[np.ndarray, "rank"], rng: np.random.Generator
    ) -> Int[np.ndarray, "rank expert"]:
        """Draw one row's tokens themselves, and count: cheaper where ranks are many and tokens few."""
        experts = self.weights.shape[1]
        place = np.repeat(np.arange(len(tokens)) * experts, tokens)[:, None]
        cells = place + self._free(row, int(tokens.sum()), rng)
        return np.bincount(cells.ravel(), minlength=len(tokens) * experts).reshape(-1, experts)

    def _free(self, row: int, tokens: int, rng: np.random.Generator) -> Int[np.ndarray, "token topk"]:
        """Draw sets that need not add up to anything."""
        kept = factorial(self.topk) * self._tree.total[row] / self.topk**self.topk
        if kept > _SELDOM:
            return proposed(self.weights[row], self.limits, tokens, rng)
        law = SetLaw(weights=self.weights[[row]], topk=self.topk, groups=self.groups, group_topk=self.group_topk)
        alone = law._tree.descend(np.ones(tokens, dtype=np.int64), rng.multinomial)[0]
        return rng.permuted(np.nonzero(alone)[1].reshape(tokens, self.topk), axis=1)

    @cached_property
    def _scaled(self) -> Float[np.ndarray, "row expert"]:
        """Weights that sum to `topk`, where products neither overflow nor vanish."""
        return np.asarray(self.weights * (self.topk / self.weights.sum(axis=1, keepdims=True)))

    @cached_property
    def _tree(self) -> Tree:
        return grown(self._scaled, self.topk, self.groups, self.group_topk)


def check_limits(limits: Limits) -> None:
    """Refuse limits that leave a token without a set.

    Raises
    ------
    WorkloadError
        More experts a token than there are, groups of unequal size, or too few experts in the groups allowed.
    """
    experts, topk, groups = limits.experts, limits.topk, limits.groups
    fault = None
    if not 1 <= topk <= experts:
        fault = Fault(path="topk", problem=f"{topk} experts a token, of {experts}")
    elif groups < 1 or experts % groups:
        fault = Fault(path="groups", problem=f"{groups} groups do not divide {experts} experts")
    elif topk > limits.group_topk * (experts // groups):
        problem = f"{limits.group_topk} of {groups} groups hold fewer than {topk} experts"
        fault = Fault(path="group_topk", problem=problem)
    if fault:
        raise WorkloadError("routing", [fault])

"""Counting without drawing tokens: how many picks fall left and right, down a binary tree over the experts.

A node's *state* is (picks, groups): how many of a token's picks lie below it, in how many groups of experts. Tokens of
one state are alike, so one multinomial per node and state splits them all; below the root of a group only picks matter.
Going down with random splits draws counts; going down with mean splits gives exact expectations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

State = tuple[int, int]
Split = Callable[[Shaped[np.ndarray, "..."], Float[np.ndarray, "... outcome"]], Shaped[np.ndarray, "... outcome"]]
"""Splits numbers of tokens over outcomes of given chances: at random, or in the mean."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Level:
    """One level of the tree.

    Attributes
    ----------
    chance : of each outcome of a state; impossible ones stand in front, so that the last takes the remainder
    goes : 1 where an outcome leaves the left (first half) or right child in a state
    """

    chance: Float[np.ndarray, "row 1 node state outcome"]
    goes: Float[np.ndarray, "state_outcome children"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tree:
    """The law of a token's set of experts, ready to be descended.

    Attributes
    ----------
    total : weight of all permitted sets
    start : chance of each state of the root
    levels : from the root down
    experts : leaves that are experts; the others fill up groups to powers of two
    """

    total: Float[np.ndarray, "row"]
    start: Float[np.ndarray, "row 1 1 state"]
    levels: tuple[Level, ...]
    experts: Int[np.ndarray, "expert"]

    def descend(self, tokens: Shaped[np.ndarray, "*#row rank"], split: Split) -> Shaped[np.ndarray, "row rank expert"]:
        """Split each rank's tokens down to the experts."""
        rows, ranks = len(self.total), tokens.shape[-1]
        at = split(np.broadcast_to(tokens[..., None], (rows, ranks, 1)), self.start)
        for level in self.levels:
            taken = split(at, level.chance)
            flat = taken.reshape(*taken.shape[:-2], len(level.goes)) @ level.goes
            at = flat.reshape(rows, ranks, 2 * taken.shape[2], level.goes.shape[1] // 2).astype(tokens.dtype)
        return np.asarray(at[..., 1][..., self.experts])


def grown(weights: Float[np.ndarray, "row expert"], topk: int, groups: int, group_topk: int) -> Tree:
    """Grow the tree: sets of `topk` experts from at most `group_topk` groups weigh the product of their weights.

    Groups are equal runs of experts.
    """
    rows, experts = weights.shape
    width, size = _power(experts // groups), experts // groups
    padded = np.zeros((rows, _power(groups), width))
    padded[:, :groups, :size] = weights.reshape(rows, groups, size)
    sums = np.stack([np.ones_like(padded), padded], axis=-1).reshape(rows, -1, 2)
    states: Sequence[State] = ((0, 0), (1, 1))
    levels: list[Level] = []
    while sums.shape[1] > 1:
        inside = 2 ** len(levels) < width
        states, sums, level = _joined(states, sums, inside, topk, group_topk)
        levels.insert(0, level)
    whole = sums[:, 0] * np.array([picks == topk for picks, _ in states])
    total = whole.sum(axis=1)
    return Tree(
        total=total,
        start=(whole / total[:, None])[:, None, None],
        levels=tuple(levels),
        experts=(np.arange(groups)[:, None] * width + np.arange(size)).ravel(),
    )


def weight_of_sets(
    weights: Float[np.ndarray, "... expert"], topk: int, groups: int, group_topk: int
) -> Float[np.ndarray, "..."]:
    """Total weight of all sets of `topk` experts from at most `group_topk` groups."""
    by_group = weights.reshape(*weights.shape[:-1], groups, -1)
    inside = np.zeros((topk + 1, *by_group.shape[:-1]))
    inside[0] = 1.0
    for weight in np.moveaxis(by_group, -1, 0):
        inside[1:] += weight * inside[:-1]
    sums = np.zeros((topk + 1, group_topk + 1, *weights.shape[:-1]))
    sums[0, 0] = 1.0
    for group in np.moveaxis(inside, -1, 0):
        before = sums.copy()
        for picks in range(1, topk + 1):
            sums[picks:, 1:] += group[picks] * before[: topk + 1 - picks, :-1]
    return np.asarray(sums[topk].sum(axis=0))


def _power(size: int) -> int:
    """Smallest power of two that is no smaller."""
    return 1 << (size - 1).bit_length()


def _joined(
    states: Sequence[State], sums: Float[np.ndarray, "row node state"], inside: bool, topk: int, group_topk: int
) -> tuple[tuple[State, ...], Float[np.ndarray, "row half joined"], Level]:
    """Join nodes in pairs: their states, the weight of each, and the chances of coming apart again."""
    pairs: dict[State, list[tuple[int, int]]] = {}
    for left, (a, g) in enumerate(states):
        for right, (b, h) in enumerate(states):
            both = (a + b, max(g, h) if inside else g + h)
            if both[0] <= topk and both[1] <= group_topk:
                pairs.setdefault(both, []).append((left, right))
    outcomes = max(map(len, pairs.values()))
    shape = (len(pairs), outcomes)
    index = np.zeros((2, *shape), dtype=int)
    goes = np.zeros((*shape, 2, len(states)))
    real = np.zeros(shape, dtype=bool)
    for state, ways in enumerate(pairs.values()):
        for place, way in enumerate(ways, outcomes - len(ways)):
            index[:, state, place], real[state, place] = way, True
            goes[state, place, [0, 1], way] = 1.0
    weight = np.where(real, sums[:, 0::2][..., index[0]] * sums[:, 1::2][..., index[1]], 0.0)
    joined = weight.sum(axis=-1)
    chance = np.divide(weight, joined[..., None], out=np.zeros_like(weight), where=joined[..., None] > 0)
    level = Level(chance=chance[:, None], goes=goes.reshape(shape[0] * outcomes, -1))
    return tuple(pairs), joined, level

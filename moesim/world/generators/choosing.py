"""Choosing sets of experts token by token, and changing a few so that they add up to given counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

_AT_ONCE = 1 << 18
"""Tokens proposed in one go; bounds the memory of a long draw."""

_PLAIN_ROUNDS = 20
"""Rounds in which choices only move straight from experts with too many to experts with too few."""

_LIMITED_ROUNDS = 500
"""Rounds after which limits on groups give way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Which sets a token may choose: `topk` different experts, from at most `group_topk` of equal runs of experts."""

    experts: int
    topk: int
    groups: int
    group_topk: int

    def allow(self, choices: Int[np.ndarray, "token topk"]) -> Bool[np.ndarray, "token"]:
        """Whether each token's choices are a permitted set."""
        ordered = np.sort(choices, axis=1)
        different = (ordered[:, 1:] != ordered[:, :-1]).all(axis=1)
        if self.unlimited:
            return np.asarray(different)
        return np.asarray(different & self.few(ordered // (self.experts // self.groups)))

    @property
    def unlimited(self) -> bool:
        """Whether a token may choose from any group."""
        return self.group_topk >= self.groups

    def few(self, groups: Int[np.ndarray, "token topk"]) -> Bool[np.ndarray, "token"]:
        """Whether ascending groups of each token's choices are few enough."""
        return np.asarray((groups[:, 1:] != groups[:, :-1]).sum(axis=1) < self.group_topk)


def proposed(
    weights: Float[np.ndarray, "expert"], limits: Limits, tokens: int, rng: np.random.Generator
) -> Int[np.ndarray, "token topk"]:
    """Choose sets with chances proportional to the product of their weights: propose freely, keep what is permitted.

    Columns are in the order of proposal, so each is as likely to be any of the set.
    """
    ends = np.cumsum(weights)
    ends /= ends[-1]
    chosen = np.empty((tokens, limits.topk), dtype=np.int16)
    done, share = 0, 1.0
    while done < tokens:
        tried = min(int((tokens - done) / share * 1.05) + 16, _AT_ONCE)
        point = _in_few_groups(rng.random((tried, limits.topk)), ends, limits)
        free = np.searchsorted(ends, point, side="right").astype(np.int16)
        kept = free[limits.allow(free)]
        share = max(len(kept), 1) / tried
        taken = kept[: tokens - done]
        chosen[done : done + len(taken)] = taken
        done += len(taken)
    return chosen


def _in_few_groups(
    point: Float[np.ndarray, "token topk"], ends: Float[np.ndarray, "expert"], limits: Limits
) -> Float[np.ndarray, "kept topk"]:
    """Drop proposals from too many groups before looking up their experts: most of them, and cheap to tell."""
    if limits.unlimited:
        return point
    group_ends = ends[limits.experts // limits.groups - 1 :: limits.experts // limits.groups]
    group = np.searchsorted(group_ends, point, side="right").astype(np.int16)
    return np.asarray(point[limits.few(np.sort(group, axis=1))])


def moved(
    choices: Int[np.ndarray, "token topk"],
    counts: Int[np.ndarray, "rank expert"],
    tokens: Int[np.ndarray, "rank"],
    limits: Limits,
    rng: np.random.Generator,
) -> Int[np.ndarray, "token topk"]:
    """Change as few choices as needed for every expert to have its count on every rank exactly.

    Single choices move, at random, from experts with too many to experts with too few, from one permitted set to
    another. Where none such is found, lacking experts push out any others, until the chains end at some with too many.
    Counts that no permitted sets make (few tokens dealt evenly over groups) are met at the cost of the groups.

    Parameters
    ----------
    choices : permitted sets, rank after rank
    counts : none above its rank's tokens; a rank's sum to tokens x topk
    """
    place = np.repeat(np.arange(len(tokens)) * limits.experts, tokens)[:, None]
    cells = place + choices  # an expert of another rank is another cell
    order = np.argsort(cells, axis=None, kind="stable")
    held = np.bincount(cells.ravel(), minlength=counts.size)
    first = np.cumsum(held) - held
    excess = held - counts.ravel()
    round_ = 0
    while excess.any():
        giver, taker = _units(excess), _units(-excess)
        taker = taker[np.argsort(taker // limits.experts + rng.random(len(taker)))]  # any of the same rank
        entry = order[first[giver] + (rng.random(len(giver)) * held[giver]).astype(int)]
        _move(cells, excess, entry, giver, taker, limits)
        if round_ >= _PLAIN_ROUNDS:
            within = limits if round_ < _LIMITED_ROUNDS else replace(limits, group_topk=limits.groups)
            _push(cells, excess, tokens, within, rng)
        round_ += 1
    return np.asarray(cells - place)


def _push(
    cells: Int[np.ndarray, "token topk"],
    excess: Int[np.ndarray, "cell"],
    tokens: Int[np.ndarray, "rank"],
    limits: Limits,
    rng: np.random.Generator,
) -> None:
    """Let each cell with too few take any token's place of any expert; then that one has too few."""
    taker = np.flatnonzero(excess < 0)
    rank = taker // limits.experts
    token = (np.cumsum(tokens) - tokens)[rank] + rng.integers(tokens[rank])
    entry = token * limits.topk + rng.integers(limits.topk, size=len(taker))
    _move(cells, excess, entry, cells.ravel()[entry], taker, limits)


def _units(excess: Int[np.ndarray, "cell"]) -> Int[np.ndarray, "unit"]:
    """Name each cell as often as it has too many."""
    cell = np.flatnonzero(excess > 0)
    return np.asarray(np.repeat(cell, excess[cell]))


def _move(
    cells: Int[np.ndarray, "token topk"],
    excess: Int[np.ndarray, "cell"],
    entry: Int[np.ndarray, "move"],
    giver: Int[np.ndarray, "move"],
    taker: Int[np.ndarray, "move"],
    limits: Limits,
) -> None:
    """Let each entry that is still its giver's go to its taker, where the set stays permitted; one move a token."""
    token, column = np.divmod(entry, limits.topk)
    _, one = np.unique(token, return_index=True)
    token, column, giver, taker = token[one], column[one], giver[one], taker[one]
    after = cells[token]
    now = after[np.arange(len(one)), column] == giver
    after[np.arange(len(one)), column] = taker
    good = now & limits.allow(after % limits.experts)
    cells[token[good], column[good]] = taker[good]
    np.subtract.at(excess, giver[good], 1)
    np.add.at(excess, taker[good], 1)

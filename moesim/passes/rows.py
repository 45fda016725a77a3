"""From drawn counts to rows: how many each slot computes, and which copy each source's rows go to."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Shaped


def slot_totals(
    counts: Shaped[np.ndarray, "draw block expert"], expert_of_slot: Int[np.ndarray, "draw slot"]
) -> Int[np.ndarray, "slot draw block"]:
    """Deal each expert's rows evenly over its copies; copies differ by at most one row.

    Examples
    --------
    >>> slot_totals(np.array([[[7, 2]]]), np.array([[0, 1, 0]])).ravel().tolist()
    [3, 2, 4]
    """
    copies, turn = _copies(expert_of_slot, counts.shape[-1])
    total = np.take_along_axis(np.rint(counts).astype(np.int64), expert_of_slot[:, None, :], axis=-1)
    dealt = (total + turn[:, None, :]) // copies[:, None, :]
    return np.moveaxis(dealt, -1, 0)


def _copies(
    expert_of_slot: Int[np.ndarray, "draw slot"], experts: int
) -> tuple[Int[np.ndarray, "draw slot"], Int[np.ndarray, "draw slot"]]:
    """Count the copies of each slot's expert, and number the slot among them."""
    draws, slots = expert_of_slot.shape
    order = np.argsort(expert_of_slot, axis=-1, kind="stable")
    grouped = np.take_along_axis(expert_of_slot, order, axis=-1)
    place = np.arange(slots)
    fresh = np.concatenate([np.ones((draws, 1), bool), grouped[:, 1:] != grouped[:, :-1]], axis=-1)
    start = np.maximum.accumulate(np.where(fresh, place, 0), axis=-1)
    turn = np.empty_like(order)
    np.put_along_axis(turn, order, place - start, axis=-1)
    offset = np.arange(draws)[:, None] * experts
    number = np.bincount((expert_of_slot + offset).ravel(), minlength=draws * experts).reshape(draws, experts)
    return np.take_along_axis(number, expert_of_slot, axis=-1), turn


def source_rows(
    counts: Shaped[np.ndarray, "draw rank expert"],
    totals: Int[np.ndarray, "slot draw"],
    expert_of_slot: Int[np.ndarray, "draw slot"],
    node_of_rank: Int[np.ndarray, "rank"],
    node_of_slot: Int[np.ndarray, "slot"],
) -> Shaped[np.ndarray, "slot draw rank"]:
    """Decide which copy each source's rows go to: a copy on its own node first, then whatever room is left.

    Totals per copy are given (`slot_totals`), so this moves only who goes where.
    """
    rows = np.moveaxis(np.take_along_axis(counts, expert_of_slot[:, None, :], axis=-1), -1, 0)
    copies, turn = _copies(expert_of_slot, counts.shape[-1])
    for draw, first in np.argwhere((copies > 1) & (turn == 0)):
        slots = np.flatnonzero(expert_of_slot[draw] == expert_of_slot[draw, first])
        sent = counts[draw, :, expert_of_slot[draw, first]]
        rows[slots, draw] = _fill(sent, totals[slots, draw], node_of_rank, node_of_slot[slots])
    return rows


def _fill(
    counts: Shaped[np.ndarray, "rank"],
    room: Int[np.ndarray, "copy"],
    node_of_rank: Int[np.ndarray, "rank"],
    node_of_copy: Int[np.ndarray, "copy"],
) -> Shaped[np.ndarray, "copy rank"]:
    """Fill copies in order of rank, first from ranks of the copy's own node, then from any."""
    left, free = counts.copy(), room.astype(counts.dtype)
    filled = np.zeros((len(room), len(counts)), counts.dtype)
    for own_node in (True, False):
        for copy in range(len(room)):
            eligible = np.where(node_of_rank == node_of_copy[copy], left, 0) if own_node else left
            before = np.concatenate([[0], np.cumsum(eligible)[:-1]])
            taken = np.clip(free[copy] - before, 0, eligible)
            filled[copy] += taken
            left = left - taken
            free[copy] -= taken.sum()
    return filled


def rows_per_rank(
    totals: Int[np.ndarray, "slot draw block"], slots_per_rank: int, etp: int
) -> Int[np.ndarray, "local draw rank"]:
    """Arrange slot totals by local slot and rank; ranks of an expert-tensor group all compute every row."""
    slots, draws, blocks = totals.shape
    ranks = totals.reshape(slots // slots_per_rank, slots_per_rank, draws, blocks)
    ordered = np.moveaxis(ranks, (1, 2, 3, 0), (0, 1, 2, 3)).reshape(slots_per_rank, draws, -1)
    return np.repeat(ordered, etp, axis=-1)

"""Rows by owner and source rank, and which tier joins the two."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Shaped

from moesim.schedules.ops import Exchange

Reach = tuple[tuple[str, int], ...]


def rows_by_owner(op: Exchange) -> Float[np.ndarray, "owner ..."]:
    """Sum an exchange's rows over the slots of each owner, source ranks spelled out (a view where they are alike).

    Returns
    -------
    array of shape (owner, ..., source)
        Whole numbers stay exact in floating point.
    """
    rows = np.zeros((op.ranks, *op.rows.shape[1:]))
    for owners in op.ranks_of_slot.T:
        order = np.argsort(owners, kind="stable")
        held = owners[order]
        starts = np.flatnonzero(np.diff(held, prepend=-1))
        rows[held[starts]] += np.add.reduceat(op.rows[order], starts, axis=0, dtype=float)
    return np.broadcast_to(rows, (*rows.shape[:-1], op.ranks))


def rows_by_node(op: Exchange, node: int) -> Float[np.ndarray, "node local ..."]:
    """Lay `rows_by_owner` out as (owner's node, its place there, ..., source's node, its place there)."""
    rows = rows_by_owner(op)
    nodes = op.ranks // node
    return rows.reshape(nodes, node, *rows.shape[1:-1], nodes, node)


@lru_cache(maxsize=256)
def joining(ranks: int, blocks: tuple[int, ...]) -> Float[np.ndarray, "tier owner source"]:
    """Mark the innermost tier whose block holds both of two different ranks; the outermost reaches everybody.

    Examples
    --------
    >>> joining(4, (2, 4))[0].astype(int).tolist()
    [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    """
    rank = np.arange(ranks)
    inside = [rank[:, None] == rank]
    inside += [rank[:, None] // block == rank // block for block in blocks[:-1]]
    inside.append(np.ones((ranks, ranks), dtype=bool))
    marks = np.stack([outer & ~inner for inner, outer in pairwise(inside)]).astype(float)
    marks.flags.writeable = False
    return marks


def joining_nodes(ranks: int, reach: Reach) -> Float[np.ndarray, "tier owner source"]:
    """Mark the tier outside the node that joins two ranks of one rail, by their nodes."""
    node = reach[0][1]
    return joining(ranks, tuple(block for _, block in reach))[1:, ::node, ::node]


def messages(
    peers: Float[np.ndarray, "tier rank"], like: Shaped[np.ndarray, "tier ..."]
) -> Float[np.ndarray, "tier ..."]:
    """Give counts of peers the axes of an array of bytes, one column where all ranks have equally many."""
    columns = peers[:, :1] if np.all(peers == peers[:, :1]) else peers
    return columns.reshape(len(columns), *[1] * (like.ndim - 2), -1)

"""Deduplicated all-to-all: a token crosses to each node once and is handed on inside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from moesim.ground.errors import PolicyError
from moesim.policies.alltoall._traffic import Reach, joining_nodes, messages, rows_by_node
from moesim.policies.protocols import Phase
from moesim.schedules.ops import AllToAll, Exchange, Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Deduplicated:
    """Send a token once to each node that holds any of its experts, along the rail, and there once to each rank.

    DeepEP's normal mode (deepseek-ai/DeepEP; DeepSeek-V3 report, section 3.2.2). How many nodes and ranks a token
    touches is a mean, `Exchange.distinct`; the copies saved are shared out in proportion to the rows, and no block gets
    a token twice. Both hops overlap in one kernel, hence one phase. Coming back, partial results are added inside the
    node before they cross, so the same bytes flow the other way.
    """

    replicated: ClassVar[bool] = False
    everywhere: ClassVar[bool] = False

    def __call__(self, op: Exchange, reach: Reach) -> tuple[Phase, ...]:
        """Return one phase of all ranks over all tiers."""
        if op.ranks == 1:
            return ()
        node = min(reach[0][1], op.ranks)
        if op.ranks % node:
            raise PolicyError(
                f"alltoall policy `deduplicated` needs whole nodes of {node} gpus, not {op.ranks} ranks; use `linear`"
            )
        # Axes: (b, i) owner's node and place, (a, j) source's; the token lands on (b, j) and is handed on to (b, i).
        rows = rows_by_node(op, node)
        tokens = _by_node(op.tokens, op.ranks, node)
        nodes_touched, ranks_touched = (
            np.asarray(op.distinct[size] if size < op.ranks else 1.0)[..., None] for size in (node, 1)
        )
        to_nodes = _once(np.einsum("bi...aj->b...aj", rows), tokens, nodes_touched, (0,))
        to_ranks = _once(rows, tokens, ranks_touched, (0, 1))
        marks = joining_nodes(op.ranks, reach)
        other = 1.0 - np.eye(node)
        sent = _stacked(
            np.einsum("bi...aj,ij->...bj", to_ranks, other), np.einsum("b...aj,tba->t...aj", to_nodes, marks)
        )
        received = _stacked(
            np.einsum("bi...aj,ij->...bi", to_ranks, other), np.einsum("b...aj,tba->t...bj", to_nodes, marks)
        )
        if op.reverse:
            sent, received = received, sent
        peers = np.concatenate([np.full((1, op.ranks), node - 1.0), np.repeat(marks.sum(axis=1), node, axis=1)])
        exchange = AllToAll(
            tiers=tuple(name for name, _ in reach),
            sent=op.row * sent,
            received=op.row * received,
            messages=messages(peers, sent),
        )
        return (Phase(op=exchange, group="ep", stream="comm"),)


def _by_node(tokens: Rows, ranks: int, node: int) -> Float[np.ndarray, "..."]:
    """Lay tokens per rank out as (..., node, place)."""
    return np.broadcast_to(tokens, (*tokens.shape[:-1], ranks)).astype(float).reshape(*tokens.shape[:-1], -1, node)


def _once(
    rows: Float[np.ndarray, "..."],
    tokens: Float[np.ndarray, "..."],
    distinct: Float[np.ndarray, "..."],
    blocks: tuple[int, ...],
) -> Float[np.ndarray, "..."]:
    """Scale a source's rows per block down so that they add up to its tokens times the blocks one of them touches."""
    total = rows.sum(axis=blocks)
    share = np.divide(
        tokens * distinct, total, out=np.zeros(np.broadcast_shapes(tokens.shape, total.shape)), where=total > 0
    )
    return np.asarray(np.minimum(rows * np.minimum(share, 1.0), tokens))


def _stacked(inner: Float[np.ndarray, "..."], outer: Float[np.ndarray, "outer ..."]) -> Float[np.ndarray, "tier ..."]:
    """Put the node's own tier before the others, and join node and place into ranks."""
    stacked = np.concatenate([inner[None], outer])
    return stacked.reshape(*stacked.shape[:-2], -1)


policy = Deduplicated

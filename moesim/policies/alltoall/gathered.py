"""Gathered exchange: every rank gets every token, runs its own experts, and sums of results are scattered back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.ground.errors import PolicyError
from moesim.policies.alltoall._traffic import Reach, joining_nodes, messages
from moesim.policies.protocols import Phase
from moesim.schedules.ops import AllToAll, Exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Gather all tokens on all ranks, along the rails and inside nodes; scatter the sums of results the same way back.

    What vLLM does between groups of attention unless told otherwise (`allgather_reducescatter`, the default of
    `--all2all-backend` in 0.24.0), and SGLang without an all-to-all. A token travels once to each rank, however many of
    its experts live there, and no counts of rows travel first. Partial results are added inside a node before they
    cross, so the same bytes flow back.
    """

    replicated: ClassVar[bool] = False
    everywhere: ClassVar[bool] = True

    def __call__(self, op: Exchange, reach: Reach) -> tuple[Phase, ...]:
        """Return one phase of all ranks over all tiers."""
        if op.ranks == 1:
            return ()
        node = min(reach[0][1], op.ranks)
        if op.ranks % node:
            raise PolicyError(
                f"alltoall policy `gathered` needs whole nodes of {node} gpus, not {op.ranks} ranks; use `linear`"
            )
        # Axes: a source's node, j its place there; its tokens land on (b, j) of each node b and are handed on inside.
        tokens = np.broadcast_to(op.tokens, (*op.tokens.shape[:-1], op.ranks)).astype(float)
        homes = np.broadcast_to(tokens, np.broadcast_shapes(tokens.shape, (*op.rows.shape[1:-1], 1)))
        homes = homes.reshape(*homes.shape[:-1], -1, node)
        marks = joining_nodes(op.ranks, reach)
        rails = np.broadcast_to(homes.sum(axis=-2, keepdims=True), homes.shape)
        inside = np.broadcast_to(rails.sum(axis=-1, keepdims=True), rails.shape) - rails
        sent = [rails * (node - 1.0), *(homes * mark.sum(axis=0)[:, None] for mark in marks)]
        received = [inside, *(np.einsum("...aj,ba->...bj", homes, mark) for mark in marks)]
        there, here = ([side.reshape(*side.shape[:-2], -1) for side in sides] for sides in (sent, received))
        if op.reverse:
            there, here = here, there
        peers = np.concatenate([np.full((1, op.ranks), node - 1.0), np.repeat(marks.sum(axis=1), node, axis=1)])
        exchange = AllToAll(
            tiers=tuple(name for name, _ in reach),
            sent=op.row * np.stack(there),
            received=op.row * np.stack(here),
            messages=messages(peers, np.stack(there)),
        )
        return (Phase(op=exchange, group="ep", stream="comm"),)


policy = Gathered

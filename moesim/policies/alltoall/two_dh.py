"""Two-dimensional hierarchical all-to-all: inside the node first, then between nodes along the rails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from moesim.ground.errors import PolicyError
from moesim.policies.alltoall._traffic import Reach, joining_nodes, messages, rows_by_node
from moesim.policies.protocols import Phase
from moesim.schedules.ops import AllToAll, Elementwise, Exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoDimensional:
    """Gather on each rank what its whole node sends along its rail, then exchange along the rail alone.

    Hwang et al., "Tutel", MLSys 2023, 2DH all-to-all: n - 1 messages of S / n become m - 1 of S / m inside a node of m
    gpus and n / m - 1 of m S / n between nodes. Bytes between nodes stay what they were; those inside grow, and two
    strided copies (reading and writing S each) put chunks side by side before either exchange. Coming back, the phases
    run in mirrored order.
    """

    replicated: ClassVar[bool] = False
    everywhere: ClassVar[bool] = False

    def __call__(self, op: Exchange, reach: Reach) -> tuple[Phase, ...]:
        """Return copy, exchange in the node, copy, exchange along the rail."""
        node = reach[0][1]
        if op.ranks <= node or op.ranks % node:
            raise PolicyError(
                f"alltoall policy `two_dh` needs two or more whole nodes of {node} gpus, not {op.ranks} ranks;"
                " use `linear`"
            )
        # Axes: (b, i) owner's node and place, (a, j) source's; the meeting rank in the source's node is (a, i).
        rows = op.row * rows_by_node(op, node)
        phases = (
            _copy(np.einsum("bi...aj->...aj", rows)),
            _inside(rows, op.reverse, reach),
            _copy(np.einsum("bi...aj->...ai", rows)),
            _along(rows, op.reverse, reach),
        )
        return phases[::-1] if op.reverse else phases


def _by_rank(size: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Join the last two axes, node and place, into ranks."""
    return size.reshape(*size.shape[:-2], -1)


def _copy(held: Float[np.ndarray, "..."]) -> Phase:
    """Read and write what a rank holds."""
    return Phase(op=Elementwise(traffic=2 * _by_rank(held)), group="", stream="comm")


def _inside(rows: Float[np.ndarray, "..."], reverse: bool, reach: Reach) -> Phase:
    """Move everything to the rank of the source's node that is on the owner's rail."""
    name, node = reach[0]
    other = 1.0 - np.eye(node)
    sent = _by_rank(np.einsum("bi...aj,ij->...aj", rows, other))[None]
    received = _by_rank(np.einsum("bi...aj,ij->...ai", rows, other))[None]
    return _exchange((name,), sent, received, np.full((1, 1), node - 1.0), "node", reverse)


def _along(rows: Float[np.ndarray, "..."], reverse: bool, reach: Reach) -> Phase:
    """Move what each rank has gathered to its owner, on the same rail."""
    marks = joining_nodes(rows.shape[0] * rows.shape[1], reach)
    sent = _by_rank(np.einsum("bi...aj,tba->t...ai", rows, marks))
    received = _by_rank(np.einsum("bi...aj,tba->t...bi", rows, marks))
    peers = np.repeat(marks.sum(axis=1), rows.shape[1], axis=1)
    return _exchange(tuple(name for name, _ in reach[1:]), sent, received, peers, "rail", reverse)


def _exchange(
    tiers: tuple[str, ...],
    sent: Float[np.ndarray, "tier ..."],
    received: Float[np.ndarray, "tier ..."],
    peers: Float[np.ndarray, "tier rank"],
    group: str,
    reverse: bool,
) -> Phase:
    if reverse:
        sent, received = received, sent
    op = AllToAll(tiers=tiers, sent=sent, received=received, messages=messages(peers, sent), way="hierarchical")
    return Phase(op=op, group=group, stream="comm")


policy = TwoDimensional

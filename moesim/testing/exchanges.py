"""The suite of all-to-all policies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from moesim.ground.errors import PolicyError
from moesim.policies.protocols import (
    AllToAllPolicy,
    Phase,
)
from moesim.schedules.ops import AllToAll, Elementwise, Exchange
from moesim.testing.drawing import seeded

_TOPK = 4
_NODES = (("nvlink", 8), ("rail", 64))
_LEAVES = (("nvlink", 4), ("leaf", 16), ("spine", 64))
_MACHINES = ((1, _NODES), (6, _NODES), (8, _NODES), (12, _NODES), (32, _NODES), (32, _LEAVES))  # ranks, reach


def check_alltoall(policy: AllToAllPolicy) -> None:
    """Check that what is sent arrives, that the way back mirrors the way there, and that numbering does not matter."""
    for ranks, reach in _MACHINES:
        op = _exchange(ranks, reach)
        try:
            phases = policy(op, reach)
        except PolicyError as refusal:
            _check_refusal(str(refusal), ranks)
            continue
        if policy.replicated:
            assert phases == (), "keeps tokens in place, yet sends some"
            continue
        _check_phases(phases, reach, ranks)
        _check_same(phases, policy(op, reach), "two answers for one exchange")
        _check_mirrored(phases, policy(replace(op, reverse=True), reach))
        _check_numbering(policy, op, reach, phases)
        _check_alike(policy, op, reach)


def _check_refusal(message: str, ranks: int) -> None:
    assert "`linear`" in message, f"refuses {ranks} ranks without naming an algorithm that works"


def _exchange(ranks: int, reach: tuple[tuple[str, int], ...]) -> Exchange:
    """Route 20 to 40 tokens of every rank to 4 of 3 slots per rank, in 2 draws."""
    rng, slots = seeded(ranks), 3 * ranks
    tokens = rng.integers(20, 40, size=(1, ranks))
    popularity = rng.dirichlet(np.ones(slots))
    rows = np.moveaxis(rng.multinomial(np.tile(tokens, (2, 1)) * _TOPK, popularity), -1, 0)
    blocks = {size: -(-ranks // size) for size in (1, *(size for _, size in reach))}
    return Exchange(
        rows=rows,
        ranks_of_slot=np.arange(slots)[:, None] // 3,
        ranks=ranks,
        row=7168.0,
        reverse=False,
        tokens=tokens,
        distinct={size: number * (1 - (1 - 1 / number) ** _TOPK) for size, number in blocks.items()},
    )


def _bytes(phase: Phase) -> tuple[Float[np.ndarray, "tier ..."], Float[np.ndarray, "tier ..."]]:
    """Bytes sent and received; a copy's traffic stands on both sides."""
    if isinstance(phase.op, AllToAll):
        return phase.op.sent, phase.op.received
    assert isinstance(phase.op, Elementwise), (
        f"a phase is an AllToAll or an Elementwise, not a {type(phase.op).__name__}"
    )
    return phase.op.traffic[None], phase.op.traffic[None]


def _check_phases(phases: tuple[Phase, ...], reach: tuple[tuple[str, int], ...], ranks: int) -> None:
    assert phases or ranks == 1, "nothing is sent"
    for phase in phases:
        assert phase.group in ("", "ep", "node", "rail"), f"an unknown group, `{phase.group}`"
        sent, received = _bytes(phase)
        assert np.all(sent >= 0), "negative bytes"
        assert np.all(received >= 0), "negative bytes"
        assert np.allclose(sent.sum(axis=-1), received.sum(axis=-1), rtol=1e-12), "bytes sent are not bytes received"
        assert sent.shape[-1] == received.shape[-1] == ranks, "bytes must be given for every rank"
        if isinstance(phase.op, AllToAll):
            assert {*phase.op.tiers} <= {name for name, _ in reach}, "a tier that does not exist"
            assert len(phase.op.tiers) == len(sent) == len(received) == len(phase.op.messages), "one row a tier"
            assert np.all((phase.op.messages > 0) | (sent == 0)), "bytes without a message"


def _check_same(phases: tuple[Phase, ...], others: tuple[Phase, ...], complaint: str) -> None:
    assert len(phases) == len(others), complaint
    for phase, other in zip(phases, others, strict=True):
        for one, two in zip(_bytes(phase), _bytes(other), strict=True):
            assert np.allclose(one, two, rtol=1e-9), complaint


def _check_mirrored(there: tuple[Phase, ...], back: tuple[Phase, ...]) -> None:
    assert [phase.group for phase in there] == [phase.group for phase in back[::-1]], "the way back is another way"
    for phase, other in zip(there, back[::-1], strict=True):
        (sent, received), (sent_back, received_back) = _bytes(phase), _bytes(other)
        assert np.allclose(sent, received_back, rtol=1e-12), "the way back carries other bytes"
        assert np.allclose(received, sent_back, rtol=1e-12), "the way back carries other bytes"


def _check_numbering(
    policy: AllToAllPolicy, op: Exchange, reach: tuple[tuple[str, int], ...], phases: tuple[Phase, ...]
) -> None:
    """Number the nodes backwards (within one node, the gpus): each gpu must still move the bytes it moved."""
    node = reach[0][1] if op.ranks > reach[0][1] and op.ranks % reach[0][1] == 0 else 1
    if node == 1 and op.ranks > reach[0][1]:
        return  # no renumbering keeps nodes whole
    number = np.arange(op.ranks).reshape(-1, node)[::-1].ravel()  # its own inverse
    turned = policy(
        replace(op, rows=op.rows[..., number], tokens=op.tokens[..., number], ranks_of_slot=number[op.ranks_of_slot]),
        reach,
    )
    for phase, other in zip(phases, turned, strict=True):
        for one, two in zip(_bytes(phase), _bytes(other), strict=True):
            assert np.allclose(one.sum(axis=0)[..., number], two.sum(axis=0), rtol=1e-9), "depends on node numbers"


def _check_alike(policy: AllToAllPolicy, op: Exchange, reach: tuple[tuple[str, int], ...]) -> None:
    alike = replace(op, rows=op.rows[..., :1], tokens=op.tokens[..., :1])
    spelled = replace(
        alike, rows=np.repeat(alike.rows, op.ranks, axis=-1), tokens=np.repeat(alike.tokens, op.ranks, axis=-1)
    )
    _check_same(policy(alike, reach), policy(spelled, reach), "another answer where one source rank stands for all")

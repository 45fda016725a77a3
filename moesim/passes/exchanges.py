"""Sizing a MoE layer: gating, slots and the exchange of every plan, folded alike and stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from moesim.passes.columns import Columns, Sizes
from moesim.passes.folding import classes, fold
from moesim.passes.rows import rows_per_rank, slot_totals, source_rows
from moesim.plans.layout import Layout
from moesim.plans.plan import Policy, Pool
from moesim.policies.finding import make
from moesim.policies.protocols import AllToAllPolicy, Gated, Gating, Phase
from moesim.schedules.ops import AllToAll, Elementwise, Exchange
from moesim.world.model import Moe, bytes_of

SIZE_MESSAGE = 8.0
"""Bytes per slot in the exchange of row counts: one int64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """What exchanges may know of the machine: (tier, gpus one hop reaches) inner to outer, and gpus per node."""

    reach: tuple[tuple[str, int], ...]
    gpus_per_node: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Routed:
    """Drawn routing of one plan's pass.

    Attributes
    ----------
    counts : tokens of each source rank that chose each expert; a size-1 rank axis is the mean over the ranks of an
        expert block, whose total is then whole
    layer_of : number (among MoE layers) of the layer each cell was drawn from; where one layer stands for all, draws
        are taken from different layers
    distinct : mean number of different blocks one token's experts live in, by ranks per block
    """

    counts: Shaped[np.ndarray, "draw layer rank expert"]
    layer_of: Int[np.ndarray, "draw layer"]
    distinct: Mapping[int, float]

    @property
    def alike(self) -> bool:
        """Whether one source rank stands for all."""
        return self.counts.shape[2] == 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """Sizes of one MoE layer for a batch of plans, ranks folded alike in all of them.

    `rows` are padded to the most slots that any plan's ranks have; `sizes`, `dispatch` and `combine` are phases;
    `packed` counts the rows each rank gathers before them, `mask` the elements of a dense dispatch mask.
    """

    rows: Int[np.ndarray, "slot plan draw rank"]
    sizes: tuple[Phase, ...]
    dispatch: tuple[Phase, ...]
    combine: tuple[Phase, ...]
    packed: Sizes
    mask: Sizes


def mixture(
    moe: Moe,
    cols: Columns,
    layouts: Sequence[Layout],
    routed: Sequence[Routed],
    cell: int,
    tokens: Sizes,
    topology: Topology,
) -> Mixture:
    """Size one MoE layer of every plan and stack the plans; `cell` is the layer cell of `routed`.

    Parameters
    ----------
    tokens : home tokens per rank, broadcastable to [plan, draw, rank]
    """
    return _stacked(
        [
            _plan_mixture(moe, pool, layout, drawn, cell, _plan_row(tokens, plan), cols.folded, topology)
            for plan, (pool, layout, drawn) in enumerate(zip(cols.pools, layouts, routed, strict=True))
        ]
    )


def _plan_row(size: Sizes, plan: int) -> Float[np.ndarray, "draw rank"]:
    """Take one plan's part of a size; a size-1 plan axis serves all plans."""
    cube = size.reshape((1,) * (3 - size.ndim) + size.shape)
    return np.asarray(cube[plan if cube.shape[0] > 1 else 0], dtype=float)


def _plan_mixture(
    moe: Moe,
    pool: Pool,
    layout: Layout,
    routed: Routed,
    cell: int,
    tokens: Float[np.ndarray, "#draw #rank"],
    folded: bool,
    topology: Topology,
) -> Mixture:
    """Size one plan's MoE layer, with a plan axis of size 1."""
    p = pool.parallel
    assert folded or not routed.alike, "unfolded schedules need the counts of every rank"
    layers = routed.layer_of[:, cell]
    gated = _gate(pool, routed.counts[:, cell], layout.capacity[layers[0]], tokens)
    blocks = 1 if routed.alike else p.edp
    per_block = gated.rows.reshape(len(layers), blocks, -1, moe.experts)
    expert_of_slot = layout.expert_of_slot[layers]
    totals = slot_totals(per_block.sum(axis=2) * (p.ep * p.etp if routed.alike else 1), expert_of_slot)
    rows = rows_per_rank(totals, layout.slots_per_rank, p.etp)
    chosen = classes(rows) if folded else np.tile(np.arange(p.ranks), (len(layers), 1))
    policy: AllToAllPolicy = make("alltoall", pool.policy("alltoall"))
    sizes, dispatch, combine = (
        tuple(_kept(phase, chosen) for phase in phases)
        for phases in _exchanges(
            policy, moe, pool, layout, routed, per_block, totals, expert_of_slot, tokens, gated, topology
        )
    )
    packed = rows.sum(axis=0) if policy.replicated else gated.rows.sum(axis=-1)
    return Mixture(
        rows=fold(rows, chosen)[:, None],
        sizes=sizes,
        dispatch=dispatch,
        combine=combine,
        packed=fold(np.asarray(packed, float), chosen)[None],
        mask=fold(np.asarray(gated.mask, float), chosen)[None],
    )


def _gate(
    pool: Pool,
    counts: Shaped[np.ndarray, "draw rank expert"],
    capacity: Shaped[np.ndarray, "expert"],
    tokens: Float[np.ndarray, "#draw #rank"],
) -> Gated:
    gating: Gating = make("gating", pool.policy("gating"))
    return gating(counts, capacity, np.broadcast_to(tokens, counts.shape[:-1]))


def _exchanges(
    policy: AllToAllPolicy,
    moe: Moe,
    pool: Pool,
    layout: Layout,
    routed: Routed,
    counts: Shaped[np.ndarray, "draw block member expert"],
    totals: Int[np.ndarray, "slot draw block"],
    expert_of_slot: Int[np.ndarray, "draw slot"],
    tokens: Float[np.ndarray, "#draw #rank"],
    gated: Gated,
    topology: Topology,
) -> tuple[tuple[Phase, ...], tuple[Phase, ...], tuple[Phase, ...]]:
    """Return the phases of the exchange of sizes, of dispatch and of combine; none where tokens stay in place."""
    p = pool.parallel
    block = p.ep * p.etp
    if policy.replicated or block == 1:
        return (), (), ()
    owners, own_block = _owners(layout, p.etp, block, counts.shape[1])
    if routed.alike:
        rows = totals / block
        sizes = np.ones_like(rows)
    else:
        rows = _block_rows(counts, totals, expert_of_slot, owners[: layout.rank_of_slot.size, 0], topology.gpus_per_node)
        sizes = np.broadcast_to(own_block[:, None, :], rows.shape).astype(float)
    dispatch = Exchange(
        rows=rows,
        ranks_of_slot=owners,
        ranks=block * counts.shape[1],
        row=moe.input_dim * _element(pool, "dispatch"),
        reverse=False,
        tokens=tokens,
        distinct=routed.distinct,
    )
    combine = replace(dispatch, row=moe.input_dim * _element(pool, "combine"), reverse=True)
    linear: AllToAllPolicy = make("alltoall", Policy(name="linear"))
    counted = linear(replace(dispatch, rows=sizes, row=SIZE_MESSAGE), topology.reach) if gated.sizes else ()
    return counted, policy(dispatch, topology.reach), policy(combine, topology.reach)


def _element(pool: Pool, direction: str) -> float:
    """Bytes per element of the rows a pool dispatches or combines; bf16 unless its precision says otherwise."""
    return bytes_of(pool.precision.get(direction, "bf16"))


def _owners(
    layout: Layout, etp: int, block: int, blocks: int
) -> tuple[Int[np.ndarray, "target copies"], Bool[np.ndarray, "target rank"]]:
    """Number the ranks that own each slot of every block, and say which ranks may send to it."""
    base = layout.rank_of_slot[:, None] * etp + np.arange(etp)
    owners = np.concatenate([base + number * block for number in range(blocks)])
    block_of_rank = np.arange(block * blocks) // block
    return owners, owners[:, :1] // block == block_of_rank


def _block_rows(
    counts: Shaped[np.ndarray, "draw block member expert"],
    totals: Int[np.ndarray, "slot draw block"],
    expert_of_slot: Int[np.ndarray, "draw slot"],
    owner: Int[np.ndarray, "slot"],
    gpus_per_node: int,
) -> Shaped[np.ndarray, "target draw source"]:
    """Rows from every rank of a stage to every slot of its own block; slots of other blocks get none."""
    draws, blocks, size, _ = counts.shape
    slots = totals.shape[0]
    rows = np.zeros((blocks * slots, draws, blocks * size), counts.dtype)
    for b in range(blocks):
        node_of_rank = (b * size + np.arange(size)) // gpus_per_node
        node_of_slot = (b * size + owner) // gpus_per_node
        rows[b * slots : (b + 1) * slots, :, b * size : (b + 1) * size] = source_rows(
            counts[:, b], totals[:, :, b], expert_of_slot, node_of_rank, node_of_slot
        )
    return rows


def _kept(phase: Phase, chosen: Int[np.ndarray, "draw class"]) -> Phase:
    """Keep the chosen ranks of one phase and give its sizes a plan axis of size 1 before draw and rank."""
    op = phase.op
    if isinstance(op, AllToAll):
        sent, received = (np.expand_dims(fold(size, chosen), 1) for size in (op.sent, op.received))
        messages = np.broadcast_to(op.messages.reshape(len(op.tiers), 1, 1, -1)[..., :1], (len(op.tiers), 1, 1, 1))
        return replace(phase, op=replace(op, sent=sent, received=received, messages=messages))
    assert isinstance(op, Elementwise)
    return replace(phase, op=Elementwise(traffic=fold(op.traffic, chosen)[None]))


def _stacked(parts: Sequence[Mixture]) -> Mixture:
    """Stack plans along the plan axis; ranks with fewer slots are padded with empty ones."""
    slots = max(part.rows.shape[0] for part in parts)
    padded = [np.pad(part.rows, ((0, slots - part.rows.shape[0]), (0, 0), (0, 0), (0, 0))) for part in parts]
    return Mixture(
        rows=np.concatenate(padded, axis=1),
        sizes=_stacked_phases([part.sizes for part in parts]),
        dispatch=_stacked_phases([part.dispatch for part in parts]),
        combine=_stacked_phases([part.combine for part in parts]),
        packed=np.concatenate([part.packed for part in parts]),
        mask=np.concatenate([part.mask for part in parts]),
    )


def _stacked_phases(plans: Sequence[tuple[Phase, ...]]) -> tuple[Phase, ...]:
    """Stack each phase over plans of one structure, which have the same phases."""
    return tuple(_stacked_phase(phases) for phases in zip(*plans, strict=True))


def _stacked_phase(phases: Sequence[Phase]) -> Phase:
    ops = [phase.op for phase in phases]
    first = ops[0]
    if isinstance(first, AllToAll):
        exchanges = [op for op in ops if isinstance(op, AllToAll)]
        columns = {
            name: np.concatenate([getattr(op, name) for op in exchanges], axis=1)
            for name in ("sent", "received", "messages")
        }
        return replace(phases[0], op=replace(first, **columns))
    traffic = [op.traffic for op in ops if isinstance(op, Elementwise)]
    return replace(phases[0], op=Elementwise(traffic=np.concatenate(traffic)))

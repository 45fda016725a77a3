"""Sizing a MoE layer: gating, slots and the exchange of every plan, folded alike and stacked."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, Shaped

from moesim.passes.columns import Sizes
from moesim.passes.folding import classes, fold
from moesim.passes.rows import rows_per_rank, slot_totals, source_rows
from moesim.plans.layout import Layout
from moesim.plans.plan import Policy, Pool
from moesim.policies.finding import make
from moesim.policies.protocols import AllToAllPolicy, Gated, Gating, Phase
from moesim.schedules.ops import AllToAll, Elementwise, Exchange
from moesim.world.formats import bytes_of
from moesim.world.model import Moe

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
    distinct : mean number of different blocks one token's experts live in, by ranks per block, in the layer that each
        cell was drawn from
    """

    counts: Shaped[np.ndarray, "draw layer rank expert"]
    layer_of: Int[np.ndarray, "draw layer"]
    distinct: Mapping[int, Float[np.ndarray, "draw layer"]]

    @property
    def alike(self) -> bool:
        """Whether one source rank stands for all."""
        return bool(self.counts.shape[2] == 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """Sizes of one MoE layer for a batch of plans, ranks folded alike in all of them.

    `rows` are padded to the most slots that any plan's ranks have; `sizes`, `dispatch` and `combine` are phases;
    `packed` counts the rows each rank gathers before them and `returned` the results it adds up after them: one for
    each row that stayed, and for each that travelled one from every slice of its expert. `mask` counts the elements of
    a dense dispatch mask. `active` is given where rows are means over draws: the mean number of slots with rows on a
    rank. Experts multiply the rows of each of `sources` by themselves; 1: all together. `away` is 1 where a slot's
    expert is kept off the gpu for good; None: nowhere.
    """

    rows: Int[np.ndarray, "slot plan draw rank"]
    sizes: tuple[Phase, ...]
    dispatch: tuple[Phase, ...]
    combine: tuple[Phase, ...]
    packed: Sizes
    returned: Sizes
    mask: Sizes
    active: Sizes | None = None
    sources: int = 1
    away: Int[np.ndarray, "slot plan draw rank"] | None = None


Sized = dict[Hashable, Mixture]


def mixture(
    moe: Moe,
    pools: Sequence[Pool],
    folded: bool,
    layouts: Sequence[Layout],
    routed: Sequence[Routed],
    cell: int,
    tokens: Sizes,
    topology: Topology,
    sized: Sized,
) -> Mixture:
    """Size one MoE layer of every plan and stack the plans; `cell` is the layer cell of `routed`.

    Parameters
    ----------
    tokens : home tokens per rank, broadcastable to [plan, draw, rank]
    sized : layers sized before, which plans that differ elsewhere share; new ones are added
    """
    keys: list[Hashable] = []
    alike: dict[Hashable, list[int]] = {}
    homes = [_plan_row(tokens, plan) for plan in range(len(routed))]
    for plan, (pool, layout, drawn) in enumerate(zip(pools, layouts, routed, strict=True)):
        way = (moe, *_ways(pool), layout, drawn.counts.shape, cell, folded, topology)
        keys.append((way, drawn, homes[plan].tobytes()))
        if keys[-1] not in sized:
            alike.setdefault(way, []).append(plan)
    for plans in alike.values():
        joined = _side_by_side_plans([routed[plan] for plan in plans], [homes[plan] for plan in plans])
        first = plans[0]
        whole = _plan_mixture(moe, pools[first], layouts[first], *joined, cell, folded, topology)
        for plan, part in zip(plans, _parted(whole, len(plans)), strict=True):
            sized[keys[plan]] = part
    return _stacked([sized[key] for key in keys])


def _side_by_side_plans(
    routed: Sequence[Routed], homes: Sequence[Float[np.ndarray, "draw rank"]]
) -> tuple[Routed, Float[np.ndarray, "all rank"]]:
    """Join plans of one layout along the draws, so that they are sized in one go."""
    first, draws = routed[0], routed[0].counts.shape[0]
    joined = replace(
        first,
        counts=np.concatenate([drawn.counts for drawn in routed]),
        layer_of=np.concatenate([drawn.layer_of for drawn in routed]),
        distinct={size: np.concatenate([drawn.distinct[size] for drawn in routed]) for size in first.distinct},
    )
    return joined, np.concatenate([np.broadcast_to(home, (draws, home.shape[-1])) for home in homes])


def _parted(whole: Mixture, plans: int) -> tuple[Mixture, ...]:
    """Take joined plans apart again: the draws, second to last, are dealt to them in order."""

    def parts(size: Shaped[np.ndarray, "..."]) -> list[Shaped[np.ndarray, "..."]]:
        return [size] * plans if size.shape[-2] == 1 else np.split(size, plans, axis=-2)

    def phases(joined: tuple[Phase, ...]) -> list[tuple[Phase, ...]]:
        columns = [_parted_phase(phase, parts, plans) for phase in joined]
        return [tuple(column[plan] for column in columns) for plan in range(plans)]

    sizes, dispatch, combine = (phases(joined) for joined in (whole.sizes, whole.dispatch, whole.combine))
    rows, packed, returned, mask = (parts(size) for size in (whole.rows, whole.packed, whole.returned, whole.mask))
    away = [None] * plans if whole.away is None else parts(whole.away)
    return tuple(
        Mixture(
            rows=rows[plan],
            sizes=sizes[plan],
            dispatch=dispatch[plan],
            combine=combine[plan],
            packed=packed[plan],
            returned=returned[plan],
            mask=mask[plan],
            sources=whole.sources,
            away=away[plan],
        )
        for plan in range(plans)
    )


def _parted_phase(
    phase: Phase, parts: Callable[[Shaped[np.ndarray, "..."]], list[Shaped[np.ndarray, "..."]]], plans: int
) -> list[Phase]:
    """Take one phase of joined plans apart."""
    op = phase.op
    if isinstance(op, AllToAll):
        sizes = zip(parts(op.sent), parts(op.received), parts(op.messages), strict=True)
        return [replace(phase, op=replace(op, sent=s, received=r, messages=m)) for s, r, m in sizes]
    assert isinstance(op, Elementwise)
    return [replace(phase, op=Elementwise(traffic=traffic)) for traffic in parts(op.traffic)]


def _ways(pool: Pool) -> tuple[Hashable, ...]:
    """Name what a pool chooses about its experts' rows besides where experts live."""
    p = pool.parallel
    formats = (pool.precision.get("dispatch"), pool.precision.get("combine"))
    return (pool.policy("gating"), pool.policy("alltoall"), p.ep, p.etp, p.edp, *formats)


def _plan_row(size: Sizes, plan: int) -> Float[np.ndarray, "draw rank"]:
    """Take one plan's part of a size; a size-1 plan axis serves all plans."""
    cube = size.reshape((1,) * (3 - size.ndim) + size.shape)
    return np.asarray(cube[plan if cube.shape[0] > 1 else 0], dtype=float)


def _plan_mixture(
    moe: Moe,
    pool: Pool,
    layout: Layout,
    routed: Routed,
    tokens: Float[np.ndarray, "#draw #rank"],
    cell: int,
    folded: bool,
    topology: Topology,
) -> Mixture:
    """Size one plan's MoE layer, with a plan axis of size 1."""
    p = pool.parallel
    assert folded or not routed.alike, "unfolded schedules need the counts of every rank"
    layers = routed.layer_of[:, cell]
    gated = _gate(pool, routed.counts[:, cell], layout.capacity[layers], tokens)
    blocks = 1 if routed.alike else p.edp
    per_block = gated.rows.reshape(len(layers), blocks, -1, moe.experts)
    expert_of_slot = layout.expert_of_slot[layers]
    totals = slot_totals(per_block.sum(axis=2) * (p.ep * p.etp if routed.alike else 1), expert_of_slot)
    rows = rows_per_rank(totals, layout.slots_per_rank, p.etp)
    away = (
        None if layout.resident.all() else rows_per_rank(_absent(layout, layers, blocks), layout.slots_per_rank, p.etp)
    )
    heavy = rows if away is None else rows * away  # the host is the slower of the two: its heaviest rank decides
    chosen = classes(heavy) if folded else np.tile(np.arange(p.ranks), (len(layers), 1))
    policy: AllToAllPolicy = make("alltoall", pool.policy("alltoall"))
    sizes, dispatch, combine = (
        tuple(_kept(phase, chosen) for phase in phases)
        for phases in _exchanges(
            policy, moe, pool, layout, routed, cell, per_block, totals, expert_of_slot, tokens, gated, topology
        )
    )
    packed = rows.sum(axis=0) if stays(policy) else gated.rows.sum(axis=-1)
    return Mixture(
        rows=fold(rows, chosen)[:, None],
        sizes=sizes,
        dispatch=dispatch,
        combine=combine,
        packed=fold(np.asarray(packed, float), chosen)[None],
        returned=fold(np.asarray(packed if stays(policy) else packed * p.etp, float), chosen)[None],
        mask=fold(np.asarray(gated.mask, float), chosen)[None],
        sources=p.ep * p.etp if gated.apart else 1,
        away=None if away is None else fold(away, chosen)[:, None],
    )


def _absent(layout: Layout, layers: Int[np.ndarray, "draw"], blocks: int) -> Int[np.ndarray, "slot draw block"]:
    """Mark the slots of each draw's layer whose experts are not on the gpu, in every expert block alike."""
    absent = 1 - layout.resident[layers].T.astype(np.int64)
    return np.repeat(absent[:, :, None], blocks, axis=2)


def stays(policy: AllToAllPolicy) -> bool:
    """Tell whether a rank packs the rows it computes and adds up its own results: it has every token it needs."""
    return policy.replicated or policy.everywhere


def _gate(
    pool: Pool,
    counts: Shaped[np.ndarray, "draw rank expert"],
    capacity: Shaped[np.ndarray, "draw expert"],
    tokens: Float[np.ndarray, "#draw #rank"],
) -> Gated:
    """Apply each draw's own layer's capacities."""
    gating: Gating = make("gating", pool.policy("gating"))
    return gating(counts, capacity[:, None], np.broadcast_to(tokens, counts.shape[:-1]))


def _exchanges(
    policy: AllToAllPolicy,
    moe: Moe,
    pool: Pool,
    layout: Layout,
    routed: Routed,
    cell: int,
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
    owners = layout.rank_of_slot[:, None] * p.etp + np.arange(p.etp)
    parts = []
    for number in range(counts.shape[1]):
        members = slice(number * block, (number + 1) * block) if tokens.shape[-1] > 1 else slice(None)
        dispatch = Exchange(
            rows=(
                totals[:, :, number, None] / block
                if routed.alike
                else _block_rows(
                    counts[:, number], totals[:, :, number], expert_of_slot, owners[:, 0], topology, number
                )
            ),
            ranks_of_slot=owners,
            ranks=block,
            row=moe.input_dim * element(pool, "dispatch"),
            reverse=False,
            tokens=tokens[..., members],
            distinct={size: touched[:, cell, None] for size, touched in routed.distinct.items()},
        )
        parts.append(block_phases(policy, dispatch, moe.input_dim * element(pool, "combine"), topology, gated.sizes))
    sizes, dispatched, combined = (_side_by_side(phases) for phases in zip(*parts, strict=True))
    return sizes, dispatched, combined


def _block_rows(
    counts: Shaped[np.ndarray, "draw rank expert"],
    totals: Int[np.ndarray, "slot draw"],
    expert_of_slot: Int[np.ndarray, "draw slot"],
    owner: Int[np.ndarray, "slot"],
    topology: Topology,
    number: int,
) -> Shaped[np.ndarray, "slot draw rank"]:
    """Rows from every rank of expert block `number` to every slot of it."""
    first = number * counts.shape[1]
    node_of_rank = (first + np.arange(counts.shape[1])) // topology.gpus_per_node
    node_of_slot = (first + owner) // topology.gpus_per_node
    return source_rows(counts, totals, expert_of_slot, node_of_rank, node_of_slot)


def block_phases(
    policy: AllToAllPolicy, dispatch: Exchange, combined_row: float, topology: Topology, counted: bool
) -> tuple[tuple[Phase, ...], tuple[Phase, ...], tuple[Phase, ...]]:
    """Return one block's phases: the exchange of row counts if there is one, dispatch, combine.

    Every source sends one count to every slot, in all draws alike.
    """
    linear: AllToAllPolicy = make("alltoall", Policy(name="linear"))
    counts = replace(dispatch, rows=np.ones_like(dispatch.rows[:, :1], dtype=float), row=SIZE_MESSAGE)
    return (
        linear(counts, topology.reach) if counted and not policy.everywhere else (),
        policy(dispatch, topology.reach),
        policy(replace(dispatch, row=combined_row, reverse=True), topology.reach),
    )


def _side_by_side(blocks: Sequence[tuple[Phase, ...]]) -> tuple[Phase, ...]:
    """Join the phases of expert blocks along the ranks."""
    return blocks[0] if len(blocks) == 1 else tuple(_joined(phases, -1) for phases in zip(*blocks, strict=True))


def _joined(phases: Sequence[Phase], axis: int) -> Phase:
    """Join one phase's sizes along an axis."""
    ops = [phase.op for phase in phases]
    first = ops[0]
    if isinstance(first, AllToAll):
        exchanges = [op for op in ops if isinstance(op, AllToAll)]
        sent, received, messages = (
            _concatenated([getattr(op, name) for op in exchanges], axis) for name in ("sent", "received", "messages")
        )
        return replace(phases[0], op=replace(first, sent=sent, received=received, messages=messages))
    traffic = [op.traffic for op in ops if isinstance(op, Elementwise)]
    return replace(phases[0], op=Elementwise(traffic=_concatenated(traffic, axis)))


def _concatenated(sizes: Sequence[Shaped[np.ndarray, "..."]], axis: int) -> Shaped[np.ndarray, "..."]:
    """Join sizes along the ranks or the plans; an axis of size 1 stays so where it has that size in all of them."""
    ranks = max(size.shape[-1] for size in sizes)
    if axis == -1 and ranks == 1:
        return sizes[0]
    if axis != -1:
        draws = max(size.shape[-2] for size in sizes)
        wide = (draws, ranks)
        sizes = [s if s.shape[-2:] == wide else np.broadcast_to(s, (*s.shape[:-2], *wide)) for s in sizes]
    return np.concatenate(sizes, axis=axis)


def element(pool: Pool, direction: str) -> float:
    """Bytes per element of the rows a pool dispatches or combines; bf16 unless its precision says otherwise."""
    return bytes_of(pool.precision.get(direction, "bf16"))


def _kept(phase: Phase, chosen: Int[np.ndarray, "draw class"]) -> Phase:
    """Keep the chosen ranks of one phase and give its sizes a plan axis of size 1 before draw and rank."""
    op = phase.op
    if isinstance(op, AllToAll):
        messages = op.messages.reshape(len(op.tiers), -1, op.messages.shape[-1])
        sent, received, kept = (fold(size, chosen)[:, None] for size in (op.sent, op.received, messages))
        return replace(phase, op=replace(op, sent=sent, received=received, messages=kept))
    assert isinstance(op, Elementwise)
    return replace(phase, op=Elementwise(traffic=fold(op.traffic, chosen)[None]))


def _stacked(parts: Sequence[Mixture]) -> Mixture:
    """Stack plans along the plan axis; ranks with fewer slots are padded with empty ones."""
    return Mixture(
        rows=_padded([part.rows for part in parts]),
        away=_padded([part.away for part in parts if part.away is not None]) if parts[0].away is not None else None,
        sources=parts[0].sources,
        sizes=_stacked_phases([part.sizes for part in parts]),
        dispatch=_stacked_phases([part.dispatch for part in parts]),
        combine=_stacked_phases([part.combine for part in parts]),
        packed=np.concatenate([part.packed for part in parts]),
        returned=np.concatenate([part.returned for part in parts]),
        mask=np.concatenate([part.mask for part in parts]),
    )


def _padded(sizes: Sequence[Int[np.ndarray, "_ _ draw rank"]]) -> Int[np.ndarray, "slot plan draw rank"]:
    """Join rows along the plans, with empty slots where a plan has fewer."""
    slots = max(len(rows) for rows in sizes)
    padded = [
        np.concatenate([rows, np.zeros((slots - len(rows), *rows.shape[1:]), rows.dtype)])
        if len(rows) < slots
        else rows
        for rows in sizes
    ]
    return np.concatenate(padded, axis=1)


def _stacked_phases(plans: Sequence[tuple[Phase, ...]]) -> tuple[Phase, ...]:
    """Stack each phase over plans of one structure, which have the same phases; the plan axis is third from last."""
    return tuple(_joined(phases, -3) for phases in zip(*plans, strict=True))

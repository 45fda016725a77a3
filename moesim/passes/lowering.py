"""From scenario, pools, layouts, batch and drawn routing to a schedule of sizes.

One call lowers many plans at once: they share a structure (which tasks there are), so each op holds one array with a
leading plan axis. Axes are [plan, draw, rank]. Policies rearrange ops in a fixed order: gating, shortcut, two-batch,
pipelining, all-to-all phases. Layers that are equal in every size hold the same op objects, so pricing does each once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from moesim.ground.streams import stream
from moesim.passes.attention import ACTIVATION, NORM_PASSES, Work, add_attention, join_group, work
from moesim.passes.backward import backward_of, weight_gradients, with_backward
from moesim.passes.buffering import buffered, missing_share, popular
from moesim.passes.chain import Chain
from moesim.passes.columns import Column, Columns, Sizes, as_column, column, columns, group_tiers, stage_layers
from moesim.passes.exchanges import Mixture, Routed, Sized, Topology, mixture
from moesim.passes.folding import class_counts
from moesim.passes.groups import folded_labels, labels
from moesim.passes.mixture import add_dense, add_mixture
from moesim.passes.presence import kind_of, mixture_kinds
from moesim.passes.shortcut import changed_model, joined_layers, kept_share, thinned
from moesim.passes.table import PoolTable, batching_of, table_of
from moesim.plans.layout import Layout
from moesim.plans.plan import Pool
from moesim.policies.finding import make
from moesim.policies.protocols import AllToAllPolicy, Buffering, Gating, Overlap, Placement, Recompute, Shortcut
from moesim.schedules.ops import Elementwise, Gemm, Send
from moesim.schedules.schedule import Schedule, beside, relayered, series
from moesim.world.hardware import Node, Tier, reach
from moesim.world.model import Dense, Layer, Model, Moe
from moesim.world.routing import Routing
from moesim.world.scenario import Scenario
from moesim.world.workload import Batch


def arrange(scenario: Scenario, pool: Pool, *, tokens: int, seed: int) -> Layout:
    """Make the layout a pool starts with: its placement policy on the mean shares, its gating's capacity.

    `tokens` is the home tokens per rank that capacities are sized for.
    """
    if not scenario.model.moe_layers:
        return _no_experts()
    shortcut: Shortcut = make("shortcut", pool.policy("shortcut"))
    moe = shortcut.mixture(scenario.model.moe(scenario.model.moe_layers[0]))
    node = scenario.hardware.offer(pool.node).node
    p = pool.parallel
    placement: Placement = make("placement", pool.policy("placement"))
    slots = placement.slots(moe.experts, p.ep)
    load = scenario.routing.shares(0)[None]
    nodes = max(1, p.ep * p.etp // node.gpus)
    expert_of_slot = placement(load, slots, p.ep, nodes, stream(seed, "placement"))
    gating: Gating = make("gating", pool.policy("gating"))
    layers, known = expert_of_slot.shape[0], scenario.model.moe_layers
    seen = [scenario.model.layers[known[min(layer, len(known) - 1)]].tokens for layer in range(layers)]
    rows = np.array([gating.capacity(max(1, round(tokens * share)), moe.experts, moe.topk) for share in seen])
    layout = Layout(
        expert_of_slot=expert_of_slot,
        rank_of_slot=np.arange(slots) // (slots // p.ep),
        capacity=np.repeat(rows[:, None], moe.experts, axis=1),
        resident=np.ones((layers, slots), bool),
        r=np.ones(layers, int),
        degree=np.ones(layers, int),
        alltoall=(pool.policy("alltoall").name,) * layers,
    )
    if not buffered(pool):
        return layout
    buffering: Buffering = make("buffering", pool.policy("buffering"))
    if buffering.hosted:
        return replace(layout, resident=popular(scenario.routing, pool, layout, node))
    return replace(
        layout,
        missing=missing_share(scenario.routing, pool, layout, tokens, seed, kept_share(scenario.model, shortcut)),
    )


def _no_experts() -> Layout:
    """Return the layout of a dense model."""
    none = np.zeros((0, 0), int)
    flat = np.zeros(0, int)
    return Layout(
        expert_of_slot=none, rank_of_slot=flat, capacity=none, resident=none > 0, r=flat, degree=flat, alltoall=()
    )


def sampled_layers(layers: int, draws: int) -> Int[np.ndarray, "draw"]:
    """Spread draws evenly over the depth of a model.

    Examples
    --------
    >>> sampled_layers(58, 4).tolist(), sampled_layers(2, 4).tolist()
    ([7, 21, 36, 50], [0, 0, 1, 1])
    """
    return (np.arange(draws) * layers + layers // 2) // draws


def distinct_blocks(
    routing: Routing, layout: Layout, etp: int, sizes: Sequence[int], layers: Sequence[int] | None = None
) -> Mapping[int, Float[np.ndarray, "layer"]]:
    """Mean number of different blocks of ranks that one token's experts live in, by ranks per block.

    Every layer of the routing has its own, by its own placement. An expert with copies counts where its first copy
    lives.

    Parameters
    ----------
    layers : MoE layers of the layout that those of the routing are; all, in order, where left out
    """
    placed = layout.expert_of_slot[np.arange(routing.layers) if layers is None else list(layers)]
    alike, kind = np.unique(placed, axis=0, return_inverse=True)
    touched = {size: np.zeros(routing.layers) for size in (1, *sizes)}
    for number, slots in enumerate(alike):
        here = np.flatnonzero(kind.reshape(-1) == number)
        part = routing.only(here.tolist())
        _, first = np.unique(slots, return_index=True)
        rank_of_expert = layout.rank_of_slot[first] * etp
        for size in touched:
            touched[size][here] = part.distinct(rank_of_expert // size)
    return touched


Part = Literal["whole", "forward", "weights", "beside"]
"""A differentiated pass, its forward alone, its gradients of weights alone, or forward and backward side by side."""

Mixtures = Callable[[Moe, int, Sizes], Mixture]
"""Sizes a MoE layer, given the cell of drawn routing that stands for it and its home tokens per rank."""

_Cache = dict[tuple[tuple[Layer, int], ...], tuple[Schedule, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)  # without slots, for the cached counts
class _Setting:
    """What all layers of one lowering have in common."""

    model: Model
    node: Node
    fabric: tuple[Tier, ...]
    first: Pool
    cols: Columns
    count: Float[np.ndarray, "plan 1 rank"]
    layout: Layout
    missing: Column
    mixtures: Mixtures
    cells: int
    batch: Batch
    stage: int
    layers: tuple[int, ...]
    speculated: float
    shortcut: Shortcut
    overlap: Overlap
    recompute: Recompute
    replicated: bool

    @cached_property
    def kinds(self) -> tuple[Layer, ...]:
        return mixture_kinds(self.model)

    @property
    def tiers(self) -> Mapping[str, str]:
        return group_tiers(self.first.parallel, reach(self.node, self.fabric))

    @property
    def last(self) -> bool:
        return self.stage == self.first.parallel.pp - 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lowering:
    """One pipeline stage of plans of one structure, ready to be written out; equal layers are written once."""

    settings: tuple[_Setting, ...]
    caches: tuple[_Cache, ...]

    def schedules(self, layers: Sequence[int] | None = None, part: Part = "whole") -> tuple[Schedule, ...]:
        """Write the pass: alternatives of structure, of which the caller keeps the fastest.

        `layers` lists the layers to write: all of the stage, unless a few are to stand for them (`shortened`). Of a
        pass that is differentiated, `part` may ask for less than the whole.
        """
        halves = [
            _lower_batch(setting, setting.layers if layers is None else layers, cache, part)
            for setting, cache in zip(self.settings, self.caches, strict=True)
        ]
        return tuple(self.settings[0].overlap.whole(tuple(choice)) for choice in zip(*halves, strict=True))

    def blocks(self, part: Part = "whole") -> Iterator[tuple[Schedule, int]]:
        """Write each unlike block of the first batch once, and say how many times it is in the pass."""
        (setting, *_), (cache, *_) = self.settings, self.caches
        ends = [_embedding(setting)] if setting.stage == 0 else []
        layers = list(setting.layers)
        if setting.last:
            drafted = range(_drafted(setting))
            layers += [len(setting.model.layers) + module for module in drafted]
            ends += [_head(setting)] * (1 + len(drafted)) + [_draft_entry(setting, module) for module in drafted]
        elif not setting.batch.backward:
            ends.append(_send(setting))
        alike: dict[tuple[Layer, int], list[int]] = {}
        for number in layers:
            alike.setdefault(_kind(setting, number), []).append(number)
        for numbers in alike.values():
            block = _layer_block(setting, (numbers[0],), cache)[0]
            yield _differentiated(setting, block, part), len(numbers)
        for end in ends:
            yield _differentiated(setting, end, part), 1

    def hop(self) -> Schedule:
        """Write the hand-over of one microbatch's hidden state to the next stage, or of its gradient to the one before.

        A differentiated pass does without: it is between the passes of two stages, and belongs to neither.
        """
        return _send(self.settings[0])


def lower(
    scenario: Scenario,
    pools: Sequence[Pool],
    stage: int,
    layouts: Sequence[Layout],
    batches: Sequence[Batch],
    routed: Sequence[Sequence[Routed]],
    sized: Sized | None = None,
    *,
    cut: Layout | None = None,
) -> Lowering:
    """Lower one pass of one pipeline stage for plans of one structure.

    Parameters
    ----------
    scenario : Scenario
        The world.
    pools : sequence of Pool
        One pool per plan, all of one `structure`.
    stage : int
        Pipeline stage.
    layouts : sequence of Layout
        One per plan.
    batches : sequence of Batch
        The batch, or its halves where the overlap policy asks for two (`halves_wanted`); sizes broadcast to
        [plan, draw, rank].
    routed : sequence of sequence of Routed
        For each batch, one per plan. Counts with a size-1 rank axis give a schedule folded into rank classes;
        otherwise every rank is a row.
    sized : dict, optional
        MoE layers sized by earlier calls with the same layouts and draws, to be shared and added to.
    cut : Layout, optional
        What overlap policies go by; the layout with the fewest rows where left out, so that no pass has empty chunks.

    Returns
    -------
    Lowering
        Writes its schedules when asked; then these are raised:

    Raises
    ------
    PolicyError
        A policy refuses the plan (an all-to-all that needs whole nodes, say).
    ModelError
        A layer whose attention has no cost form.
    """
    first = pools[0]
    node, fabric = scenario.hardware.offer(first.node).node, scenario.hardware.fabric
    topology = Topology(reach=reach(node, fabric), gpus_per_node=node.gpus)
    shortcut: Shortcut = make("shortcut", first.policy("shortcut"))
    known: Sized = {} if sized is None else sized
    settings = []
    share = kept_share(scenario.model, shortcut)
    for batch, each in zip(batches, routed, strict=True):
        blocks = (pool.parallel.ep * pool.parallel.etp for pool in pools)
        drawn = [thinned(one, share, block) for one, block in zip(each, blocks, strict=True)]
        folded = all(each.alike for each in drawn)
        degrees = [pool.parallel for pool in pools]
        setting = _setting(
            scenario,
            columns(table_of(pools), scenario.model, folded=folded),
            stage,
            batch,
            count=np.stack([class_counts(p.ep * p.etp) * p.edp for p in degrees])[:, None],
            layout=cut or min(layouts, key=lambda each: int(each.capacity.max(initial=0))),
            missing=column([layout.missing for layout in layouts]),
            mixtures=partial(_drawn_mixture, pools, folded, layouts, drawn, topology, known),
            cells=drawn[0].counts.shape[1],
            overlap=make("overlap", first.policy("overlap")),
        )
        settings.append(setting)
    return Lowering(settings=tuple(settings), caches=tuple({} for _ in settings))


def _drawn_mixture(
    pools: Sequence[Pool],
    folded: bool,
    layouts: Sequence[Layout],
    routed: Sequence[Routed],
    topology: Topology,
    sized: Sized,
    moe: Moe,
    cell: int,
    home: Sizes,
) -> Mixture:
    """Size a MoE layer by drawn routing."""
    return mixture(moe, pools, folded, layouts, routed, cell, home, topology, sized)


def lower_means(
    scenario: Scenario, table: PoolTable, stage: int, batch: Batch, mixtures: Mixtures, overlap: Overlap
) -> Lowering:
    """Lower one pass of one stage at mean sizes, all ranks alike: what a bound is made of.

    Plans may differ in more than numbers, as long as the same ops are issued: in degrees, in placement.

    Parameters
    ----------
    batch : the batch, or half of it where the overlap policy asks for two; both halves are alike
    mixtures : sizes a MoE layer from its cell (the number of its kind) and home tokens, with a size-1 rank axis
    """
    setting = _setting(
        scenario,
        columns(table, scenario.model, folded=True),
        stage,
        batch,
        count=as_column(table.ranks),
        layout=_no_experts(),
        missing=column([0.0]),
        mixtures=mixtures,
        cells=len(mixture_kinds(scenario.model)),
        overlap=overlap,
    )
    return Lowering(settings=(setting,) * overlap.halves, caches=({},) * overlap.halves)


def _setting(
    scenario: Scenario,
    cols: Columns,
    stage: int,
    batch: Batch,
    *,
    count: Float[np.ndarray, "plan 1 rank"],
    layout: Layout,
    missing: Column,
    mixtures: Mixtures,
    cells: int,
    overlap: Overlap,
) -> _Setting:
    """Gather what the first pool's names decide."""
    first = cols.first
    alltoall: AllToAllPolicy = make("alltoall", first.policy("alltoall"))
    shortcut: Shortcut = make("shortcut", first.policy("shortcut"))
    return _Setting(
        model=changed_model(scenario.model, shortcut),
        node=scenario.hardware.offer(first.node).node,
        fabric=scenario.hardware.fabric,
        first=first,
        cols=cols,
        count=count,
        layout=layout,
        missing=missing,
        mixtures=mixtures,
        cells=cells,
        batch=batch,
        stage=stage,
        layers=tuple(stage_layers(scenario.model, first.parallel.pp, stage)),
        speculated=float(batching_of(first).speculated),
        shortcut=shortcut,
        overlap=overlap,
        recompute=make("recompute", first.policy("recompute")),
        replicated=alltoall.replicated,
    )


def halves_wanted(pool: Pool) -> int:
    """How many sub-batches a pool's overlap policy wants lowered: 1, or 2 for two-batch overlap."""
    overlap: Overlap = make("overlap", pool.policy("overlap"))
    return overlap.halves


def _lower_batch(setting: _Setting, layers: Sequence[int], cache: _Cache, part: Part) -> tuple[Schedule, ...]:
    """Lower one batch through some layers; one result per alternative of the overlap policy."""
    blocks: list[tuple[Schedule, ...]] = []
    if setting.stage == 0:
        blocks.append((_embedding(setting),))
    blocks.extend(_layer_block(setting, each, cache) for each in joined_layers(setting.model, layers, setting.shortcut))
    if setting.last:
        blocks.append((_head(setting),))
        for module in range(_drafted(setting)):
            blocks.append((_draft_entry(setting, module),))
            blocks.append(_layer_block(setting, (len(setting.model.layers) + module,), cache))
            blocks.append((_head(setting, module + 1),))
    elif not setting.batch.backward:
        blocks.append((_send(setting),))
    width = max(len(block) for block in blocks)
    alternatives = (series([block[min(choice, len(block) - 1)] for block in blocks]) for choice in range(width))
    return tuple(_differentiated(setting, forward, part) for forward in alternatives)


def _differentiated(setting: _Setting, forward: Schedule, part: Part) -> Schedule:
    """Append the backward of a pass that has one, or put it beside the forward."""
    if not setting.batch.backward or part == "forward":
        return forward
    again = None if setting.recompute.keeps == "all" else setting.recompute
    if part == "weights":
        return weight_gradients(forward)
    if part == "beside":
        return beside(forward, backward_of(forward, again))
    return with_backward(forward, again)


def _kind(setting: _Setting, number: int) -> tuple[Layer, int]:
    """Name a layer by what it is and which drawn cell it uses; drafting modules are built like the last layer."""
    layer = setting.model.layers[min(number, len(setting.model.layers) - 1)]
    return layer, _cell(setting, number) if isinstance(layer.ffn, Moe) else 0


def _layer_block(setting: _Setting, numbers: tuple[int, ...], cache: _Cache) -> tuple[Schedule, ...]:
    """Lower one block of layers, or renumber an equal one lowered before; drafting modules are like the last layer."""
    key = tuple(_kind(setting, number) for number in numbers)
    if key not in cache:
        written = [relayered(_lowered_layer(setting, *each), place) for place, each in enumerate(key)]
        joined = written[0] if len(written) == 1 else series(written)
        layout = setting.layout
        cache[key] = tuple(
            block for way in setting.shortcut(joined, layout) for block in setting.overlap.block(way, layout)
        )
    return tuple(relayered(block, numbers[0]) for block in cache[key])


def _cell(setting: _Setting, number: int) -> int:
    """Layer cell of the drawn counts for a layer: its own, or the one that stands for its kind."""
    model, cells = setting.model, setting.cells
    if cells == len(model.moe_layers):
        return min(sum(layer < number for layer in model.moe_layers), cells - 1)
    return kind_of(model.layers[min(number, len(model.layers) - 1)], setting.kinds)


def _chain(setting: _Setting, layer: int = 0) -> Chain:
    """Start a block with the labels and row counts of this lowering."""
    if setting.cols.folded:
        return Chain(layer=layer, groups=folded_labels(setting.count.shape[-1]), count=setting.count)
    groups = labels(setting.first.parallel, setting.stage, setting.node.gpus)
    return Chain(layer=layer, groups=groups, count=np.ones(setting.first.parallel.ranks))


def _lowered_layer(setting: _Setting, layer: Layer, cell: int) -> Schedule:
    """Write one layer: attention, the collectives that join or scatter its group, and the feed-forward part."""
    chain = _chain(setting)
    cols, tiers = setting.cols, setting.tiers
    done = work(layer, setting.model, setting.batch, cols, setting.speculated)
    hidden = done.tokens * layer.dim * ACTIVATION
    scattered = isinstance(layer.ffn, Moe) and not setting.replicated
    if layer.attention is not None:
        add_attention(chain, layer, cols, done, tiers)
        join_group(chain, hidden, "reduce_scatter" if scattered else "all_reduce", cols, tiers)
    match layer.ffn:
        case Dense():
            add_dense(chain, layer.ffn, layer.dim, cols, done.tokens, tiers)
        case Moe():
            home = (done.prefill * setting.batch.carriers + done.decoded) / cols.tp
            sized = setting.mixtures(layer.ffn, cell, home)
            tokens = done.tokens if setting.replicated else done.tokens / cols.tp
            add_mixture(
                chain, layer.ffn, layer.dim, cols, sized, tokens, setting.missing, replicated=setting.replicated
            )
            join_group(chain, hidden, "all_reduce" if setting.replicated else "all_gather", cols, tiers)
        case None:
            pass
    return chain.schedule()


def _tokens(setting: _Setting) -> Work:
    """Work of the first and last layers on plain tokens, for embedding, head and send."""
    layer = setting.model.layers[-1]
    return work(replace(layer, tokens=1.0), setting.model, setting.batch, setting.cols, setting.speculated)


def _embedding(setting: _Setting) -> Schedule:
    chain = _chain(setting, -1)
    dim = setting.model.layers[0].dim
    chain.add("embed", Elementwise(traffic=_tokens(setting).tokens * dim * 2 * ACTIVATION))
    return chain.schedule()


def _head(setting: _Setting, module: int = 0) -> Schedule:
    """Write the final norm and the head, over tokens that need logits: all in training, else one per prompt."""
    model, cols = setting.model, setting.cols
    chain = _chain(setting, len(model.layers) + module)
    done = _tokens(setting)
    tokens = done.tokens if setting.batch.backward else done.decoded + done.prompts
    chain.add("norm", Elementwise(traffic=tokens * model.dim * 2 * ACTIVATION))
    if model.vocab:
        weights = cols.formats["embedding"]
        chain.add("head", Gemm(m=tokens, n=model.vocab / cols.tp, k=column([model.dim]), dtype=weights))
    return chain.schedule()


def _drafted(setting: _Setting) -> int:
    """How many times a drafting module runs: once per speculated token, where the model has such modules."""
    return int(setting.speculated) if setting.model.mtp else 0


def _draft_entry(setting: _Setting, module: int) -> Schedule:
    """Write a drafting module's entry: hidden state and embedding, side by side, projected to the model's width."""
    dim, cols = setting.model.dim, setting.cols
    chain = _chain(setting, len(setting.model.layers) + module)
    tokens = _tokens(setting).tokens
    chain.add("norm", Elementwise(traffic=tokens * dim * NORM_PASSES * ACTIVATION))
    chain.add("mtp", Gemm(m=tokens, n=column([dim]), k=column([2.0 * dim]), dtype=cols.formats["dense"]))
    return chain.schedule()


def _send(setting: _Setting) -> Schedule:
    """Write the hand-over of the hidden state to the next stage, each rank its own tokens."""
    last = setting.model.layers[setting.layers[-1]]
    chain = _chain(setting, len(setting.model.layers))
    size = setting.batch.tokens * last.tokens * last.dim * ACTIVATION
    chain.add("send", Send(size=size, tier=setting.tiers["stage"]), stream=f"net:{setting.stage}")
    return chain.schedule()

"""From scenario, pools, layouts, batch and drawn routing to a schedule of sizes.

One call lowers many plans at once: they share a structure (which tasks there are), so each op holds one array with a
leading plan axis. Axes are [plan, draw, rank]. Policies rearrange ops in a fixed order: gating, shortcut, two-batch,
pipelining, all-to-all phases. Layers that are equal in every size hold the same op objects, so pricing does each once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from moesim.ground.streams import stream
from moesim.passes.attention import ACTIVATION, NORM_PASSES, Work, add_attention, join_group, work
from moesim.passes.backward import with_backward
from moesim.passes.buffering import buffered, missing_share
from moesim.passes.chain import Chain
from moesim.passes.columns import Columns, Sizes, column, columns, group_tiers, stage_layers
from moesim.passes.exchanges import Mixture, Routed, Sized, Topology, mixture
from moesim.passes.folding import class_counts
from moesim.passes.groups import folded_labels, labels
from moesim.passes.mixture import add_dense, add_mixture
from moesim.passes.presence import kind_of, mixture_kinds
from moesim.passes.shortcut import changed_model, joined_layers, thinned
from moesim.plans.layout import Layout
from moesim.plans.plan import Pool
from moesim.policies.finding import make
from moesim.policies.protocols import AllToAllPolicy, Batching, Gating, Overlap, Placement, Shortcut
from moesim.schedules.ops import Elementwise, Gemm, Send
from moesim.schedules.schedule import Schedule, relayered, series
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
    layers = expert_of_slot.shape[0]
    layout = Layout(
        expert_of_slot=expert_of_slot,
        rank_of_slot=np.arange(slots) // (slots // p.ep),
        capacity=np.full((layers, moe.experts), gating.capacity(tokens, moe.experts, moe.topk)),
        resident=np.ones((layers, slots), bool),
        r=np.ones(layers, int),
        degree=np.ones(layers, int),
        alltoall=(pool.policy("alltoall").name,) * layers,
    )
    if not buffered(pool):
        return layout
    return replace(layout, missing=missing_share(scenario.routing, pool, layout, tokens, seed))


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


def distinct_blocks(routing: Routing, layout: Layout, etp: int, sizes: Sequence[int]) -> Mapping[int, float]:
    """Mean number of different blocks of ranks that one token's experts live in, by ranks per block.

    An expert with copies counts where its first copy lives. The first MoE layer's placement stands for all.
    """
    slots = layout.expert_of_slot[0]
    _, first = np.unique(slots, return_index=True)
    rank_of_expert = layout.rank_of_slot[first] * etp
    return {size: float(routing.distinct(rank_of_expert // size).mean()) for size in (1, *sizes)}


_Cache = dict[tuple[tuple[Layer, int], ...], tuple[Schedule, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)  # without slots, for the cached counts
class _Setting:
    """What all layers of one lowering have in common."""

    model: Model
    node: Node
    fabric: tuple[Tier, ...]
    cols: Columns
    layouts: tuple[Layout, ...]
    routed: tuple[Routed, ...]
    batch: Batch
    stage: int
    layers: tuple[int, ...]
    speculated: float
    shortcut: Shortcut
    overlap: Overlap
    sized: Sized
    replicated: bool

    @cached_property
    def kinds(self) -> tuple[Layer, ...]:
        return mixture_kinds(self.model)

    @cached_property
    def count(self) -> Float[np.ndarray, "plan 1 rank"]:
        degrees = (pool.parallel for pool in self.cols.pools)
        return np.stack([class_counts(p.ep * p.etp) * p.edp for p in degrees])[:, None]

    @property
    def tiers(self) -> Mapping[str, str]:
        return group_tiers(self.cols.first.parallel, reach(self.node, self.fabric))

    @property
    def topology(self) -> Topology:
        return Topology(reach=reach(self.node, self.fabric), gpus_per_node=self.node.gpus)

    @property
    def last(self) -> bool:
        return self.stage == self.cols.first.parallel.pp - 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lowering:
    """One pipeline stage of plans of one structure, ready to be written out; equal layers are written once."""

    settings: tuple[_Setting, ...]
    caches: tuple[_Cache, ...]

    def schedules(self, layers: Sequence[int] | None = None) -> tuple[Schedule, ...]:
        """Write the pass: alternatives of structure, of which the caller keeps the fastest.

        `layers` lists the layers to write: all of the stage, unless a few are to stand for them (`shortened`).
        """
        halves = [
            _lower_batch(setting, setting.layers if layers is None else layers, cache)
            for setting, cache in zip(self.settings, self.caches, strict=True)
        ]
        return tuple(self.settings[0].overlap.whole(tuple(choice)) for choice in zip(*halves, strict=True))


def lower(
    scenario: Scenario,
    pools: Sequence[Pool],
    stage: int,
    layouts: Sequence[Layout],
    batches: Sequence[Batch],
    routed: Sequence[Sequence[Routed]],
    sized: Sized | None = None,
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
    batching: Batching = make("batching", first.policy("batching"))
    alltoall: AllToAllPolicy = make("alltoall", first.policy("alltoall"))
    shortcut: Shortcut = make("shortcut", first.policy("shortcut"))
    model = changed_model(scenario.model, shortcut)
    settings = tuple(
        _Setting(
            model=model,
            node=scenario.hardware.offer(first.node).node,
            fabric=scenario.hardware.fabric,
            cols=columns(pools, scenario.model, folded=all(each.alike for each in drawn)),
            layouts=tuple(layouts),
            routed=tuple(thinned(each, scenario.model, model) for each in drawn),
            batch=batch,
            stage=stage,
            layers=tuple(stage_layers(scenario.model, first.parallel.pp, stage)),
            speculated=float(batching.speculated),
            shortcut=shortcut,
            overlap=make("overlap", first.policy("overlap")),
            sized={} if sized is None else sized,
            replicated=alltoall.replicated,
        )
        for batch, drawn in zip(batches, routed, strict=True)
    )
    return Lowering(settings=settings, caches=tuple({} for _ in settings))


def halves_wanted(pool: Pool) -> int:
    """How many sub-batches a pool's overlap policy wants lowered: 1, or 2 for two-batch overlap."""
    overlap: Overlap = make("overlap", pool.policy("overlap"))
    return overlap.halves


def _lower_batch(setting: _Setting, layers: Sequence[int], cache: _Cache) -> tuple[Schedule, ...]:
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
    else:
        blocks.append((_send(setting),))
    width = max(len(block) for block in blocks)
    alternatives = tuple(series([block[min(choice, len(block) - 1)] for block in blocks]) for choice in range(width))
    if not setting.batch.backward:
        return alternatives
    return tuple(with_backward(forward) for forward in alternatives)


def _layer_block(setting: _Setting, numbers: tuple[int, ...], cache: _Cache) -> tuple[Schedule, ...]:
    """Lower one block of layers, or renumber an equal one lowered before; drafting modules are like the last layer."""
    layers = [setting.model.layers[min(number, len(setting.model.layers) - 1)] for number in numbers]
    cells = [_cell(setting, n) if isinstance(each.ffn, Moe) else 0 for n, each in zip(numbers, layers, strict=True)]
    key = tuple(zip(layers, cells, strict=True))
    if key not in cache:
        written = [relayered(_lowered_layer(setting, *each), place) for place, each in enumerate(key)]
        joined = written[0] if len(written) == 1 else series(written)
        layout = setting.layouts[0]
        cache[key] = tuple(
            block for way in setting.shortcut(joined, layout) for block in setting.overlap.block(way, layout)
        )
    return tuple(relayered(block, numbers[0]) for block in cache[key])


def _cell(setting: _Setting, number: int) -> int:
    """Layer cell of the drawn counts for a layer: its own, or the one that stands for its kind."""
    model, cells = setting.model, setting.routed[0].counts.shape[1]
    if cells == len(model.moe_layers):
        return min(sum(layer < number for layer in model.moe_layers), int(cells) - 1)
    return kind_of(model.layers[min(number, len(model.layers) - 1)], setting.kinds)


def _chain(setting: _Setting, layer: int = 0) -> Chain:
    """Start a block with the labels and row counts of this lowering."""
    pools, gpus = setting.cols.pools, setting.node.gpus
    if not setting.cols.folded:
        return Chain(
            layer=layer, groups=labels(pools[0].parallel, setting.stage, gpus), count=np.ones(pools[0].parallel.ranks)
        )
    count = setting.count
    return Chain(layer=layer, groups=folded_labels(count.shape[-1]), count=count)


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
            home = done.tokens / cols.tp
            sized = _sized(setting, layer.ffn, cell, home)
            tokens = done.tokens if setting.replicated else home
            missing = column([layout.missing for layout in setting.layouts])
            add_mixture(chain, layer.ffn, layer.dim, cols, sized, tokens, missing, replicated=setting.replicated)
            join_group(chain, hidden, "all_reduce" if setting.replicated else "all_gather", cols, tiers)
        case None:
            pass
    return chain.schedule()


def _sized(setting: _Setting, moe: Moe, cell: int, home: Sizes) -> Mixture:
    return mixture(moe, setting.cols, setting.layouts, setting.routed, cell, home, setting.topology, setting.sized)


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

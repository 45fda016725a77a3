"""Bytes per rank, itemised, and the only place that decides whether a plan fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from moesim.ground.units import show
from moesim.passes.attention import ACTIVATION, unmodelled
from moesim.passes.columns import Column, Columns, column, columns, stage_layers
from moesim.passes.keeping import kept, kept_like
from moesim.passes.shortcut import changed_model
from moesim.passes.table import PoolTable, batching_of
from moesim.plans.plan import Pool
from moesim.policies.finding import make
from moesim.policies.protocols import AllToAllPolicy, Buffering, Placement
from moesim.world.attention import (
    Unmodelled,
    attention_parameters,
    copied_parameters,
    kv_bytes,
    kv_share,
    kv_tokens,
    state_bytes,
)
from moesim.world.formats import bytes_of
from moesim.world.framework import Framework
from moesim.world.model import Dense, Layer, Model, Moe, embedding_parameters, expert_parameters, matrices
from moesim.world.scenario import Scenario
from moesim.world.workload import Training

OPTIMIZER_BYTES: Mapping[str, float] = {"adam": 16.0, "sgd": 8.0}
"""Bytes per trained parameter besides its bf16 weight: fp32 gradient and master copy, and Adam's two fp32 moments."""

LOGIT = 4.0
"""Bytes of a logit: fp32."""

KEPT_BYTES = 34.0
"""Activation bytes kept for backward per token and unit of width, attention recomputed (Korthikanti et al.,
arXiv 2205.05198, eq. 2 without the attention-score term)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Memory:
    """Bytes on the fullest rank of every plan by item, against what its framework may use of the device."""

    items: Mapping[str, Float[np.ndarray, "plan"]]
    capacity: Float[np.ndarray, "plan"]

    @property
    def total(self) -> Float[np.ndarray, "plan"]:
        """All items together."""
        return np.asarray(np.sum(list(self.items.values()), axis=0))

    @property
    def fits(self) -> Bool[np.ndarray, "plan"]:
        """Whether each plan fits."""
        return np.asarray(self.total <= self.capacity)

    @property
    def headroom(self) -> Float[np.ndarray, "plan"]:
        """Bytes left on the fullest rank; negative where the plan does not fit."""
        return np.asarray(self.capacity - self.total)


def footprint(
    scenario: Scenario,
    table: PoolTable,
    *,
    sequences: Float[np.ndarray, "plan"],
    context: Float[np.ndarray, "plan"],
    tokens: Float[np.ndarray, "plan"],
) -> Memory:
    """Add up what every plan keeps on its fullest rank; plans may be of any structure.

    Parameters
    ----------
    sequences : sequences in flight per dp group (their caches are kept)
    context : tokens kept per sequence, at their longest
    tokens : tokens per rank in one pass (they set activations and exchange buffers)
    """
    training = isinstance(scenario.workload, Training)
    rows = table.groups(_names, table["pp"])
    parts = [_one_kind(scenario, table.take(r), sequences[r], context[r], tokens[r], training) for r in rows]
    order = np.argsort(np.concatenate(rows))
    names = dict.fromkeys(name for part in parts for name in part.items)
    items = {name: np.concatenate([_of(part, name) for part in parts])[order] for name in names}
    return Memory(items=items, capacity=np.concatenate([part.capacity for part in parts])[order])


def _of(part: Memory, name: str) -> Float[np.ndarray, "plan"]:
    """Return an item's bytes; nothing where these plans have no such item."""
    return part.items.get(name, np.zeros_like(part.capacity))


def _names(pool: Pool) -> Hashable:
    """Name what decides which formulas serve a pool."""
    policy: AllToAllPolicy = make("alltoall", pool.policy("alltoall"))
    return (
        pool.node,
        pool.framework,
        tuple(sorted(pool.precision.items())),
        policy.replicated,
        _drafts(pool),
        pool.policy("shortcut"),
        kept_like(pool),
    )


def _drafts(pool: Pool) -> bool:
    """Whether a pool speculates, and so keeps the model's drafting modules."""
    return batching_of(pool).speculated > 0


def _unlike_stages(model: Model, pp: int) -> Sequence[int]:
    """List one pipeline stage of each kind: the first, the last, and those between with other numbers of layers."""
    seen: dict[Hashable, int] = {}
    for stage in range(pp):
        layers = Counter(model.layers[number] for number in stage_layers(model, pp, stage))
        seen.setdefault((frozenset(layers.items()), stage == 0, stage == pp - 1), stage)
    return tuple(seen.values())


def _one_kind(
    scenario: Scenario,
    table: PoolTable,
    sequences: Float[np.ndarray, "plan"],
    context: Float[np.ndarray, "plan"],
    tokens: Float[np.ndarray, "plan"],
    training: bool,
) -> Memory:
    """Take the fullest stage of plans that one set of formulas serves."""
    cols = columns(table, scenario.model, folded=True)
    stages = [
        _stage_items(
            scenario, cols, stage, column(list(sequences)), column(list(context)), column(list(tokens)), training
        )
        for stage in _unlike_stages(scenario.model, cols.first.parallel.pp)
    ]
    totals = np.stack([np.sum(list(items.values()), axis=0) for items in stages])
    fullest = totals.argmax(axis=0)
    items = {key: np.choose(fullest, [items[key] for items in stages]) for key in stages[0]}
    offer = scenario.hardware.offer(cols.first.node)
    usable = offer.node.device.memory * _framework(scenario, cols.first).utilization
    return Memory(items=items, capacity=np.full(len(table), usable))


def _framework(scenario: Scenario, pool: Pool) -> Framework:
    return scenario.frameworks[pool.framework]


def _stage_items(
    scenario: Scenario, cols: Columns, stage: int, sequences: Column, context: Column, tokens: Column, training: bool
) -> dict[str, Float[np.ndarray, "plan"]]:
    """Itemise one stage, one number per plan."""
    pool = cols.first
    model = changed_model(scenario.model, make("shortcut", pool.policy("shortcut")))
    pp = pool.parallel.pp
    modules = model.mtp if stage == pp - 1 and _drafts(pool) else 0
    layers = [model.layers[number] for number in stage_layers(model, pp, stage)] + [model.layers[-1]] * modules
    framework = _framework(scenario, pool)
    ends = _vocabularies(model, cols, ends=(stage == 0) + (stage == pp - 1))
    weights = _weights(model, layers, cols, ends, modules)
    items = (
        weights
        | {
            "kv cache": np.zeros_like(cols.tp) if training else _cache(layers, cols, sequences, context),
            "activations": _activations(model, layers, cols, tokens, sequences, framework, training),
            "exchange buffers": _buffers(layers, cols, tokens),
            "runtime": column([framework.reserve]),
        }
        | dict(kept(pool, layers, framework, tokens))
    )
    if training:
        per_parameter = OPTIMIZER_BYTES[_optimizer(scenario)]
        dense, attention, experts = _parameters(model, layers, cols)
        items["optimizer"] = (dense + attention + experts + ends + model.others / pp) * per_parameter
    return {key: np.broadcast_to(value, cols.tp.shape).ravel().copy() for key, value in items.items()}


def _optimizer(scenario: Scenario) -> str:
    assert isinstance(scenario.workload, Training)
    return scenario.workload.optimizer


def _vocabularies(model: Model, cols: Columns, *, ends: int) -> Column:
    """Parameters of the embedding and the head per rank, as many of the two as this stage has."""
    matrices_here = min(ends, 1 if model.tied and cols.first.parallel.pp == 1 else 2)
    return np.asarray(embedding_parameters(model) * matrices_here / cols.tp)


def _weights(model: Model, layers: list[Layer], cols: Columns, vocabulary: Column, modules: int) -> dict[str, Column]:
    """Bytes of weights per rank: experts by slot, dense parts by tensor slice, vocabulary at the model's ends.

    A drafting module is one more layer behind a projection of hidden state and embedding, side by side.
    """
    dense, attention, experts = _parameters(model, layers, cols)
    dense = dense + modules * 2.0 * model.dim**2
    return {
        "expert weights": experts * bytes_of(cols.formats["experts"]),
        "attention weights": attention * bytes_of(cols.formats["attention"]),
        "dense weights": dense * bytes_of(cols.formats["dense"]) + model.others * 2.0 / cols.first.parallel.pp,
        "vocabulary": vocabulary * bytes_of(cols.formats["embedding"]),
    }


def _parameters(model: Model, layers: list[Layer], cols: Columns) -> tuple[Column, Column, Column]:
    """Parameters per rank: dense (with gate and shared experts), attention, routed experts in their slots."""
    policy: AllToAllPolicy = make("alltoall", cols.first.policy("alltoall"))
    shared_slices = cols.tp if policy.replicated else np.ones_like(cols.tp)
    dense, attention, experts = (np.zeros_like(cols.tp) for _ in range(3))
    for layer, times in Counter(layers).items():
        attention = attention + times * _attention_parameters(layer, cols)
        match layer.ffn:
            case Dense():
                dense = dense + times * matrices(gated=layer.ffn.gated) * layer.dim * layer.ffn.width / cols.tp
            case Moe():
                moe = layer.ffn
                shared = matrices(gated=moe.gated) * layer.dim * moe.shared_width / shared_slices
                latent = 2.0 * layer.dim * moe.input_dim if moe.input_dim != layer.dim else 0.0
                dense = dense + times * (layer.dim * moe.experts + shared + latent)
                experts = experts + times * _slots(moe, cols) * expert_parameters(moe) / cols.etp
            case None:
                pass
    return dense, attention, experts


def _attention_parameters(layer: Layer, cols: Columns) -> Column:
    """Weights of an attention part per rank; some parts of latent attention are copied on all tensor-parallel ranks."""
    kind = layer.attention
    if kind is None:
        return np.zeros_like(cols.tp)
    whole = float(attention_parameters(kind, layer.dim))
    copied = float(copied_parameters(kind, layer.dim))
    return copied + (whole - copied) / cols.tp


def _slots(moe: Moe, cols: Columns) -> Column:
    """Resident expert slots per rank and MoE layer."""

    def resident(like: Pool, ep: int) -> float:
        placement: Placement = make("placement", like.policy("placement"))
        buffering: Buffering = make("buffering", like.policy("buffering"))
        return buffering.resident_of(placement.slots(moe.experts, ep) // ep)

    return cols.table.each(resident, "ep").reshape(-1, 1, 1)


def _cache(layers: list[Layer], cols: Columns, sequences: Column, context: Column) -> Column:
    """KV cache and constant states per rank: divided over heads where there are heads to divide, and over cp.

    An encoder keeps nothing once it has run: of a context, its decoder keeps the prompt's part as keys and values of
    cross attention, and the answer's as its own.
    """
    return np.asarray(sequences * cache_bytes(layers, cols.formats["kv"], context, cols.tp, cols.cp))


def cache_bytes(layers: Sequence[Layer], dtype: str, context: Column, tp: Column, cp: Column) -> Column:
    """Bytes of one sequence's cache and constant states on each rank of its group, over some layers."""
    total = np.zeros_like(tp)
    for layer, times in Counter(layer for layer in layers if layer.part == "decoder").items():
        kind = layer.attention
        if isinstance(kind, Unmodelled):
            raise unmodelled(kind)
        kept = np.minimum(context, kv_tokens(kind, float("inf"))) / cp * layer.tokens
        total = total + times * (kept * kv_bytes(kind, dtype) * kv_share(kind, tp) + state_bytes(kind) / tp)
    return total


def _activations(
    model: Model,
    layers: list[Layer],
    cols: Columns,
    tokens: Column,
    sequences: Column,
    framework: Framework,
    training: bool,
) -> Column:
    """Activation bytes: a workspace of some hidden states in serving; what backward needs, in training.

    Logits are fp32, one row per sequence.
    """
    width = max(layer.dim for layer in layers)
    if not training:
        logits = sequences * model.vocab / cols.tp * LOGIT
        return np.asarray(tokens * cols.tp * width * framework.workspace + logits)
    kept = sum(layer.dim * layer.tokens * KEPT_BYTES for layer in layers)
    routed = sum(layer.tokens * _routed_bytes(layer.ffn) for layer in layers if isinstance(layer.ffn, Moe))
    return tokens * (kept + routed) * cols.first.parallel.pp  # 1F1B: the first stage holds pp microbatches


def _routed_bytes(moe: Moe) -> float:
    """Activation bytes kept for backward per token by its experts: rows in and out, and their inner states."""
    return moe.topk * (2 * moe.input_dim + matrices(gated=moe.gated) * moe.width) * ACTIVATION


def _buffers(layers: list[Layer], cols: Columns, tokens: Column) -> Column:
    """Bytes of the buffers that rows are sent from and received into, of the widest MoE layer, for even loads."""
    widest = max((layer.ffn.topk * layer.ffn.input_dim for layer in layers if isinstance(layer.ffn, Moe)), default=0)
    policy: AllToAllPolicy = make("alltoall", cols.first.policy("alltoall"))
    copies = 0.0 if policy.replicated else 2.0
    return np.asarray(tokens * cols.etp * widest * ACTIVATION * copies)


def describe(memory: Memory, plan: int, gpu: str) -> str:
    """Say in one line why a plan does not fit: its largest items against the capacity."""
    largest = sorted(((values[plan], key) for key, values in memory.items.items()), reverse=True)[:2]
    items = " + ".join(f"{key} {show(size, 'B')}" for size, key in largest)
    total = show(float(memory.total[plan]), "B")
    return f"does not fit: {items} and others, {total} > {show(float(memory.capacity[plan]), 'B')} on {gpu}"

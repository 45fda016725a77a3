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
from moesim.passes.parameters import model_of, parameters, vocabularies
from moesim.passes.table import PoolTable, batching_of
from moesim.passes.trained import kept_activations, kept_weights, state
from moesim.plans.plan import TRAINING_POLICIES, Pool
from moesim.policies.finding import make
from moesim.policies.protocols import AllToAllPolicy
from moesim.world.attention import (
    Unmodelled,
    kv_bytes,
    kv_share,
    kv_tokens,
    state_bytes,
    state_share,
)
from moesim.world.formats import bytes_of
from moesim.world.framework import Framework
from moesim.world.model import Layer, Model, Moe
from moesim.world.scenario import Scenario
from moesim.world.workload import Training

LOGIT = 4.0
"""Bytes of a logit: fp32."""


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
        *map(pool.policy, TRAINING_POLICIES),
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
    model = model_of(scenario, pool)
    pp = pool.parallel.pp
    modules = model.mtp if stage == pp - 1 and _drafts(pool) else 0
    layers = [model.layers[number] for number in stage_layers(model, pp, stage)] + [model.layers[-1]] * modules
    framework = _framework(scenario, pool)
    ends = vocabularies(model, cols, ends=(stage == 0) + (stage == pp - 1))
    weights = _weights(model, layers, cols, ends, modules)
    if training:
        weights = {name: size * share for (name, size), share in zip(weights.items(), kept_weights(cols), strict=True)}
    items = weights | {
        "kv cache": np.zeros_like(cols.tp) if training else _cache(layers, cols, sequences, context),
        "activations": kept_activations(model, layers, cols, tokens, scenario.workload, stage)
        if isinstance(scenario.workload, Training)
        else _activations(model, layers, cols, tokens, sequences, framework),
        "exchange buffers": _buffers(layers, cols, tokens),
        "runtime": column([framework.reserve]),
        **dict(kept(pool, layers, framework, tokens)),
    }
    if isinstance(scenario.workload, Training):
        items |= state(scenario.workload, model, cols, stage)
    return {key: np.broadcast_to(value, cols.tp.shape).ravel().copy() for key, value in items.items()}


def _weights(model: Model, layers: list[Layer], cols: Columns, vocabulary: Column, modules: int) -> dict[str, Column]:
    """Bytes of weights per rank: experts by slot, dense parts by tensor slice, vocabulary at the model's ends.

    A drafting module is one more layer behind a projection of hidden state and embedding, side by side.
    """
    dense, attention, experts = parameters(model, layers, cols)
    dense = dense + modules * 2.0 * model.dim**2
    return {
        "expert weights": experts * bytes_of(cols.formats["experts"]),
        "attention weights": attention * bytes_of(cols.formats["attention"]),
        "dense weights": dense * bytes_of(cols.formats["dense"]) + model.others * 2.0 / cols.first.parallel.pp,
        "vocabulary": vocabulary * bytes_of(cols.formats["embedding"]),
    }


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
        total = total + times * (
            kept * kv_bytes(kind, dtype) * kv_share(kind, tp) + state_bytes(kind) * state_share(kind, tp)
        )
    return total


def _activations(
    model: Model, layers: list[Layer], cols: Columns, tokens: Column, sequences: Column, framework: Framework
) -> Column:
    """Activation bytes in serving: a workspace of some hidden states, and logits in fp32, one row per sequence."""
    width = max(layer.dim for layer in layers)
    logits = sequences * model.vocab / cols.tp * LOGIT
    return np.asarray(tokens * cols.tp * width * framework.workspace + logits)


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

"""An attention part as ops: projections, the core for prefill and decode, the group's collectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from moesim.ground.errors import Fault, ModelError
from moesim.passes.chain import Chain
from moesim.passes.columns import Column, Columns, Sizes, column
from moesim.passes.presence import presence
from moesim.schedules.ops import Attend, Elementwise, Gemm, Reduce
from moesim.world.model import (
    Attention,
    Cross,
    Gqa,
    Layer,
    Linear,
    Mla,
    Model,
    Unmodelled,
    Window,
    kv_bytes,
)
from moesim.world.workload import Batch

ACTIVATION = 2.0
"""Bytes per element of activations between ops: bf16."""

NORM_PASSES = 4
"""Times a residual addition with its norm crosses memory: reads result and residual, writes residual and norm."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """What a tensor-parallel group has to do in one layer, the sum over its ranks' homes.

    `tokens` are all new tokens, `decoded` those of decode, `sequences` the decoding sequences (fewer than `decoded`
    when tokens are speculated), `encoded` the prompt tokens that a decoder behind an encoder attends to.
    """

    tokens: Sizes
    prefill: Sizes
    prompts: Sizes
    pairs: Sizes
    keys: Sizes
    decoded: Sizes
    sequences: Sizes
    encoded: Sizes
    context: Sizes

    @property
    def phases(self) -> tuple[str, ...]:
        """Which phases have anything to do on any rank or plan."""
        return tuple(
            phase for phase, size in (("prefill", self.prefill), ("decode", self.decoded)) if bool(np.any(size > 0))
        )


def work(layer: Layer, model: Model, batch: Batch, cols: Columns, speculated: float) -> Work:
    """Sum what this layer sees of a batch over each tensor-parallel group.

    A batch counts causal pairs; an encoder's tokens see all of their prompt, twice as many.
    """
    prefill, decode = presence(layer, model, backward=batch.backward)
    seen = prefill**2 * (2.0 if layer.part == "encoder" else 1.0)
    new = cols.group_sum(batch.prefill * prefill)
    decoded = cols.group_sum(batch.decode * decode)
    return Work(
        tokens=new + decoded,
        prefill=new,
        prompts=cols.group_sum(batch.prompts * (prefill > 0)),
        pairs=cols.group_sum(batch.pairs * seen),
        keys=cols.group_sum(batch.keys * prefill),
        decoded=decoded,
        sequences=decoded / (1.0 + speculated),
        encoded=cols.group_sum(batch.prefill * layer.tokens),
        context=batch.context,
    )


def local_kv_heads(kv_heads: int, cols: Columns) -> Column:
    """KV heads on each rank: divided by tensor parallelism until one is left, then copied."""
    return np.maximum(kv_heads / cols.tp, 1.0)


def add_attention(chain: Chain, layer: Layer, cols: Columns, done: Work, tiers: Mapping[str, str]) -> None:
    """Append the attention part of a layer, without the collective that joins its tensor-parallel group.

    Raises
    ------
    ModelError
        An attention kind without a formula.
    """
    kind = layer.attention
    assert kind is not None
    chain.add("norm", Elementwise(traffic=done.tokens * layer.dim * NORM_PASSES * ACTIVATION))
    weights, cache = cols.formats["attention"], cols.formats["kv"]
    for inner, outer in _projections(kind, layer.dim, cols):
        chain.add("attention", Gemm(m=done.tokens, n=outer, k=inner, dtype=weights))
    if np.any(cols.cp > 1):
        _gather_cache(chain, kind, cols, done, tiers, cache)
    seen = replace(done, context=done.context / 2.0) if isinstance(kind, Cross) else done
    for phase in done.phases:
        chain.add("attention", _core(kind, cols, seen, phase, cache))
    if np.any(cols.cp > 1) and "decode" in done.phases:
        partial = done.decoded * (kind.heads / cols.tp) * _value_dim(kind) * ACTIVATION
        chain.add("attention", _meet(partial, "all_reduce", cols.cp, tiers["cp"]), stream="comm", group="cp")
    out = column([1.0]) * kind.heads / cols.tp * _value_dim(kind)
    chain.add("attention", Gemm(m=done.tokens, n=column([layer.dim]), k=out, dtype=weights))
    if isinstance(kind, Cross):
        _add_cross(chain, kind, layer, cols, done, weights, cache)


def _projections(kind: Attention, dim: int, cols: Columns) -> tuple[tuple[Sizes, Sizes], ...]:
    """List (inner, outer) widths of the products before the core, per rank."""
    width = column([dim])
    heads = kind.heads / cols.tp
    match kind:
        case Mla():
            latent = column([kind.q_lora + kind.kv_lora + kind.rope])
            query = (column([kind.q_lora or dim]), heads * (kind.nope + kind.rope))
            return (width, latent), query, (column([kind.kv_lora]), heads * (kind.nope + kind.value_dim))
        case Linear():
            keys = 2 * kind.key_heads * kind.key_dim / cols.tp
            return ((width, keys + heads * (2 * kind.value_dim + 2)),)
        case Unmodelled():
            raise unmodelled(kind)
        case Gqa() | Window() | Cross():
            gate = 2 if not isinstance(kind, Cross) and kind.gated else 1
            cached = local_kv_heads(kind.kv_heads, cols) * (kind.head_dim + kind.value_dim)
            return ((width, heads * kind.head_dim * gate + cached),)


def unmodelled(kind: Unmodelled) -> ModelError:
    """Refuse to size a kind of attention without a formula."""
    problem = f"attention `{kind.name}` has no formula; its caches cannot be sized, nor its layers timed"
    return ModelError("model", [Fault(path="attention", problem=problem, remedy="describe it as a kind that has one")])


def _value_dim(kind: Attention) -> int:
    assert not isinstance(kind, Unmodelled)
    return kind.value_dim


def _core(kind: Attention, cols: Columns, done: Work, phase: str, cache: str) -> Attend:
    """Size the core of one phase. A window caps keys; context parallelism shards the cache of decoding sequences."""
    limit = float(kind.window) if isinstance(kind, Window) else np.inf
    if phase == "prefill":
        tokens, prompts = done.prefill, done.prompts
        pairs = np.minimum(done.pairs, tokens * limit)
        keys = np.minimum(done.keys, tokens + prompts * limit)
    else:
        tokens, prompts = done.decoded, done.sequences
        seen = np.minimum(done.context, limit)
        pairs, keys = tokens * seen, prompts * seen
    return Attend(
        kind=kind,
        heads=kind.heads / cols.tp,
        phase=phase,
        tokens=tokens,
        prompts=prompts,
        pairs=pairs,
        keys=keys,
        dtype=cache,
    )


def _gather_cache(
    chain: Chain, kind: Attention, cols: Columns, done: Work, tiers: Mapping[str, str], cache: str
) -> None:
    """Gather the new tokens' keys and values over the context-parallel group before the core."""
    size = done.prefill * cols.cp * kv_bytes(kind, cache) * kv_share(kind, cols)
    chain.add("attention", _meet(size, "all_gather", cols.cp, tiers["cp"]), stream="comm", group="cp")


def kv_share(kind: Attention | None, cols: Columns) -> Column:
    """Share of a layer's cache that each tensor-parallel rank holds: latent attention cannot be divided by heads."""
    if isinstance(kind, Gqa | Window | Cross):
        return local_kv_heads(kind.kv_heads, cols) / kind.kv_heads
    return np.ones_like(cols.tp)


def _meet(size: Sizes, form: str, ranks: Column, tier: str) -> Reduce:
    return Reduce(size=size, form=form, ranks=ranks, tier=tier)


def _add_cross(chain: Chain, kind: Cross, layer: Layer, cols: Columns, done: Work, weights: str, cache: str) -> None:
    """Append attention over the encoder's output: queries of the new tokens, keys and values of the encoded ones.

    In training every token sees the whole prompt, not the half of it that a causal token sees. A decoded token's
    context is prompt and answer together, of which cross attention sees the one and self-attention the other: half goes
    to each, so that what both read adds up.
    """
    width, heads = column([layer.dim]), kind.heads / cols.tp
    cached = local_kv_heads(kind.kv_heads, cols) * (kind.head_dim + kind.value_dim)
    chain.add("attention", Gemm(m=done.tokens, n=heads * kind.head_dim, k=width, dtype=weights))
    chain.add("attention", Gemm(m=done.encoded, n=cached, k=width, dtype=weights))
    seen = replace(done, pairs=2.0 * done.pairs, context=done.context / 2.0)
    for phase in done.phases:
        chain.add("attention", _core(kind, cols, seen, phase, cache))
    chain.add("attention", Gemm(m=done.tokens, n=width, k=heads * kind.value_dim, dtype=weights))


def join_group(chain: Chain, size: Sizes, form: str, cols: Columns, tiers: Mapping[str, str]) -> None:
    """Append the collective by which a tensor-parallel group shares partial results; nothing where tp is 1."""
    if np.any(cols.tp > 1):
        chain.add("reduce", _meet(size, form, cols.tp, tiers["tp"]), stream="comm", group="tp")

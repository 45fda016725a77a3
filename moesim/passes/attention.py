"""An attention part as ops: projections, the core for prefill and decode, the group's collectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from moesim.ground.errors import Fault, ModelError
from moesim.passes.chain import Chain
from moesim.passes.columns import Column, Columns, Sizes, column
from moesim.passes.presence import presence
from moesim.plans.layout import NO_LIMIT
from moesim.schedules.ops import Attend, Elementwise, Gemm, Reduce
from moesim.world.attention import (
    Attention,
    Compressed,
    Cross,
    Gqa,
    Indexer,
    Linear,
    Mla,
    Unmodelled,
    Window,
    kv_bytes,
    kv_heads_held,
    kv_share,
)
from moesim.world.model import Layer, Model
from moesim.world.workload import Batch

ACTIVATION = 2.0
"""Bytes per element of activations between ops: bf16."""

SCORE = 4.0
"""Bytes of an indexer's score of one token for another: fp32."""

SQUARES = 8.0
"""Bytes of a token's two sums of squares, of queries and of keys: fp32."""

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
    if isinstance(kind, Gqa) and kind.joint_norm:
        join_group(chain, done.tokens * SQUARES, "all_reduce", cols, tiers)
    if np.any(cols.cp > 1):
        _gather_cache(chain, kind, cols, done, tiers, cache)
    seen = replace(done, context=done.context / 2.0) if isinstance(kind, Cross) else done
    for phase in done.phases:
        if isinstance(kind, Compressed):
            _add_compressed(chain, kind, cols, seen, phase, cache)
        elif isinstance(kind, Gqa | Mla) and kind.indexer is not None:
            _add_sparse(chain, kind, kind.indexer, cols, seen, phase, cache)
        else:
            chain.add("attention", _core(kind, cols, seen, phase, cache))
    if np.any(cols.cp > 1) and "decode" in done.phases:
        partial = done.decoded * (kind.heads / cols.tp) * _value_dim(kind) * ACTIVATION
        chain.add("attention", _meet(partial, "all_reduce", cols.cp, tiers["cp"]), stream="comm", group="cp")
    for inner, outer in _outputs(kind, layer.dim, cols):
        chain.add("attention", Gemm(m=done.tokens, n=outer, k=inner, dtype=weights))
    if isinstance(kind, Cross):
        _add_cross(chain, kind, layer, cols, done, weights, cache)


def _projections(kind: Attention, dim: int, cols: Columns) -> tuple[tuple[Sizes, Sizes], ...]:
    """List (inner, outer) widths of the products before the core, per rank."""
    width = column([dim])
    heads = kind.heads / cols.tp
    match kind:
        case Mla():
            return _latent_projections(kind, width, heads)
        case Compressed():
            return _compressed_projections(kind, width, heads)
        case Linear():
            return _linear_projections(kind, width, cols)
        case Unmodelled():
            raise unmodelled(kind)
        case Gqa() | Window() | Cross():
            gate = 0 if isinstance(kind, Cross) or not kind.gated else kind.value_dim
            values = 0 if isinstance(kind, Gqa) and kind.tied_values else kind.value_dim
            cached = kv_heads_held(kind.kv_heads, cols.tp) * (kind.head_dim + values)
            index = _index_outputs(kind.indexer) if isinstance(kind, Gqa) and kind.indexer else 0
            return ((width, heads * (kind.head_dim + gate) + cached + index),)


def _index_outputs(indexer: Indexer) -> int:
    """Width of index queries and the index key, which all ranks make where no latent precedes them."""
    return (indexer.heads + 1) * indexer.dim


def _outputs(kind: Attention, dim: int, cols: Columns) -> tuple[tuple[Sizes, Sizes], ...]:
    """List (inner, outer) widths of the products behind the core, per rank; by groups of heads where it has a rank."""
    heads = column([1.0]) * kind.heads / cols.tp
    if isinstance(kind, Compressed):
        middle = kind.o_groups * kind.o_lora / cols.tp
        return (column([kind.heads * kind.head_dim / kind.o_groups]), middle), (middle, column([dim]))
    return ((heads * _value_dim(kind), column([dim])),)


def _compressed_projections(kind: Compressed, width: Sizes, heads: Sizes) -> tuple[tuple[Sizes, Sizes], ...]:
    """List the products before compressed attention; only queries are divided over ranks."""
    scorer, inner = kind.indexer, column([kind.q_lora])
    down = kind.q_lora + kind.head_dim + kind.compressors + (scorer.heads if scorer else 0)
    products = ((width, column([down])), (inner, heads * kind.head_dim))
    return (*products, (inner, column([scorer.heads * scorer.dim]))) if scorer else products


def _linear_projections(kind: Linear, width: Sizes, cols: Columns) -> tuple[tuple[Sizes, Sizes], ...]:
    """List the products before linear attention: what is mixed and controls it, then decay and gate of a low rank."""
    values = kind.value_heads * kind.value_dim / cols.tp
    whole = (kind.mixed + kind.controls) / cols.tp + (0.0 if kind.gate_rank else values)
    ranks = ((kind.decay_rank, kind.key_heads * kind.key_dim / cols.tp), (kind.gate_rank, values))
    low = [pair for rank, wide in ranks if rank for pair in ((width, column([rank])), (column([rank]), wide))]
    return (width, whole), *low


def _latent_projections(kind: Mla, width: Sizes, heads: Sizes) -> tuple[tuple[Sizes, Sizes], ...]:
    """List the products before latent attention; the down-projections and the indexer are the same on all ranks."""
    down = kind.q_lora + kind.kv_lora + kind.rope
    if kind.indexer is not None:
        down += kind.indexer.dim + kind.indexer.heads
    inner = column([kind.q_lora]) if kind.q_lora else width
    products = [
        (width, column([down])),
        (inner, heads * (kind.nope + kind.rope)),
        (column([kind.kv_lora]), heads * (kind.nope + kind.value_dim)),
    ]
    if kind.gated:
        products.append((width, heads * kind.value_dim))
    if kind.indexer is not None:
        products.append((inner, column([kind.indexer.heads * kind.indexer.dim])))
    return tuple(products)


def unmodelled(kind: Unmodelled) -> ModelError:
    """Refuse to size a kind of attention without a formula."""
    problem = f"attention `{kind.name}` has no formula; its caches cannot be sized, nor its layers timed"
    return ModelError("model", [Fault(path="attention", problem=problem, remedy="describe it as a kind that has one")])


def _value_dim(kind: Attention) -> int:
    assert not isinstance(kind, Unmodelled)
    return kind.head_dim if isinstance(kind, Compressed) else kind.value_dim


def _core(kind: Attention, cols: Columns, done: Work, phase: str, cache: str) -> Attend:
    """Size the core of one phase. A window caps keys; context parallelism shards the cache of decoding sequences.

    A prompt's tokens see half a chunk on average where windows are chunks. A decoding token is taken to see all of
    it, which is the most it can.
    """
    limit = float(kind.window) if isinstance(kind, Window) else float(NO_LIMIT)
    if phase == "prefill":
        tokens, prompts = done.prefill, done.prompts
        chunked = isinstance(kind, Window) and kind.chunked
        pairs = np.minimum(done.pairs, tokens * (limit / 2.0 if chunked else limit))
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


def _add_sparse(
    chain: Chain, kind: Gqa | Mla, indexer: Indexer, cols: Columns, done: Work, phase: str, cache: str
) -> None:
    """Append sparse attention: score every cached token, keep the best, attend to those.

    Scoring is attention without values, by heads that every rank has; the scores (fp32) are written once and read once.
    Each token then reads latents of its own, so that a prompt's tokens are so many decoding ones, with the latent
    absorbed (DeepSeek-V3.2 report, sections 2.1 and 2.2). Where blocks are picked beside grouped queries, a prompt's
    kernel does the work of the picked pairs and reads each key once.
    """
    whole = _core(kind, cols, done, phase, cache)
    _add_scores(chain, indexer, whole)
    here = (
        indexer.topk / cols.cp if phase == "decode" else float(indexer.topk)
    )  # a decoding sequence's cache is sharded
    picked = np.minimum(whole.pairs, whole.tokens * here)
    if isinstance(kind, Gqa) and phase == "prefill":
        chain.add("attention", replace(whole, pairs=picked, keys=np.minimum(whole.keys, picked)))
        return
    chain.add("attention", replace(whole, phase="decode", prompts=whole.tokens, pairs=picked, keys=picked))


def _add_scores(chain: Chain, indexer: Indexer, whole: Attend) -> None:
    """Append the scoring of every key that `whole` sees."""
    scorer = Gqa(heads=indexer.heads, kv_heads=1, head_dim=indexer.dim, value_dim=0)
    chain.add("attention", replace(whole, kind=scorer, heads=column([float(indexer.heads)])))
    chain.add("attention", Elementwise(traffic=whole.pairs * (2.0 * SCORE / indexer.block)))


def _add_compressed(chain: Chain, kind: Compressed, cols: Columns, done: Work, phase: str, cache: str) -> None:
    """Append attention to a window and to compressed keys, all or those an indexer picks.

    Each token reads keys of its own, as in sparse latent attention: a prompt's tokens are so many decoding ones.
    """
    whole = _core(kind.core, cols, done, phase, cache)
    read = np.minimum(whole.pairs, whole.tokens * float(kind.window))
    if kind.ratio:
        blocks = whole.pairs / kind.ratio
        if kind.indexer is not None:
            _add_scores(chain, kind.indexer, replace(whole, pairs=blocks, keys=whole.keys / kind.ratio))
            blocks = np.minimum(blocks, whole.tokens * float(kind.indexer.topk))
        read = read + blocks
    chain.add("attention", replace(whole, phase="decode", prompts=whole.tokens, pairs=read, keys=read))


def _gather_cache(
    chain: Chain, kind: Attention, cols: Columns, done: Work, tiers: Mapping[str, str], cache: str
) -> None:
    """Gather the new tokens' keys and values over the context-parallel group before the core."""
    size = done.prefill * cols.cp * kv_bytes(kind, cache) * kv_share(kind, cols.tp)
    chain.add("attention", _meet(size, "all_gather", cols.cp, tiers["cp"]), stream="comm", group="cp")


def _meet(size: Sizes, form: str, ranks: Column, tier: str) -> Reduce:
    return Reduce(size=size, form=form, ranks=ranks, tier=tier)


def _add_cross(chain: Chain, kind: Cross, layer: Layer, cols: Columns, done: Work, weights: str, cache: str) -> None:
    """Append attention over the encoder's output: queries of the new tokens, keys and values of the encoded ones.

    In training every token sees the whole prompt, not the half of it that a causal token sees. A decoded token's
    context is prompt and answer together, of which cross attention sees the one and self-attention the other: half goes
    to each, so that what both read adds up.
    """
    width, heads = column([layer.dim]), kind.heads / cols.tp
    cached = kv_heads_held(kind.kv_heads, cols.tp) * (kind.head_dim + kind.value_dim)
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

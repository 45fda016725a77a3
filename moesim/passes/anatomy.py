"""What a model is made of and what one token costs it, layer by layer: weights, cache, states, work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.ground.units import Bytes
from moesim.schedules.costs.attention import needs_of
from moesim.schedules.ops import Attend
from moesim.world.attention import (
    Attention,
    Compressed,
    Cross,
    Gqa,
    Indexer,
    Mla,
    Unmodelled,
    kv_bytes,
    kv_share,
    kv_tokens,
    state_bytes,
    state_share,
)
from moesim.world.formats import BITS
from moesim.world.model import Layer, Model, embedding_parameters, expert_bytes, expert_parameters, layer_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The layers of a model that are alike.

    Attributes
    ----------
    numbers : which they are, from 0
    parameters, active : weights of one of them: all, and those one token uses
    cached : bytes a token adds to the cache of one of them, in the model's own format; None where not modelled
    kept : tokens of a long context that it keeps at most; infinite where all
    state : bytes of constant state per sequence
    work : FLOP per token of one of them, at the context asked for; None where not modelled
    """

    layer: Layer
    numbers: tuple[int, ...]
    parameters: int
    active: int
    cached: Bytes | None
    kept: float
    state: Bytes
    work: float | None


def kinds(model: Model, context: float) -> tuple[Kind, ...]:
    """Describe each kind of layer of a model, in order of first appearance; work is of a decoded token."""
    numbers: dict[Layer, list[int]] = {}
    for number, layer in enumerate(model.layers):
        numbers.setdefault(layer, []).append(number)
    return tuple(_kind(model, layer, tuple(found), context) for layer, found in numbers.items())


def _kind(model: Model, layer: Layer, numbers: tuple[int, ...], context: float) -> Kind:
    modelled = not isinstance(layer.attention, Unmodelled)
    active = layer_parameters(layer, active=True)
    return Kind(
        layer=layer,
        numbers=numbers,
        parameters=layer_parameters(layer, active=False),
        active=active,
        cached=_cached(layer, model.dtype_of["kv"]) if modelled else None,
        kept=kv_tokens(layer.attention, float("inf")),
        state=state_bytes(layer.attention),
        work=layer.tokens * (2.0 * active + core_work(layer.attention, context)) if modelled else None,
    )


def _cached(layer: Layer, dtype: str) -> Bytes:
    """Bytes a token leaves in a layer's cache; an encoder keeps nothing once it has run."""
    return kv_bytes(layer.attention, dtype) if layer.part == "decoder" else 0.0


def core_work(attention: Attention | None, context: float) -> float:
    """FLOP of attention itself for one decoded token, projections left out; latent attention works on the latent.

    Examples
    --------
    >>> core_work(Gqa(heads=32, kv_heads=8, head_dim=128, value_dim=128), 1000.0)  # 2 x 32 x 1000 x 256
    16384000.0
    """
    match attention:
        case None:
            return 0.0
        case Cross():  # half of a context is the prompt, half the answer
            return 2.0 * _scored(attention, context / 2.0)
        case Gqa(indexer=scorer) | Mla(indexer=scorer) if scorer is not None:
            return _indexed(scorer, context) + _scored(attention, min(context, scorer.topk))
        case Compressed(indexer=scorer):
            scores = _indexed(scorer, context / attention.ratio) if scorer else 0.0
            return scores + _scored(attention, attention.reads(context))
        case _:
            return _scored(attention, kv_tokens(attention, context))


def _indexed(scorer: Indexer, keys: float) -> float:
    return _scored(Gqa(heads=scorer.heads, kv_heads=1, head_dim=scorer.dim, value_dim=0), keys)


def _scored(attention: Attention, seen: float) -> float:
    one = np.ones(1)
    op = Attend(
        kind=attention,
        heads=one * attention.heads,
        phase="decode",
        tokens=one,
        prompts=one,
        pairs=one * seen,
        keys=one * seen,
        dtype="bf16",
    )
    return float(needs_of(op).work[0])


def decoded(found: Sequence[Kind]) -> list[Kind]:
    """Pick the layers that a decoded token passes: the decoder's, or all of a model that has only an encoder."""
    decoder = [kind for kind in found if kind.layer.part == "decoder"]
    return decoder or list(found)


def token_work(model: Model, found: Sequence[Kind]) -> float | None:
    """FLOP of a decoded token in all layers and the head; None where a layer is not modelled."""
    works = [None if kind.work is None else kind.work * len(kind.numbers) for kind in decoded(found)]
    if None in works:
        return None
    return sum(work for work in works if work is not None) + 2.0 * embedding_parameters(model)


def cache_per_rank(found: Sequence[Kind], tp: int) -> tuple[Bytes | None, Bytes]:
    """Bytes a token adds to the caches of one of `tp` ranks, windows not yet full, and a sequence's states there."""
    share = np.array([float(tp)])
    caches = [
        None
        if kind.cached is None
        else kind.cached * float(kv_share(kind.layer.attention, share)[0]) * len(kind.numbers)
        for kind in decoded(found)
    ]
    states = sum(
        kind.state * float(state_share(kind.layer.attention, share)[0]) * len(kind.numbers) for kind in decoded(found)
    )
    return None if None in caches else sum(cache for cache in caches if cache is not None), states


def experts(model: Model) -> dict[str, tuple[Bytes, Bytes]]:
    """Bytes of one routed expert of the first mixture, and of all routed experts, by storage format."""
    if not model.moe_layers:
        return {}
    mixtures = [model.moe(number) for number in model.moe_layers]
    total = sum(moe.experts * expert_parameters(moe) for moe in mixtures)
    return {dtype: (expert_bytes(mixtures[0], dtype), total * bits / 8) for dtype, bits in BITS.items()}

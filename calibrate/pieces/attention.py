"""The core of attention, projections left out: grouped-query heads, and latent attention as it is run."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from .bench import Bench, Case, Inputs


def prefill(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend over prompts, causally: query [batch, heads, tokens, key_dim]; key and value may have fewer heads.

    Latent attention prefills on expanded heads: as many key heads as query heads, and a value dimension of its own.
    """
    return functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
    )


def decode(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend from one new token of each sequence to its cache: query [batch, heads, 1, dim].

    Heads that share a key head are rows of one product, so that the cache is read once for all of them.
    """
    rows = query.view(query.shape[0], key.shape[1], -1, query.shape[3])
    return functional.scaled_dot_product_attention(rows, key, value).view(*query.shape[:3], value.shape[3])


def latent_decode(query: Tensor, latent: Tensor, width: int) -> Tensor:
    """Attend from new tokens to the latent itself, which all heads share.

    Every query head is a row of one key head's product, so that the cache is read once: query [batch, heads, kv_lora +
    rope], latent [batch, context, kv_lora + rope]; the first `width` = kv_lora elements of it are the values.
    """
    shared = latent.unsqueeze(1)
    return functional.scaled_dot_product_attention(query.unsqueeze(1), shared, shared[..., :width]).squeeze(1)


def prefill_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make prompts ready."""
    query, key, value = _heads(inputs, dtype, bench, inputs["context"])
    return Case(call=prefill, args=lambda: (query, key, value))


def decode_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make a cache ready, cold as it is in a model of many layers."""
    cached = (inputs["batch"], inputs["kv_heads"], inputs["context"])
    query = bench.pool.cut(dtype, inputs["batch"], inputs["heads"], 1, inputs["key_dim"])
    cut = bench.pool.cut
    return Case(
        call=decode,
        args=lambda: (query, cut(dtype, *cached, inputs["key_dim"]), cut(dtype, *cached, inputs["value_dim"])),
    )


def latent_decode_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make a cache of latents ready, cold."""
    batch, width = inputs["batch"], int(inputs["value_dim"])
    query = bench.pool.cut(dtype, batch, inputs["heads"], inputs["key_dim"])
    shape = (batch, inputs["context"], inputs["key_dim"])
    return Case(call=latent_decode, args=lambda: (query, bench.pool.cut(dtype, *shape), width))


def _heads(inputs: Inputs, dtype: str, bench: Bench, tokens: float) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, few = inputs["batch"], inputs["heads"], inputs["kv_heads"]
    return (
        bench.pool.cut(dtype, batch, heads, tokens, inputs["key_dim"]),
        bench.pool.cut(dtype, batch, few, tokens, inputs["key_dim"]),
        bench.pool.cut(dtype, batch, few, tokens, inputs["value_dim"]),
    )

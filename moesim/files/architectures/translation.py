"""Encoder-decoders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moesim.files.architectures.common import Parts
from moesim.world.attention import Attention, Cross, Gqa
from moesim.world.model import Dense, Layer, Moe


@dataclass(frozen=True, slots=True, kw_only=True)
class NllbMoe:
    """NLLB-MoE: an encoder and a decoder, plain feed-forward networks, a mixture in every so-manieth layer."""

    vocab_size: int
    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    encoder_sparse_step: int
    decoder_sparse_step: int
    num_experts: int
    tie_word_embeddings: bool = True

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        encoder = _Stack(
            "encoder", self.d_model, self.encoder_attention_heads, self.d_model // self.encoder_attention_heads
        )
        decoder = _Stack(
            "decoder", self.d_model, self.decoder_attention_heads, self.d_model // self.decoder_attention_heads
        )
        # Transformers' router for this architecture always picks two experts.
        return (
            *encoder.layers(self.encoder_layers, self.encoder_ffn_dim, self.encoder_sparse_step, self.num_experts, 2),
            *decoder.layers(self.decoder_layers, self.decoder_ffn_dim, self.decoder_sparse_step, self.num_experts, 2),
        ), 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """Switch Transformer: T5 with a mixture of which each token uses one expert in every so-manieth layer."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    num_layers: int
    num_decoder_layers: int
    num_sparse_encoder_layers: int
    num_sparse_decoder_layers: int
    num_experts: int
    feed_forward_proj: Literal["relu"] = "relu"
    tie_word_embeddings: bool = True

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        encoder = _Stack("encoder", self.d_model, self.num_heads, self.d_kv)
        decoder = _Stack("decoder", self.d_model, self.num_heads, self.d_kv)
        steps = (
            _step(self.num_layers, self.num_sparse_encoder_layers),
            _step(self.num_decoder_layers, self.num_sparse_decoder_layers),
        )
        return (
            *encoder.layers(self.num_layers, self.d_ff, steps[0], self.num_experts, 1),
            *decoder.layers(self.num_decoder_layers, self.d_ff, steps[1], self.num_experts, 1),
        ), 0


def _step(layers: int, sparse: int) -> int:
    """Every how-manieth layer is sparse; 0 where none is."""
    return layers // sparse if sparse else 0


@dataclass(frozen=True, slots=True)
class _Stack:
    """Layers of an encoder or a decoder; a decoder's also attend to the encoder."""

    part: str
    dim: int
    heads: int
    each: int

    def layers(self, number: int, width: int, step: int, experts: int, topk: int) -> Iterator[Layer]:
        """Build so many layers, every `step`-th of them with a mixture."""
        kind = Gqa if self.part == "encoder" else Cross
        attention: Attention = kind(heads=self.heads, kv_heads=self.heads, head_dim=self.each, value_dim=self.each)
        moe = Moe(experts=experts, topk=topk, width=width, input_dim=self.dim, gated=False)
        dense = Dense(width=width, gated=False)
        for place in range(number):
            ffn = moe if step and (place + 1) % step == 0 else dense
            yield Layer(part=self.part, dim=self.dim, tokens=1.0, attention=attention, ffn=ffn)

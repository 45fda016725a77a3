"""The architectures of Hugging Face configurations: one record of fields each, and how its layers follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Literal

from moesim.world.attention import Attention, Cross, Gqa, Linear, Mla, Window
from moesim.world.model import Dense, Layer, Moe

Parts = tuple[tuple[Layer, ...], int]
"""The layers, and how many multi-token-prediction modules follow them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """Llama, Mistral, Qwen2 and Qwen3: grouped-query attention and a gated feed-forward network in every layer."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 0
    sliding_window: int | None = None
    use_sliding_window: bool = True
    tie_word_embeddings: bool = False

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        layer = _decoder(self.hidden_size, _grouped(self), Dense(width=self.intermediate_size))
        return (layer,) * self.num_hidden_layers, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixtral:
    """Mixtral: as Llama, with a mixture in every layer."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    num_local_experts: int
    num_experts_per_tok: int
    head_dim: int = 0
    sliding_window: int | None = None
    use_sliding_window: bool = True
    tie_word_embeddings: bool = False

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        moe = Moe(
            experts=self.num_local_experts,
            topk=self.num_experts_per_tok,
            width=self.intermediate_size,
            input_dim=self.hidden_size,
        )
        return (_decoder(self.hidden_size, _grouped(self), moe),) * self.num_hidden_layers, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepseekV3:
    """DeepSeek-V3 and Kimi-K2: latent attention, dense layers first, shared experts, groups of experts."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_rope_head_dim: int
    qk_nope_head_dim: int
    v_head_dim: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    first_k_dense_replace: int
    moe_layer_freq: int = 1
    num_nextn_predict_layers: int = 0
    tie_word_embeddings: bool = False

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        attention = Mla(
            heads=self.num_attention_heads,
            q_lora=self.q_lora_rank or 0,
            kv_lora=self.kv_lora_rank,
            rope=self.qk_rope_head_dim,
            nope=self.qk_nope_head_dim,
            value_dim=self.v_head_dim,
        )
        moe = Moe(
            experts=self.n_routed_experts,
            topk=self.num_experts_per_tok,
            width=self.moe_intermediate_size,
            input_dim=self.hidden_size,
            shared_width=self.n_shared_experts * self.moe_intermediate_size,
            groups=self.n_group,
            group_topk=self.topk_group,
        )
        dense = Dense(width=self.intermediate_size)
        layers = tuple(
            _decoder(self.hidden_size, attention, moe if self.is_sparse(number) else dense)
            for number in range(self.num_hidden_layers)
        )
        return layers, self.num_nextn_predict_layers

    def is_sparse(self, number: int) -> bool:
        """Tell whether a layer has a mixture."""
        return number >= self.first_k_dense_replace and number % self.moe_layer_freq == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GptOss:
    """gpt-oss: windowed and full attention in turn, a mixture in every layer."""

    vocab_size: int
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    head_dim: int
    num_attention_heads: int
    num_key_value_heads: int
    num_local_experts: int
    num_experts_per_tok: int
    sliding_window: int
    layer_types: tuple[Literal["sliding_attention", "full_attention"], ...]
    tie_word_embeddings: bool = False

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        heads, kv_heads, each = self.num_attention_heads, self.num_key_value_heads, self.head_dim
        kinds: Mapping[str, Attention] = {
            "sliding_attention": _attention(heads, kv_heads, each, window=self.sliding_window),
            "full_attention": _attention(heads, kv_heads, each),
        }
        moe = Moe(
            experts=self.num_local_experts,
            topk=self.num_experts_per_tok,
            width=self.intermediate_size,
            input_dim=self.hidden_size,
        )
        return tuple(_decoder(self.hidden_size, kinds[kind], moe) for kind in self.layer_types), 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3Moe:
    """Qwen3-MoE: grouped-query attention, a mixture in every `decoder_sparse_step`-th layer."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts: int
    num_experts_per_tok: int
    decoder_sparse_step: int
    mlp_only_layers: tuple[int, ...]
    sliding_window: int | None = None
    use_sliding_window: bool = True
    tie_word_embeddings: bool = False

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        attention = _grouped(self)
        moe = Moe(
            experts=self.num_experts,
            topk=self.num_experts_per_tok,
            width=self.moe_intermediate_size,
            input_dim=self.hidden_size,
        )
        dense = Dense(width=self.intermediate_size)
        return tuple(
            _decoder(self.hidden_size, attention, moe if self.is_sparse(number) else dense)
            for number in range(self.num_hidden_layers)
        ), 0

    def is_sparse(self, number: int) -> bool:
        """Tell whether a layer has a mixture."""
        step = self.decoder_sparse_step
        return number not in self.mlp_only_layers and step > 0 and (number + 1) % step == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen35Moe:
    """Qwen3.5-MoE's text model: gated linear attention with full attention in between, shared experts."""

    vocab_size: int
    num_hidden_layers: int
    hidden_size: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    attn_output_gate: bool
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int
    num_experts: int
    num_experts_per_tok: int
    layer_types: tuple[Literal["linear_attention", "full_attention"], ...]
    mtp_num_hidden_layers: int = 0
    tie_word_embeddings: bool = False

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        kinds: Mapping[str, Attention] = {
            "linear_attention": Linear(
                key_heads=self.linear_num_key_heads,
                value_heads=self.linear_num_value_heads,
                key_dim=self.linear_key_head_dim,
                value_dim=self.linear_value_head_dim,
                conv=self.linear_conv_kernel_dim,
            ),
            "full_attention": Gqa(
                heads=self.num_attention_heads,
                kv_heads=self.num_key_value_heads,
                head_dim=self.head_dim,
                value_dim=self.head_dim,
                gated=self.attn_output_gate,
            ),
        }
        moe = Moe(
            experts=self.num_experts,
            topk=self.num_experts_per_tok,
            width=self.moe_intermediate_size,
            input_dim=self.hidden_size,
            shared_width=self.shared_expert_intermediate_size,
        )
        layers = tuple(_decoder(self.hidden_size, kinds[kind], moe) for kind in self.layer_types)
        return layers, self.mtp_num_hidden_layers


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
        heads = self.encoder_attention_heads
        encoder = _attention(heads, heads, self.d_model // heads)
        heads = self.decoder_attention_heads
        each = self.d_model // heads
        decoder = Cross(heads=heads, kv_heads=heads, head_dim=each, value_dim=each)
        return (
            *self._stack("encoder", self.encoder_layers, encoder, self.encoder_ffn_dim, self.encoder_sparse_step),
            *self._stack("decoder", self.decoder_layers, decoder, self.decoder_ffn_dim, self.decoder_sparse_step),
        ), 0

    def _stack(self, part: str, layers: int, attention: Attention, width: int, step: int) -> Iterator[Layer]:
        # Transformers' router for this architecture always picks two experts.
        moe = Moe(experts=self.num_experts, topk=2, width=width, input_dim=self.d_model, gated=False)
        dense = Dense(width=width, gated=False)
        for number in range(layers):
            ffn = moe if step and (number + 1) % step == 0 else dense
            yield Layer(part=part, dim=self.d_model, tokens=1.0, attention=attention, ffn=ffn)


Architecture = Plain | Mixtral | DeepseekV3 | GptOss | Qwen3Moe | Qwen35Moe | NllbMoe

ARCHITECTURES: Mapping[str, type[Architecture]] = {
    "llama": Plain,
    "mistral": Plain,
    "qwen2": Plain,
    "qwen3": Plain,
    "mixtral": Mixtral,
    "deepseek_v3": DeepseekV3,
    "kimi_k2": DeepseekV3,
    "gpt_oss": GptOss,
    "qwen3_moe": Qwen3Moe,
    "qwen3_5_moe": Qwen35Moe,
    "nllb-moe": NllbMoe,
}
"""The record of fields each `model_type` is read by."""


MAY_BE_ZERO = (
    "head_dim",
    "sliding_window",
    "first_k_dense_replace",
    "n_shared_experts",
    "shared_expert_intermediate_size",
    "num_nextn_predict_layers",
    "mtp_num_hidden_layers",
    "encoder_sparse_step",
    "decoder_sparse_step",
)
"""Counts whose zero means "none"."""


def architecture_faults(config: Architecture) -> Iterator[tuple[str, str, str]]:
    """Find counts that cannot be, and lists of layers of another length than the model's depth."""
    for field in fields(config):
        if getattr(config, field.name) == 0 and field.type == "int" and field.name not in MAY_BE_ZERO:
            yield field.name, "is zero", "give more than zero"
    if isinstance(config, GptOss | Qwen35Moe) and len(config.layer_types) != config.num_hidden_layers:
        problem = f"names {len(config.layer_types)} layers of {config.num_hidden_layers}"
        yield "layer_types", problem, "name every layer's attention"
    yield from _expert_faults(config)


def _expert_faults(config: Architecture) -> Iterator[tuple[str, str, str]]:
    experts = next((getattr(config, name) for name in EXPERT_COUNTS if hasattr(config, name)), None)
    chosen = getattr(config, "num_experts_per_tok", 0)
    if experts is not None and chosen > experts:
        yield "num_experts_per_tok", f"{chosen} of {experts} experts", f"choose at most {experts}"


EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


def _decoder(dim: int, attention: Attention, ffn: Dense | Moe) -> Layer:
    return Layer(part="decoder", dim=dim, tokens=1.0, attention=attention, ffn=ffn)


def _attention(heads: int, kv_heads: int, each: int, *, window: int = 0) -> Gqa | Window:
    """Grouped-query attention with keys and values of one size; windowed where a window is given."""
    if window:
        return Window(heads=heads, kv_heads=kv_heads, head_dim=each, value_dim=each, window=window)
    return Gqa(heads=heads, kv_heads=kv_heads, head_dim=each, value_dim=each)


def _grouped(config: Plain | Mixtral | Qwen3Moe) -> Gqa | Window:
    """Transformers' rules: heads share the width unless `head_dim` says otherwise; a window holds in every layer."""
    return _attention(
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim or config.hidden_size // config.num_attention_heads,
        window=(config.sliding_window or 0) if config.use_sliding_window else 0,
    )

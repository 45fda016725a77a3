"""What the records of architectures have in common: their fields, and layers as they are usually built.

A record's fields are the configuration's own. One with a default may be left out of a file, because Transformers (or
the architecture) says what its absence means: `ABSENT` tells, field by field. All others must be given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from moesim.world.attention import Attention, Gqa, Window
from moesim.world.model import Dense, Layer, Moe

Parts = tuple[tuple[Layer, ...], int]
"""The layers, and how many multi-token-prediction modules follow them."""

ABSENT: Mapping[str, str] = MappingProxyType(
    {
        "tie_word_embeddings": "Transformers' default: one matrix in Gemma, NLLB and Switch, two elsewhere",
        "head_dim": "heads share the width",
        "sliding_window": "no window",
        "use_sliding_window": "a window that is given holds",
        "feed_forward_proj": "`relu`, as in SwitchTransformersConfig",
        "shared_intermediate_size": "no shared expert",
        "shared_expert_intermediate_size": "no shared expert",
        "n_group": "experts are not grouped",
        "topk_group": "experts are not grouped",
        "moe_layer_end_index": "mixtures up to the last layer",
        "moe_layer_interval": "a mixture in every layer behind the dense ones",
        "moe_num_shared_experts": "no shared expert",
        "moe_layer_freq": "a mixture in every layer behind the dense ones",
        "num_nextn_predict_layers": "no multi-token prediction",
        "mtp_num_hidden_layers": "no multi-token prediction",
        "num_mtp_modules": "no multi-token prediction",
        "layer_types": "full attention in every `full_attention_interval`-th layer",
        "full_attention_interval": "`layer_types` says it",
        "attn_output_gate": "the architecture's attention has an output gate",
        "mlp_only_layers": "none",
        "no_rope_layers": "every `no_rope_layer_interval`-th layer",
        "no_rope_layer_interval": "4, as in Llama4TextConfig",
        "moe_latent_size": "experts work in the model's width",
        "routed_expert_hidden_size": "experts work in the model's width",
        "mla_use_output_gate": "no gate",
    }
)
"""What it means that a field is not in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """What every decoder-only configuration says."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    tie_word_embeddings: bool = False

    def stack(
        self, attention: Callable[[int], Attention | None], ffn: Callable[[int], Dense | Moe | None]
    ) -> list[Layer]:
        """Build all layers from what each number of layer has."""
        return [decoder(self.hidden_size, attention(number), ffn(number)) for number in range(self.num_hidden_layers)]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedDecoder(Decoder):
    """A decoder with grouped-query attention, alike in every layer."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 0
    sliding_window: int | None = None
    use_sliding_window: bool = True

    def grouped(self) -> Gqa | Window:
        """Heads share the width unless `head_dim` says otherwise; a window holds in every layer."""
        return grouped(
            self.num_attention_heads,
            self.num_key_value_heads,
            self.head_dim or self.hidden_size // self.num_attention_heads,
            window=(self.sliding_window or 0) if self.use_sliding_window else 0,
        )


def decoder(dim: int, attention: Attention | None, ffn: Dense | Moe | None) -> Layer:
    """Build a decoder's layer."""
    return Layer(part="decoder", dim=dim, tokens=1.0, attention=attention, ffn=ffn)


def grouped(heads: int, kv_heads: int, each: int, *, window: int = 0) -> Gqa | Window:
    """Grouped-query attention with keys and values of one size; windowed where a window is given."""
    if window:
        return Window(heads=heads, kv_heads=kv_heads, head_dim=each, value_dim=each, window=window)
    return Gqa(heads=heads, kv_heads=kv_heads, head_dim=each, value_dim=each)

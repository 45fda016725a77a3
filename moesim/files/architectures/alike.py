"""Llama, Mixtral and their kin: every layer alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moesim.files.architectures.common import GroupedDecoder, Parts, decoder, grouped
from moesim.world.attention import Gqa, Window
from moesim.world.model import Dense, Moe


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain(GroupedDecoder):
    """Llama, Mistral, Qwen2 and Qwen3: grouped-query attention and a gated feed-forward network in every layer."""

    intermediate_size: int

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        layer = decoder(self.hidden_size, self.grouped(), Dense(width=self.intermediate_size))
        return (layer,) * self.num_hidden_layers, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixtral(GroupedDecoder):
    """Mixtral, Phi-3.5-MoE and Granite-MoE: as Llama, with a mixture in every layer."""

    intermediate_size: int
    num_local_experts: int
    num_experts_per_tok: int
    shared_intermediate_size: int = 0
    num_mtp_modules: int = 0

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        moe = Moe(
            experts=self.num_local_experts,
            topk=self.num_experts_per_tok,
            width=self.intermediate_size,
            input_dim=self.hidden_size,
            shared_width=self.shared_intermediate_size,
        )
        return (decoder(self.hidden_size, self.grouped(), moe),) * self.num_hidden_layers, self.num_mtp_modules


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniMaxM2(Mixtral):
    """MiniMax-M2: as Mixtral, but queries and keys are normalized over all heads (vLLM 0.24.0, minimax_m2.py)."""

    def grouped(self) -> Gqa | Window:
        """Return the attention of every layer."""
        kind = super(MiniMaxM2, self).grouped()
        return replace(kind, joint_norm=True) if isinstance(kind, Gqa) else kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Olmoe(GroupedDecoder):
    """OLMoE: as Mixtral, with other names."""

    intermediate_size: int
    num_experts: int
    num_experts_per_tok: int

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        moe = Moe(
            experts=self.num_experts,
            topk=self.num_experts_per_tok,
            width=self.intermediate_size,
            input_dim=self.hidden_size,
        )
        return (decoder(self.hidden_size, self.grouped(), moe),) * self.num_hidden_layers, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DbrxAttention:
    """The section `attn_config` of DBRX."""

    kv_n_heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DbrxExperts:
    """The section `ffn_config` of DBRX."""

    ffn_hidden_size: int
    moe_num_experts: int
    moe_top_k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dbrx:
    """DBRX: a mixture in every layer."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    attn_config: DbrxAttention
    ffn_config: DbrxExperts
    tie_word_embeddings: bool = False

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        attention = grouped(self.n_heads, self.attn_config.kv_n_heads, self.d_model // self.n_heads)
        moe = Moe(
            experts=self.ffn_config.moe_num_experts,
            topk=self.ffn_config.moe_top_k,
            width=self.ffn_config.ffn_hidden_size,
            input_dim=self.d_model,
        )
        return (decoder(self.d_model, attention, moe),) * self.n_layers, 0

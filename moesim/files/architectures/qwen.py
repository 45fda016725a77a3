"""Qwen's mixtures: full attention everywhere, or linear attention with full attention in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moesim.files.architectures.common import Decoder, GroupedDecoder, Parts
from moesim.world.attention import Gqa, Linear
from moesim.world.model import Dense, Moe


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenMoe(GroupedDecoder):
    """Qwen1.5-MoE, Qwen2-MoE and Qwen3-MoE: a mixture in every `decoder_sparse_step`-th layer."""

    intermediate_size: int
    moe_intermediate_size: int
    num_experts: int
    num_experts_per_tok: int
    decoder_sparse_step: int
    mlp_only_layers: tuple[int, ...] = ()
    shared_expert_intermediate_size: int = 0

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        attention = self.grouped()
        moe = Moe(
            experts=self.num_experts,
            topk=self.num_experts_per_tok,
            width=self.moe_intermediate_size,
            input_dim=self.hidden_size,
            shared_width=self.shared_expert_intermediate_size,
        )
        dense = Dense(width=self.intermediate_size)
        layers = self.stack(lambda _: attention, lambda number: moe if self.is_sparse(number) else dense)
        return tuple(layers), 0

    def is_sparse(self, number: int) -> bool:
        """Tell whether a layer has a mixture."""
        step = self.decoder_sparse_step
        return number not in self.mlp_only_layers and step > 0 and (number + 1) % step == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen2Moe(QwenMoe):
    """Qwen1.5-MoE and Qwen2-MoE, which have a shared expert."""

    shared_expert_intermediate_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenHybrid(Decoder):
    """Qwen3-Next and Qwen3.5-MoE: gated linear attention with full attention in between, shared experts."""

    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int
    num_experts: int
    num_experts_per_tok: int
    attn_output_gate: bool = True
    layer_types: tuple[Literal["linear_attention", "full_attention"], ...] = ()
    full_attention_interval: int = 0
    mtp_num_hidden_layers: int = 0

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        linear, full = self.linear(), self.full()
        moe = Moe(
            experts=self.num_experts,
            topk=self.num_experts_per_tok,
            width=self.moe_intermediate_size,
            input_dim=self.hidden_size,
            shared_width=self.shared_expert_intermediate_size,
        )
        layers = self.stack(lambda number: full if self.is_full(number) else linear, lambda _: moe)
        return tuple(layers), self.mtp_num_hidden_layers

    def is_full(self, number: int) -> bool:
        """Tell whether a layer has full attention."""
        if self.layer_types:
            return self.layer_types[number] == "full_attention"
        return (number + 1) % self.full_attention_interval == 0

    def linear(self) -> Linear:
        """Return the linear attention."""
        return Linear(
            key_heads=self.linear_num_key_heads,
            value_heads=self.linear_num_value_heads,
            key_dim=self.linear_key_head_dim,
            value_dim=self.linear_value_head_dim,
            conv=self.linear_conv_kernel_dim,
        )

    def full(self) -> Gqa:
        """Return the full attention."""
        return Gqa(
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            value_dim=self.head_dim,
            gated=self.attn_output_gate,
        )

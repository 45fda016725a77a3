"""Architectures of linear attention or Mamba with few full layers, and experts in a latent space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moesim.files.architectures.common import Decoder, Parts, decoder
from moesim.world.attention import Gqa, Linear, Mla
from moesim.world.model import Dense, Layer, Moe


@dataclass(frozen=True, slots=True, kw_only=True)
class NemotronH(Decoder):
    """Nemotron-3: every layer is one of Mamba-2 (M), attention (*), a mixture (E) or a plain network (-)."""

    hybrid_override_pattern: str
    mamba_num_heads: int
    mamba_head_dim: int
    ssm_state_size: int
    n_groups: int
    conv_kernel: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    mlp_hidden_act: Literal["relu2"]
    moe_intermediate_size: int
    moe_shared_expert_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    moe_latent_size: int = 0
    num_nextn_predict_layers: int = 0

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        kinds = dict(self._kinds())
        return tuple(kinds[letter] for letter in self.hybrid_override_pattern), self.num_nextn_predict_layers

    def _kinds(self) -> Iterator[tuple[str, Layer]]:
        mamba = Linear(
            key_heads=self.n_groups,
            value_heads=self.mamba_num_heads,
            key_dim=self.ssm_state_size,
            value_dim=self.mamba_head_dim,
            conv=self.conv_kernel,
            delta=False,
        )
        attention = Gqa(
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            value_dim=self.head_dim,
        )
        moe = Moe(
            experts=self.n_routed_experts,
            topk=self.num_experts_per_tok,
            width=self.moe_intermediate_size,
            input_dim=self.moe_latent_size or self.hidden_size,
            gated=False,
            shared_width=self.moe_shared_expert_intermediate_size,
            groups=self.n_group,
            group_topk=self.topk_group,
        )
        yield "M", decoder(self.hidden_size, mamba, None)
        yield "*", decoder(self.hidden_size, attention, None)
        yield "E", decoder(self.hidden_size, None, moe)
        yield "-", decoder(self.hidden_size, None, Dense(width=self.intermediate_size, gated=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiDelta:
    """The section `linear_attn_config` of Kimi-Linear and Kimi-K3; layers are numbered from 1.

    Where `use_full_rank_gate` is absent, as in Kimi-Linear, the output gate goes through one head's width.
    """

    full_attn_layers: tuple[int, ...]
    kda_layers: tuple[int, ...]
    head_dim: int
    num_heads: int
    short_conv_kernel_size: int
    use_full_rank_gate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiLinear(Decoder):
    """Kimi-Linear and Kimi-K3: delta attention with latent attention in between; K3's experts in a latent space."""

    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_rope_head_dim: int
    qk_nope_head_dim: int
    v_head_dim: int
    intermediate_size: int
    moe_intermediate_size: int
    num_experts: int
    num_experts_per_token: int
    num_shared_experts: int
    num_expert_group: int
    topk_group: int
    first_k_dense_replace: int
    linear_attn_config: KimiDelta
    moe_layer_freq: int = 1
    routed_expert_hidden_size: int = 0
    mla_use_output_gate: bool = False
    num_nextn_predict_layers: int = 0

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        full, linear = self.latent(), self.linear()
        moe = Moe(
            experts=self.num_experts,
            topk=self.num_experts_per_token,
            width=self.moe_intermediate_size,
            input_dim=self.routed_expert_hidden_size or self.hidden_size,
            shared_width=self.num_shared_experts * self.moe_intermediate_size,
            groups=self.num_expert_group,
            group_topk=self.topk_group,
        )
        dense = Dense(width=self.intermediate_size)
        layers = self.stack(
            lambda number: full if number + 1 in self.linear_attn_config.full_attn_layers else linear,
            lambda number: moe if self.is_sparse(number) else dense,
        )
        return tuple(layers), self.num_nextn_predict_layers

    def is_sparse(self, number: int) -> bool:
        """Tell whether a layer has a mixture."""
        return number >= self.first_k_dense_replace and number % self.moe_layer_freq == 0

    def latent(self) -> Mla:
        """Return the latent attention."""
        return Mla(
            heads=self.num_attention_heads,
            q_lora=self.q_lora_rank or 0,
            kv_lora=self.kv_lora_rank,
            rope=self.qk_rope_head_dim,
            nope=self.qk_nope_head_dim,
            value_dim=self.v_head_dim,
            gated=self.mla_use_output_gate,
        )

    def linear(self) -> Linear:
        """Return the delta attention; its decay, and a gate not of full rank, go through one head's width."""
        delta = self.linear_attn_config
        return Linear(
            key_heads=delta.num_heads,
            value_heads=delta.num_heads,
            key_dim=delta.head_dim,
            value_dim=delta.head_dim,
            conv=delta.short_conv_kernel_size,
            decay_rank=delta.head_dim,
            gate_rank=0 if delta.use_full_rank_gate else delta.head_dim,
        )

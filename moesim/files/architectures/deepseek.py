"""DeepSeek's architectures and those that follow them: dense layers first, many small experts, shared ones, groups."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moesim.files.architectures.common import Decoder, Parts, grouped
from moesim.world.attention import Attention, Compressed, Indexer, Mla
from moesim.world.model import Dense, Moe


@dataclass(frozen=True, slots=True, kw_only=True)
class ManyExperts(Decoder):
    """Dense layers first, then mixtures with shared experts."""

    intermediate_size: int
    moe_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    first_k_dense_replace: int
    n_shared_experts: int | None
    n_group: int = 1
    topk_group: int = 1
    moe_layer_freq: int = 1
    num_nextn_predict_layers: int = 0

    def layers(self, attention: Attention) -> Parts:
        """Return the layers, all with one kind of attention, and how many prediction modules follow."""
        moe = Moe(
            experts=self.n_routed_experts,
            topk=self.num_experts_per_tok,
            width=self.moe_intermediate_size,
            input_dim=self.hidden_size,
            shared_width=(self.n_shared_experts or 0) * self.moe_intermediate_size,
            groups=self.n_group,
            group_topk=self.topk_group,
        )
        dense = Dense(width=self.intermediate_size)
        layers = self.stack(lambda _: attention, lambda number: moe if self.is_sparse(number) else dense)
        return tuple(layers), self.num_nextn_predict_layers

    def is_sparse(self, number: int) -> bool:
        """Tell whether a layer has a mixture."""
        return number >= self.first_k_dense_replace and number % self.moe_layer_freq == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedManyExperts(ManyExperts):
    """DeepSeekMoE and GLM-4.5: grouped-query attention."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 0

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        each = self.head_dim or self.hidden_size // self.num_attention_heads
        return self.layers(grouped(self.num_attention_heads, self.num_key_value_heads, each))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bailing(Decoder):
    """Ling and Ring, to 2.0: grouped-query attention, dense layers first, groups of experts; names of their own."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 0
    intermediate_size: int
    moe_intermediate_size: int
    num_experts: int
    num_experts_per_tok: int
    num_shared_experts: int | None
    first_k_dense_replace: int
    n_group: int = 1
    topk_group: int = 1
    num_nextn_predict_layers: int = 0

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        each = self.head_dim or self.hidden_size // self.num_attention_heads
        attention = grouped(self.num_attention_heads, self.num_key_value_heads, each)
        moe = Moe(
            experts=self.num_experts,
            topk=self.num_experts_per_tok,
            width=self.moe_intermediate_size,
            input_dim=self.hidden_size,
            shared_width=(self.num_shared_experts or 0) * self.moe_intermediate_size,
            groups=self.n_group,
            group_topk=self.topk_group,
        )
        dense = Dense(width=self.intermediate_size)
        layers = self.stack(lambda _: attention, lambda number: dense if number < self.first_k_dense_replace else moe)
        return tuple(layers), self.num_nextn_predict_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentManyExperts(ManyExperts):
    """DeepSeek-V2, V3, R1 and Kimi-K2: latent attention, groups of experts."""

    n_group: int
    topk_group: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_rope_head_dim: int
    qk_nope_head_dim: int
    v_head_dim: int

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        return self.layers(self.latent())

    def latent(self) -> Mla:
        """Return the attention of every layer."""
        return Mla(
            heads=self.num_attention_heads,
            q_lora=self.q_lora_rank or 0,
            kv_lora=self.kv_lora_rank,
            rope=self.qk_rope_head_dim,
            nope=self.qk_nope_head_dim,
            value_dim=self.v_head_dim,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseManyExperts(LatentManyExperts):
    """DeepSeek-V3.2 and GLM-5: latent attention to the tokens that an indexer picks."""

    index_n_heads: int
    index_head_dim: int
    index_topk: int

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        indexer = Indexer(heads=self.index_n_heads, dim=self.index_head_dim, topk=self.index_topk)
        return self.layers(replace(self.latent(), indexer=indexer))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepseekV4(Decoder):
    """DeepSeek-V4: a mixture in every layer, and attention to compressed caches."""

    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    num_attention_heads: int
    head_dim: int
    q_lora_rank: int
    o_lora_rank: int
    o_groups: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    sliding_window: int
    compress_ratios: tuple[int, ...]
    num_nextn_predict_layers: int = 0

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        moe = Moe(
            experts=self.n_routed_experts,
            topk=self.num_experts_per_tok,
            width=self.moe_intermediate_size,
            input_dim=self.hidden_size,
            shared_width=self.n_shared_experts * self.moe_intermediate_size,
        )
        layers = self.stack(lambda number: self.compressed(self.compress_ratios[number]), lambda _: moe)
        return tuple(layers), self.num_nextn_predict_layers

    def compressed(self, ratio: int) -> Compressed:
        """Return a layer's attention: an indexer picks where blocks of 4 overlap, all is read at higher ratios."""
        overlaps = ratio == OVERLAPPING
        indexer = Indexer(heads=self.index_n_heads, dim=self.index_head_dim, topk=self.index_topk)
        return Compressed(
            heads=self.num_attention_heads,
            head_dim=self.head_dim,
            q_lora=self.q_lora_rank,
            o_lora=self.o_lora_rank,
            o_groups=self.o_groups,
            window=self.sliding_window,
            ratio=ratio,
            streams=2 if overlaps else 1,
            indexer=indexer if overlaps else None,
        )


OVERLAPPING = 4
"""The ratio at which DeepSeek-V4's blocks overlap and an indexer picks among them."""

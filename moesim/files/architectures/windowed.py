"""Architectures in which some layers see a window, a chunk or chosen blocks, and others everything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from moesim.files.architectures.common import Decoder, Parts, grouped
from moesim.world.attention import Gqa, Indexer, Window
from moesim.world.model import Dense, Moe

Seen = Literal["sliding_attention", "full_attention"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GptOss(Decoder):
    """gpt-oss: windowed and full attention in turn, a mixture in every layer."""

    intermediate_size: int
    head_dim: int
    num_attention_heads: int
    num_key_value_heads: int
    num_local_experts: int
    num_experts_per_tok: int
    sliding_window: int
    layer_types: tuple[Seen, ...]

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        full = grouped(self.num_attention_heads, self.num_key_value_heads, self.head_dim)
        window = grouped(self.num_attention_heads, self.num_key_value_heads, self.head_dim, window=self.sliding_window)
        moe = Moe(
            experts=self.num_local_experts,
            topk=self.num_experts_per_tok,
            width=self.intermediate_size,
            input_dim=self.hidden_size,
        )
        kinds = [full if seen == "full_attention" else window for seen in self.layer_types]
        return tuple(self.stack(lambda number: kinds[number], lambda _: moe)), 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama4(Decoder):
    """Llama 4: chunked attention, full in every fourth layer; one routed expert beside a shared one."""

    intermediate_size: int
    intermediate_size_mlp: int
    head_dim: int
    num_attention_heads: int
    num_key_value_heads: int
    num_local_experts: int
    num_experts_per_tok: int
    interleave_moe_layer_step: int
    attention_chunk_size: int
    no_rope_layer_interval: int = 4
    no_rope_layers: tuple[int, ...] = ()

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        full = grouped(self.num_attention_heads, self.num_key_value_heads, self.head_dim)
        chunk = Window(
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            value_dim=self.head_dim,
            window=self.attention_chunk_size,
            chunked=True,
        )
        moe = Moe(
            experts=self.num_local_experts,
            topk=self.num_experts_per_tok,
            width=self.intermediate_size,
            input_dim=self.hidden_size,
            shared_width=self.intermediate_size,
        )
        dense = Dense(width=self.intermediate_size_mlp)
        layers = self.stack(
            lambda number: full if self.is_full(number) else chunk,
            lambda number: dense if (number + 1) % self.interleave_moe_layer_step else moe,
        )
        return tuple(layers), 0

    def is_full(self, number: int) -> bool:
        """Tell whether a layer has full attention: those without rotary positions do."""
        if self.no_rope_layers:
            return self.no_rope_layers[number] == 0
        return (number + 1) % self.no_rope_layer_interval == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MimoV2(Decoder):
    """MiMo-V2: windowed layers with more KV heads than the full ones, keys wider than values."""

    intermediate_size: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int | None
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    v_head_dim: int
    swa_num_attention_heads: int
    swa_num_key_value_heads: int
    swa_head_dim: int
    swa_v_head_dim: int
    sliding_window: int
    hybrid_layer_pattern: tuple[int, ...]
    moe_layer_freq: tuple[int, ...]

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        full = Gqa(
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            value_dim=self.v_head_dim,
        )
        window = Window(
            heads=self.swa_num_attention_heads,
            kv_heads=self.swa_num_key_value_heads,
            head_dim=self.swa_head_dim,
            value_dim=self.swa_v_head_dim,
            window=self.sliding_window,
        )
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
        layers = self.stack(
            lambda number: window if self.hybrid_layer_pattern[number] else full,
            lambda number: moe if self.moe_layer_freq[number] else dense,
        )
        return tuple(layers), 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step3p7(Decoder):
    """Step-3.7: windowed layers between full ones, dense layers first, a shared expert."""

    intermediate_size: int
    moe_intermediate_size: int
    num_experts: int
    num_experts_per_tok: int
    share_expert_dim: int
    first_k_dense_replace: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    sliding_window: int
    layer_types: tuple[Seen, ...]
    num_nextn_predict_layers: int = 0

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        full = grouped(self.num_attention_heads, self.num_key_value_heads, self.head_dim)
        window = grouped(self.num_attention_heads, self.num_key_value_heads, self.head_dim, window=self.sliding_window)
        moe = Moe(
            experts=self.num_experts,
            topk=self.num_experts_per_tok,
            width=self.moe_intermediate_size,
            input_dim=self.hidden_size,
            shared_width=self.share_expert_dim,
        )
        dense = Dense(width=self.intermediate_size)
        layers = self.stack(
            lambda number: full if self.layer_types[number] == "full_attention" else window,
            lambda number: dense if number < self.first_k_dense_replace else moe,
        )
        return tuple(layers), self.num_nextn_predict_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma4(Decoder):
    """Gemma 4: windowed layers between full ones whose values are their keys; a dense network beside the mixture."""

    intermediate_size: int
    moe_intermediate_size: int
    enable_moe_block: Literal[True]
    num_experts: int
    top_k_experts: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_global_key_value_heads: int
    global_head_dim: int
    attention_k_eq_v: bool
    num_kv_shared_layers: Literal[0]
    hidden_size_per_layer_input: Literal[0]
    sliding_window: int
    layer_types: tuple[Seen, ...]
    tie_word_embeddings: bool = True

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        window = grouped(self.num_attention_heads, self.num_key_value_heads, self.head_dim, window=self.sliding_window)
        full = Gqa(
            heads=self.num_attention_heads,
            kv_heads=self.num_global_key_value_heads,
            head_dim=self.global_head_dim,
            value_dim=self.global_head_dim,
            tied_values=self.attention_k_eq_v,
        )
        moe = Moe(
            experts=self.num_experts,
            topk=self.top_k_experts,
            width=self.moe_intermediate_size,
            input_dim=self.hidden_size,
            shared_width=self.intermediate_size,
        )
        kinds = [full if seen == "full_attention" else window for seen in self.layer_types]
        return tuple(self.stack(lambda number: kinds[number], lambda _: moe)), 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSparse:
    """The section `sparse_attention_config` of MiniMax-M3."""

    sparse_attention_freq: tuple[int, ...]
    sparse_index_dim: int
    sparse_num_index_heads: int
    sparse_block_size: int
    sparse_topk_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniMaxM3(Decoder):
    """MiniMax-M3: attention to chosen blocks in all but the first layers."""

    dense_intermediate_size: int
    intermediate_size: int
    shared_intermediate_size: int
    num_local_experts: int
    num_experts_per_tok: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    attention_output_gate: bool
    sparse_attention_config: BlockSparse
    moe_layer_freq: tuple[int, ...]
    num_mtp_modules: int = 0

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        full = self.full()
        sparse = self.sparse(full)
        moe = Moe(
            experts=self.num_local_experts,
            topk=self.num_experts_per_tok,
            width=self.intermediate_size,
            input_dim=self.hidden_size,
            shared_width=self.shared_intermediate_size,
        )
        dense = Dense(width=self.dense_intermediate_size)
        blocks = self.sparse_attention_config.sparse_attention_freq
        layers = self.stack(
            lambda number: sparse if blocks[number] else full,
            lambda number: moe if self.moe_layer_freq[number] else dense,
        )
        return tuple(layers), self.num_mtp_modules

    def full(self) -> Gqa:
        """Return the attention of the layers that see everything."""
        each = grouped(self.num_attention_heads, self.num_key_value_heads, self.head_dim)
        assert isinstance(each, Gqa)
        return replace(each, gated=self.attention_output_gate)

    def sparse(self, full: Gqa) -> Gqa:
        """Return the attention of the others: the same, to the blocks that an index picks."""
        blocks = self.sparse_attention_config
        indexer = Indexer(
            heads=blocks.sparse_num_index_heads,
            dim=blocks.sparse_index_dim,
            topk=blocks.sparse_topk_blocks * blocks.sparse_block_size,
            block=blocks.sparse_block_size,
        )
        return replace(full, indexer=indexer)

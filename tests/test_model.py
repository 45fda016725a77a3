"""How models are built, and their KV bytes by kind of attention."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.files.yaml import load_model
from moesim.world.attention import (
    Compressed,
    Cross,
    Gqa,
    Indexer,
    Linear,
    Mla,
    Unmodelled,
    Window,
    attention_parameters,
    copied_parameters,
    kv_bytes,
    kv_share,
    kv_tokens,
    state_bytes,
    state_share,
)
from moesim.world.formats import bytes_of
from moesim.world.model import active_parameters, embedding_parameters, expert_parameters, parameters


def test_a_dense_model_uses_all_it_has_but_the_embedding():
    model = load_model("Qwen/Qwen3-32B")
    assert active_parameters(model) == parameters(model) - embedding_parameters(model)
    assert model.moe_layers == ()


def test_deepseek_v3_is_built_as_published():
    model = load_model("deepseek-ai/DeepSeek-V3")
    assert (len(model.layers), model.moe_layers, model.mtp) == (61, tuple(range(3, 61)), 1)
    moe = model.moe(3)
    assert (moe.experts, moe.topk, moe.groups, moe.group_topk, moe.shared_width) == (256, 8, 8, 4, 2048)
    assert expert_parameters(moe) == 44_040_192
    assert model.dtype_of["experts"] == "fp8_block"
    assert model.dtype_of["embedding"] == "bf16"


def test_only_the_experts_of_gpt_oss_are_quantized():
    assert dict(load_model("openai/gpt-oss-120b").dtype_of) == {
        "experts": "mxfp4",
        "attention": "bf16",
        "dense": "bf16",
        "embedding": "bf16",
        "kv": "bf16",
    }


def test_nllb_has_an_encoder_and_a_decoder_with_a_mixture_in_every_fourth_layer():
    model = load_model("facebook/nllb-moe-54b")
    assert model.encoder_decoder
    assert model.tied
    assert model.moe_layers == tuple(range(3, 48, 4))
    assert [layer.part for layer in model.layers] == ["encoder"] * 24 + ["decoder"] * 24
    assert isinstance(model.layers[0].attention, Gqa)
    assert isinstance(model.layers[-1].attention, Cross)
    assert not model.moe(3).gated


def test_swin_narrows_its_tokens_as_it_widens():
    model = load_model("microsoft/SwinV2-MoE-S")
    assert [len([layer for layer in model.layers if layer.dim == dim]) for dim in (96, 192, 384, 768)] == [2, 2, 18, 2]
    assert {layer.dim: layer.tokens for layer in model.layers} == {96: 1.0, 192: 0.25, 384: 0.0625, 768: 0.015625}
    assert len(model.moe_layers) == 10
    assert not model.encoder_decoder


def test_qwen35_has_full_attention_in_every_fourth_layer():
    model = load_model("Qwen/Qwen3.5-397B-A17B")
    kinds = [type(layer.attention) for layer in model.layers]
    assert kinds == [Linear, Linear, Linear, Gqa] * 15
    assert len(model.moe_layers) == 60


def kv_per_token(name: str, context: float) -> float:
    """KiB one more token adds over all layers, of those whose cache still grows at that context."""
    model = load_model(name)
    return (
        sum(
            kv_bytes(layer.attention, model.dtype_of["kv"])
            for layer in model.layers
            if kv_tokens(layer.attention, context) == context
        )
        / 1024
    )


@pytest.mark.parametrize(
    ("name", "context", "kib"),
    [
        ("deepseek-ai/DeepSeek-V3", 4096, 68.625),  # 61 layers x 1,152 B
        ("mistralai/Mixtral-8x7B-v0.1", 4096, 128),  # 32 x 8 heads x 2 x 128 x 2 B
        ("openai/gpt-oss-120b", 100, 72),  # all 36 layers within the window of 128
        ("openai/gpt-oss-120b", 4096, 36),  # the 18 full layers alone beyond it
        ("Qwen/Qwen3.5-397B-A17B", 4096, 30),  # 15 full layers x 2 heads x 2 x 256 x 2 B
        ("Qwen/Qwen3-32B", 4096, 256),  # 64 x 8 heads x 2 x 128 x 2 B
    ],
)
def test_kv_bytes_per_token(name, context, kib):
    assert kv_per_token(name, context) == kib


@pytest.mark.parametrize(
    ("attention", "size"),
    [
        (Gqa(heads=32, kv_heads=8, head_dim=128, value_dim=128), 8 * 256 * 2),
        (Gqa(heads=64, kv_heads=4, head_dim=192, value_dim=128), 4 * 320 * 2),
        (Window(heads=64, kv_heads=8, head_dim=64, value_dim=64, window=128), 8 * 128 * 2),
        (Mla(heads=128, q_lora=1536, kv_lora=512, rope=64, nope=128, value_dim=128), 1152),
        (Cross(heads=16, kv_heads=16, head_dim=128, value_dim=128), 16 * 256 * 2),
        (Linear(key_heads=16, value_heads=64, key_dim=128, value_dim=128, conv=4), 0),
        (None, 0),
    ],
)
def test_kv_bytes_of_each_kind_of_attention(attention, size):
    assert kv_bytes(attention, "bf16") == size
    assert kv_bytes(attention, "fp8") == size / 2


def test_a_window_stops_growing_and_linear_attention_keeps_a_state():
    window = Window(heads=64, kv_heads=8, head_dim=64, value_dim=64, window=128)
    assert (kv_tokens(window, 100), kv_tokens(window, 4096)) == (100, 128)
    linear = Linear(key_heads=16, value_heads=64, key_dim=128, value_dim=128, conv=4)
    assert state_bytes(linear) == 64 * 128 * 128 * 4 + (2 * 16 * 128 + 64 * 128) * 3 * 2
    assert state_bytes(window) == 0


V4 = Compressed(
    heads=128,
    head_dim=512,
    q_lora=1536,
    o_lora=1024,
    o_groups=16,
    window=128,
    ratio=4,
    streams=2,
    indexer=Indexer(heads=64, dim=128, topk=1024),
)
"""The layers of DeepSeek-V4-Pro in which an indexer picks."""


def test_a_gate_of_low_rank_is_counted_by_hand():
    kimi = Linear(key_heads=32, value_heads=32, key_dim=128, value_dim=128, conv=4, decay_rank=128, gate_rank=128)
    low_rank = 128 * (2304 + 4096)
    by_hand = 2304 * (3 * 4096 + 32) + 2 * low_rank + 3 * 4096 * 4 + 4096 * 2304
    assert attention_parameters(kimi, 2304) == by_hand
    assert copied_parameters(kimi, 2304) == 2 * 128 * 2304


def test_compressed_attention_is_counted_by_hand():
    query, key = 7168 * 1536 + 1536 * 128 * 512, 7168 * 512
    out = 128 * 512 * 1024 + 16 * 1024 * 7168
    compressors = 7168 * 2 * 2 * (512 + 128)
    indexer = 1536 * 64 * 128 + 7168 * 64
    assert attention_parameters(V4, 7168) == query + key + out + compressors + indexer
    assert copied_parameters(V4, 7168) == 7168 * 1536 + key + compressors + indexer


def test_compressed_attention_keeps_a_fourth_of_its_keys_and_a_window():
    assert kv_bytes(V4, "bf16") == 2 * (512 + 128) / 4
    assert state_bytes(V4) == 128 * 512 * 2 + 2 * 4 * 2 * 2 * (512 + 128) * 4
    assert list(state_share(V4, np.array([1.0, 8.0]))) == [1.0, 1.0]
    assert V4.reads(100.0) == 100.0 + 25.0
    assert V4.reads(100_000.0) == 128.0 + 1024.0


def test_an_index_key_beside_grouped_queries_is_on_every_rank():
    sparse = Gqa(
        heads=64, kv_heads=4, head_dim=128, value_dim=128, indexer=Indexer(heads=4, dim=128, topk=2048, block=128)
    )
    ranks = np.array([1.0, 2.0, 8.0])
    assert list(kv_share(sparse, ranks) * kv_bytes(sparse, "fp8")) == [1024 + 128, 512 + 128, 256 + 128]


def test_kv_of_an_unmodelled_attention_is_refused_by_name():
    with pytest.raises(ValueError, match="lightning"):
        kv_bytes(Unmodelled(name="lightning", heads=8, parameters=100), "bf16")


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("fp8_block", 1 + 4 / 128**2), ("mxfp4", 0.5 + 1 / 32), ("nvfp4", 0.5 + 1 / 16), ("int4", 0.5 + 2 / 32)],
)
def test_bytes_of_a_format_include_its_scales(dtype, size):
    assert bytes_of(dtype) == size


def test_more_experts_cost_parameters_and_no_active_ones_but_the_gate():
    model = load_model("mistralai/Mixtral-8x7B-v0.1")
    wider = replace(model, layers=tuple(replace(at, ffn=replace(at.ffn, experts=16)) for at in model.layers))
    more = 32 * 8
    assert parameters(wider) - parameters(model) == more * (expert_parameters(model.moe(0)) + 4096)
    assert active_parameters(wider) - active_parameters(model) == more * 4096

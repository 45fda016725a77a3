"""Which record reads which `model_type`, and what can be wrong with one whose fields are each right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from moesim.files.architectures.alike import Dbrx, MiniMaxM2, Mixtral, Olmoe, Plain
from moesim.files.architectures.deepseek import (
    Bailing,
    DeepseekV4,
    GroupedManyExperts,
    LatentManyExperts,
    SparseManyExperts,
)
from moesim.files.architectures.hybrid import KimiLinear, NemotronH
from moesim.files.architectures.qwen import Qwen2Moe, QwenHybrid, QwenMoe
from moesim.files.architectures.shared import Ernie, Hunyuan
from moesim.files.architectures.translation import NllbMoe, Switch
from moesim.files.architectures.windowed import Gemma4, GptOss, Llama4, MimoV2, MiniMaxM3, Step3p7

Architecture = (
    Plain
    | MiniMaxM2
    | Mixtral
    | Olmoe
    | Dbrx
    | Bailing
    | GroupedManyExperts
    | LatentManyExperts
    | SparseManyExperts
    | DeepseekV4
    | QwenMoe
    | QwenHybrid
    | GptOss
    | Llama4
    | MimoV2
    | Step3p7
    | Gemma4
    | MiniMaxM3
    | NemotronH
    | KimiLinear
    | Ernie
    | Hunyuan
    | NllbMoe
    | Switch
)

ARCHITECTURES: Mapping[str, type[Architecture]] = {
    "bailing_moe": Bailing,
    "bailing_moe_v2": Bailing,
    "dbrx": Dbrx,
    "deepseek": GroupedManyExperts,
    "deepseek_v2": LatentManyExperts,
    "deepseek_v3": LatentManyExperts,
    "deepseek_v32": SparseManyExperts,
    "deepseek_v4": DeepseekV4,
    "dots1": GroupedManyExperts,
    "ernie4_5_moe": Ernie,
    "gemma4": Gemma4,
    "gemma4_text": Gemma4,
    "glm4_moe": GroupedManyExperts,
    "glm4_moe_lite": LatentManyExperts,
    "glm_moe_dsa": SparseManyExperts,
    "gpt_oss": GptOss,
    "granitemoe": Mixtral,
    "granitemoeshared": Mixtral,
    "hunyuan_v1_moe": Hunyuan,
    "kimi_k2": LatentManyExperts,
    "kimi_k25": LatentManyExperts,
    "kimi_k3": KimiLinear,
    "kimi_linear": KimiLinear,
    "llama": Plain,
    "llama4": Llama4,
    "llama4_text": Llama4,
    "mimo_v2_flash": MimoV2,
    "minimax_m2": MiniMaxM2,
    "minimax_m3": MiniMaxM3,
    "mistral": Plain,
    "mixtral": Mixtral,
    "nemotron_h": NemotronH,
    "nllb-moe": NllbMoe,
    "olmoe": Olmoe,
    "phimoe": Mixtral,
    "qwen2": Plain,
    "qwen2_moe": Qwen2Moe,
    "qwen3": Plain,
    "qwen3_5_moe": QwenHybrid,
    "qwen3_5_moe_text": QwenHybrid,
    "qwen3_moe": QwenMoe,
    "qwen3_next": QwenHybrid,
    "qwen3_vl_moe": QwenMoe,
    "qwen3_vl_moe_text": QwenMoe,
    "step3p7": Step3p7,
    "switch_transformers": Switch,
}
"""The record of fields each `model_type` is read by."""

MAY_BE_ZERO = frozenset(
    {
        "head_dim",
        "sliding_window",
        "first_k_dense_replace",
        "n_shared_experts",
        "num_shared_experts",
        "shared_intermediate_size",
        "shared_expert_intermediate_size",
        "share_expert_dim",
        "num_nextn_predict_layers",
        "num_mtp_modules",
        "mtp_num_hidden_layers",
        "encoder_sparse_step",
        "decoder_sparse_step",
        "num_sparse_encoder_layers",
        "num_sparse_decoder_layers",
        "full_attention_interval",
        "moe_latent_size",
        "moe_layer_start_index",
        "moe_num_shared_experts",
        "num_shared_expert",
        "routed_expert_hidden_size",
        "moe_shared_expert_intermediate_size",
    }
)
"""Counts whose zero means "none"."""

PER_LAYER = (
    *("layer_types", "hybrid_layer_pattern", "hybrid_override_pattern", "moe_layer_freq", "no_rope_layers"),
    *("moe_intermediate_size", "moe_topk", "num_shared_expert"),
)
"""Lists with one entry a layer; those that may be left out are empty then."""

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_k", "moe_topk")
GROUP_COUNTS = ("n_group", "num_expert_group")
DEPTHS = ("num_hidden_layers", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
SHARING = (Plain, Mixtral, Olmoe, Dbrx, Ernie, Hunyuan, Bailing, GroupedManyExperts, QwenMoe, NllbMoe)
"""Architectures whose heads share the width."""
HEADS = (
    ("num_attention_heads", "hidden_size"),
    ("n_heads", "d_model"),
    ("encoder_attention_heads", "d_model"),
    ("decoder_attention_heads", "d_model"),
)
MOST_LAYERS = 10_000
"""More than any model has; beyond it a file is taken to be wrong."""

Faults = Iterator[tuple[str, str, str]]


def architecture_faults(config: Architecture) -> Faults:
    """Find counts that cannot be, what does not divide, and lists of another length than the model's depth."""
    zeros = list(_zeros(config, ""))
    yield from zeros
    yield from _depth_faults(config)
    yield from _expert_faults(config)
    if not zeros:
        yield from _head_faults(config)
        yield from _choice_faults(config)


def _zeros(record: Any, path: str) -> Faults:
    for field in fields(record):
        value = getattr(record, field.name)
        if is_dataclass(value):
            yield from _zeros(value, f"{path}{field.name}.")
        elif field.name not in MAY_BE_ZERO and _is_zero(value, str(field.type)):
            yield f"{path}{field.name}", "is zero", "give more than zero"


def _is_zero(value: Any, kind: str) -> bool:
    """Whether a count is zero, or one of a list that may stand for it."""
    if kind == "int | tuple[int, ...]" and isinstance(value, tuple):
        return 0 in value
    return kind.startswith("int") and kind != "int | None" and value == 0


def _depth_faults(config: Architecture) -> Faults:
    for name in DEPTHS:
        if getattr(config, name, 0) > MOST_LAYERS:
            yield name, f"{getattr(config, name)} layers", f"give at most {MOST_LAYERS}"
    for name in PER_LAYER:
        optional = any(field.name == name and field.default == () for field in fields(config))
        listed = getattr(config, name, None)
        if isinstance(listed, tuple | str) and (listed or not optional):
            yield from _length_faults(name, len(listed), getattr(config, "num_hidden_layers", 0))


def _length_faults(path: str, listed: int, layers: int, more: int = 0) -> Faults:
    """Find a list that does not name each layer; it may name so many prediction modules besides."""
    if not layers <= listed <= layers + more:
        yield path, f"names {listed} layers of {layers}", "name every layer's"


def _expert_faults(config: Architecture) -> Faults:
    """Find more experts chosen than there are, and groups that do not divide them."""
    experts = _first(config, EXPERT_COUNTS, 0)
    for name in CHOSEN:
        given = getattr(config, name, 0)
        chosen = max(given, default=0) if isinstance(given, tuple) else given
        if experts and chosen > experts:
            yield name, f"{chosen} of {experts} experts", f"choose at most {experts}"
    groups, taken = _first(config, GROUP_COUNTS, 1), getattr(config, "topk_group", 1)
    if groups and experts % groups:
        yield "n_group", f"{groups} groups do not divide {experts} experts", "choose a divisor"
    if taken > groups:
        yield "topk_group", f"{taken} of {groups} groups", f"choose at most {groups}"


def _first(config: Architecture, names: tuple[str, ...], otherwise: int) -> int:
    return next((int(getattr(config, name)) for name in names if hasattr(config, name)), otherwise)


def _head_faults(config: Architecture) -> Faults:
    """Find heads that do not share a width or keys evenly, where no field says how wide a head is."""
    if isinstance(config, SHARING) and not getattr(config, "head_dim", 0):
        for heads, width in HEADS:
            number, whole = getattr(config, heads, 1), getattr(config, width, 0)
            if whole % number:
                yield heads, f"{number} does not divide {width} = {whole}", "choose a divisor"
    queries, keys = getattr(config, "num_attention_heads", 0), getattr(config, "num_key_value_heads", 0)
    if keys and queries % keys:
        yield "num_key_value_heads", f"{keys} does not divide {queries} attention heads", "choose a divisor"


def _choice_faults(config: Architecture) -> Faults:
    """Find what only one architecture can have wrong."""
    match config:
        case QwenHybrid() if not config.layer_types and not config.full_attention_interval:
            yield "layer_types", "is missing", "give it, or `full_attention_interval`"
        case NemotronH() if wrong := set(config.hybrid_override_pattern) - set("ME*-"):
            yield "hybrid_override_pattern", f"has letters {' '.join(sorted(wrong))}", "use M, E, * and -"
        case DeepseekV4():
            listed, more = len(config.compress_ratios), config.num_nextn_predict_layers
            yield from _length_faults("compress_ratios", listed, config.num_hidden_layers, more)
        case MiniMaxM3():
            path, listed = "sparse_attention_freq", len(config.sparse_attention_config.sparse_attention_freq)
            yield from _length_faults(f"sparse_attention_config.{path}", listed, config.num_hidden_layers)
        case KimiLinear():
            yield from _kimi_faults(config)
        case Switch():
            yield from _switch_faults(config)


def _kimi_faults(config: KimiLinear) -> Faults:
    named = sorted((*config.linear_attn_config.full_attn_layers, *config.linear_attn_config.kda_layers))
    if len(named) != config.num_hidden_layers or named != list(range(1, len(named) + 1)):
        problem = f"its two lists do not name each layer from 1 to {config.num_hidden_layers} once"
        yield "linear_attn_config", problem, "name every layer in `full_attn_layers` or `kda_layers`"


def _switch_faults(config: Switch) -> Faults:
    for sparse, layers in (
        ("num_sparse_encoder_layers", config.num_layers),
        ("num_sparse_decoder_layers", config.num_decoder_layers),
    ):
        if layers % (getattr(config, sparse) or 1):
            yield sparse, f"{getattr(config, sparse)} does not divide {layers} layers", "choose a divisor"

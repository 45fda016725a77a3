"""A start for describing a model whose architecture is not known: its layers in YAML, with blanks to fill in."""

from __future__ import annotations

from collections.abc import Mapping

from moesim.files.quantization import formats_of
from moesim.files.trees import Tree

NAMES: Mapping[str, tuple[str, ...]] = {
    "vocab": ("vocab_size", "n_vocab"),
    "dim": ("hidden_size", "d_model", "n_embd", "dim"),
    "layers": ("num_hidden_layers", "n_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads", "n_kv_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "qk_head_dim", "kv_channels"),
    "value_dim": ("v_head_dim", "head_dim", "kv_channels"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "topk": ("num_experts_per_tok", "moe_top_k", "top_k_experts", "moe_topk", "moe_k"),
    "width": ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size", "ffn_hidden_size", "n_inner"),
    "dense": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "shared_width": ("shared_expert_intermediate_size", "shared_intermediate_size"),
}
"""What fields of a model are called in configurations, the most telling name first."""


def skeleton(config: Mapping[str, Tree], name: str) -> str:
    """Write what a configuration seems to say as a list of layers, blank where it says nothing.

    A file with blanks does not load: each is refused by name until it is filled in. All layers are written alike, and
    every guess stands beside the field it was made from.
    """
    found = {part: _field(config, names) for part, names in NAMES.items()}
    formats, _ = formats_of(config)
    lines = [
        f"# A start for {name}: what its config.json seems to say. Check every line; fill in what is blank.",
        "# Layers may differ: write each pattern with its own `repeat`. Kinds of attention: docs/reference/models.md.",
        f"name: {name}",
        f"vocab: {_value(found['vocab'])}",
        f"tied: {str(config.get('tie_word_embeddings') is True).lower()}",
        f"dtype_of: {{{', '.join(f'{tensor}: {dtype}' for tensor, dtype in formats.items())}}}",
        "layers:",
        f"  - repeat: {_value(found['layers'])}",
        "    layers:",
        "      - part: decoder",
        f"        dim: {_value(found['dim'])}",
        "        tokens: 1.0",
        "        attention:",
        "          kind: gqa",
        *(f"          {part}: {_value(found[part])}" for part in ("heads", "kv_heads", "head_dim", "value_dim")),
        "        ffn:",
        *_ffn(found),
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


Found = tuple[str, int] | None


def _field(config: Mapping[str, Tree], names: tuple[str, ...]) -> Found:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return name, value
    return None


def _value(found: Found) -> str:
    return f"{found[1]}  # {found[0]}" if found else "  # give it"


def _ffn(found: Mapping[str, Found]) -> list[str]:
    if found["experts"] is None:
        return ["          kind: dense", f"          width: {_value(found['dense'])}"]
    lines = ["          kind: moe"]
    lines += [f"          {part}: {_value(found[part])}" for part in ("experts", "topk", "width")]
    lines.append(f"          input_dim: {_value(found['dim'])}")
    if found["shared_width"]:
        lines.append(f"          shared_width: {_value(found['shared_width'])}")
    return lines

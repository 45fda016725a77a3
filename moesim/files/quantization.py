"""Storage formats of a Hugging Face configuration: its plain dtype and its `quantization_config`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from moesim.files.checked import shown
from moesim.files.trees import Tree
from moesim.ground.errors import Fault, nearest
from moesim.world.formats import TENSORS

PLAIN = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

PROBES: Mapping[str, tuple[str, ...]] = {
    "experts": ("model.layers.0.mlp.experts.0.down_proj",),
    "attention": ("model.layers.0.self_attn.o_proj",),
    "dense": ("model.layers.0.mlp.down_proj", "model.layers.0.mlp.shared_experts.down_proj"),
}
"""Modules that stand for a class of tensors: a class is left unconverted where one of them is."""

COMPRESSED = {"pack-quantized": "int4", "mxfp4-pack-quantized": "mxfp4", "nvfp4-pack-quantized": "nvfp4"}
MODELOPT = {"FP8": "fp8", "NVFP4": "nvfp4", "MXFP4": "mxfp4"}
GROUPS = {32: "int4", 128: "int4_128"}
"""Formats of four bits by the elements that share a scale."""

METHODS = ("awq", "compressed-tensors", "fp8", "gptq", "modelopt", "mxfp4")


def formats_of(config: Mapping[str, Tree]) -> tuple[dict[str, str], list[Fault]]:
    """Tell the storage format of each class of tensors, and what could not be told.

    Embedding, head and cache keep the plain dtype; what the configuration leaves unconverted does too.
    """
    faults: list[Fault] = []
    plain = _plain(config, faults)
    stored = dict.fromkeys(TENSORS, plain)
    section = config.get("quantization_config")
    if section is None:
        return stored, faults
    if not isinstance(section, Mapping):
        faults.append(Fault(path="quantization_config", problem="is not a section", remedy="give its `quant_method`"))
        return stored, faults
    converted = _format(section, faults)
    kept = _kept(section)
    only_experts = section.get("quant_method") == "mxfp4"
    for tensor, modules in PROBES.items():
        if converted and not (only_experts and tensor != "experts") and not _covers(kept, modules):
            stored[tensor] = converted
    if "expert_dtype" in config:
        stored["experts"] = _expert_format(config["expert_dtype"], section, faults)
    return stored, faults


def _plain(config: Mapping[str, Tree], faults: list[Fault]) -> str:
    field = "dtype" if "dtype" in config else "torch_dtype"
    # A file that names none holds weights in bf16, as every released model here that leaves it out does.
    name = str(config.get(field) or "bfloat16")
    if name not in PLAIN:
        faults.append(Fault(path=field, problem=f"`{name}` is unknown", remedy=nearest(name, PLAIN)))
        return "bf16"
    return PLAIN[name]


def _format(section: Mapping[str, Tree], faults: list[Fault]) -> str:
    """Name the format that converted tensors have; empty where it is unknown."""
    match section.get("quant_method"):
        case "mxfp4":
            return "mxfp4"
        case "fp8":
            return _blocks(section.get("weight_block_size"), faults)
        case "awq" | "gptq":
            return _grouped(section.get("bits"), section.get("group_size"), "", faults)
        case "modelopt":
            return _named(section.get("quant_algo"), MODELOPT, "quant_algo", faults)
        case "compressed-tensors":
            return _compressed(section, faults)
        case method:
            _unknown("quant_method", method, METHODS, faults)
            return ""


def _blocks(block: Tree, faults: list[Fault]) -> str:
    if block in (None, [128, 128]):
        return "fp8_block" if block else "fp8"
    path = "quantization_config.weight_block_size"
    faults.append(Fault(path=path, problem=f"blocks of {block} are unknown", remedy="known: [128, 128]"))
    return ""


def _compressed(section: Mapping[str, Tree], faults: list[Fault]) -> str:
    """Read the one group of `compressed-tensors`: its format, or the bits and group of its weights."""
    name = section.get("format")
    if name == "float-quantized":
        return "fp8"
    found = _named(name, COMPRESSED, "format", faults)
    if found != "int4":
        return found
    groups = section.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        path = "quantization_config.config_groups"
        faults.append(Fault(path=path, problem="has no group with `weights`", remedy="give their bits and group size"))
        return ""
    where = "config_groups.*.weights."
    return _grouped(weights.get("num_bits"), weights.get("group_size"), where, faults)


def _grouped(bits: Tree, size: Tree, where: str, faults: list[Fault]) -> str:
    if bits == 8:
        return "int8"
    if bits == 4 and isinstance(size, int) and size in GROUPS:
        return GROUPS[size]
    problem = f"{bits} bits in groups of {size} are unknown"
    known = ", ".join(map(str, GROUPS))
    path = f"quantization_config.{where}group_size"
    faults.append(Fault(path=path, problem=problem, remedy=f"known: 8 bits, and 4 bits in groups of {known}"))
    return ""


def _named(name: Tree, known: Mapping[str, str], field: str, faults: list[Fault]) -> str:
    if isinstance(name, str) and name in known:
        return known[name]
    _unknown(field, name, known, faults)
    return ""


def _unknown(field: str, name: Tree, known: Iterable[str], faults: list[Fault]) -> None:
    word = name if isinstance(name, str) else shown(name)
    path = f"quantization_config.{field}"
    faults.append(Fault(path=path, problem=f"`{word}` is unknown", remedy=nearest(word, known)))


def _expert_format(name: Tree, section: Mapping[str, Tree], faults: list[Fault]) -> str:
    """DeepSeek-V4's experts are fp4 whose scales have the format that `scale_fmt` names: ue8m0 makes it mxfp4."""
    if name == "fp4":
        return "mxfp4" if section.get("scale_fmt") == "ue8m0" else "fp4"
    if name == "fp8":
        return "fp8_block"
    problem = f"`{name if isinstance(name, str) else shown(name)}` is unknown"
    faults.append(Fault(path="expert_dtype", problem=problem, remedy="known: fp4, fp8"))
    return "bf16"


def _kept(section: Mapping[str, Tree]) -> list[re.Pattern[str]]:
    """Compile what is left unconverted: names of modules, their parts, `*` for anything, ``re:`` for expressions.

    Layers are told apart by number in some files; here a module of one layer stands for those of all.
    """
    listed = [section.get(field) for field in ("modules_to_not_convert", "ignore", "exclude_modules")]
    names = [name for names in listed if isinstance(names, list) for name in names if isinstance(name, str)]
    return [_pattern(name) for name in names]


def _pattern(name: str) -> re.Pattern[str]:
    try:
        if name.startswith("re:"):
            return re.compile(name.removeprefix("re:"))
        pieces = [re.escape(piece) for piece in name.split("*")]
        numbered = re.sub(r"\d+", "0", ".*".join(pieces))
        return re.compile(rf"(.*\.)?{numbered}(\..*)?\Z")
    except re.error:
        return re.compile(r"(?!)")


def _covers(kept: Iterable[re.Pattern[str]], modules: Iterable[str]) -> bool:
    return any(pattern.match(module) for pattern in kept for module in modules)

"""Reads a Hugging Face ``config.json`` as a model."""

from __future__ import annotations

from collections.abc import Mapping

from moesim.files.architectures import ARCHITECTURES, Architecture, architecture_faults
from moesim.files.checked import check
from moesim.files.trees import Tree
from moesim.ground.errors import Fault, ModelError, nearest
from moesim.world.model import Model

PLAIN_FORMATS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
PLACED_BY_NAME = ("size", "dim", "head", "layer", "expert", "rank", "step", "window", "group")
"""Words in the names of fields that describe an architecture."""


def read_config(config: Mapping[str, Tree], name: str, file: str) -> Model:
    """Turn a configuration into a model.

    Parameters
    ----------
    config : mapping
        The content of ``config.json``; fields that say nothing about the architecture are passed over.
    name : str
        What to call the model.
    file : str
        How messages name the file.

    Raises
    ------
    ModelError
        An unknown architecture or quantization, or missing or wrong fields; all of them at once.
    """
    inner = config.get("text_config")
    text = {**config, **(inner if isinstance(inner, Mapping) else {})}
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ModelError(file, [_unplaced(kind, text)])
    formats, faults = _formats(text)
    record = ARCHITECTURES[kind]
    rules = {record: architecture_faults}
    architecture: Architecture = check(record, text, file, error=ModelError, rules=rules, also=faults, only_known=False)
    layers, mtp = architecture.parts()
    return Model(
        name=name,
        layers=layers,
        vocab=architecture.vocab_size,
        dtype_of=formats,
        mtp=mtp,
        tied=architecture.tie_word_embeddings,
    )


def _unplaced(kind: Tree, config: Mapping[str, Tree]) -> Fault:
    """Name the fields of an unknown architecture that describe it."""
    if kind is None:
        return Fault(path="model_type", problem="is missing", remedy="give the `config.json` of a model, with its type")
    fields = [
        f"{name} = {value}"
        for name, value in config.items()
        if any(word in name for word in PLACED_BY_NAME) and isinstance(value, int | str) and not isinstance(value, bool)
    ]
    problem = f"`{kind}` is an unknown architecture, so its fields could not be placed: {', '.join(fields) or 'none'}"
    return Fault(path="model_type", problem=problem, remedy=f"describe its layers in YAML, or {_use(str(kind))}")


def _use(kind: str) -> str:
    hint = nearest(kind, ARCHITECTURES)
    return hint if hint.startswith("did you mean") else f"use one of {', '.join(sorted(ARCHITECTURES))}"


def _formats(config: Mapping[str, Tree]) -> tuple[dict[str, str], list[Fault]]:
    """Tell the storage format of each class of tensors from the quantization and the plain dtype."""
    faults: list[Fault] = []
    plain = _plain_format(config, faults)
    stored = dict.fromkeys(("experts", "attention", "dense", "embedding", "kv"), plain)
    section = config.get("quantization_config")
    if section is None:
        return stored, faults
    if not isinstance(section, Mapping):
        faults.append(Fault(path="quantization_config", problem="is not a section", remedy="give its `quant_method`"))
        return stored, faults
    kept = str(section.get("modules_to_not_convert"))
    match section.get("quant_method"), section.get("weight_block_size"):
        case "mxfp4", _:
            stored["experts"] = "mxfp4"
        case "fp8", (None | [128, 128]) as block:
            converted = ("experts", "dense") if "attn" in kept else ("experts", "dense", "attention")
            stored |= dict.fromkeys(converted, "fp8_block" if block else "fp8")
        case "fp8", block:
            path = "quantization_config.weight_block_size"
            faults.append(Fault(path=path, problem=f"blocks of {block} are unknown", remedy="known: [128, 128]"))
        case method, _:
            path, known = "quantization_config.quant_method", ("fp8", "mxfp4")
            faults.append(Fault(path=path, problem=f"`{method}` is unknown", remedy=nearest(str(method), known)))
    return stored, faults


def _plain_format(config: Mapping[str, Tree], faults: list[Fault]) -> str:
    field = "dtype" if "dtype" in config else "torch_dtype"
    # A file that names none holds weights in bf16, as every released model here that leaves it out does.
    name = str(config.get(field) or "bfloat16")
    if name not in PLAIN_FORMATS:
        faults.append(Fault(path=field, problem=f"`{name}` is unknown", remedy=nearest(name, PLAIN_FORMATS)))
        return "bf16"
    return PLAIN_FORMATS[name]

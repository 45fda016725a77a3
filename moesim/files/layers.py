"""Models written as a list of layers in YAML."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from moesim.files.checked import Readers, check, gather, refuse, shown
from moesim.files.trees import Tree
from moesim.ground.errors import ModelError, nearest
from moesim.world.attention import Attention, Compressed, Cross, Gqa, Indexer, Linear, Mla, Unmodelled, Window
from moesim.world.formats import BITS, TENSORS
from moesim.world.model import Dense, Layer, Model, Moe

KINDS: Mapping[str, Mapping[str, type]] = {
    "attention": {
        "gqa": Gqa,
        "window": Window,
        "mla": Mla,
        "compressed": Compressed,
        "linear": Linear,
        "cross": Cross,
        "unmodelled": Unmodelled,
    },
    "ffn": {"dense": Dense, "moe": Moe},
}
"""What a layer's parts may be, by the `kind` a file gives them."""

MOST_LAYERS = 10_000
"""More than any model has; beyond it a file is taken to be wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Repeat:
    """Layers that follow each other a number of times."""

    repeat: int
    layers: tuple[Layer, ...]


def layered(tree: Mapping[str, Tree], file: str) -> Model:
    """Read a model written as a list of layers, in which ``{repeat: n, layers: [...]}`` stands for n times the list."""
    readers: Readers = {tuple[Layer, ...]: lambda items: _layers(items, file)}
    return check(Model, tree, file, error=ModelError, readers=readers, rules={Model: _model_faults})


def _layers(items: Tree, file: str) -> tuple[Layer, ...]:
    if not isinstance(items, list) or not items:
        raise refuse(file, f"{shown(items)} is not a list of layers", "write one layer a line, each after a dash")
    found = gather(file, enumerate(items), lambda _, item: _item(item, file))
    return tuple(layer for group in found.values() for layer in group)


def _item(item: Tree, file: str) -> tuple[Layer, ...]:
    if isinstance(item, Mapping) and "repeat" in item:
        repeated: Readers = {tuple[Layer, ...]: lambda items: _layers(items, file)}
        several = check(_Repeat, item, file, readers=repeated, rules={_Repeat: _repeat_faults})
        return several.layers * several.repeat
    readers: Readers = {
        Attention | None: lambda value: _kind("attention", value, file),
        Dense | Moe | None: lambda value: _kind("ffn", value, file),
    }
    return (check(Layer, item, file, readers=readers, rules={Layer: _layer_faults}),)


def _repeat_faults(several: _Repeat) -> Iterator[tuple[str, str, str]]:
    layers = several.repeat * len(several.layers)
    if not 1 <= layers <= MOST_LAYERS:
        yield "repeat", f"makes {layers} layers", f"make 1 to {MOST_LAYERS}"


def _kind(part: str, value: Tree, file: str) -> Any:
    """Read one part of a layer as the record its `kind` names; ``none`` is a part the layer does not have."""
    if value == "none":
        return None
    kinds = KINDS[part]
    if not isinstance(value, Mapping) or "kind" not in value:
        remedy = f"write `none`, or a section with `kind`: {', '.join(kinds)}"
        raise refuse(file, f"{shown(value)} has no `kind`", remedy)
    kind = str(value["kind"])
    if kind not in kinds:
        raise refuse(file, f"`{kind}` is unknown", nearest(kind, kinds), path="kind")
    inner = {name: field for name, field in value.items() if name != "kind"}
    return check(kinds[kind], inner, file, rules=RULES)


def _moe_faults(moe: Moe) -> Iterator[tuple[str, str, str]]:
    yield from _zero_faults(moe)
    if not 1 <= moe.topk <= moe.experts:
        yield "topk", f"{moe.topk} of {moe.experts} experts", f"choose 1 to {moe.experts}"
    if moe.groups < 1 or moe.experts % moe.groups:
        yield "groups", f"{moe.groups} does not divide {moe.experts} experts", "choose a divisor"
    if moe.group_topk > moe.groups:
        yield "group_topk", f"{moe.group_topk} of {moe.groups} groups", f"choose at most {moe.groups}"


def _grouped_faults(part: Gqa | Window | Cross) -> Iterator[tuple[str, str, str]]:
    zeros = list(_zero_faults(part))
    yield from zeros
    if not zeros and part.heads % part.kv_heads:
        yield "kv_heads", f"{part.kv_heads} does not divide {part.heads} heads", "choose a divisor"


def _compressed_faults(part: Compressed) -> Iterator[tuple[str, str, str]]:
    zeros = list(_zero_faults(part))
    yield from zeros
    if not zeros and part.heads % part.o_groups:
        yield "o_groups", f"{part.o_groups} does not divide {part.heads} heads", "choose a divisor"
    if part.indexer and not part.ratio:
        yield "indexer", "picks among compressed keys, and `ratio` is 0", "give a ratio, or no indexer"


def _linear_faults(part: Linear) -> Iterator[tuple[str, str, str]]:
    zeros = list(_zero_faults(part))
    yield from zeros
    if not zeros and part.value_heads % part.key_heads:
        yield "key_heads", f"{part.key_heads} does not divide {part.value_heads} value heads", "choose a divisor"


def _zero_faults(part: Any) -> Iterator[tuple[str, str, str]]:
    """Find widths and counts of a part of a layer that are zero and must not be."""
    for field in fields(part):
        if field.type == "int" and getattr(part, field.name) == 0 and field.name not in MAY_BE_ZERO:
            yield field.name, "is zero", "give more than zero"


def _layer_faults(layer: Layer) -> Iterator[tuple[str, str, str]]:
    if layer.part not in ("encoder", "decoder"):
        yield "part", f"`{layer.part}` is unknown", nearest(layer.part, ["encoder", "decoder"])
    if layer.dim < 1:
        yield "dim", "is zero", "give the layer's width"
    if layer.tokens <= 0:
        yield "tokens", f"{layer.tokens} is not positive", "give tokens here per input token, such as 0.25"


def _model_faults(model: Model) -> Iterator[tuple[str, str, str]]:
    for tensor in TENSORS:
        if tensor not in model.dtype_of:
            yield f"dtype_of.{tensor}", "is missing", "give its storage format, such as `bf16`"
    for tensor, dtype in model.dtype_of.items():
        if tensor not in TENSORS:
            yield f"dtype_of.{tensor}", "unknown class of tensors", nearest(tensor, TENSORS)
        if dtype not in BITS:
            yield f"dtype_of.{tensor}", f"`{dtype}` is unknown", nearest(dtype, BITS)


MAY_BE_ZERO = ("q_lora", "rope", "decay_rank", "gate_rank", "shared_width", "ratio")
"""Widths whose zero means "none"."""

RULES: Mapping[type, Callable[[Any], Iterator[tuple[str, str, str]]]] = {
    Gqa: _grouped_faults,
    Window: _grouped_faults,
    Cross: _grouped_faults,
    Mla: _zero_faults,
    Compressed: _compressed_faults,
    Indexer: _zero_faults,
    Linear: _linear_faults,
    Dense: _zero_faults,
    Moe: _moe_faults,
}
"""What is looked for in each part of a layer, once its fields are right."""

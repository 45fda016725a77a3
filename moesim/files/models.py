"""Models by name or file: a Hugging Face configuration, or a list of layers in YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from moesim.files.checked import Readers, check, gather, refuse, shown
from moesim.files.huggingface import read_config
from moesim.files.trees import Tree, names_under, packaged, read
from moesim.ground.errors import Fault, ModelError, nearest
from moesim.ground.units import Source
from moesim.world.attention import Attention, Cross, Gqa, Linear, Mla, Unmodelled, Window
from moesim.world.formats import BITS
from moesim.world.model import Dense, Layer, Model, Moe

ZOO = "moesim/data/models"

KINDS: Mapping[str, Mapping[str, type]] = {
    "attention": {
        "gqa": Gqa,
        "window": Window,
        "mla": Mla,
        "linear": Linear,
        "cross": Cross,
        "unmodelled": Unmodelled,
    },
    "ffn": {"dense": Dense, "moe": Moe},
}
"""What a layer's parts may be, by the `kind` a file gives them."""

TENSORS = ("experts", "attention", "dense", "embedding", "kv")
"""Classes of tensors with a storage format of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sourced:
    """A model and where its numbers came from."""

    model: Model
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class _Repeat:
    """Layers that follow each other a number of times."""

    repeat: int
    layers: tuple[Layer, ...]


def model_names() -> tuple[str, ...]:
    """List the built-in models."""
    return names_under(packaged(ZOO))


def load(name: str | Path, folder: Path | None = None) -> Model:
    """Load a model by its built-in name, or from a ``config.json`` or a YAML file.

    Raises
    ------
    ModelError
        No such model, or a file with faults.
    """
    return load_sourced(name, folder).model


def load_sourced(name: str | Path, folder: Path | None = None) -> Sourced:
    """Load a model together with where its numbers came from; raises what `load` does."""
    text = str(name)
    if text.endswith((".json", ".yaml", ".yml")):
        path = (folder or Path()) / text
        return _from_file(path, str(path), path.parent.name or path.stem)
    if text not in model_names():
        problem = f"no built-in model is called `{text}`"
        raise ModelError(text, [Fault(path="", problem=problem, remedy=_where_to_look(text))])
    return _built_in(text)


def _where_to_look(name: str) -> str:
    return f"{nearest(name, model_names())} or give the path of a config.json"


@lru_cache(maxsize=256)
def _built_in(name: str) -> Sourced:
    return _from_file(packaged(ZOO).joinpath(f"{name}.yaml"), f"{ZOO}/{name}.yaml", name)


def _from_file(file: Traversable, label: str, name: str) -> Sourced:
    tree = read(file, label, ModelError)
    if "layers" in tree:
        return read_layers(tree, label)
    config = tree.get("config", tree)
    if not isinstance(config, Mapping):
        raise ModelError(label, [Fault(path="config", problem="is not a section", remedy="give the model's fields")])
    model = read_config(config, str(tree.get("name", name)), label)
    return Sourced(model=model, source=_source(tree.get("source"), label))


def _source(given: Tree, file: str) -> Source:
    """Say where a model's numbers came from: the place or the source its file names, or the file itself."""
    if isinstance(given, Mapping):
        return check(Source, given, file)
    if given is not None:
        return Source(kind="published", title=str(given))
    return Source(kind="assumed", title="the user's own file", raw=file)


def read_layers(tree: Mapping[str, Tree], file: str) -> Sourced:
    """Read a model written as a list of layers, in which ``{repeat: n, layers: [...]}`` stands for n times the list.

    Raises
    ------
    ModelError
        With every fault.
    """
    fields = {name: value for name, value in tree.items() if name != "source"}
    readers: Readers = {tuple[Layer, ...]: lambda items: _layers(items, file)}
    model = check(Model, fields, file, error=ModelError, readers=readers, rules={Model: _model_faults})
    return Sourced(model=model, source=_source(tree.get("source"), file))


def _layers(items: Tree, file: str) -> tuple[Layer, ...]:
    if not isinstance(items, list) or not items:
        raise refuse(file, f"{shown(items)} is not a list of layers", "write one layer a line, each after a dash")
    found = gather(file, enumerate(items), lambda _, item: _item(item, file))
    return tuple(layer for group in found.values() for layer in group)


def _item(item: Tree, file: str) -> tuple[Layer, ...]:
    if isinstance(item, Mapping) and "repeat" in item:
        repeated: Readers = {tuple[Layer, ...]: lambda items: _layers(items, file)}
        several = check(_Repeat, item, file, readers=repeated)
        return several.layers * several.repeat
    readers: Readers = {
        Attention | None: lambda value: _kind("attention", value, file),
        Dense | Moe | None: lambda value: _kind("ffn", value, file),
    }
    return (check(Layer, item, file, readers=readers, rules={Layer: _layer_faults}),)


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
    fields = {name: inner for name, inner in value.items() if name != "kind"}
    return check(kinds[kind], fields, file, rules={Moe: _moe_faults})


def _moe_faults(moe: Moe) -> Iterator[tuple[str, str, str]]:
    if not 1 <= moe.topk <= moe.experts:
        yield "topk", f"{moe.topk} of {moe.experts} experts", f"choose 1 to {moe.experts}"
    if moe.groups < 1 or moe.experts % moe.groups:
        yield "groups", f"{moe.groups} does not divide {moe.experts} experts", "choose a divisor"


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

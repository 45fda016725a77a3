"""Models by name or file: a Hugging Face configuration, or a list of layers in YAML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from moesim.files.checked import by_name, check, refuse, shown
from moesim.files.huggingface import read_config
from moesim.files.layers import layered
from moesim.files.trees import Tree, names_under, packaged, read
from moesim.ground.errors import Fault, ModelError, nearest
from moesim.ground.units import Source
from moesim.world.formats import BITS, TENSORS
from moesim.world.model import Model

ZOO = "moesim/data/models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A published number of parameters, and half of the last digit it was printed with."""

    value: float
    half_digit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What a model's makers say of its size, in figures as they are printed (`figure` reads them).

    `vocabulary` tells which vocabulary matrices their active figure counts; `apart` is the part of their total that is
    no part of the language model; `unclear` says why a figure cannot be held to 1 %, and by how much it may be off.
    """

    total: str
    source: Source
    active: str = ""
    vocabulary: Literal["none", "head", "both"] = "head"
    apart: str = ""
    unclear: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A model of the zoo: where its architecture was read, and what is published of it."""

    model: Model
    source: Source
    published: Published | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """The fields of a YAML file that describes a model by a configuration.

    `like` names a model of the zoo whose configuration `config` changes; `dtype_of` gives formats that the
    configuration does not say.
    """

    name: str
    config: Mapping[str, Any] | None = None
    like: str = ""
    dtype_of: Mapping[str, str] | None = None
    source: Source | None = None
    published: Published | None = None


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
    return load_entry(name, folder).model


def load_entry(name: str | Path, folder: Path | None = None) -> Entry:
    """Load a model with what is known about it besides; a file's source is the file itself.

    Raises
    ------
    ModelError
        No such model, or a file with faults.
    """
    text = str(name)
    if text.endswith((".json", ".yaml", ".yml")):
        path = (folder or Path()) / text
        return _from_file(path, str(path), path.parent.name or path.stem)
    return _built_in(_known(text))


def _known(name: str) -> str:
    if name in model_names():
        return name
    hint = nearest(name, model_names())
    known = f"{hint} Or" if hint.startswith("did you mean") else "`moesim models` lists those there are, or"
    remedy = f"{known} give the path of a config.json"
    raise ModelError(name, [Fault(path="", problem=f"no built-in model is called `{name}`", remedy=remedy)])


@lru_cache(maxsize=256)
def _built_in(name: str) -> Entry:
    return _from_file(packaged(ZOO).joinpath(f"{name}.yaml"), f"{ZOO}/{name}.yaml", name)


def _from_file(file: Traversable, label: str, name: str) -> Entry:
    tree = read(file, label, ModelError)
    if label.endswith(".json"):
        return Entry(model=read_config(tree, name, label), source=_given(label))
    if "layers" in tree:
        return read_layers(tree, label)
    facts = _facts({"name": name, **tree}, label)
    return Entry(model=_from_config(facts, label), source=facts.source or _given(label), published=facts.published)


def read_layers(tree: Mapping[str, Tree], file: str) -> Entry:
    """Read a model written as a list of layers, in which ``{repeat: n, layers: [...]}`` stands for n times the list.

    Raises
    ------
    InputError
        With every fault.
    """
    about = {key: tree[key] for key in ("source", "published") if key in tree}
    facts = _facts({"name": "", "config": {}, **about}, file)
    model = layered({key: value for key, value in tree.items() if key not in about}, file)
    return Entry(model=model, source=facts.source or _given(file), published=facts.published)


def _facts(tree: Mapping[str, Tree], file: str) -> _File:
    return check(_File, tree, file, error=ModelError, rules={_File: _faults, Published: _figure_faults})


def _given(file: str) -> Source:
    return Source(kind="assumed", title="the user's own file", raw=file)


def _from_config(facts: _File, label: str) -> Model:
    base = by_name(label, facts.like, lambda: _config_of(facts.like)) if facts.like else {}
    model = read_config({**base, **(facts.config or {})}, facts.name, label)
    return replace(model, dtype_of={**model.dtype_of, **(facts.dtype_of or {})})


def _config_of(name: str) -> dict[str, Tree]:
    """Return the configuration of a model of the zoo."""
    tree = read(packaged(ZOO).joinpath(f"{_known(name)}.yaml"), f"{ZOO}/{name}.yaml", ModelError)
    base = _config_of(tree["like"]) if "like" in tree else {}
    if "layers" in tree:
        raise refuse(name, f"`{name}` is a list of layers, which cannot be changed field by field", "copy the list")
    return {**base, **tree.get("config", {})}


def _faults(file: _File) -> Iterator[tuple[str, str, str]]:
    if file.config is None and not file.like:
        yield "config", "is missing", "give the fields of a config.json, or `like`, or `layers`"
    for tensor, dtype in (file.dtype_of or {}).items():
        if tensor not in TENSORS:
            yield f"dtype_of.{tensor}", "unknown class of tensors", nearest(tensor, TENSORS)
        if dtype not in BITS:
            yield f"dtype_of.{tensor}", f"`{dtype}` is unknown", nearest(dtype, BITS)


SCALES = {"M": 1e6, "B": 1e9, "T": 1e12}
_FIGURE = re.compile(r"(\d+)(?:\.(\d+))?([MBT])\Z")


def _figure_faults(published: Published) -> Iterator[tuple[str, str, str]]:
    for name in ("total", "active", "apart"):
        text = getattr(published, name)
        if not _FIGURE.match(text) and (text or name == "total"):
            yield name, f"{shown(text)} is not a number of parameters", "write it as printed, such as `46.7B`"


def figure(text: str) -> Figure:
    """Read a number of parameters as it was printed.

    Examples
    --------
    >>> figure("46.7B")
    Figure(value=46700000000.0, half_digit=50000000.0)
    """
    match = _FIGURE.match(text)
    assert match is not None
    whole, decimals, scale = match[1], match[2] or "", SCALES[match[3]]
    return Figure(value=float(f"{whole}.{decimals or 0}") * scale, half_digit=scale / 10 ** len(decimals) / 2)


def published_tree(published: Published | None) -> dict[str, Any] | None:
    """Write what is published of a model's size as a plain tree."""
    return asdict(published) if published else None

"""Reads a Hugging Face ``config.json`` as a model."""

from __future__ import annotations

from collections.abc import Mapping

from moesim.files.architectures.table import ARCHITECTURES, Architecture, architecture_faults
from moesim.files.checked import check
from moesim.files.quantization import formats_of
from moesim.files.trees import Tree
from moesim.ground.errors import Fault, ModelError, nearest
from moesim.world.model import Model

PLACED_BY_NAME = ("size", "dim", "head", "layer", "expert", "rank", "step", "window", "group", "moe", "top")
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
    text, kind = text_part(config)
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ModelError(file, [_unplaced(kind, text, file)])
    formats, faults = formats_of(text)
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


def text_part(config: Mapping[str, Tree]) -> tuple[dict[str, Tree], Tree]:
    """Return the fields of the language model, and its type: a model of several kinds of input keeps it apart."""
    inner = config.get("text_config")
    text = {**config, **(inner if isinstance(inner, Mapping) else {})}
    outer = config.get("model_type")
    return text, outer if isinstance(outer, str) and outer in ARCHITECTURES else text.get("model_type")


def _unplaced(kind: Tree, config: Mapping[str, Tree], file: str) -> Fault:
    """Name the fields of an unknown architecture that describe it."""
    if kind is None:
        return Fault(path="model_type", problem="is missing", remedy="give the `config.json` of a model, with its type")
    fields = [
        f"{name} = {value}"
        for name, value in config.items()
        if any(word in name for word in PLACED_BY_NAME) and isinstance(value, int | str) and not isinstance(value, bool)
    ]
    problem = f"`{kind}` is an unknown architecture, so its fields could not be placed: {', '.join(fields) or 'none'}"
    hint = nearest(str(kind), ARCHITECTURES)
    start = f"`moesim models skeleton {file}` writes its layers in YAML for you to complete"
    return Fault(path="model_type", problem=problem, remedy=f"{hint} {start}" if hint.startswith("did") else start)

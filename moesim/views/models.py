"""Models shown: the list of the built-in ones, and one model's layers, sizes, caches and work."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.table import Table

from moesim.ground.units import Source, show
from moesim.passes.anatomy import Kind, cache_per_rank, experts, kinds, token_work
from moesim.views.tables import console
from moesim.world.attention import Attention, Compressed, Gqa, Linear, Mla, Unmodelled, Window
from moesim.world.model import Dense, Model, Moe, active_parameters, parameters

DEGREES = (1, 2, 4, 8, 16)
"""Tensor-parallel degrees for which a cache is shown."""

FORMATS = ("bf16", "fp8_block", "int4", "mxfp4", "nvfp4")
"""Storage formats for which experts are shown, beside the model's own."""

NOT_MODELLED = "not modelled"


def show_models(rows: Iterable[tuple[str, Model]]) -> None:
    """List models: name, layers, experts, parameters."""
    cells = [
        (name, str(len(model.layers)), _mixture(model), count(parameters(model)), count(active_parameters(model)))
        for name, model in rows
    ]
    _print("", ("model", "<layers", "<experts", "<parameters", "<active"), cells)


def _mixture(model: Model) -> str:
    if not model.moe_layers:
        return "dense"
    moe = model.moe(model.moe_layers[0])
    return f"{moe.topk} of {moe.experts}"


def count(number: float) -> str:
    """Write a number of parameters.

    Examples
    --------
    >>> count(44_040_192), count(671_026_404_352)
    ('44.0M', '671B')
    """
    name, scale = next(((name, scale) for name, scale in SCALES if number >= scale), ("", 1.0))
    return f"{number / scale:#.3g}".removesuffix(".") + name


SCALES = (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3))

COUNTED = {"none": "no vocabulary counted", "head": "head counted", "both": "embedding and head counted"}


def published_lines(published: Mapping[str, Any]) -> list[str]:
    """Write what is published of a model's size, a line each."""
    sizes = [f"{published['total']} in all"]
    if published["active"]:
        sizes.append(f"{published['active']} active ({COUNTED[published['vocabulary']]})")
    if published["apart"]:
        sizes.append(f"{published['apart']} of it not in the language model")
    source = published["source"]
    lines = [f"published    {', '.join(sizes)}: {source['title']} ({source['kind']})"]
    return [*lines, f"unclear      {published['unclear']}"] if published["unclear"] else lines


def show_model(model: Model, *, context: float, source: Source, published: Mapping[str, Any] | None) -> None:
    """Print a model: headline sizes, where they come from, the layer table, caches by rank, experts by format."""
    found = kinds(model, context)
    out = console()
    out.print(f"[bold]{model.name}[/bold]: {len(model.layers)} layers, {_mixture(model)} experts")
    work = token_work(model, found)
    flop = NOT_MODELLED if work is None else f"{show(work, 'FLOP')} per token at a context of {context:,.0f}"
    out.print(
        f"  parameters   {count(parameters(model))} in all, {count(active_parameters(model))} active (head counted)"
    )
    out.print(f"  work         {flop}")
    out.print(f"  formats      {', '.join(f'{tensor} {dtype}' for tensor, dtype in model.dtype_of.items())}")
    for line in (f"source       {source.title} ({source.kind})", *(published_lines(published) if published else ())):
        out.print(f"  {line}")
    out.print()
    _print("Layers, one of each kind", _LAYER_HEADINGS, [_layer_row(kind) for kind in found])
    if any(kind.cached != 0 or kind.state for kind in found):
        cells = [_cache_row(found, tp) for tp in DEGREES]
        _print(
            "Cache on each rank; data parallelism divides sequences only", ("<tp", "<per token", "<per sequence"), cells
        )
    if model.moe_layers:
        _print("Routed experts, scales included", ("format", "<one expert", "<all"), _expert_rows(model))


_LAYER_HEADINGS = (
    "layers",
    "<number",
    "attention",
    "feed-forward",
    "<parameters",
    "<active",
    "<KV / token",
    "<state / sequence",
    "<FLOP / token",
)


def _print(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; a heading that starts with ``<`` is of a column of numbers."""
    out = console()
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        drawn.add_column(
            heading.removeprefix("<"), justify="right" if heading.startswith("<") else "left", overflow="fold"
        )
    for row in rows:
        drawn.add_row(*row)
    if title:
        out.print(title)
    out.print(drawn)
    out.print()


def _layer_row(kind: Kind) -> tuple[str, ...]:
    return (
        places(kind.numbers),
        str(len(kind.numbers)),
        attention_in_words(kind.layer.attention),
        ffn_in_words(kind.layer.ffn),
        count(kind.parameters),
        count(kind.active),
        _bytes(kind.cached),
        _bytes(kind.state),
        NOT_MODELLED if kind.work is None else show(kind.work, "FLOP"),
    )


def _bytes(size: float | None) -> str:
    if size is None:
        return NOT_MODELLED
    return f"{size:,.0f} B" if 0 < size < 1e5 else show(size, "B") if size else "-"


def _cache_row(found: Sequence[Kind], tp: int) -> tuple[str, ...]:
    cached, state = cache_per_rank(found, tp)
    return str(tp), _bytes(cached), _bytes(state)


def _expert_rows(model: Model) -> list[tuple[str, ...]]:
    own = model.dtype_of["experts"]
    sizes = experts(model)
    names = dict.fromkeys((own, *FORMATS))
    return [
        (f"{name} (its own)" if name == own else name, *(show(size, "B") for size in sizes[name])) for name in names
    ]


def places(numbers: Sequence[int]) -> str:
    """Write which layers some are.

    Examples
    --------
    >>> places([0, 1, 2]), places([3]), places([3, 7, 11, 15]), places([5, 12, 19, 26, 33, 42])
    ('0-2', '3', '3, 7 ... 15', '5, 12, 19 ... 42')
    """
    first, last = numbers[0], numbers[-1]
    if len(numbers) == 1:
        return str(first)
    steps = {after - before for before, after in pairwise(numbers)}
    if steps == {1}:
        return f"{first}-{last}"
    shown = numbers[: 2 if len(steps) == 1 else 3]
    return ", ".join(map(str, shown)) + (f" ... {last}" if len(numbers) > len(shown) else "")


def attention_in_words(kind: Attention | None) -> str:
    """Write an attention part in a few words."""
    match kind:
        case None:
            return "-"
        case Mla(indexer=scorer):
            picked = f", {scorer.topk} picked" if scorer else ""
            return f"latent {kind.kv_lora} + {kind.rope}, {kind.heads} heads{picked}"
        case Compressed(indexer=scorer):
            picked = f", {scorer.topk} picked" if scorer else ""
            kept = f" and compressed {kind.ratio}:1{picked}" if kind.ratio else ""
            return f"window of {kind.window}{kept}, {kind.heads} heads of {kind.head_dim}"
        case Linear():
            rule = "delta rule" if kind.delta else "Mamba-2"
            return f"linear ({rule}), {kind.value_heads} heads of {kind.key_dim} x {kind.value_dim}"
        case Unmodelled():
            return kind.name
        case Window():
            return f"{'chunk' if kind.chunked else 'window'} of {kind.window}, {_heads(kind)}"
        case Gqa(indexer=scorer):
            return _heads(kind) + (f", {scorer.topk} picked" if scorer else "")
        case _:
            return f"self and cross, {_heads(kind)}"


def _heads(kind: Any) -> str:
    each = f"{kind.head_dim}" if kind.head_dim == kind.value_dim else f"{kind.head_dim}/{kind.value_dim}"
    return f"{kind.heads} heads, {kind.kv_heads} KV, of {each}"


def ffn_in_words(ffn: Dense | Moe | None) -> str:
    """Write a feed-forward part in a few words."""
    match ffn:
        case None:
            return "-"
        case Dense():
            return f"dense {ffn.width}"
        case Moe():
            shared = f" + {ffn.shared_width} shared" if ffn.shared_width else ""
            return f"{ffn.topk} of {ffn.experts} x {ffn.width}{shared}"


def model_json(model: Model, *, context: float, source: Source, published: Mapping[str, Any] | None) -> str:
    """Write what `show_model` prints as JSON, in SI units."""
    found = kinds(model, context)
    tree = {
        "name": model.name,
        "source": {"kind": source.kind, "title": source.title},
        "published": published and dict(published),
        "parameters": parameters(model),
        "active_parameters": active_parameters(model),
        "context": context,
        "flop_per_token": token_work(model, found),
        "dtype_of": dict(model.dtype_of),
        "layers": [_kind_tree(kind) for kind in found],
        "cache_per_rank": [
            dict(zip(("tp", "token", "sequence"), (tp, *cache_per_rank(found, tp)), strict=True)) for tp in DEGREES
        ],
        "expert_bytes": {dtype: {"one": one, "all": total} for dtype, (one, total) in experts(model).items()},
    }
    return json.dumps(tree, indent=1)


def _kind_tree(kind: Kind) -> dict[str, Any]:
    return {
        "numbers": list(kind.numbers),
        "attention": attention_in_words(kind.layer.attention),
        "feed_forward": ffn_in_words(kind.layer.ffn),
        "parameters": kind.parameters,
        "active": kind.active,
        "kv_bytes_per_token": kind.cached,
        "tokens_kept": None if kind.kept == float("inf") else kind.kept,
        "state_bytes_per_sequence": kind.state,
        "flop_per_token": kind.work,
    }

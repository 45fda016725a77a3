"""Timed points as the ops that a plan would price for the same work, so that what is fitted is what is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from moesim.schedules.costs.collectives import ROUNDS, WAYS
from moesim.schedules.costs.fits import Machine
from moesim.schedules.costs.forms import form_of
from moesim.schedules.ops import AllToAll, Attend, Copy, Elementwise, Gemm, Grouped, Host, Op, Reduce, Send
from moesim.world.attention import Attention, Gqa, Mla, Window

from .cases import Cases, Floats, Index
from .routed import slots_of

Term = tuple[Index, Op]
"""An op and the points it is part of; its sizes are shaped ``[point draw]``."""

ACTIVATION = 2.0
"""Bytes of an element of activations: bf16."""
CHUNK = 2**22
"""Numbers of rows (slots x points x draws) priced together."""


def terms_of(cases: Cases) -> list[Term]:
    """Return the ops whose prices add up to what was measured.

    Examples
    --------
    >>> inputs = {name: np.array([8.0, 16.0]) for name in ("m", "n", "k")}
    >>> cases = Cases(operation="gemm", dtype="bf16", kind="", kernel="", inputs=inputs, seconds=np.ones(2),
    ...               family=np.zeros(2, dtype=int))
    >>> [(index.tolist(), op.n.tolist()) for index, op in terms_of(cases)]
    [([0, 1], [[8.0], [16.0]])]
    """
    return list(_BUILDERS[cases.operation](cases))


def price(terms: list[Term], machine: Machine, number: int) -> Floats:
    """Add the prices of the ops of each point, mean over the draws, s."""
    total = np.zeros(number)
    for index, op in terms:
        time, _ = form_of(op).price(op, machine)
        np.add.at(total, index, np.broadcast_to(time, (len(index), time.shape[-1])).mean(axis=1))
    return total


def _all(cases: Cases) -> Index:
    return np.arange(len(cases))


def _column(cases: Cases, name: str) -> Floats:
    return cases.inputs[name][:, None]


def _gemm(cases: Cases) -> Iterator[Term]:
    m, n, k = (_column(cases, name) for name in ("m", "n", "k"))
    yield _all(cases), Gemm(m=m, n=n, k=k, dtype=cases.dtype)


def _grouped(cases: Cases) -> Iterator[Term]:
    """One product per expert; inputs are rows, slots, skew, n and k."""
    for part, rows in slots_of(cases, CHUNK):
        n, k = cases.inputs["n"][part][:, None], cases.inputs["k"][part][:, None]
        yield part, Grouped(rows=rows, n=n, k=k, dtype=cases.dtype)


def _experts(cases: Cases) -> Iterator[Term]:
    """A layer's experts as frameworks time them: gather, two products with the activation between, weighted sum."""
    for part, rows in slots_of(cases, CHUNK):
        inputs = {name: values[part][:, None] for name, values in cases.inputs.items()}
        width, dim = inputs["width"], inputs["dim"]
        inner = width * inputs["matrices"]
        routed = rows.sum(axis=0)
        moved = (inputs["tokens"] + routed) * (dim * ACTIVATION)
        yield part, Elementwise(traffic=moved)
        yield part, Grouped(rows=rows, n=inner, k=dim, dtype=cases.dtype)
        yield part, Elementwise(traffic=routed * (inner + width) * ACTIVATION)
        yield part, Grouped(rows=rows, n=dim, k=width, dtype=cases.dtype)
        yield part, Elementwise(traffic=moved)


def _attention(cases: Cases) -> Iterator[Term]:
    names = ("heads", "kv_heads", "key_dim", "value_dim")
    layouts, which = np.unique(np.stack([cases.inputs[name] for name in names], 1), axis=0, return_inverse=True)
    for number, (heads, kv_heads, key_dim, value_dim) in enumerate(layouts):
        part = np.flatnonzero(which.reshape(-1) == number)
        sizes = {name: cases.inputs[name][part][:, None] for name in ("heads", "tokens", "prompts", "pairs", "keys")}
        kind = _attention_kind(cases.kind, int(heads), int(kv_heads), int(key_dim), int(value_dim))
        phase = cases.operation.removeprefix("attention_")
        yield part, Attend(kind=kind, phase=phase, dtype=cases.dtype, **sizes)


def _attention_kind(name: str, heads: int, kv_heads: int, key_dim: int, value_dim: int) -> Attention:
    """Describe heads; latent ones have DeepSeek's dimensions (DeepSeek-V2, arXiv 2405.04434, section 3.1.2)."""
    if name == "mla":
        return Mla(heads=heads, q_lora=1536, kv_lora=512, rope=64, nope=128, value_dim=128)
    if name == "window":  # pairs and keys are counted with it
        return Window(heads=heads, kv_heads=kv_heads, head_dim=key_dim, value_dim=value_dim, window=1)
    return Gqa(heads=heads, kv_heads=kv_heads, head_dim=key_dim, value_dim=value_dim)


def _elementwise(cases: Cases) -> Iterator[Term]:
    yield _all(cases), Elementwise(traffic=_column(cases, "traffic"), kernel=cases.kind or "default")


def _reduce(cases: Cases) -> Iterator[Term]:
    size, ranks = _column(cases, "size"), _column(cases, "ranks")
    yield _all(cases), Reduce(size=size, form=cases.operation, ranks=ranks, tier=cases.kind)


def _all_to_all(cases: Cases) -> Iterator[tuple[Index, AllToAll]]:
    moved, messages = _column(cases, "moved")[None], _column(cases, "messages")[None]
    yield _all(cases), AllToAll(tiers=(cases.kind,), sent=moved, received=moved, messages=messages)


def _hierarchical(cases: Cases) -> Iterator[Term]:
    """An exchange inside nodes, then one between ranks of one place in all nodes, each after sorting what is sent."""
    size, ranks, width = (_column(cases, name) for name in ("size", "ranks", "width"))
    for members in (width, ranks / width):
        moved = (size * (members - 1) / members)[None]
        yield _all(cases), Elementwise(traffic=2 * size)
        yield (
            _all(cases),
            AllToAll(tiers=(cases.kind,), sent=moved, received=moved, messages=(members - 1)[None], way="hierarchical"),
        )


def _exchange(cases: Cases) -> Iterator[Term]:
    """A dispatch or a combine, by the number of experts."""
    for slots in np.unique(cases.inputs["experts"]):
        part = np.flatnonzero(cases.inputs["experts"] == slots)
        ((_, op),) = _all_to_all(cases.take(part))
        yield part, replace(op, way=cases.operation, slots=int(slots))


def _send(cases: Cases) -> Iterator[Term]:
    yield _all(cases), Send(size=_column(cases, "size"), tier=cases.kind)


def _copy(cases: Cases) -> Iterator[Term]:
    target = "host" if cases.kind == "disk" else "device"
    yield _all(cases), Copy(size=_column(cases, "size"), source=cases.kind, target=target)


def _host(cases: Cases) -> Iterator[Term]:
    yield _all(cases), Host(calls=_column(cases, "calls"))


CLASSES: Mapping[str, type[Op]] = MappingProxyType(
    {
        "gemm": Gemm,
        "grouped_gemm": Grouped,
        "attention_prefill": Attend,
        "attention_decode": Attend,
        "elementwise": Elementwise,
        **dict.fromkeys(ROUNDS, Reduce),
        **dict.fromkeys(WAYS, AllToAll),
        "send": Send,
        "copy": Copy,
        "host": Host,
    }
)
"""The ops that an operation's fit prices; a point may hold others besides."""

_BUILDERS: Mapping[str, Callable[[Cases], Iterator[Term]]] = MappingProxyType(
    {
        "gemm": _gemm,
        "grouped_gemm": lambda cases: (_experts if "tokens" in cases.inputs else _grouped)(cases),
        "attention_prefill": _attention,
        "attention_decode": _attention,
        "elementwise": _elementwise,
        **dict.fromkeys(ROUNDS, _reduce),
        "all_to_all": _all_to_all,
        "dispatch": _exchange,
        "combine": _exchange,
        "hierarchical": _hierarchical,
        "send": _send,
        "copy": _copy,
        "host": _host,
    }
)

"""What the parts of a whole MoE layer are predicted to add up to, beside the layers that were run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moesim.passes.attention import ACTIVATION
from moesim.passes.exchanges import SIZE_MESSAGE
from moesim.passes.mixture import GATE_SCORE, GATE_TRAFFIC
from moesim.schedules.costs.fits import Machine, machine_of
from moesim.schedules.costs.forms import form_of
from moesim.schedules.ops import AllToAll, Elementwise, Gemm, Grouped, Host, Op
from moesim.world.hardware import Node

from .own import LINK
from .points import rows_of
from .raw import Sample


def predicted(sample: Sample, node: Node) -> float:
    """Return the seconds that a layer's ops are priced at, one after the other."""
    machine = machine_of(node, ())
    return sum(_price(op, machine) for op in ops_of(sample))


def _price(op: Op, machine: Machine) -> float:
    return float(form_of(op).price(op, machine)[0].sum())


def ops_of(sample: Sample) -> Iterator[Op]:
    """Write a layer that was run as a plan would; tokens choose experts evenly.

    What the pieces do beyond a plan, putting rows that came from several ranks in the order of experts and back, is
    written, too.
    """
    inputs = sample.inputs
    tokens, dim, experts, topk = (inputs[name] for name in ("tokens", "dim", "experts", "topk"))
    rows = tokens * topk
    moved = _one((tokens + rows) * dim * ACTIVATION)
    yield Gemm(m=_one(tokens), n=_one(experts), k=_one(dim), dtype=sample.dtype)
    yield Elementwise(traffic=_one(tokens * (GATE_SCORE * experts + GATE_TRAFFIC * topk)), kernel="gate")
    yield Elementwise(traffic=moved, kernel="pack")
    if sample.kernel == "exchanged":
        yield _exchange(sample.ranks, experts * SIZE_MESSAGE)
        yield _exchange(sample.ranks, rows * dim * ACTIVATION, "dispatch")
        yield Elementwise(traffic=_one(2 * rows * dim * ACTIVATION), kernel="pack")
    yield Host(calls=_one(1.0))
    yield from _experts(sample, rows)
    if sample.kernel == "exchanged":
        yield Elementwise(traffic=_one(2 * rows * dim * ACTIVATION), kernel="pack")
        yield _exchange(sample.ranks, rows * dim * ACTIVATION, "combine")
    yield Elementwise(traffic=moved, kernel="unpack")


def _experts(sample: Sample, rows: float) -> Iterator[Op]:
    """Write the products of the experts that one rank has."""
    inputs = sample.inputs
    dim, width = _one(inputs["dim"]), _one(inputs["width"])
    here = int(inputs["experts"]) // (sample.ranks if sample.kernel == "exchanged" else 1)
    slots = np.array(rows_of(here, int(rows), 0.0))[:, None]
    yield Grouped(rows=slots, n=2 * width, k=dim, dtype=sample.dtype)
    yield Elementwise(traffic=rows * 3 * width * ACTIVATION, kernel="activation")
    yield Grouped(rows=slots, n=dim, k=width, dtype=sample.dtype)


def _exchange(ranks: int, size: float, way: str = "all_to_all") -> AllToAll:
    """Send a buffer to all ranks in equal parts, one of which stays."""
    away = np.array([[size * (ranks - 1) / ranks]])
    return AllToAll(tiers=(LINK,), sent=away, received=away, messages=np.array([[ranks - 1.0]]), way=way)


def _one(size: float) -> np.ndarray:
    return np.array([float(size)])

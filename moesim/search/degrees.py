"""Parallel degrees that divide what they must, on the sizes an offer holds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from moesim.passes.table import DEGREES
from moesim.plans.plan import Space, divisors
from moesim.world.attention import Linear
from moesim.world.hardware import Offer
from moesim.world.model import Dense, Model

SLICE = 128
"""Narrowest slice of a feed-forward width worth multiplying: fp8 weights are scaled in blocks of 128."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Degrees:
    """Sets of degrees, one a column; the rows are those of `DEGREES`."""

    rows: Int[np.ndarray, "degree set"]

    def __getitem__(self, name: str) -> Int[np.ndarray, "set"]:
        """Return one degree of every set."""
        return np.asarray(self.rows[DEGREES.index(name)])


def degrees_of(model: Model, offer: Offer, space: Space, *, copies: bool = False) -> Degrees:
    """List degrees that divide what they must: tp the heads and widths, ep x etp the ranks, etp the expert width.

    `copies` says whether experts may be copied as a whole, in several blocks of a stage, as training does.
    """
    found = list(_degrees(model, offer, space, copies))
    return Degrees(rows=np.array(found, np.int64).reshape(-1, len(DEGREES)).T)


def _listed(space: Space, name: str) -> tuple[Any, ...]:
    return space.axes.get(f"parallel.{name}", ())


def _open(space: Space, name: str, value: int) -> bool:
    listed = _listed(space, name)
    return not listed or value in listed


def _degrees(model: Model, offer: Offer, space: Space, copies: bool) -> Iterator[tuple[int, ...]]:
    gpus = offer.node.gpus
    pps = [pp for pp in _listed(space, "pp") if pp <= len(model.layers)]
    tensor = _tensor_degrees(model, gpus, space)
    for size, pp in itertools.product(_sizes(offer), pps):
        if size % pp or (pp > 1 and size <= gpus):
            continue
        ranks = size // pp
        blocks = _expert_blocks(model, ranks, space, copies)
        for tp, cp in itertools.product(tensor, _listed(space, "cp")):
            if ranks % (tp * cp) or not _open(space, "dp", ranks // (tp * cp)):
                continue
            for ep, etp in blocks:
                yield pp, ranks // (tp * cp), tp, cp, ep, etp


def _sizes(offer: Offer) -> list[int]:
    """Gpus per replica: every divisor of a node, and nodes in powers of two."""
    gpus = offer.node.gpus
    nodes = [2**power for power in range(1, offer.max_nodes.bit_length()) if 2**power <= offer.max_nodes]
    return [*divisors(gpus), *(gpus * number for number in nodes)]


def _tensor_degrees(model: Model, gpus: int, space: Space) -> list[int]:
    """Tensor-parallel degrees within a node that divide every layer's heads and leave slices worth multiplying."""
    wanted = _listed(space, "tp") or divisors(gpus)
    return [tp for tp in wanted if all(_divides(layer.attention, layer.ffn, tp) for layer in set(model.layers))]


def _divides(attention: Any, ffn: Any, tp: int) -> bool:
    heads = attention is None or attention.heads % tp == 0
    if isinstance(attention, Linear):
        heads = heads and attention.key_heads % tp == 0
    return heads and (not isinstance(ffn, Dense) or ffn.width % (tp * SLICE) == 0 or tp == 1)


def _expert_blocks(model: Model, ranks: int, space: Space, copies: bool) -> list[tuple[int, int]]:
    """(ep, etp) whose product divides the ranks, or is all of them; no more ranks than experts, no thin slices.

    With copies, ep divides the experts, so that all ranks hold as many.
    """
    if not model.moe_layers:
        return [(1, ranks)]
    moe = model.moe(model.moe_layers[0])
    found = []
    for etp in _listed(space, "etp") or divisors(ranks):
        if ranks % etp or (etp > 1 and moe.width % (etp * SLICE)):
            continue
        sizes = [ep for ep in divisors(ranks // etp) if moe.experts % ep == 0] if copies else [ranks // etp]
        found += [(ep, etp) for ep in sizes if ep <= moe.experts and _open(space, "ep", ep)]
    return found

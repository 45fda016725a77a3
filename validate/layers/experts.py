"""The experts' network on rows that lie slot by slot: one product for each, one for all, or one of equal capacities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from .pieces import passes, products

Multiply = Callable[[Tensor, Tensor], Tensor]
Counts: TypeAlias = "Sequence[int] | Tensor"
"""Rows of each slot, on the host or on the device."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matrices:
    """Weights of some slots: `inner` [slot, hidden, width], twice as wide if gated; `outer` [slot, width, hidden].

    Attributes
    ----------
    gated : whether one half of `inner` gates the other
    """

    inner: Tensor
    outer: Tensor
    gated: bool


class Experts(Protocol):
    """Computes the rows of a rank's slots."""

    def __call__(self, rows: Tensor, counts: Counts, matrices: Matrices) -> Tensor:
        """Return the network's rows; so many of each slot."""
        ...


def network(rows: Tensor, matrices: Matrices, multiply: Multiply) -> Tensor:
    """Two products with the activation between them."""
    activation = passes.swiglu if matrices.gated else passes.gelu
    return multiply(activation(multiply(rows, matrices.inner)), matrices.outer)


def on_host(counts: Counts) -> Sequence[int]:
    """Read counts; the host waits for a device that has them."""
    return [int(count) for count in counts.tolist()] if isinstance(counts, Tensor) else counts


def looped(rows: Tensor, counts: Counts, matrices: Matrices) -> Tensor:
    """One product for each slot with rows."""
    known = on_host(counts)
    return network(rows, matrices, lambda left, right: products.looped(left, right, known))


def grouped(rows: Tensor, counts: Counts, matrices: Matrices) -> Tensor:
    """One product for all slots; the host need not know their counts."""
    ends = torch.as_tensor(counts, device=rows.device).cumsum(0).to(torch.int32)
    return network(rows, matrices, lambda left, right: products.grouped(left, right, ends))


def batched(rows: Tensor, counts: Counts, matrices: Matrices, multiply: Callable[..., Tensor]) -> Tensor:
    """One product of equal capacities, where they are equal; `multiply` is `equal`, or that compiled."""
    known = on_host(counts)
    if min(known) != max(known):
        return looped(rows, known, matrices)
    return multiply(rows.unflatten(0, (len(known), known[0])), matrices).flatten(0, 1)


def equal(rows: Tensor, matrices: Matrices) -> Tensor:
    """Multiply [slot, capacity, hidden]."""
    return network(rows, matrices, products.batched)

"""Rows out of tokens and back, sorted by lane: gathered as they are routed, or in buffers of a capacity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from .kernels import Kernels
from .pieces import routing


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Room:
    """Rows that each lane has room for, on the host and on the device."""

    rows: Int[np.ndarray, "lane"]
    on_device: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sorted:
    """Choices of a batch sorted by lane.

    Attributes
    ----------
    counts : rows of each lane, on the device
    take : makes rows of tokens, in the order of an index into the rows by lane, or in that of lanes if None
    give : adds rows in that order back to tokens, by shares
    """

    counts: Tensor
    take: Callable[[Tensor, Tensor | None], Tensor]
    give: Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Packing(Protocol):
    """Sorts choices, [token, topk] lanes, into rows."""

    def __call__(self, kernels: Kernels, choices: Tensor, shares: Tensor | None, room: Room) -> Sorted:
        """Sort, with so much room for each lane, which dynamic gating asks nothing of; None: shares come later."""
        ...


def gathered(kernels: Kernels, choices: Tensor, shares: Tensor | None, room: Room) -> Sorted:
    """Take exactly the rows that were routed (Huang et al., arXiv 2303.06182, dynamic gating)."""
    order, counts = routing.sort_rows(choices, len(room.rows))
    topk = choices.shape[1]

    def take(tokens: Tensor, index: Tensor | None) -> Tensor:
        return routing.permute(tokens, _at(order, index), topk)

    def give(rows: Tensor, weights: Tensor, index: Tensor | None) -> Tensor:
        return routing.unpermute(rows, _at(order, index), weights)

    return Sorted(counts=counts, take=take, give=give)


def sparse(kernels: Kernels, choices: Tensor, shares: Tensor | None, room: Room) -> Sorted:
    """Fill buffers by gathering (Tutel's fast encode and decode); what finds no room is dropped, last come first."""
    order = kernels.buffer_order(choices, room.on_device, int(room.rows.sum()))
    topk = choices.shape[1]

    def take(tokens: Tensor, index: Tensor | None) -> Tensor:
        return kernels.encode(tokens, _at(order, index), topk)

    def give(rows: Tensor, weights: Tensor, index: Tensor | None) -> Tensor:
        return kernels.decode(rows, _at(order, index), weights)

    return Sorted(counts=room.on_device, take=take, give=give)


def dense(kernels: Kernels, choices: Tensor, shares: Tensor | None, room: Room) -> Sorted:
    """Fill buffers of one capacity by a product with a mask, as the first systems did; drops as `sparse` does.

    The mask of combine is that of dispatch, weighted; shares that come later take a mask of their own.
    """
    lanes, capacity = len(room.rows), int(room.rows.max())
    known = choices.new_ones(choices.shape, dtype=torch.float32) if shares is None else shares
    mask = kernels.mask(known, choices, lanes, capacity)

    def take(tokens: Tensor, index: Tensor | None) -> Tensor:
        rows = kernels.dispatch(mask.ne(0).to(tokens.dtype), tokens).flatten(0, 1)
        return rows if index is None else rows.index_select(0, index)

    def give(rows: Tensor, weights: Tensor, index: Tensor | None) -> Tensor:
        if index is not None:
            rows = rows.index_select(0, index.argsort())
        weighted = mask if shares is not None else kernels.mask(weights, choices, lanes, capacity)
        return kernels.combine(weighted.to(rows.dtype), rows.unflatten(0, (lanes, capacity)))

    return Sorted(counts=room.on_device, take=take, give=give)


def _at(order: Tensor, index: Tensor | None) -> Tensor:
    return order if index is None else order[index]

"""Greedy placement: the heaviest expert first, each to the least loaded rank with a free slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heapreplace
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """Balance the mean load of the ranks, equally many slots each.

    Huang et al., "Towards MoE deployment" (2023), load balancing. Extra slots first copy, one after
    another, the expert with the largest load per copy; a copy carries its share.

    Attributes
    ----------
    redundant : copies beyond one per expert
    """

    balances: ClassVar[bool] = True

    redundant: int = 0

    def __post_init__(self) -> None:
        """Check the range."""
        if self.redundant < 0:
            raise ValueError(f"redundant = {self.redundant}; give 0 or more")

    def slots(self, experts: int, ranks: int) -> int:
        """Round experts and redundant copies up to a multiple of `ranks`."""
        return rounded_slots(experts + self.redundant, ranks)

    def __call__(
        self,
        load: Float[np.ndarray, "step layer expert"],
        slots: int,
        ranks: int,
        nodes: int,
        rng: np.random.Generator,
    ) -> Int[np.ndarray, "layer slot"]:
        """Place each layer by its load averaged over the steps."""
        return balanced_slots(load.mean(axis=0), slots, ranks)


policy = Greedy


def rounded_slots(copies: int, ranks: int) -> int:
    """Round up so that every rank has equally many slots.

    Examples
    --------
    >>> rounded_slots(10, 4)
    12
    """
    return -(-copies // ranks) * ranks


def balanced_slots(load: Float[np.ndarray, "layer expert"], slots: int, ranks: int) -> Int[np.ndarray, "layer slot"]:
    """Copy the experts with the largest load per copy until all slots are used, then pack the copies on ranks."""
    copied = copies(load, slots)
    number = np.stack([np.bincount(row, minlength=load.shape[1]) for row in copied])
    share = np.take_along_axis(load / number, copied, axis=1)
    return np.take_along_axis(copied, packed(share, ranks), axis=1)


def copies(load: Float[np.ndarray, "layer expert"], slots: int) -> Int[np.ndarray, "layer slot"]:
    """List one copy of every expert, in order, then copies of whichever has the largest load per copy.

    Examples
    --------
    >>> copies(np.array([[9.0, 4.0, 1.0]]), 5).tolist()
    [[0, 1, 2, 0, 0]]
    """
    layers, experts = load.shape
    listed = np.tile(np.arange(slots), (layers, 1))
    number = np.ones((layers, experts))
    row = np.arange(layers)
    for place in range(experts, slots):
        heaviest = np.argmax(load / number, axis=1)
        listed[:, place] = heaviest
        number[row, heaviest] += 1
    return listed


def packed(load: Float[np.ndarray, "layer item"], packs: int) -> Int[np.ndarray, "layer place"]:
    """Pack items, heaviest first, each into the lightest pack with room; packs hold equally many.

    With one item a pack there is nothing to balance, and items stay in order.

    Returns
    -------
    array of shape (layer, place)
        The item at each place; a pack's places stand together, in the order they were filled.

    Examples
    --------
    >>> packed(np.array([[1.0, 5.0, 3.0, 4.0]]), 2).tolist()
    [[1, 0, 3, 2]]
    """
    layers, items = load.shape
    room = items // packs
    if room == 1:
        return np.tile(np.arange(items), (layers, 1))
    order = np.argsort(-load, axis=1, kind="stable")
    pack = np.array([_packs_in_turn(row, packs, room) for row in np.take_along_axis(load, order, axis=1).tolist()])
    return np.take_along_axis(order, np.argsort(pack, axis=1, kind="stable"), axis=1)


def _packs_in_turn(load: Sequence[float], packs: int, room: int) -> list[int]:
    """Name the pack of each item in turn: the lightest with room, and of equally light ones the first."""
    lightest = [(0.0, pack) for pack in range(packs)]  # a heap, as sorted
    filled = [0] * packs
    taken = []
    for item in load:
        weight, pack = lightest[0]
        taken.append(pack)
        filled[pack] += 1
        if filled[pack] < room:
            heapreplace(lightest, (weight + item, pack))
        else:
            heappop(lightest)
    return taken

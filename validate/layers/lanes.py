"""Where a rank's rows go: slots under a placement, copies of experts, and Tutel's slices of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from moesim.passes.rows import slot_totals, source_rows

from .spec import LayerSpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lanes:
    """How the choices of one rank become rows for slots.

    A lane is what rows are sorted by: a slot that the rank sends to, or, where experts have copies, an expert, whose
    rows are then dealt to its copies.

    Attributes
    ----------
    number : lanes
    of_expert : [expert, repeats], the lanes of each expert; None where they are the experts themselves
    repeats : times that a row is sent: once, or to each slice of an expert
    expert_of_lane : the expert behind each lane
    slot_of_lane : the slot behind each lane; None with copies
    expert_of_slot : what all ranks together hold
    ranks, rank, width : of the exchange; `width` ranks are a node
    """

    number: int
    of_expert: Tensor | None
    repeats: int
    expert_of_lane: Int[np.ndarray, "lane"]
    slot_of_lane: Int[np.ndarray, "lane"] | None
    expert_of_slot: Int[np.ndarray, "slot"]
    ranks: int
    rank: int
    width: int

    @property
    def copied(self) -> bool:
        """Whether experts have copies."""
        return self.slot_of_lane is None

    def of(self, experts: Tensor) -> Tensor:
        """Return the lanes of a batch's choices, [token, topk x repeats]."""
        return experts if self.of_expert is None else self.of_expert[experts].flatten(1)

    def fixed(self, room: Int[np.ndarray, "lane"]) -> Int[np.ndarray, "source slot"]:
        """Rows from every rank to every slot where each rank fills so much room of each lane."""
        if self.copied:
            return self.dealt(np.tile(room, (self.ranks, 1)))
        slots = len(self.expert_of_slot)
        sets = slots // self.number  # each source uses one of several sets of slices: that of its own number
        rows = np.repeat(room, sets)
        return np.asarray(np.where(np.arange(slots) % sets == np.arange(self.ranks)[:, None] % sets, rows, 0))

    def dealt(self, counts: Int[np.ndarray, "source expert"]) -> Int[np.ndarray, "source slot"]:
        """Deal every rank's rows to the copies of experts, as the simulator does."""
        placed = self.expert_of_slot[None]
        totals = slot_totals(counts.sum(axis=0)[None, None], placed)[:, :, 0]
        local = len(self.expert_of_slot) // self.ranks
        node_of_rank = np.arange(self.ranks) // self.width
        node_of_slot = node_of_rank[np.arange(len(self.expert_of_slot)) // local]
        return np.asarray(source_rows(counts[None], totals, placed, node_of_rank, node_of_slot)[:, 0].T)

    def starts(self, rows: Int[np.ndarray, "lane"], sent: Int[np.ndarray, "slot"]) -> Int[np.ndarray, "slot"]:
        """Where each slot's rows begin among rows sorted by lane; copies of an expert take theirs one after another."""
        first = np.cumsum(rows) - rows
        if self.slot_of_lane is not None:
            begins = np.zeros(len(sent), int)
            begins[self.slot_of_lane] = first
            return begins
        begins = np.asarray(first[self.expert_of_slot])
        taken = np.zeros(self.number, int)
        for slot, expert in enumerate(self.expert_of_slot):
            begins[slot] += taken[expert]
            taken[expert] += sent[slot]
        return begins


def lanes_of(spec: LayerSpec, rank: int, device: torch.device) -> Lanes:
    """Lay out the lanes of a rank; `rank` counts within its exchange."""
    if spec.r is not None:
        return _sliced(spec, rank, device)
    placement = np.array(spec.placement)
    copied = max(Counter(spec.placement).values()) > 1
    plain = copied or spec.placement == tuple(range(spec.experts))
    slot_of_expert = np.argsort(placement, kind="stable")
    return Lanes(
        number=spec.experts,
        of_expert=None if plain else torch.from_numpy(slot_of_expert)[:, None].to(device),
        repeats=1,
        expert_of_lane=np.arange(spec.experts) if copied else placement,
        slot_of_lane=None if copied else np.arange(spec.experts),
        expert_of_slot=placement,
        ranks=spec.ep,
        rank=rank,
        width=spec.width,
    )


def _sliced(spec: LayerSpec, rank: int, device: torch.device) -> Lanes:
    """Lay out Tutel's family: expert e on ranks e x W / E on, cut into r slices, each held by W / E / r ranks in a row.

    A rank's tokens go to one set of slices of every expert. r = 0 holds everything everywhere.
    """
    experts = np.arange(spec.experts)
    if spec.r == 0:
        return _whole(spec, experts, ranks=1, rank=0)
    if spec.shards == 1:
        return _whole(spec, experts, ranks=spec.ranks, rank=rank)
    r = spec.r or 1
    sets = spec.shards // r
    lane = experts[:, None] * r + np.arange(r)
    return Lanes(
        number=spec.experts * r,
        of_expert=None if r == 1 else torch.from_numpy(lane).to(device),
        repeats=r,
        expert_of_lane=np.repeat(experts, r),
        slot_of_lane=np.arange(spec.experts * r) * sets + rank % sets,
        expert_of_slot=np.arange(spec.ranks) // spec.shards,
        ranks=spec.ranks,
        rank=rank,
        width=spec.width,
    )


def _whole(spec: LayerSpec, experts: Int[np.ndarray, "expert"], *, ranks: int, rank: int) -> Lanes:
    return Lanes(
        number=spec.experts,
        of_expert=None,
        repeats=1,
        expert_of_lane=experts,
        slot_of_lane=experts,
        expert_of_slot=experts,
        ranks=ranks,
        rank=rank,
        width=spec.width,
    )

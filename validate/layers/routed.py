"""The routed stream of a layer: pack, sizes, dispatch, experts, combine, unpack, in chunks where it is pipelined.

It is cut where something else may be computed meanwhile: `begin` ends when rows are under way, `middle` computes
experts and sends their rows back, `end` waits for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from .clock import Clock, part, timed
from .experts import Counts, Experts, Matrices
from .kernels import Kernels
from .lanes import Lanes
from .manifest import Manifest, arranged, of_all
from .packing import Packing, Room, Sorted
from .pieces import collectives
from .travel import Travel

Fetched = Callable[[Counts, Clock], Experts]
"""Starts to bring in slots, of which so many rows are used, and gives what computes them as they come."""


@dataclass(slots=True, kw_only=True, eq=False)
class Underway:
    """A batch between its dispatch and its end.

    Attributes
    ----------
    sorted : its choices
    index : order in which rows were sent, into those sorted by lane; None: in that order
    chunks : what each chunk consists of; one without a manifest where rows stay on their rank
    flights : of dispatch, then of combine
    rows : sent but not landed, then experts' rows sent back
    shares : of each choice, known at the beginning or given at the end
    local : rows of each lane, where they stay on their rank
    experts : what computes them, where slots have to come in
    """

    sorted: Sorted
    index: Tensor | None
    chunks: tuple[Manifest | None, ...]
    shares: Tensor | None
    local: Counts = ()
    flights: list[collectives.Flight] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    experts: Experts | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Routed:
    """The routed stream on one rank.

    Attributes
    ----------
    lanes, travel : where rows go, and how; no travel where all experts are here
    kernels, packing : how rows are made
    fixed : whether capacities alone say how many rows go where
    degree : chunks
    experts : computes rows
    matrices : weights of this rank's slots, gathered where they have to be
    fetched : starts to bring in the slots that are used, and gives what computes them; None: all are here
    room : for the rows of each lane, given the choices
    """

    lanes: Lanes
    travel: Travel | None
    kernels: Kernels
    packing: Packing
    fixed: bool
    degree: int
    experts: Experts
    matrices: Callable[[Clock], Matrices]
    room: Callable[[Tensor, Clock], Room]
    fetched: Fetched | None = None

    def begin(self, tokens: Tensor, experts: Tensor, shares: Tensor | None, clock: Clock) -> Underway:
        """Pack rows and send them; shares may come later."""
        choices = self.lanes.of(experts)
        room = self.room(experts, clock)
        with part(clock, "pack"):
            chosen = self.packing(self.kernels, choices, self._spread(shares), room)
        manifest = self._manifest(chosen, room, clock)
        index = self._index(chosen, room, manifest)
        chunks = [None] if manifest is None else [manifest.chunk(c, self.degree) for c in range(self.degree)]
        under = Underway(sorted=chosen, index=index, chunks=tuple(chunks), shares=shares)
        under.local = room.rows.tolist() if self.fixed else chosen.counts
        if self.fetched is not None:
            counts = under.local if manifest is None else manifest.received.sum(axis=0).tolist()
            under.experts = self.fetched(counts, clock)
        rows = timed(clock, "pack", lambda each: chosen.take(each, index), tokens)
        self._dispatch(under, rows, clock)
        return under

    def middle(self, under: Underway, clock: Clock) -> None:
        """Compute experts chunk by chunk as rows arrive, and send results back."""
        matrices = self.matrices(clock)
        under.rows = [self._computed(under, number, matrices, clock) for number in range(len(under.chunks))]

    def end(self, under: Underway, clock: Clock, shares: Tensor | None = None) -> Tensor:
        """Wait for results and add them to their tokens."""
        rows = under.rows
        if self.travel is not None:
            rows = [
                timed(clock, "combine", flight.land, each) for flight, each in zip(under.flights, rows, strict=True)
            ]
        weights = self._spread(under.shares if shares is None else shares)
        assert weights is not None
        whole = rows[0] if len(rows) == 1 else torch.cat(rows)
        return timed(clock, "unpack", lambda a, b: under.sorted.give(a, b, under.index), whole, weights)

    def close(self) -> None:
        """End the thread of exchanges."""
        if self.travel is not None:
            self.travel.close()

    def _spread(self, shares: Tensor | None) -> Tensor | None:
        """Give each slice of an expert the expert's share: their rows are added up."""
        return shares if shares is None or self.lanes.repeats == 1 else shares.repeat_interleave(self.lanes.repeats, 1)

    def _manifest(self, chosen: Sorted, room: Room, clock: Clock) -> Manifest | None:
        """Find out how many rows go where; a fixed capacity says it, else ranks have to tell each other."""
        travel, lanes = self.travel, self.lanes
        if travel is None:
            return None
        width = travel.levels.width if travel.levels is not None else 0
        if self.fixed:
            return of_all(lanes.fixed(room.rows), lanes.rank, width)
        with part(clock, "sizes"):
            if lanes.copied:
                return of_all(lanes.dealt(travel.everyone(chosen.counts)), lanes.rank, width)
            sent = chosen.counts.new_zeros(len(lanes.expert_of_slot))
            sent[torch.from_numpy(lanes.slot_of_lane).to(sent.device)] = chosen.counts
            return travel.sizes(sent)

    def _index(self, chosen: Sorted, room: Room, manifest: Manifest | None) -> Tensor | None:
        """Order rows by chunk and slot, where that is not how they are sorted."""
        if manifest is None or (self.degree == 1 and not self.lanes.copied):
            return None
        sent = manifest.sent.ravel()
        counts = room.rows if self.fixed else chosen.counts.cpu().numpy()
        index = arranged(sent, self.lanes.starts(counts, sent), self.degree)
        return torch.from_numpy(index).to(chosen.counts.device)

    def _dispatch(self, under: Underway, rows: Tensor, clock: Clock) -> None:
        if self.travel is None:
            under.rows = [rows]
            return
        sizes = [sum(chunk.given) for chunk in under.chunks if chunk is not None]
        for chunk, each in zip(under.chunks, rows.split(sizes), strict=True):
            assert chunk is not None
            under.flights.append(self.travel.flight(chunk))
            under.rows.append(timed(clock, "dispatch", under.flights[-1].start, each))

    def _computed(self, under: Underway, number: int, matrices: Matrices, clock: Clock) -> Tensor:
        """Compute one chunk, and send it back where it came from."""
        experts = under.experts or self.experts
        chunk, rows = under.chunks[number], under.rows[number]
        if chunk is None:
            return timed(clock, "experts", lambda each: experts(each, under.local, matrices), rows)
        assert self.travel is not None
        landed = timed(clock, "dispatch", under.flights[number].land, rows)
        turned = timed(clock, "regroup", lambda each: by_slot(each, chunk), landed)
        counts = chunk.received.sum(axis=0).tolist()
        made = timed(clock, "experts", lambda each: experts(each, counts, matrices), turned)
        back = timed(clock, "regroup", lambda each: by_source(each, chunk), made)
        under.flights[number] = self.travel.flight(chunk, back=True)
        return timed(clock, "combine", under.flights[number].start, back)


def by_slot(rows: Tensor, chunk: Manifest) -> Tensor:
    """Put rows that came source by source slot by slot."""
    return _turned(rows, chunk.received)


def by_source(rows: Tensor, chunk: Manifest) -> Tensor:
    """Put them back."""
    return _turned(rows, chunk.received.T)


def _turned(rows: Tensor, blocks: Int[np.ndarray, "outer inner"]) -> Tensor:
    """Put blocks of rows that lie (outer, inner) as (inner, outer): one copy, none where either is one."""
    outer, inner = blocks.shape
    if 1 in (outer, inner):
        return rows
    if (blocks == (rows_each := int(blocks[0, 0]))).all():
        return rows.unflatten(0, (outer, inner, rows_each)).transpose(0, 1).flatten(0, 2)
    parts = rows.split([int(each) for each in blocks.ravel()])
    return torch.cat([parts[o * inner + i] for i in range(inner) for o in range(outer)])

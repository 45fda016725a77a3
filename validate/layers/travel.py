"""Rows on their way to experts and back: linear or in two phases, waited for at once or later."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from .emulated import Link, Slowed, sleep_until
from .manifest import Manifest
from .pieces import collectives


@dataclass(slots=True, kw_only=True, eq=False)
class Travel:
    """Between whom rows travel, and how.

    Attributes
    ----------
    group : the ranks of the exchange
    ranks : how many they are
    levels : groups of the two phases; None where every rank sends to all others
    beside : whether something is computed while rows travel
    link : between nodes, where a slow one is emulated
    """

    group: Any
    ranks: int
    levels: collectives.Levels | None
    beside: bool
    link: Link | None = None
    _helper: ThreadPoolExecutor | None = None

    def flight(self, manifest: Manifest, *, back: bool = False) -> collectives.Flight:
        """Prepare one all-to-all: dispatch as the manifest says, or combine, which runs `back`."""
        given, taken = (manifest.taken, manifest.given) if back else (manifest.given, manifest.taken)
        even = manifest.even
        splits = (None, None) if even else (taken, given)
        if self.link is not None:
            return Slowed(taken=splits[0], given=splits[1], group=self.group, link=self.link)
        if self.levels is None:
            return collectives.Flight(taken=splits[0], given=splits[1], group=self.group)
        return _Phased(
            taken=taken, given=given, levels=self.levels, manifest=manifest, back=back, even=even, helper=self._thread()
        )

    def sizes(self, counts: Tensor) -> Manifest:
        """Tell all ranks how many rows come for each slot, and read on the host how many come here."""
        told = counts.view(self.ranks, -1)
        if self.levels is None:
            received = collectives.exchange_sizes(told, self.group)
            self._late()
            return Manifest(sent=told.cpu().numpy(), received=received.cpu().numpy())
        width = self.levels.width
        by_place = told.unflatten(0, (-1, width)).transpose(0, 1).contiguous()
        via = collectives.exchange_sizes(by_place, self.levels.inner)
        received = collectives.exchange_sizes(via.transpose(0, 1).contiguous(), self.levels.outer).flatten(0, 1)
        return Manifest(sent=told.cpu().numpy(), received=received.cpu().numpy(), via=via.cpu().numpy())

    def everyone(self, counts: Tensor) -> Int[np.ndarray, "source lane"]:
        """Tell all ranks how many rows each has for each expert."""
        gathered = collectives.all_gather(counts, self.ranks, self.group)
        self._late()
        return np.asarray(gathered.view(self.ranks, -1).cpu().numpy())

    def largest(self, count: Tensor) -> int:
        """Agree on the largest of all ranks' counts."""
        most = int(collectives.all_reduce(count, self.group, largest=True))
        self._late()
        return most

    def _late(self) -> None:
        """Let a few numbers take the latency of a link that is emulated."""
        if self.link is not None:
            sleep_until(self.link.leave([0.0] * self.ranks, [0.0] * self.ranks))

    def close(self) -> None:
        """End the thread, if there is one."""
        if self._helper is not None:
            self._helper.shutdown()
            self._helper = None

    def _thread(self) -> ThreadPoolExecutor | None:
        if self.beside and self._helper is None:
            self._helper = ThreadPoolExecutor(1, thread_name_prefix="exchange")
        return self._helper


@dataclass(slots=True, kw_only=True, eq=False)
class _Phased(collectives.Flight):
    """An all-to-all in two phases: inside nodes first and then between them, or, coming back, the other way round.

    The second phase waits for the first on the host, so something computed beside it needs a thread that waits; there
    is one for all exchanges of a layer, hence one order on all ranks. On a gpu it queues on a stream of its own.
    """

    levels: collectives.Levels
    manifest: Manifest
    back: bool
    even: bool
    helper: ThreadPoolExecutor | None
    _running: Future[None] | None = field(default=None)
    _queued: Any = None

    def send(self, rows: Tensor, *, back: bool = False) -> Tensor:
        """Start both phases, in the thread where there is one."""
        number = sum(self.given or ()) if back else sum(self.taken or ())
        out = rows.new_empty(number, *rows.shape[1:])
        self._rows = rows = rows.detach().contiguous()
        homeward = self.back != back
        if self.helper is None:
            self._phases(out, rows, homeward)
        else:
            ready = torch.cuda.current_stream().record_event() if rows.is_cuda else None
            self._running = self.helper.submit(self._aside, out, rows, homeward, ready)
        return out

    def wait(self) -> None:
        """Wait for the thread, and on a gpu for what it queued."""
        if self._running is not None:
            self._running.result()
            self._running = None
        if self._queued is not None:
            torch.cuda.current_stream().wait_event(self._queued)
            self._queued = None
        self._rows = None

    def _aside(self, out: Tensor, rows: Tensor, homeward: bool, ready: Any) -> None:
        if ready is None:
            return self._phases(out, rows, homeward)
        with torch.cuda.device(rows.device), torch.cuda.stream(torch.cuda.Stream()) as stream:
            torch.cuda.current_stream().wait_event(ready)
            self._phases(out, rows, homeward)
            self._queued = torch.cuda.current_stream().record_event()
        del stream
        return None

    def _phases(self, out: Tensor, rows: Tensor, homeward: bool) -> None:
        with torch.no_grad():
            if self.even:
                parts = rows.view(self.levels.width * self._nodes, -1)
                out.copy_(collectives.hierarchical(parts, self.levels).view_as(out))
            else:
                out.copy_(self._home(rows) if homeward else self._out(rows))

    @property
    def _nodes(self) -> int:
        return len(self.manifest.sent) // self.levels.width

    def _sizes(self) -> tuple[Int[np.ndarray, "node place"], Int[np.ndarray, "mate node"], list[int]]:
        """Rows by destination, rows handed on for each mate and node, and rows from each node."""
        assert self.manifest.via is not None
        sent = self.manifest.sent.sum(axis=1).reshape(self._nodes, self.levels.width)
        received = self.manifest.received.sum(axis=1).reshape(self._nodes, self.levels.width)
        return sent, self.manifest.via.sum(axis=2), [int(rows) for rows in received.sum(axis=1)]

    def _out(self, rows: Tensor) -> Tensor:
        """Inside the node to the owner's place, then along the rail; each phase puts its rows side by side first."""
        sent, via, from_nodes = self._sizes()
        by_place = _turned(rows, sent)
        inside = collectives.all_to_all(by_place, _whole(via.sum(1)), _whole(sent.sum(0)), self.levels.inner)
        return collectives.all_to_all(_turned(inside, via), from_nodes, _whole(via.sum(0)), self.levels.outer)

    def _home(self, rows: Tensor) -> Tensor:
        """Take the same way back."""
        sent, via, from_nodes = self._sizes()
        handed = collectives.all_to_all(rows, _whole(via.sum(0)), from_nodes, self.levels.outer)
        inside = collectives.all_to_all(
            _turned(handed, via.T), _whole(sent.sum(0)), _whole(via.sum(1)), self.levels.inner
        )
        return _turned(inside, sent.T)


def _whole(rows: Int[np.ndarray, "part"]) -> Sequence[int]:
    return [int(number) for number in rows]


def _turned(rows: Tensor, blocks: Int[np.ndarray, "outer inner"]) -> Tensor:
    """Put blocks of rows that lie (outer, inner) as (inner, outer)."""
    parts = rows.split(_whole(blocks.ravel()))
    outer, inner = blocks.shape
    return torch.cat([parts[o * inner + i] for i in range(inner) for o in range(outer)])

"""Links made slow by waiting, where the system lets nobody make slow ones: what crosses lands no sooner than it would.

Every rank tells with its rows when they have left a link of the given rate, one exchange after the other, and a rank
has what others sent once they have left and the latency is over. Ranks of one host share a clock. Nothing slows what
the processor does beside, which a real link's packets would; so times over such links are told apart.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from .pieces import collectives


@dataclass(slots=True, kw_only=True, eq=False)
class Link:
    """A node's link, as one of its ranks has it.

    Attributes
    ----------
    rate : B/s of a node's link in one direction; its ranks share it evenly
    latency : s
    width : ranks of a node
    first : the first rank of the exchange, among all
    rank : this one, within the exchange
    """

    rate: float
    latency: float
    width: int
    first: int = 0
    rank: int = 0
    _free: float = field(default=0.0)

    def leave(self, given: Sequence[float], taken: Sequence[float]) -> float:
        """Queue bytes to and from each rank of the exchange, and return when the last of them is over the link."""
        own = (self.first + self.rank) // self.width
        away = [peer for peer in range(len(given)) if (self.first + peer) // self.width != own]
        moved = max(sum(given[peer] for peer in away), sum(taken[peer] for peer in away))
        now = time.perf_counter()
        if not away:
            return now
        self._free = max(now, self._free) + moved * self.width / self.rate
        return self._free + self.latency


@dataclass(slots=True, kw_only=True, eq=False)
class Slowed(collectives.Flight):
    """An all-to-all that lands when every rank's rows are over its link."""

    link: Link
    _due: Tensor | None = field(default=None)
    _told: Any = field(default=None)

    def send(self, rows: Tensor, *, back: bool = False) -> Tensor:
        """Start the exchange, and tell every rank when this one's rows arrive."""
        out = collectives.Flight.send(self, rows, back=back)
        taken, given = (self.given, self.taken) if back else (self.taken, self.given)
        ranks = dist.get_world_size(self.group)
        due = self.link.leave(_bytes(given, rows, ranks), _bytes(taken, out, ranks))
        arrive = torch.full((ranks,), due, dtype=torch.float64)
        self._due = torch.empty_like(arrive)
        self._told = (collectives.all_to_all_start(self._due, arrive, None, None, self.group), arrive)
        return out

    def wait(self) -> None:
        """Wait for the exchange, and then for the last link."""
        collectives.Flight.wait(self)
        assert self._due is not None
        self._told[0].wait()
        sleep_until(float(self._due.max()))
        self._told = self._due = None


def sleep_until(moment: float) -> None:
    """Sleep until a moment of the host's clock."""
    left = moment - time.perf_counter()
    if left > 0:
        time.sleep(left)


def _bytes(split: Sequence[int] | None, rows: Tensor, ranks: int) -> list[float]:
    """Return the bytes of each part of rows; even parts where no split is given."""
    whole = float(rows.numel() * rows.element_size())
    if split is None:
        return [whole / ranks] * ranks
    return [whole * part / max(rows.shape[0], 1) for part in split]

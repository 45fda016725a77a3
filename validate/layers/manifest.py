"""Who sends how many rows to which slot: known beforehand with fixed capacities, else told in an exchange of sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

Rows = Int[np.ndarray, "rank slot"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Manifest:
    """Rows of one exchange as one rank sees them.

    Attributes
    ----------
    sent : this rank's rows for each slot of each rank
    received : rows from each rank for each slot of this rank
    via : rows that each rank of this node hands to this rank for its place in each node; None where nothing is handed
        on
    even : whether all ranks know that all blocks of all ranks are alike; a rank's own blocks would not tell
    """

    sent: Rows
    received: Rows
    via: Int[np.ndarray, "mate node slot"] | None = None
    even: bool = False

    def chunk(self, number: int, degree: int) -> Manifest:
        """Cut every block of rows into `degree` chunks, which both ends can do for themselves."""
        if degree == 1:
            return self
        parts = (None if rows is None else _cut(rows, number, degree) for rows in (self.sent, self.received, self.via))
        sent, received, via = parts
        assert sent is not None
        assert received is not None
        return Manifest(sent=sent, received=received, via=via, even=self.even)

    @property
    def given(self) -> list[int]:
        """Rows to each rank."""
        return [int(rows) for rows in self.sent.sum(axis=1)]

    @property
    def taken(self) -> list[int]:
        """Rows from each rank."""
        return [int(rows) for rows in self.received.sum(axis=1)]


def _cut(rows: Int[np.ndarray, "..."], number: int, degree: int) -> Int[np.ndarray, "..."]:
    """Rows of one chunk of blocks: those from ceil(c n / d) up to ceil((c + 1) n / d).

    Examples
    --------
    >>> [_cut(np.array([5, 1, 0]), chunk, 2).tolist() for chunk in range(2)]
    [[3, 1, 0], [2, 0, 0]]
    """
    return np.asarray(_ends(rows, number + 1, degree) - _ends(rows, number, degree))


def _ends(rows: Int[np.ndarray, "..."], number: int, degree: int) -> Int[np.ndarray, "..."]:
    return np.asarray(-(-rows * number // degree))


def of_all(rows: Int[np.ndarray, "source slot"], rank: int, width: int) -> Manifest:
    """Read one rank's manifest off the rows from all ranks to all slots; `width` ranks are a node, 0: no nodes."""
    ranks = len(rows)
    blocks = rows.reshape(ranks, ranks, -1)
    via = None
    if width:
        node, place = divmod(rank, width)
        via = blocks[node * width : (node + 1) * width, place::width]
    return Manifest(sent=blocks[rank], received=blocks[:, rank], via=via, even=bool((rows == rows.flat[0]).all()))


def arranged(sent: Int[np.ndarray, "slot"], first: Int[np.ndarray, "slot"], degree: int) -> Int[np.ndarray, "row"]:
    """Order rows by chunk, then by slot: which of the rows at hand, that of each slot starting at `first`, comes where.

    Examples
    --------
    >>> arranged(np.array([3, 2]), np.array([0, 3]), 2).tolist()
    [0, 1, 3, 2, 4]
    """
    ranges = [
        np.arange(start + low, start + high)
        for chunk in range(degree)
        for start, low, high in zip(first, _ends(sent, chunk, degree), _ends(sent, chunk + 1, degree), strict=True)
    ]
    return np.concatenate(ranges) if ranges else np.zeros(0, int)


def starts(rows: Sequence[int] | Int[np.ndarray, "block"]) -> Int[np.ndarray, "block"]:
    """Where each block begins.

    Examples
    --------
    >>> starts([2, 0, 5]).tolist()
    [0, 2, 2]
    """
    return np.asarray(np.cumsum(rows) - rows)

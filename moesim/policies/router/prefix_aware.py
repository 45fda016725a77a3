"""Prefix-aware: a session's requests go where its prefix is cached, unless that replica is far busier than others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SPREAD = 2654435761
"""Knuth's multiplier (The Art of Computer Programming, volume 3, section 6.4): neighbouring sessions part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixAware:
    """Give every session a home, with bounded loads (Mirrokni, Thorup, Zadimoghaddam, SODA 2018).

    Attributes
    ----------
    bound : how many times the mean a home may have in hand before its session goes to the least loaded instead
    """

    bound: float = 1.25

    def __post_init__(self) -> None:
        """Check the range."""
        if self.bound < 1:
            raise ValueError(f"bound = {self.bound}; give at least 1, the mean")

    def __call__(self, turn: int, session: int, hand: Sequence[int]) -> int:
        """Choose the session's home if it has room, else the replica with fewest requests in hand."""
        if session >= 0:
            home = session * _SPREAD % 2**32 % len(hand)
            if hand[home] * len(hand) <= self.bound * (sum(hand) + 1):
                return home
        return hand.index(min(hand))


policy = PrefixAware

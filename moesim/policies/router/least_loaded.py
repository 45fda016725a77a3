"""Least loaded: the replica with fewest requests in hand."""

from collections.abc import Sequence


def policy(turn: int, session: int, hand: Sequence[int]) -> int:
    """Choose the replica with fewest requests in hand, the first of those with as few."""
    return hand.index(min(hand))

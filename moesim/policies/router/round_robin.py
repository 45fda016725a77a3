"""Round robin: replicas in turn."""

from collections.abc import Sequence


def policy(turn: int, session: int, hand: Sequence[int]) -> int:
    """Deal requests to replicas in turn."""
    return turn % len(hand)

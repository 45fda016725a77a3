"""What carries caches from prefill replicas to decode replicas: the network interfaces of each dp group, in turn."""

from __future__ import annotations


class Links:
    """One lane per dp group of each prefill replica; a lane carries one cache after the other.

    Parameters
    ----------
    replicas, groups : int
        Prefill replicas, and the dp groups of each.
    ticks : int
        Ticks that a token's cache takes.
    latency : int
        Ticks that are added to each.

    Examples
    --------
    >>> links = Links(replicas=1, groups=1, ticks=10, latency=5)
    >>> links.send(0, 3, 100), links.send(0, 3, 100)
    (135, 165)
    """

    __slots__ = ("_free", "_latency", "_ticks")

    def __init__(self, *, replicas: int, groups: int, ticks: int, latency: int) -> None:
        self._free = [[0] * groups for _ in range(replicas)]
        self._ticks = ticks
        self._latency = latency

    def send(self, place: int, tokens: int, now: int) -> int:
        """Send the cache of so many tokens by the lane that is free first; when it is there."""
        lanes = self._free[place]
        lane = lanes.index(min(lanes))
        lanes[lane] = max(lanes[lane], now) + tokens * self._ticks
        return lanes[lane] + self._latency

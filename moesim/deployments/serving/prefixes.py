"""Prefixes of sessions that a replica still has cached: the least recently used leave first."""

from __future__ import annotations

from collections import OrderedDict


class Prefixes:
    """Tokens kept by session, within a room of tokens.

    Examples
    --------
    >>> kept = Prefixes(100)
    >>> kept.keep(1, 60); kept.keep(2, 40); kept.hit(1, 50)
    50
    >>> kept.keep(3, 30); kept.hit(2, 40), kept.hit(1, 70)
    (0, 60)
    """

    __slots__ = ("_kept", "_room")

    def __init__(self, room: int) -> None:
        self._kept: OrderedDict[int, int] = OrderedDict()
        self._room = room

    def hit(self, session: int, shared: int) -> int:
        """Tokens that are cached of a request's first `shared` ones."""
        if session not in self._kept:
            return 0
        self._kept.move_to_end(session)
        return min(self._kept[session], shared)

    def keep(self, session: int, tokens: int) -> None:
        """Keep a session's tokens; where the room is short, others go, and one larger than the room is not kept."""
        before = self._kept.pop(session, 0)
        self._kept[session] = max(tokens, before)
        self._room -= self._kept[session] - before
        while self._room < 0:
            self._room += self._kept.popitem(last=False)[1]

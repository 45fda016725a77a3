"""How links are shared and kernels slowed at one moment, for the engine: max-min among flows, or among coflows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Generic, Protocol, TypeVar, final, runtime_checkable

import numpy as np
from jaxtyping import Float

from moesim.ground.clock import Event
from moesim.ground.units import BytesPerSecond, Seconds

Wants = TypeVar("Wants")
Want = tuple[BytesPerSecond, float]
"""Bytes per second wanted by each of a flow's members on a link, and how many real ranks those are."""
FlowWants = Mapping[int, Want]
"""What a flow wants, by link."""
CoflowWants = Float[np.ndarray, "link"]
"""What a coflow wants in all on every link, bytes per second."""


@final
class Flow(Generic[Wants]):
    """Work under way that may be held up, on one rank or (a coflow) on several that keep one rate.

    Attributes
    ----------
    stages : durations at full rate in seconds, ascending, each with the event that comes when it is over
    wants : what it wants of links at full rate
    kind, ranks : what kind of kernel it is, and on which ranks it runs
    rate, since, left : progress per second, since when, and seconds of the present stage left then at full rate
    end, alarm : when the present stage ends as things stand, and when that is looked at next
    """

    __slots__ = ("alarm", "end", "kind", "left", "ranks", "rate", "since", "stages", "wants")

    def __init__(
        self, stages: Sequence[tuple[Seconds, Event]], wants: Wants, kind: str, ranks: Sequence[int], now: Seconds
    ) -> None:
        self.stages = deque(stages)
        self.wants = wants
        self.kind = kind
        self.ranks = ranks
        self.rate = 0.0
        self.since = now
        self.left = self.stages[0][0]
        self.end = inf
        self.alarm = inf


@runtime_checkable
class Sharing(Protocol[Wants]):
    """Something that flows under way hold each other up at."""

    def add(self, flow: Flow[Wants]) -> None:
        """Take in a flow that starts."""

    def remove(self, flow: Flow[Wants]) -> None:
        """Let go of a flow that has ended."""

    def changed(self) -> Iterable[Flow[Wants]]:
        """Settle what was touched since the last call; return the flows whose share may have changed."""

    def share(self, flow: Flow[Wants]) -> float:
        """Rate that is left to a flow, relative to having all to itself."""


def level(capacity: BytesPerSecond, wants: Sequence[Want]) -> BytesPerSecond:
    """Max-min share of a link: nobody gets more than this, and who wants less gets what it wants.

    Examples
    --------
    >>> level(10.0, [(2.0, 1.0), (7.0, 1.0), (9.0, 1.0)])
    4.0
    >>> level(10.0, [(2.0, 1.0), (7.0, 1.0)])
    inf
    """
    if sum(want * members for want, members in wants) <= capacity:
        return inf
    left, members = capacity, sum(members for _, members in wants)
    highest = 0.0
    for want, of in sorted(wants):
        highest = max(highest, left / members)
        left -= want * of
        members -= of
    return highest


@final
class Links:
    """Links shared max-min among flows, each link by itself; a flow gets the smallest of its shares."""

    def __init__(self, capacity: Sequence[BytesPerSecond]) -> None:
        self._capacity = capacity
        self._flows: list[dict[Flow[FlowWants], Want]] = [{} for _ in capacity]
        self._level = [inf] * len(capacity)
        self._touched: dict[int, None] = {}

    def add(self, flow: Flow[FlowWants]) -> None:
        """Take in a flow that starts."""
        for link, want in flow.wants.items():
            self._flows[link][flow] = want
            self._touched[link] = None

    def remove(self, flow: Flow[FlowWants]) -> None:
        """Let go of a flow that has ended."""
        for link in flow.wants:
            del self._flows[link][flow]
            self._touched[link] = None

    def changed(self) -> Iterable[Flow[FlowWants]]:
        """Level the links that were touched; return the flows on those whose level moved."""
        moved: list[Flow[FlowWants]] = []
        for link in self._touched:
            flows = self._flows[link]
            new = level(self._capacity[link], tuple(flows.values()))
            if new != self._level[link]:
                self._level[link] = new
                moved.extend(flows)
        self._touched.clear()
        return moved

    def share(self, flow: Flow[FlowWants]) -> float:
        """Rate of a flow relative to what it wants."""
        share = 1.0
        for link, (want, _) in flow.wants.items():
            if self._level[link] < share * want:
                share = self._level[link] / want
        return share


@final
class CoLinks:
    """Links shared max-min among coflows, all links at once."""

    def __init__(self, capacity: CoflowWants) -> None:
        self._capacity = capacity
        self._wants: dict[Flow[CoflowWants], Float[np.ndarray, "link"]] = {}
        self._share: dict[Flow[CoflowWants], float] = {}
        self._touched = False

    def add(self, flow: Flow[CoflowWants]) -> None:
        """Take in a coflow that starts."""
        self._wants[flow] = flow.wants
        self._touched = True

    def remove(self, flow: Flow[CoflowWants]) -> None:
        """Let go of a coflow that has ended."""
        del self._wants[flow]
        self._touched = True

    def changed(self) -> Iterable[Flow[CoflowWants]]:
        """Level all links if any coflow came or went; return all coflows."""
        if not self._touched:
            return ()
        self._touched = False
        wants = np.array(list(self._wants.values())).reshape(-1, len(self._capacity))
        self._share = dict(zip(self._wants, shares(self._capacity, wants).tolist(), strict=True))
        return self._wants

    def share(self, flow: Flow[CoflowWants]) -> float:
        """Rate of a coflow relative to what it wants."""
        return self._share.get(flow, 1.0)


def shares(capacity: CoflowWants, wants: Float[np.ndarray, "flow link"]) -> Float[np.ndarray, "flow"]:
    """Give each coflow the smallest share it gets on any link, relative to what it wants there.

    The level of a link is the largest, over k, of what its k smallest wants leave to each of the others.

    Examples
    --------
    >>> shares(np.array([10.0, 10.0]), np.array([[8.0, 2.0], [8.0, 0.0], [0.0, 5.0]])).tolist()
    [0.625, 0.625, 1.0]
    """
    ascending = np.sort(wants, axis=0)
    left = capacity + ascending
    left -= np.cumsum(ascending, axis=0)
    left /= np.arange(len(wants), 0, -1)[:, np.newaxis]
    levels = np.maximum.reduce(left, axis=0, initial=0.0)
    relative = levels / np.maximum(wants, levels)
    smallest: Float[np.ndarray, "flow"] = np.minimum.reduce(relative, axis=1)
    return smallest


@final
class Neighbors(Generic[Wants]):
    """Kernels that slow each other on one rank: a flow keeps 1 / (1 + sum of slowdowns) on its slowest rank."""

    def __init__(self, slowdown: Mapping[str, Mapping[str, float]], ranks: int) -> None:
        self._slowdown = slowdown
        self._flows: list[dict[Flow[Wants], None]] = [{} for _ in range(ranks)]
        self._touched: dict[int, None] = {}

    def add(self, flow: Flow[Wants]) -> None:
        """Take in a flow that starts."""
        for rank in flow.ranks:
            self._flows[rank][flow] = None
            self._touched[rank] = None

    def remove(self, flow: Flow[Wants]) -> None:
        """Let go of a flow that has ended."""
        for rank in flow.ranks:
            del self._flows[rank][flow]
            self._touched[rank] = None

    def changed(self) -> Iterable[Flow[Wants]]:
        """List the flows on ranks where one came or went."""
        moved = [flow for rank in self._touched for flow in self._flows[rank]]
        self._touched.clear()
        return moved

    def share(self, flow: Flow[Wants]) -> float:
        """Rate of a flow relative to what it would have alone on its ranks."""
        slowed_by = self._slowdown.get(flow.kind)
        if not slowed_by:
            return 1.0
        beside = (
            sum(slowed_by.get(other.kind, 0.0) for other in self._flows[rank] if other is not flow)
            for rank in flow.ranks
        )
        return 1.0 / (1.0 + max(beside))

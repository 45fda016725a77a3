"""Queue: replicas are added where requests wait, and taken away where the others could hold what is at work."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from moesim.policies.protocols import Demand
from moesim.policies.scaling._times import check


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """Follow the requests that wait, as autoscalers on a queue's length do (KEDA, Kubernetes on custom metrics).

    Attributes
    ----------
    waiting : requests that may wait for each replica that is on, before there is one more for every so many
    fill : share of their places that requests at work may take after replicas are taken away
    lowest : fewest replicas
    every, lag, hold : seconds between looks, from a look to acting, and for which fewer must have been wanted before
        any is taken away; 15 s and 300 s are the defaults of Kubernetes' horizontal autoscaler, the lag is a guess
    """

    waiting: float = 4.0
    fill: float = 0.6
    lowest: int = 1
    every: float = 15.0
    lag: float = 15.0
    hold: float = 300.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.waiting <= 0:
            raise ValueError(f"waiting = {self.waiting}; give more than 0 requests")
        if not 0 < self.fill < 1:
            raise ValueError(f"fill = {self.fill}; give a share between 0 and 1")
        check(self.every, self.lag, self.hold, self.lowest)

    def __call__(self, seen: Demand) -> int:
        """Return how many replicas should be on."""
        if seen.waiting > self.waiting * seen.on:
            wanted = max(ceil(seen.waiting / self.waiting), seen.on + 1)
        else:
            wanted = min(ceil((seen.working + seen.waiting) / (self.fill * seen.places)), seen.on)
        return min(max(wanted, self.lowest), seen.replicas)


policy = Queue

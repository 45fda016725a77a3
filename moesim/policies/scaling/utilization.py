"""Utilization: as many replicas as keep the share of places taken near a target."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from moesim.policies.protocols import Demand
from moesim.policies.scaling._times import check


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilization:
    """Hold the share of places that requests take, as Kubernetes' horizontal autoscaler holds a metric at its target.

    Wanted are on x share / target, rounded up, and nothing is done within `slack` of the target (its default is 0.1).

    Attributes
    ----------
    target : share of places that requests, waiting ones too, should take
    slack : relative distance from the target at which nothing is done
    lowest : fewest replicas
    every, lag, hold : seconds between looks, from a look to acting, and for which fewer must have been wanted before
        any is taken away; 15 s and 300 s are the defaults of Kubernetes' horizontal autoscaler, the lag is a guess
    """

    target: float = 0.6
    slack: float = 0.1
    lowest: int = 1
    every: float = 15.0
    lag: float = 15.0
    hold: float = 300.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.target < 1:
            raise ValueError(f"target = {self.target}; give a share between 0 and 1")
        if not 0 <= self.slack < 1:
            raise ValueError(f"slack = {self.slack}; give a share from 0 to below 1")
        check(self.every, self.lag, self.hold, self.lowest)

    def __call__(self, seen: Demand) -> int:
        """Return how many replicas should be on."""
        share = (seen.working + seen.waiting) / (seen.places * max(seen.on, 1))
        if abs(share / self.target - 1) <= self.slack:
            return min(max(seen.on, self.lowest), seen.replicas)
        return min(max(ceil(share / self.target * seen.on), self.lowest), seen.replicas)


policy = Utilization

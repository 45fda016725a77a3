"""What one buys on: how far traffic grows, how sure the targets must be met, and what it costs to own."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.ground.units import DollarsPerJoule, DollarsPerSecond, Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Owning:
    """What it costs to own nodes besides buying them; what a gpu is bought for is in its offer.

    Attributes
    ----------
    pue : power drawn from the grid over power drawn by the nodes
    energy : price of energy
    hosting : space, cooling and network, per gpu
    staff : those who run it, in all
    residual : share of the purchase that is got back at the end of the horizon
    """

    pue: float
    energy: DollarsPerJoule
    hosting: DollarsPerSecond = 0.0
    staff: DollarsPerSecond = 0.0
    residual: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Buying:
    """What a purchase must stand.

    Attributes
    ----------
    growth : traffic at the end of the horizon over that of the workload
    peak : traffic of the busiest hours over the mean
    confidence : probability with which every target is to be met at peak
    horizon : how long the purchase is to last
    availability : share of the time in which no node may be short; 0: no spares are kept
    router : how requests are dealt to replicas
    own : what owning costs; None: it is rented
    """

    growth: float = 1.0
    peak: float = 1.0
    confidence: float = 0.9
    horizon: Seconds = 94608000.0
    availability: float = 0.0
    router: str = "least_loaded"
    own: Owning | None = None

    @property
    def busiest(self) -> float:
        """Traffic that must be carried over that of the workload."""
        return self.growth * self.peak

"""Time of copies between the device, its host's memory and disk."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.ground.units import BytesPerSecond
from moesim.schedules.costs.kernels import Params, Size, Time
from moesim.world.hardware import MEMORY_TIERS, Tier

_DEPTH = ("device", *MEMORY_TIERS)


def crossed(source: str, target: str) -> tuple[str, ...]:
    """List the tiers that a copy crosses: ``disk`` to ``device`` passes through the host's memory and its link.

    Examples
    --------
    >>> crossed("disk", "device"), crossed("device", "host"), crossed("disk", "host"), crossed("device", "device")
    (('host', 'disk'), ('host',), ('disk',), ())
    """
    near, far = sorted((_DEPTH.index(source), _DEPTH.index(target)))
    return _DEPTH[near + 1 : far + 1]


def rates(params: Sequence[Params], tiers: Sequence[Tier]) -> list[BytesPerSecond]:
    """Bytes per second of each tier as achieved: efficiency x bandwidth."""
    return [fit["efficiency"] * tier.bandwidth for fit, tier in zip(params, tiers, strict=True)]


def copy(size: Size, *, params: Sequence[Params], tiers: Sequence[Tier]) -> Time:
    """A copy takes the latency of every tier it crosses, and its bytes at the rate of the slowest.

    sum of latency + size / min of (efficiency x bandwidth)

    Hockney's model, Parallel Computing 20(3), 1994; tiers are pipelined, as in pinned staging.

    Parameters
    ----------
    size : bytes
    params : per tier, latency (s), efficiency
    tiers : the tiers crossed

    Examples
    --------
    >>> link = Tier(name="host", ranks=1, bandwidth=10e9, latency=0.0)
    >>> import numpy as np
    >>> copy(np.array([1e9]), params=[{"latency": 0.0, "efficiency": 1.0}], tiers=[link])
    array([0.1])
    """
    return sum(fit["latency"] for fit in params) + size / min(rates(params, tiers))


def copy_loads(size: Size, *, params: Sequence[Params], tiers: Sequence[Tier]) -> tuple[Time]:
    """At least so long is the slowest tier busy: size / min of (efficiency x bandwidth).

    Examples
    --------
    >>> import numpy as np
    >>> link = Tier(name="host", ranks=1, bandwidth=10.0, latency=0.0)
    >>> copy_loads(np.array([20.0]), params=[{"efficiency": 0.5}], tiers=[link])
    (array([4.]),)
    """
    return (size / min(rates(params, tiers)),)

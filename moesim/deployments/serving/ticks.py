"""Whole ticks of time: sums of whole numbers are exact, so runs of steps equal their steps one by one to the bit."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from moesim.ground.units import Seconds

PER_SECOND = 2**40
"""Ticks in a second: one is 0.91 ps, and 63 bits of them last 97 days."""

NEVER = 2**63 - 1
"""The tick that a request never saw."""


def ticks(seconds: Seconds) -> int:
    """Round a duration to ticks.

    Examples
    --------
    >>> ticks(0.5) == PER_SECOND // 2
    True
    """
    return round(seconds * PER_SECOND)


def seconds(counts: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Turn ticks into seconds; what never happened is infinitely late."""
    return np.where(counts == NEVER, np.inf, counts / PER_SECOND)

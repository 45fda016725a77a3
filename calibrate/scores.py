"""Scores of predictions beside measurements. Knows nothing of fits, forms or tables: numbers in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Floats = Float[np.ndarray, " point"]

TAIL = 0.1
"""Share of measurements expected below P10, and above P90."""
MANY = 400
"""Points from which the share inside P10 to P90 is judged by a fixed band."""
BAND = (0.76, 0.84)
"""That band."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well points were predicted.

    Attributes
    ----------
    points : how many
    median, mean, ninth : absolute errors over the measurement: median, mean (MAPE) and 90th percentile
    inside : share of measurements between P10 and P90
    width : median of P90 - P10 over the prediction
    interval : mean interval score over the measurement: the width, and 10 times what lies outside
    """

    points: int
    median: float
    mean: float
    ninth: float
    inside: float
    width: float
    interval: float

    @property
    def honest(self) -> bool:
        """Tell whether the intervals hold what they promise, within two standard errors where points are few."""
        slack = 2 * (0.16 / self.points) ** 0.5
        low, high = BAND if self.points >= MANY else (0.8 - slack, 0.8 + slack)
        return low <= self.inside <= high


def score(measured: Floats, predicted: Floats, low: Floats, high: Floats) -> Score:
    """Score predictions with their P10 and P90.

    Gneiting and Raftery, JASA 102, 2007, equation 43 (interval score).

    Examples
    --------
    >>> one = np.ones(4)
    >>> found = score(np.array([1.0, 1.1, 0.9, 2.0]), one, 0.8 * one, 1.2 * one)
    >>> found.points, round(found.mean, 3), found.inside, round(found.width, 1)
    (4, 0.176, 0.75, 0.4)
    """
    off = np.abs(predicted / measured - 1)
    beyond = np.maximum(low - measured, 0) + np.maximum(measured - high, 0)
    return Score(
        points=len(measured),
        median=float(np.median(off)),
        mean=float(off.mean()),
        ninth=float(np.quantile(off, 0.9)),
        inside=float((beyond == 0).mean()),
        width=float(np.median((high - low) / predicted)),
        interval=float((((high - low) + beyond / TAIL) / measured).mean()),
    )

"""DynaMoE's scores and rules: how full the fullest expert was of late, how well cached assignments agree.

After the author's code in FlexFlow (commits f2d064c3, 722001f6, 32b75946 of 2021); thresholds are its defaults.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int

LOAD_MEMORY = 0.001
"""Weight of the newest batch in the score of load (July 2021; 0.01 from September)."""
AGREEMENT_MEMORY = 0.01
"""Weight of the newest batch in the score of cached assignments (gamma = 0.99)."""


def moved(score: Float[np.ndarray, "..."], seen: Float[np.ndarray, "..."], weight: float) -> Float[np.ndarray, "..."]:
    """Move an average towards what was seen: (1 - g) s + g x.

    Examples
    --------
    >>> moved(np.array([4.0]), np.array([1.0]), 0.25)
    array([3.25])
    """
    return np.asarray((1 - weight) * score + weight * seen)


def load_factor(counts: Int[np.ndarray, "... expert"], tokens: int, topk: int) -> Float[np.ndarray, "... expert"]:
    """Each expert's load as a capacity factor: n / (k B) x count. Their maximum is the global score's input.

    Examples
    --------
    >>> load_factor(np.array([30, 10, 20, 20]), 40, 2)
    array([1.5, 0.5, 1. , 1. ])
    """
    return np.asarray(counts * counts.shape[-1] / (topk * tokens))


def trigger_step(start: float, load: float, weight: float, threshold: float) -> int:
    """First step at which a score, started at `start`, is below threshold x start under a constant load.

    The score is m + (a - m)(1 - g)^t for load m and start a.

    Raises
    ------
    ValueError
        The load is not below the threshold, so it never is.

    Examples
    --------
    >>> trigger_step(4.0, 1.3, 0.001, 0.5)
    1350
    """
    if load >= threshold * start:
        raise ValueError(f"a load of {load} never brings a score below {threshold} x {start}")
    return math.floor(math.log((threshold * start - load) / (start - load)) / math.log(1 - weight)) + 1


def agreement(cached: Int[np.ndarray, "token topk"], chosen: Int[np.ndarray, "token topk"]) -> float:
    """Share of the tokens whose cached experts are those chosen now, in whatever order.

    Examples
    --------
    >>> agreement(np.array([[0, 1], [2, 3]]), np.array([[1, 0], [2, 4]]))
    0.5
    """
    same: Bool[np.ndarray, "token"] = (np.sort(cached, axis=1) == np.sort(chosen, axis=1)).all(axis=1)
    return float(same.mean())


def caching_gain(gate: float) -> float:
    """Speed-up where gate and experts run side by side, for a gate that takes `gate` times the experts' part.

    (1 + x) / max(1, x): at most 2, where both take equally long.

    Examples
    --------
    >>> caching_gain(0.7), caching_gain(1.0), caching_gain(0.0)
    (1.7, 2.0, 1.0)
    """
    return (1 + gate) / max(1.0, gate)

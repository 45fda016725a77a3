"""Pareto fronts: which points no other point beats."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

ROOM = 1 << 20
"""Comparisons made at a time."""


def dominated(
    points: Float[np.ndarray, "point metric"], by: Float[np.ndarray, "other metric"]
) -> Bool[np.ndarray, "point"]:
    """Whether some other point is at least as good in every metric (less is better); an equal one counts.

    Examples
    --------
    >>> dominated(np.array([[1.0, 3.0], [2.0, 2.0]]), np.array([[2.0, 1.0]])).tolist()
    [False, True]
    """
    found = np.zeros(len(points), bool)
    step = max(ROOM // max(by.size, 1), 1)
    for first in range(0, len(points), step):
        block = points[first : first + step, np.newaxis]
        found[first : first + step] = (by <= block).all(axis=-1).any(axis=-1)
    return found


def front(points: Float[np.ndarray, "point metric"]) -> Bool[np.ndarray, "point"]:
    """Mark the points that no other beats; of equal ones the first. A point with NaN is none.

    Examples
    --------
    >>> front(np.array([[1.0, 3.0], [2.0, 2.0], [2.0, 2.0], [3.0, 2.5], [np.nan, 0.0]])).tolist()
    [True, True, False, False, False]
    """
    found = np.zeros(len(points), bool)
    left = np.flatnonzero(~np.isnan(points).any(axis=1))
    left = left[np.lexsort(points[left].T[::-1])]  # so that no later point beats an earlier one
    while len(left):
        best, rest = left[0], left[1:]
        found[best] = True
        left = rest[(points[rest] < points[best]).any(axis=1)]
    return found

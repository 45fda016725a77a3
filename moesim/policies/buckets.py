"""Which batch sizes get a compiled graph: an exact answer, by dynamic programming over the sizes in use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from moesim.ground.errors import PolicyError


def choose_buckets(
    sizes: Int[np.ndarray, "size"],
    weight: Float[np.ndarray, "size"],
    cost: Callable[[Int[np.ndarray, "size"]], Float[np.ndarray, "size"]],
    graphs: int,
) -> tuple[int, ...]:
    """Choose at most `graphs` batch sizes so that running every batch at the next chosen one costs least.

    The best set for sizes up to s that ends with s is the best over all earlier ends p of (its cost up to p, and the
    weight of sizes in (p, s] at the cost of s): exact in O(graphs x sizes^2).

    Parameters
    ----------
    sizes : batch sizes in use, ascending; the last one is always chosen
    weight : how often each occurs
    cost : what a pass of a batch size costs, non-decreasing
    graphs : how many graphs may be kept

    Returns
    -------
    tuple of int
        Chosen sizes, ascending; fewer than `graphs` where more gain nothing.

    Raises
    ------
    PolicyError
        There is room for no graph.

    Examples
    --------
    >>> choose_buckets(np.array([1, 2, 7, 8]), np.array([5.0, 1.0, 1.0, 3.0]), lambda size: size * 1.0, 2)
    (2, 8)
    """
    if graphs < 1:
        raise PolicyError(f"{graphs} graphs; give at least 1")
    total = np.concatenate([[0.0], np.cumsum(weight)])
    spent = total[None, 1:] - total[:-1, None]  # [first, last]: weight of sizes first..last, which run at the last
    price = np.where(np.tri(len(sizes), k=-1).astype(bool), np.inf, spent * cost(sizes)[None])
    best, ends = price[0], []
    for _ in range(1, min(graphs, len(sizes))):
        longer = np.where(np.isfinite(price[1:]), best[:-1, None] + price[1:], np.inf)
        ends.append(np.where(longer.min(axis=0) < best, longer.argmin(axis=0), -1))
        best = np.minimum(best, longer.min(axis=0))
    return _read_back(sizes, ends)


def _read_back(sizes: Int[np.ndarray, "size"], ends: list[Int[np.ndarray, "size"]]) -> tuple[int, ...]:
    """Follow the chosen ends from the largest size backwards."""
    chosen = [len(sizes) - 1]
    for end in reversed(ends):
        if end[chosen[-1]] >= 0:
            chosen.append(int(end[chosen[-1]]))
    return tuple(int(sizes[place]) for place in reversed(chosen))


def padded(sizes: Int[np.ndarray, "size"], weight: Float[np.ndarray, "size"], buckets: tuple[int, ...]) -> float:
    """Share of the rows computed that pads batches up to their bucket.

    Examples
    --------
    >>> round(padded(np.array([1, 2, 8]), np.ones(3), (2, 8)), 4)
    0.0833
    """
    run_at = np.array(buckets)[np.searchsorted(buckets, sizes)]
    return float(1 - (weight * sizes).sum() / (weight * run_at).sum())

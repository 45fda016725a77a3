"""Rules of capacity: how many rows an expert is given, which assignments find room, and how many rows are wasted."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int

ROUNDING = 1e-9
"""Forgiven when a product of decimals is rounded up: 1.1 x 10 is 11 rows, not 12."""

WIDE = 256
"""Rows above which Tutel aligns capacities to `ALIGNED`."""
ALIGNED = 128


def capacity(alpha: float, topk: int, experts: int, tokens: int) -> int:
    """Rows of an expert: ceil(alpha k / n x B) (DynaMoE's group_by in FlexFlow, branch of 2021; Tutel's C = k f T / E).

    Examples
    --------
    >>> capacity(2.0, 2, 5, 50), capacity(1.1, 1, 10, 100), capacity(1.0, 2, 16, 50)
    (40, 11, 7)
    """
    return math.ceil(alpha * topk / experts * tokens - ROUNDING)


def local_capacities(alphas: Float[np.ndarray, "expert"], topk: int, tokens: int) -> Int[np.ndarray, "expert"]:
    """Rows of each expert where each has an alpha of its own (FlexFlow, "local capacity factors").

    Examples
    --------
    >>> local_capacities(np.array([2.0, 0.5, 0.5, 1.0]), 2, 40).tolist()
    [40, 10, 10, 20]
    """
    return np.ceil(alphas * topk / len(alphas) * tokens - ROUNDING).astype(np.int64)


def aligned_capacity(factor: float, topk: int, experts: int, tokens: int, *, shards: int = 1, degree: int = 1) -> int:
    """Rows as Tutel's code rounds them: k int(f ceil(T / E)), up to a multiple of shards x degree.

    Above 256 rows the multiple itself is rounded up to one of 128 (microsoft/tutel, `fast_dispatch`).

    Examples
    --------
    >>> aligned_capacity(1.25, 2, 8, 100), aligned_capacity(1.25, 2, 8, 100, shards=2, degree=8)
    (32, 32)
    >>> aligned_capacity(1.0, 2, 8, 2000)
    512
    """
    rows = topk * int(factor * math.ceil(tokens / experts))
    multiple = shards * degree
    if rows > WIDE:
        multiple = -(-multiple // ALIGNED) * ALIGNED
    return -(-rows // multiple) * multiple


def needed_factor(most: int, topk: int, experts: int, tokens: int) -> float:
    """The capacity factor that just drops nothing, for the largest count of any expert on any rank (Tutel's f = 0).

    Examples
    --------
    >>> needed_factor(300, 2, 8, 400)
    3.0
    """
    return most * experts / (topk * tokens)


def kept_in_order(
    chosen: Int[np.ndarray, "token topk"], room: Int[np.ndarray, "expert"]
) -> Bool[np.ndarray, "token topk"]:
    """Say which assignments find room: each expert takes its first ones, first choices of a token before later ones.

    Examples
    --------
    >>> kept_in_order(np.array([[0, 1], [0, 1], [0, 2]]), np.array([2, 1, 1])).tolist()
    [[True, True], [True, False], [False, True]]
    """
    flat = chosen.ravel()
    order = np.argsort(flat, kind="stable")
    grouped = flat[order]
    first = np.searchsorted(grouped, grouped, side="left")
    place = np.empty_like(flat)
    place[order] = np.arange(len(flat)) - first
    return np.asarray((place < room[flat]).reshape(chosen.shape))


def waste(experts: int, fraction: float, topk: int) -> float:
    """Rows computed per row routed where each rank gives every expert a fraction of its tokens: E c / k.

    Huang et al. (arXiv 2303.06182), waste factor: 12.8 for the language model and 64 for translation.

    Examples
    --------
    >>> waste(512, 0.05, 2), waste(128, 1.0, 2)
    (12.8, 64.0)
    """
    return experts * fraction / topk

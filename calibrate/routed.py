"""Rows of each expert on the rank that was measured, for points that say how tokens were spread."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from .cases import Cases, Index
from .points import rows_of

DRAWS = 4
"""Draws of expert loads over which a power-law point is averaged: its own draw is not known."""

Rows = Float[np.ndarray, "slot case draw"]


def slots_of(cases: Cases, chunk: int) -> Iterator[tuple[Index, Rows]]:
    """Give the rows of every slot, points of as many slots together, `chunk` numbers at a time."""
    drawn = _dealt if "skew" in cases.inputs else _routed
    slots = (cases.inputs["slots"] if "slots" in cases.inputs else cases.inputs["experts"] / cases.inputs["ep"]).astype(
        int
    )
    for number in np.unique(slots):
        here = np.flatnonzero(slots == number)
        step = max(chunk // (int(number) * DRAWS), 1)
        for first in range(0, len(here), step):
            part = here[first : first + step]
            yield part, np.stack([drawn(cases, one).T.astype(float) for one in part], axis=1)


def _dealt(cases: Cases, one: int) -> Int[np.ndarray, "draw slot"]:
    point = {name: values[one] for name, values in cases.inputs.items()}
    return np.array([rows_of(int(point["slots"]), int(point["rows"]), float(point["skew"]))])


def _routed(cases: Cases, one: int) -> Int[np.ndarray, "draw slot"]:
    point = {name: float(values[one]) for name, values in cases.inputs.items()}
    tokens, experts, topk, ep = (int(point[name]) for name in ("tokens", "experts", "topk", "ep"))
    if point["alpha"] == 0.0:
        return np.repeat(balanced(tokens, experts, topk)[None, : experts // ep], DRAWS, axis=0)
    rng = np.random.default_rng(zlib.crc32(f"{tokens}/{experts}/{topk}/{ep}/{point['alpha']}".encode()))
    return np.stack([busiest(power_law(tokens, experts, topk, point["alpha"], rng), ep) for _ in range(DRAWS)])


def balanced(tokens: int, experts: int, topk: int) -> Int[np.ndarray, " expert"]:
    """Spread rows as the published measurements did: a token's experts lie a stride apart, and tokens follow on.

    Examples
    --------
    >>> balanced(1, 8, 2), balanced(8, 8, 2)
    (array([1, 0, 0, 0, 1, 0, 0, 0]), array([2, 2, 2, 2, 2, 2, 2, 2]))
    """
    stride = math.ceil(experts / topk)
    token = np.arange(tokens)
    first = token if tokens >= stride else token * stride // tokens
    chosen = (first[:, None] + stride * np.arange(topk)) % experts
    return np.bincount(chosen.reshape(-1), minlength=experts)


def power_law(
    tokens: int, experts: int, topk: int, alpha: float, rng: np.random.Generator
) -> Int[np.ndarray, " expert"]:
    """Draw loads from a bounded power law, as the published measurements did, and round them to whole rows.

    An expert gets no more rows than there are tokens; what is over goes to the next ones.

    Examples
    --------
    >>> rows = power_law(100, 8, 2, 1.2, np.random.default_rng(0))
    >>> int(rows.sum()), bool(rows.max() <= 100)
    (200, True)
    """
    low, high = (1.0, 0.8 * tokens) if tokens * topk > experts else (0.01, 2.0)
    power = 1.0 - alpha
    drawn = np.sort(((high**power - low**power) * rng.random(experts) + low**power) ** (1 / power))[::-1]
    whole = np.minimum(np.rint(drawn / drawn.sum() * tokens * topk).astype(int), tokens)
    rest = tokens * topk - int(whole.sum())
    while rest:  # one row to each of the fullest that have room, or from each of the emptiest that have any
        some = np.flatnonzero(whole < tokens)[:rest] if rest > 0 else np.flatnonzero(whole)[rest:]
        whole[some] += np.sign(rest)
        rest = tokens * topk - int(whole.sum())
    return rng.permutation(whole)


def busiest(rows: Int[np.ndarray, " expert"], ep: int) -> Int[np.ndarray, " slot"]:
    """Return the rows of the rank with most of them.

    Examples
    --------
    >>> busiest(np.array([1, 2, 3, 4]), 2)
    array([3, 4])
    """
    by_rank = rows.reshape(ep, -1)
    chosen: Int[np.ndarray, " slot"] = by_rank[by_rank.sum(axis=1).argmax()]
    return chosen

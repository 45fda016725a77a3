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

GROUPS = 8
"""Groups of experts from which DeepSeek-V3's router keeps some (n_group of its config.json)."""

Rows = Float[np.ndarray, "slot case draw"]
Chosen = Int[np.ndarray, "token choice"]


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
    kept = int(point.get("kept", 1.0))
    if point["alpha"] == 0.0:
        rows = in_groups(spread(tokens, experts, topk), experts, kept) if kept > 1 else balanced(tokens, experts, topk)
        return np.repeat(rows[None, : experts // ep], DRAWS, axis=0)
    rng = np.random.default_rng(zlib.crc32(f"{tokens}/{experts}/{topk}/{ep}/{point['alpha']}".encode()))
    drawn = [power_law(tokens, experts, topk, point["alpha"], rng, ep=ep) for _ in range(DRAWS)]
    if kept > 1:
        drawn = [in_groups(dealt(rows, topk), experts, kept) for rows in drawn]
    return np.stack([busiest(rows, ep) for rows in drawn])


def spread(tokens: int, experts: int, topk: int) -> Chosen:
    """Choose experts a stride apart for each token, those of the next following on."""
    stride = math.ceil(experts / topk)
    token = np.arange(tokens)
    first = token if tokens >= stride else token * stride // tokens
    return np.asarray((first[:, None] + stride * np.arange(topk)) % experts)


def dealt(rows: Int[np.ndarray, " expert"], topk: int) -> Chosen:
    """Deal the rows of all experts to tokens in turn, expert after expert, the fullest first."""
    order = np.argsort(-rows, kind="stable")
    return np.asarray(np.repeat(order, rows[order]).reshape(topk, -1).T)


def balanced(tokens: int, experts: int, topk: int) -> Int[np.ndarray, " expert"]:
    """Spread rows as the published measurements did: a token's experts lie a stride apart, and tokens follow on.

    Examples
    --------
    >>> balanced(1, 8, 2), balanced(8, 8, 2)
    (array([1, 0, 0, 0, 1, 0, 0, 0]), array([2, 2, 2, 2, 2, 2, 2, 2]))
    """
    return np.bincount(spread(tokens, experts, topk).reshape(-1), minlength=experts)


def in_groups(wanted: Chosen, experts: int, kept: int) -> Int[np.ndarray, " expert"]:
    """Count the rows of each expert where a router that keeps `kept` of `GROUPS` groups was asked for others.

    The measurements give the wanted experts of a token one high score and all others one low score. A group counts by
    its two best (DeepSeek-V3, arXiv 2412.19437, section 2.1.2), of equals the first; experts that are wanted and not
    in a group that is kept give way to the first ones of those that are.

    Examples
    --------
    >>> in_groups(np.array([[0, 2, 4, 6], [0, 4, 8, 12]]), 16, 2)[:6]  # groups 0 and 1 of one, 0 and 2 of the other
    array([2, 2, 1, 1, 1, 1])
    """
    tokens, topk = wanted.shape
    high = np.zeros((tokens, experts))
    np.put_along_axis(high, wanted, 1.0, axis=1)
    scores = np.minimum(high.reshape(tokens, GROUPS, -1).sum(axis=2), 2.0)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :kept]
    here = np.zeros((tokens, GROUPS))
    np.put_along_axis(here, best, 1.0, axis=1)
    ranked = np.argsort(-(high + 1.0) * here.repeat(experts // GROUPS, axis=1), axis=1, kind="stable")
    return np.bincount(ranked[:, :topk].reshape(-1), minlength=experts)


def power_law(
    tokens: int, experts: int, topk: int, alpha: float, rng: np.random.Generator, *, ep: int = 1
) -> Int[np.ndarray, " expert"]:
    """Draw loads from a bounded power law, as the published measurements did, and round them to whole rows.

    An expert gets no more rows than there are tokens. What rounding and that leave over goes to the emptiest experts,
    and what there is too much comes from the fullest: rank by rank, one row at a time. (AIConfigurator 0.12,
    collector/helper.py; older versions gave it to the fullest, so that at few tokens fewer experts had any.)

    Examples
    --------
    >>> rows = power_law(100, 8, 2, 1.2, np.random.default_rng(0))
    >>> int(rows.sum()), bool(rows.max() <= 100)
    (200, True)
    """
    low, high = (1.0, 0.8 * tokens) if tokens * topk > experts else (0.01, 2.0)
    power = 1.0 - alpha
    drawn = ((high**power - low**power) * rng.random(experts) + low**power) ** (1 / power)
    whole = np.minimum(np.rint(drawn / drawn.sum() * tokens * topk).astype(int), tokens).reshape(ep, -1)
    while (rest := tokens * topk - int(whole.sum())) != 0:
        able = whole.min(axis=1) < tokens if rest > 0 else whole.max(axis=1) > 0
        shares = np.zeros(ep, int)
        shares[able] = abs(rest) // able.sum() + (np.arange(able.sum()) < abs(rest) % able.sum())
        whole = np.stack(
            [
                filled(rows, share, tokens) if rest > 0 else -filled(-rows, share, 0)
                for rows, share in zip(whole, shares.tolist(), strict=True)
            ]
        )
    return np.asarray(whole.reshape(-1))


def filled(rows: Int[np.ndarray, " slot"], number: int, most: int) -> Int[np.ndarray, " slot"]:
    """Add rows one at a time to the slot that has least, none beyond `most`.

    Examples
    --------
    >>> filled(np.array([3, 0, 1, 5]), 4, 4)
    array([3, 3, 2, 5])
    >>> filled(np.array([3, 0]), 9, 4)
    array([4, 4])
    """
    low, high = int(rows.min()), most + 1  # the last level that can be paid for
    while high - low > 1:
        level = (low + high) // 2
        low, high = (level, high) if np.maximum(level - rows, 0).sum() <= number else (low, level)
    leveled = np.maximum(rows, low)
    left = number - int((leveled - rows).sum())
    some = np.flatnonzero((leveled == low) & (leveled < most))[:left]
    leveled[some] += 1
    return np.asarray(leveled)


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

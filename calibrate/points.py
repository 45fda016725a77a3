"""Which points to measure: anchors that pin one parameter each, then points that fill the space of shapes.

The order matters: any beginning of it is a good set, so a budget that runs out costs resolution, never a corner.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Inputs = Mapping[str, float]
Floats = NDArray[np.float64]
CANDIDATES = 64
"""Shapes drawn for each point that is chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One input of an operation: log-uniform between two ends, or one of a few values.

    Attributes
    ----------
    name : the input
    low, high : ends of the range, both included
    step : values are multiples of it
    among : the values, where only these occur
    """

    name: str
    low: float = 1.0
    high: float = 1.0
    step: int = 1
    among: tuple[float, ...] = ()

    def draw(self, rng: np.random.Generator, number: int) -> Floats:
        """Draw values, alike on a log scale."""
        if self.among:
            return rng.choice(np.array(self.among, dtype=float), number)
        drawn = np.exp(rng.uniform(np.log(self.low), np.log(self.high), number))
        rounded: Floats = np.round(drawn / self.step) * self.step
        return rounded.clip(self.low, self.high)

    def place(self, values: Floats) -> Floats:
        """Return where values lie between the ends, 0 to 1 on a log scale."""
        low, high = (min(self.among), max(self.among)) if self.among else (self.low, self.high)
        if high <= low:
            return np.zeros_like(values)
        shift = 1.0 - low if low <= 0 else 0.0  # an axis may begin at zero, as a skew does
        placed: Floats = np.log((values + shift) / (low + shift)) / np.log((high + shift) / (low + shift))
        return placed


def design(
    axes: Sequence[Axis],
    anchors: Sequence[Inputs],
    number: int,
    *,
    allowed: Callable[[Inputs], bool],
    seed: str,
) -> tuple[Inputs, ...]:
    """Choose points: the anchors, then by turns the farthest candidate from all chosen and a random one.

    Half maximin and half random, after a few large anchors, predicted unseen products best among the choices tried in
    docs/background/evidence.md.

    Parameters
    ----------
    axes : the inputs
    anchors : points taken first
    number : how many points in all, at most
    allowed : whether the machine can afford a point; anchors too are left out where it cannot
    seed : a name; the same name gives the same points

    Examples
    --------
    >>> axes = (Axis(name="m", low=1, high=100), Axis(name="k", among=(64, 128)))
    >>> points = design(axes, [{"m": 1, "k": 64}], 5, allowed=lambda point: point["m"] < 90, seed="gemm")
    >>> len(points), points[0]
    (5, {'m': 1, 'k': 64})
    """
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    chosen = [dict(anchor) for anchor in anchors if allowed(anchor)][:number]
    drawn = _drawn(axes, number * CANDIDATES, rng)
    candidates = [point for point in drawn if allowed(point) and point not in chosen]
    if not candidates:
        return tuple(chosen)
    places = _places(axes, candidates)
    away = np.full(len(candidates), np.inf)
    for point in chosen:
        away = np.minimum(away, _distance(places, _places(axes, [point])[0]))
    while len(chosen) < number and away.any():
        take = int(away.argmax()) if len(chosen) % 2 else int(rng.choice(np.flatnonzero(away)))
        chosen.append(candidates[take])
        away = np.minimum(away, _distance(places, places[take]))
    return tuple(chosen)


def _drawn(axes: Sequence[Axis], number: int, rng: np.random.Generator) -> list[dict[str, float]]:
    columns = {axis.name: axis.draw(rng, number) for axis in axes}
    return [dict(zip(columns, map(float, row), strict=True)) for row in zip(*columns.values(), strict=True)]


def _places(axes: Sequence[Axis], points: Sequence[Inputs]) -> Floats:
    return np.stack([axis.place(np.array([point[axis.name] for point in points], dtype=float)) for axis in axes], 1)


def _distance(places: Floats, one: Floats) -> Floats:
    away: Floats = np.sqrt(np.square(places - one).sum(axis=1))
    return away


def rows_of(slots: int, rows: int, skew: float) -> list[int]:
    """Deal rows to slots by a power law: slot s gets a share proportional to (s + 1)^-skew, the largest rest first.

    So the rows of every expert follow from three numbers. Skew 0 deals evenly.

    Examples
    --------
    >>> rows_of(4, 10, 0.0), rows_of(4, 10, 1.0), rows_of(4, 2, 0.0)
    ([3, 3, 2, 2], [5, 2, 2, 1], [1, 1, 0, 0])
    """
    weights = (np.arange(slots) + 1.0) ** -skew
    ideal = rows * weights / weights.sum()
    dealt = np.floor(ideal).astype(int)
    rest = np.argsort(dealt - ideal, kind="stable")[: rows - dealt.sum()]
    dealt[rest] += 1
    return [int(count) for count in dealt]

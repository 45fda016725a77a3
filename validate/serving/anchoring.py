"""Shift a framework's numbers by one or a few measurements of a deployment, and say how sure they are then.

The most likely numbers given what is measured: the shipped ones, uncertain by the widths of the fit's priors, are moved
until measured and predicted agree to the noise of a repeated benchmark.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from moesim.world.framework import Framework

from .fitting import NAMES, WIDTHS, Numbers, Sample, Slope, habits, slope_of
from .measured import Setup
from .prediction import Predicted, Predictor
from .scores import group_of

REPEAT = np.array([0.10, 0.03])
"""Logarithmic error of TTFT and TPOT when a benchmark is repeated within one release: up to the 90th percentile."""

ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchored:
    """Frameworks after a shift, and the logarithmic standard deviation that is left of each number."""

    names: tuple[str, ...]
    rows: int
    frameworks: dict[str, Framework]
    numbers: Float[np.ndarray, "framework number"]
    left: Float[np.ndarray, "framework number"]


def anchor(predictor: Predictor, sample: Sample, start: Numbers) -> Anchored:
    """Shift the frameworks of a sample of measured rows, from numbers that are known of them in general."""
    at, left = start.copy(), np.tile(WIDTHS, (len(sample.names), 1))
    for _ in range(ROUNDS):
        slope = slope_of(predictor, sample, at)
        for place in range(len(sample.names)):
            at[place], left[place] = _posterior(slope, sample.place == place, start[place], place)
    return Anchored(
        names=sample.names, rows=len(sample.setups), frameworks=habits(sample.names, at), numbers=at, left=left
    )


def _posterior(
    slope: Slope, mine: Bool[np.ndarray, "row"], start: Float[np.ndarray, "number"], place: int
) -> tuple[Float[np.ndarray, "number"], Float[np.ndarray, "number"]]:
    """Mean and standard deviation of one framework's numbers, where rows are taken to be linear."""
    rows = mine & np.isfinite(slope.value).all(axis=-1) & np.isfinite(slope.slope).all(axis=(-1, -2))
    matrix = (slope.slope[rows] / REPEAT[:, None]).reshape(-1, len(NAMES))
    errors = (slope.value[rows] / REPEAT).reshape(-1)
    precision = matrix.T @ matrix + np.diag(WIDTHS**-2.0)
    force = matrix.T @ errors + (slope.at[place] - start) / WIDTHS**2
    moved = np.clip(np.linalg.solve(precision, force), -1.0, 1.0)
    return slope.at[place] - moved, np.sqrt(np.diag(np.linalg.inv(precision)))


def with_one_row(predictor: Predictor, sample: Sample, start: Numbers) -> Iterator[tuple[Setup, Predicted]]:
    """Predict the rows of every group after a shift by one of them: that of the middle load."""
    groups: dict[Hashable, list[int]] = {}
    for place, setup in enumerate(sample.setups):
        groups.setdefault((*group_of(setup), setup.gemm, setup.moe), []).append(place)
    for rows in groups.values():
        chosen = _middle([sample.setups[row] for row in rows])
        one = np.arange(len(sample.setups)) == rows[chosen]
        others = [sample.setups[row] for row in rows if row != rows[chosen]]
        if others:
            shifted = anchor(predictor, sample.take(one), start).frameworks
            yield from zip(others, predictor.predict(others, shifted), strict=True)


def _middle(setups: Sequence[Setup]) -> int:
    """Find the setup whose load is the median of all, by concurrency and lengths."""
    order = sorted(range(len(setups)), key=lambda at: (setups[at].concurrency, setups[at].isl, setups[at].osl))
    return order[len(order) // 2]

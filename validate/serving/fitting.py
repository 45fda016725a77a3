"""Fit what frameworks add beyond kernels to serving measurements: a few physical numbers each, held by priors.

Minimized is, for each framework by itself, the sum over its rows of soft absolute errors of log TPOT and log TTFT, and
of squared distances of the log parameters from their priors; by Gauss and Newton with reweighting. Equal setups count
once, with the median of their measurements. No number is keyed on a model, a system or a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, Int

from moesim.world.framework import Framework

from .measured import Measured, Setup
from .names import FRAMEWORKS
from .prediction import Predicted, Predictor
from .runs import doubted
from .worlds import frameworks

PRIORS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "step": (300e-6, 0.5),  # a scheduler's turn: 0.2-0.6 ms
        "layer": (15e-6, 0.7),  # 8-19 small kernels of 1-2.5 us in a captured graph, less those that are itemized
        "sequence": (8e-6, 0.5),  # sampling and detokenizing: 4-19 us
        "prompt": (1.2, 0.3),  # prompts run outside captured graphs
        "latency": (50e-3, 1.0),  # tokenizer, server and stream: 20-110 ms
        "crowd": (400e-6, 1.0),  # 0.3-0.5 ms for each request in flight
        "pace": (1.0, 0.07),  # kernels in a captured graph against those timed one by one
    }
)
"""Median and logarithmic standard deviation of each number before any row is seen: orders of magnitude, assumed."""

NAMES = tuple(PRIORS)
START = np.log([median for median, _ in PRIORS.values()])
WIDTHS = np.array([width for _, width in PRIORS.values()])

NOISE = 0.15
"""Logarithmic error of a step time beyond which a row counts for less."""

WEIGHTS = np.array([0.5, 1.0])
"""Weights of log TTFT and log TPOT in a fit: releases differ by more than twice as much in the former."""

NUDGE = 0.1
"""Step of a finite difference, in logarithms."""

ROUNDS = 4

Numbers = Float[np.ndarray, "framework number"]
Residuals = Float[np.ndarray, "row metric"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Different setups with the median of their measurements, their framework's place, and whether they are trusted.

    Nothing is fitted to a row that is not, since its columns are known not to be what ran; it is scored all the same.
    """

    setups: Sequence[Setup]
    logs: Residuals
    place: Int[np.ndarray, "row"]
    names: tuple[str, ...]
    trusted: Bool[np.ndarray, "row"]

    def take(self, rows: Bool[np.ndarray, "row"]) -> Sample:
        """Keep some of the rows."""
        setups = [setup for setup, kept in zip(self.setups, rows, strict=True) if kept]
        return replace(self, setups=setups, logs=self.logs[rows], place=self.place[rows], trusted=self.trusted[rows])


def sample_of(rows: Sequence[Measured]) -> Sample:
    """Join equal setups; rows without results or of unknown backends are left out."""
    logs: dict[Setup, list[tuple[float, float]]] = {}
    for row in rows:
        if row.setup is not None and row.setup.backend in FRAMEWORKS and np.isfinite(row.ttft + row.tpot):
            logs.setdefault(row.setup, []).append((np.log(row.ttft), np.log(row.tpot)))
    names = tuple(sorted({FRAMEWORKS[setup.backend] for setup in logs}))
    return Sample(
        setups=list(logs),
        logs=np.array([np.median(same, axis=0) for same in logs.values()]).reshape(-1, 2),
        place=np.array([names.index(FRAMEWORKS[setup.backend]) for setup in logs], int),
        names=names,
        trusted=np.array([not doubted(setup) for setup in logs], bool),
    )


def habits(names: Sequence[str], numbers: Numbers) -> dict[str, Framework]:
    """Give frameworks these logarithms of their numbers."""
    known = dict(frameworks())
    for name, row in zip(names, np.exp(numbers).tolist(), strict=True):
        known[name] = replace(known[name], **dict(zip(NAMES, row, strict=True)))
    return known


def residuals(predictor: Predictor, sample: Sample, numbers: Numbers) -> Residuals:
    """Logarithms of predicted over measured; NaN where nothing is predicted."""
    found = predictor.predict(sample.setups, habits(sample.names, numbers))
    logs = np.log([(each.ttft, each.tpot) for each in found]).reshape(-1, 2)
    return np.asarray(logs - sample.logs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """Residuals at a point and how they change with the numbers of their own framework."""

    at: Numbers
    value: Residuals
    slope: Float[np.ndarray, "row metric number"]


def slope_of(predictor: Predictor, sample: Sample, at: Numbers) -> Slope:
    """Differentiate; a number of all frameworks is nudged at once, since a row depends on its own only."""
    value = residuals(predictor, sample, at)
    columns = [(residuals(predictor, sample, at + NUDGE * unit) - value) / NUDGE for unit in np.eye(len(NAMES))]
    return Slope(at=at, value=value, slope=np.stack(columns, axis=-1))


def step(sample: Sample, slope: Slope, kept: Bool[np.ndarray, "row"]) -> Numbers:
    """Solve the linearized problem on some of the rows, reweighted until it settles."""
    good = kept & sample.trusted & np.isfinite(slope.value).all(axis=-1) & np.isfinite(slope.slope).all(axis=(-1, -2))
    moved = slope.at.copy()
    for place in range(len(sample.names)):
        rows = good & (sample.place == place)
        moved[place] += _solved(slope.value[rows], slope.slope[rows], slope.at[place])
    return moved


def _solved(
    value: Residuals, slope: Float[np.ndarray, "row metric number"], at: Float[np.ndarray, "number"]
) -> Float[np.ndarray, "number"]:
    """Move one framework's numbers; by a factor of e at most."""
    errors, matrix = (value * WEIGHTS).reshape(-1), (slope * WEIGHTS[:, None]).reshape(-1, len(NAMES))
    moved = np.zeros(len(NAMES))
    for _ in range(8):
        weight = 1 / (NOISE * np.sqrt(1 + ((errors + matrix @ moved) / NOISE) ** 2) ** 0.5)
        left = np.vstack([matrix * weight[:, None], np.diag(1 / WIDTHS)])
        right = np.concatenate([errors * weight, (at - START) / WIDTHS])
        moved = np.clip(np.linalg.lstsq(left, -right, rcond=None)[0], -1.0, 1.0)
    return moved


def fit(
    predictor: Predictor, sample: Sample, progress: Callable[[float], None] = lambda share: None
) -> tuple[Numbers, Slope]:
    """Fit all frameworks of a sample; also the slope at the last point but one, from which folds start."""
    numbers, rows = np.tile(START, (len(sample.names), 1)), np.ones(len(sample.setups), bool)
    for turn in range(ROUNDS):
        slope = slope_of(predictor, sample, numbers)
        numbers = step(sample, slope, rows)
        progress((turn + 1) / ROUNDS)
    return numbers, slope


def without(sample: Sample, slope: Slope, key: Callable[[Setup], str]) -> dict[str, Numbers]:
    """Fit without each group: the numbers by the group that they have not seen.

    Folds solve again from the whole fit's slopes: the numbers move by less than those change over.
    """
    groups = np.array([key(setup) for setup in sample.setups])
    return {group: step(sample, slope, groups != group) for group in sorted(set(groups.tolist()))}


def left_out(
    predictor: Predictor, sample: Sample, slope: Slope, key: Callable[[Setup], str]
) -> Iterator[tuple[Setup, Predicted]]:
    """Predict every setup with numbers fitted without its group."""
    groups = np.array([key(setup) for setup in sample.setups])
    for group, numbers in without(sample, slope, key).items():
        part = sample.take(groups == group)
        yield from zip(part.setups, predictor.predict(part.setups, habits(sample.names, numbers)), strict=True)

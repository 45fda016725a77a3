"""Shift a framework by one or a few measurements of a deployment, and say how sure its numbers are then.

Rows of a deployment err together, mostly by one factor: kernels that all take some per cent longer than their fits say.
So a measured row moves `pace`, and what is left of its TTFT the numbers of prompts and of the front end, each by what
is most likely given how far such numbers lie apart between deployments and how far rows of one deployment scatter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from moesim.world.framework import Framework

from .fitting import Residuals, Sample, sample_of
from .measured import Measured, Setup
from .prediction import Predicted, Predictor
from .runs import doubted
from .scores import group_of

BETWEEN: Mapping[str, float] = MappingProxyType({"pace": 0.15, "prompt": 0.2, "latency": 0.5, "crowd": 0.5})
"""Numbers that move, and the logarithmic standard deviation of each between deployments.

Assumed: the best of four settings tried on the development file, so that errors with one row given are a little too
favorable there."""

SHIFTED = tuple(BETWEEN)
WIDTHS = np.array(list(BETWEEN.values()))

WITHIN = np.array([0.25, 0.07])
"""Logarithmic standard deviation of TTFT and TPOT within a deployment, its common factor apart; assumed likewise."""

NUDGE = 0.1
ROUNDS = 3

Moves = Float[np.ndarray, "number"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchored:
    """A framework after a shift, and the logarithmic standard deviation that is left of each number that moved."""

    rows: int
    before: Framework
    framework: Framework
    left: Moves


def anchor(predictor: Predictor, sample: Sample, known: Mapping[str, Framework]) -> Anchored:
    """Shift the one framework that all of a sample's rows are of, by Gauss and Newton."""
    (name,) = sample.names
    at, left = np.zeros(len(SHIFTED)), WIDTHS
    for _ in range(ROUNDS):
        value = _residuals(predictor, sample, known, at)
        sides = [_residuals(predictor, sample, known, at + NUDGE * unit) for unit in np.eye(len(SHIFTED))]
        slope = np.stack([(side - value) / NUDGE for side in sides], axis=-1)
        at, left = _posterior(value, slope, at)
    return Anchored(rows=len(sample.setups), before=known[name], framework=_shifted(known[name], at), left=left)


def _shifted(framework: Framework, moves: Moves) -> Framework:
    """Multiply the numbers that move by these logarithms."""
    factors = zip(SHIFTED, np.exp(moves).tolist(), strict=True)
    return replace(framework, **{name: getattr(framework, name) * factor for name, factor in factors})


def _residuals(predictor: Predictor, sample: Sample, known: Mapping[str, Framework], moves: Moves) -> Residuals:
    """Logarithms of predicted over measured after a shift."""
    (name,) = sample.names
    found = predictor.predict(sample.setups, {**known, name: _shifted(known[name], moves)})
    return np.asarray(np.log([(each.ttft, each.tpot) for each in found]).reshape(-1, 2) - sample.logs)


def _posterior(
    value: Residuals, slope: Float[np.ndarray, "row metric number"], at: Moves
) -> tuple[Moves, Float[np.ndarray, "number"]]:
    """Mean and standard deviation of the numbers, where rows are taken to be linear; by a factor of e at most."""
    rows = np.isfinite(value).all(axis=-1) & np.isfinite(slope).all(axis=(-1, -2))
    matrix = (slope[rows] / WITHIN[:, None]).reshape(-1, len(SHIFTED))
    errors = (value[rows] / WITHIN).reshape(-1)
    precision = matrix.T @ matrix + np.diag(WIDTHS**-2.0)
    moved = np.clip(np.linalg.solve(precision, matrix.T @ errors + at / WIDTHS**2), -1.0, 1.0)
    return at - moved, np.sqrt(np.diag(np.linalg.inv(precision)))


def with_one_row(
    predictor: Predictor, rows: Sequence[Measured], known: Mapping[str, Framework]
) -> Iterator[tuple[Measured, Predicted]]:
    """Predict the rows of every group after a shift by one of them: the most typical.

    A group is what one deployment can be: a model, a system, a framework's version and formats.
    """
    groups: dict[tuple[str, ...], list[Measured]] = {}
    for row in rows:
        if row.setup is not None:
            version = row.text.get("backend_version", "")
            groups.setdefault((*group_of(row.setup), row.setup.gemm, row.setup.moe, version), []).append(row)
    for group in groups.values():
        chosen = typical(group)
        others = [row for row in group if row.setup != chosen]
        given = sample_of([row for row in group if row.setup == chosen])
        if others and given.names:
            framework = anchor(predictor, given, known).framework
            shifted = {**known, framework.name: framework}
            found = predictor.predict([row.setup for row in others if row.setup is not None], shifted)
            yield from zip(others, found, strict=True)


def typical(rows: Sequence[Measured]) -> Setup:
    """Find the setup that is most like the others: of the layout that most have, its load nearest to the mean one.

    Setups that are doubted are not chosen where there are others.
    """
    known = [row.setup for row in rows if row.setup is not None]
    setups = [setup for setup in known if not doubted(setup)] or known
    ((most, _),) = Counter(setup.layout for setup in setups).most_common(1)
    loads = np.log([(setup.concurrency, setup.isl, setup.osl) for setup in setups])
    away = np.abs(loads - loads.mean(axis=0)).sum(axis=1)
    places = [place for place, setup in enumerate(setups) if setup.layout == most]
    return setups[min(places, key=lambda place: float(away[place]))]

"""How wrong a fit is on points it has not seen: what all shapes of a family share, and what each has of its own."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import Int

from moesim.world.hardware import Fit

from .cases import Cases, Floats, Index
from .fit import FEWEST, Bench, fit_cases, predict

INSIDE = 0.8
"""Share of points that lie between P10 and P90."""
TENTH = 1.2815515655446004
"""Standard deviations from the middle of a normal distribution to its P90."""
FOLDS = 4
"""Parts into which points are cut where none are left over: each is predicted by a fit to the others."""


def residuals(cases: Cases, bench: Bench, fit: Fit) -> Floats:
    """Return log(measured / predicted) of each point."""
    return np.asarray(np.log(cases.seconds / predict(cases, bench, fit)))


def with_spread(fit: Fit, left: Floats, family: Int[np.ndarray, " case"]) -> Fit:
    """Return a fit with the standard deviations that its residuals on unseen points show.

    The sum of both variances is such that 80 % of further points lie between P10 and P90 (one more than there are, as
    in split conformal prediction: Lei et al., JASA 113, 2018); tails heavier than a normal distribution's count only
    by how many there are. `shared` is what two shapes of one family have in common.

    Examples
    --------
    >>> from moesim.ground.units import Source
    >>> fit = Fit(form="gemm", params={}, shared=0, point=0, box={}, source=Source(kind="fitted", title="two"))
    >>> alike = with_spread(fit, np.array([0.1, 0.1, -0.1, -0.1]), np.array([0, 0, 1, 1]))
    >>> round(alike.shared, 3), round(alike.point, 3)
    (0.078, 0.0)
    """
    inside = min(INSIDE * (1 + 1 / len(left)), 1.0)
    total = float(np.quantile(np.abs(left), inside)) / TENTH
    both = float(np.mean(left**2))
    common = min(_common(left, family) / both, 1.0) if both > 0 else 0.0
    return replace(fit, shared=total * common**0.5, point=total * (1.0 - common) ** 0.5)


def _common(left: Floats, family: Int[np.ndarray, " case"]) -> float:
    """Return the mean product of the residuals of two points of one family, or zero where that is negative."""
    sums, squares, numbers = (np.bincount(family, weights=values) for values in (left, left**2, np.ones_like(left)))
    pairs = float((numbers * (numbers - 1)).sum())
    return max(float((sums**2 - squares).sum()) / pairs, 0.0) if pairs else 0.0


def fit_with_spread(cases: Cases, bench: Bench, *, prior: Fit | None = None, certainty: float = 1.0, title: str) -> Fit:
    """Fit points of which none are left over: how wrong it is follows from fits to three quarters, families whole."""
    make = partial(fit_cases, bench=bench, prior=prior, certainty=certainty)
    fit = make(cases, title=title)
    parts = quarters(cases, make, FEWEST if prior is not None else max(FEWEST, len(fit.params)))
    return fit if parts is None else with_spread(fit, left_of(cases, bench, parts), cases.family)


Quarter = tuple[Index, Fit]
"""Which points are in it, and a fit to all others."""


def quarters(cases: Cases, make: Callable[[Cases], Fit], fewest: int) -> list[Quarter] | None:
    """Fit the points without each quarter; None where a quarter leaves fewer than `fewest`: too few to tell."""
    fold = _folds(cases)
    parts = [fold == number for number in np.unique(fold)]
    if min(np.count_nonzero(~part) for part in parts) < fewest:
        return None
    return [(part, make(cases.take(~part))) for part in parts]


def left_of(
    cases: Cases, bench: Bench, parts: Iterable[Quarter], finish: Callable[[Fit, Cases], Fit] | None = None
) -> Floats:
    """Return log(measured / predicted) of each point by the fit to the quarters that it is not in.

    Parameters
    ----------
    cases : all points
    bench : what they were measured on
    parts : of `quarters`
    finish : makes the fit that predicts of one and the points it was fitted to; nothing if not given
    """
    left = np.zeros(len(cases))
    for part, fit in parts:
        whole = fit if finish is None else finish(fit, cases.take(~part))
        left[part] = residuals(cases.take(part), bench, whole)
    return left


def _folds(cases: Cases) -> Int[np.ndarray, " case"]:
    """Cut points in `FOLDS`, families whole where there are enough of them."""
    rng = np.random.default_rng(zlib.crc32(cases.key.encode()))
    names = np.unique(cases.family)
    if len(names) >= 2 * FOLDS:
        return np.asarray(rng.permutation(len(names))[np.searchsorted(names, cases.family)] % FOLDS)
    return np.asarray(rng.permutation(len(cases)) % FOLDS)

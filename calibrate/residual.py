"""The residual model of a fit: how what a form leaves over goes together among points near each other.

A Gaussian process over the logarithms of the sizes, with a length for each, all most probable given weak priors: that
residuals are of the order of 8 %, of which the noise is about half, and change over a spread of the points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import Bounds, minimize

from moesim.schedules.costs.collectives import ROUNDS
from moesim.schedules.costs.residuals import Corrected, kernel, measures
from moesim.world.hardware import Fit, Residual

from .asops import terms_of
from .cases import Cases, Floats
from .fit import Bench, predict

FEWEST, MOST = 24, 64
"""Points below which a form stands alone, as what they leave over is mostly noise; and the first of them that are
kept: chosen points fill their space from the first on, and every prediction looks at each."""
GROSS, DEVIATIONS = 0.25, 4.0
"""Residual from which a point is left out, and so many median deviations: a spike says nothing of its neighbors."""
LENGTH, SIZE, NOISE = 1.5, 0.08, 0.04
"""Prior medians: lengths in standard deviations of the points, size and noise of residuals."""
_WIDTHS = (1.0, 0.7)
"""Standard deviations of the logarithms of lengths, and of size and noise."""
_BOUNDS = ((0.15, 30.0), (0.005, 0.6), (0.01, 0.4))

INPUTS = {
    "gemm": ("m", "n", "k"),
    "attention_prefill": ("heads", "group", "width", "prompts", "cached", "seen", "reused"),
    "attention_decode": ("heads", "group", "width", "prompts", "cached"),
    **dict.fromkeys(ROUNDS, ("size", "ranks")),
    "all_to_all": ("moved", "messages"),
}
"""Sizes by which residuals are told apart; other operations have none."""
ALIKE = 1e-6
"""Spread of a logarithm below which an input does not tell points apart; it still bounds where they count."""
EVER = 1e6
"""Length of such an input: nothing changes along it."""

Places = Float[np.ndarray, "case input"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Process:
    """Lengths, in units of the inputs' standard deviations, and the variances of residuals and of noise."""

    lengths: Floats
    size: float
    noise: float


def with_residual(fit: Fit, cases: Cases, bench: Bench, *, fewest: int = FEWEST) -> Fit:
    """Add to a fit what it leaves over of its points, where their operation has sizes for it and they are enough."""
    if cases.operation not in INPUTS or len(cases) < fewest:
        return fit
    cases, alone = cases.take(np.arange(min(len(cases), MOST))), replace(fit, residual=None)
    left = np.log(cases.seconds / predict(cases, bench, alone))
    good = _usual(left)
    return replace(fit, residual=_residual(cases.take(good), left[good]))


def _usual(left: Floats) -> Bool[np.ndarray, " case"]:
    away = np.abs(left - np.median(left))
    return np.asarray(away <= max(GROSS, DEVIATIONS * float(np.median(away))))


def _residual(cases: Cases, left: Floats) -> Residual:
    names = INPUTS[cases.operation]
    places = places_of(cases)
    spread = places.std(axis=0)
    told = spread > ALIKE
    process = _most_probable(places[:, told] / spread[told], left)
    lengths = np.full(len(names), EVER)
    lengths[told] = process.lengths * spread[told]
    scaled = places / lengths
    covariance = process.size * kernel(scaled, scaled) + process.noise * np.eye(len(left))
    weights = process.size * np.linalg.solve(covariance, left)
    return Residual(
        inputs=names,
        lengths=tuple(lengths.tolist()),
        places=tuple(map(tuple, places.tolist())),
        weights=tuple(weights.tolist()),
    )


def places_of(cases: Cases) -> Places:
    """Return the logarithms of the sizes by which residuals are told apart."""
    names = INPUTS[cases.operation]
    places = np.zeros((len(cases), len(names)))
    for index, op in terms_of(cases):
        assert isinstance(op, Corrected)
        sizes = measures(op)
        for number, name in enumerate(names):
            places[index, number] = np.log(np.broadcast_to(sizes[name], (len(index), 1))[:, 0])
    return places


def _most_probable(places: Places, left: Floats) -> _Process:
    """Find the lengths and variances that make the residuals most probable, priors counted."""
    count = places.shape[1]
    center = np.log([*[LENGTH] * count, SIZE, NOISE])
    widths = np.array([*[_WIDTHS[0]] * count, _WIDTHS[1], _WIDTHS[1]])
    bounds = Bounds(*np.log([*[_BOUNDS[0]] * count, *_BOUNDS[1:]]).T)

    def unlikely(logs: Float[np.ndarray, " parameter"]) -> float:
        process = _process(logs)
        scaled = places / process.lengths
        covariance = process.size * kernel(scaled, scaled) + process.noise * np.eye(len(left))
        lower = np.linalg.cholesky(covariance)
        whitened = np.linalg.solve(lower, left)
        prior = np.square((logs - center) / widths).sum() / 2
        return float(whitened @ whitened / 2 + np.log(np.diag(lower)).sum() + prior)

    return _process(minimize(unlikely, center, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60}).x)


def _process(logs: Float[np.ndarray, " parameter"]) -> _Process:
    return _Process(lengths=np.exp(logs[:-2]), size=float(np.exp(2 * logs[-2])), noise=float(np.exp(2 * logs[-1])))

"""Fits for a device that nobody has measured, or hardly: those of a sibling, carried over by datasheet ratios."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np

from moesim.ground.units import Source
from moesim.world.hardware import Fit

from .cases import Cases
from .fit import FEWEST, Bench, check, fit_cases, predict

LEAST, MOST = 2.0, 8.0
"""A sibling's parameters are at least and at most this much surer than a datasheet's."""
TRUST = 0.5
"""Between the two it is this over how far the device's own points lie from what is carried over, the median."""


def carried(fit: Fit, cases: Cases, sibling: Bench, device: Bench) -> Fit:
    """Carry a fit from one device to another.

    Every parameter keeps its ratio to the datasheet prior: peaks, bandwidths and caches scale with the sheets, launches
    and latencies, which no sheet states, stay. Inside one architecture that predicts 5 to 10 % (docs/accuracy); across
    architectures kernels change and it does not. What the form leaves over is not carried.

    Parameters
    ----------
    fit : of the sibling
    cases : what is priced; only its operation, dtype and kind matter
    sibling, device : the machine that was measured, and the other one
    """
    theirs, ours = sibling.prior(cases), device.prior(cases)
    params = {
        name: value * fit.params[name] / theirs.params[name] if theirs.params[name] else value  # a term that is off
        for name, value in ours.params.items()
    }
    title = f"{fit.source.title}, carried over from {sibling.device.name} by datasheet ratios"
    return replace(
        fit,
        params=MappingProxyType(params),
        shared=max(fit.shared, ours.shared),
        source=Source(kind="derived", title=title),
        box=MappingProxyType({}),
        residual=None,
    )


def transferred(fit: Fit, cases: Cases, sibling: Bench, device: Bench) -> Fit:
    """Carry a fit over and let the device's own points correct it: the less, the better it already tells them.

    Inside one architecture four points know less than the sibling; across architectures they know more.

    Parameters
    ----------
    fit : of the sibling
    cases : the device's own points; with fewer than four the datasheet ratios stand alone
    sibling, device : the machine that was measured, and the other one
    """
    prior = carried(fit, cases, sibling, device)
    if len(cases) < FEWEST:
        return prior
    title = f"{prior.source.title}, and {len(cases)} points of its own"
    return fit_cases(cases, device, prior=prior, certainty=certainty_of(prior, cases, device), title=title)


def certainty_of(prior: Fit, cases: Cases, device: Bench) -> float:
    """Say how much surer than a datasheet's carried parameters are, by how well they tell a device's own points."""
    check(cases, fewest=1)
    away = float(np.median(np.abs(np.log(predict(cases, device, prior) / cases.seconds))))
    return float(np.clip(TRUST / max(away, TRUST / MOST), LEAST, MOST))

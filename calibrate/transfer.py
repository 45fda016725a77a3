"""Fits for a device that nobody has measured, or hardly: those of a sibling, carried over by datasheet ratios."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from moesim.ground.units import Source
from moesim.world.hardware import Fit

from .cases import Cases
from .fit import FEWEST, Bench, fit_cases

CERTAINTY = 2.0
"""A sibling's parameters are this much surer than a datasheet's."""


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
    """Carry a fit over and let the device's own points correct it; few points, small corrections.

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
    return fit_cases(cases, device, prior=prior, certainty=CERTAINTY, title=title)

"""Which of a few ways to fit one's own points is the best, by what each says of points it has not seen.

A machine that nobody wrote a datasheet of, and libraries with rules of their own: how far a prior is to be trusted,
whether passes over memory find their bytes in the cache, and whether what the form leaves over goes together among
neighbors is different from operation to operation. So each is tried, on quarters of the very points that are fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np

from moesim.schedules.costs.priors import CACHE_SHARE, CACHE_SPEED
from moesim.world.hardware import Fit, Node

from .cases import Cases
from .fit import FEWEST, Bench, fit_cases
from .residual import INPUTS, with_residual
from .spread import left_of, quarters, with_spread

GUESSED, OWN, UNSURE = 0.2, 0.5, 0.1
"""Certainty of priors, a datasheet's being 1: of a device that is nobody's in particular, whose numbers are right to
about a factor of two; of one whose peaks are its own best points; and of work that may not go by them at all, as passes
that do much besides moving bytes, or attention of single tokens where nothing multiplies matrices."""
WARM = 0.3
"""The same of a cache's part in a pass over memory."""
GAIN = 0.95
"""Mean error of a later manner over the least so far, from which the plainer one is kept."""
NEAR = 16
"""Points below which what the form leaves over is not tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """Where parameters are expected (the datasheet's if None), and how much surer than a datasheet that is."""

    prior: Fit | None
    certainty: float

    def fit(self, cases: Cases, bench: Bench, *, title: str = "") -> Fit:
        """Fit points in this manner."""
        return fit_cases(cases, bench, prior=self.prior, certainty=self.certainty, title=title)


def best_fit(cases: Cases, bench: Bench, node: Node, *, title: str) -> Fit:
    """Fit points in the manner whose fits to three quarters of them miss the fourth by least; that is its spread.

    Raises
    ------
    MoesimError
        Fewer points than parameters, or a point that is none.
    """
    best: Fit | None = None
    least = np.inf
    for manner in manners(cases, bench, node):
        fit = manner.fit(cases, bench, title=title)
        fewest = FEWEST if manner.prior is not None else max(FEWEST, len(fit.params))
        parts = quarters(cases, partial(manner.fit, bench=bench), fewest)
        if parts is None:
            return best or fit  # too few to tell: the plainest, as wrong as the prior is said to be
        for finish in finishes(cases, bench, node):
            left = left_of(cases, bench, parts, finish)
            if (missed := float(np.abs(left).mean())) < GAIN * least:
                best, least = with_spread(finish(fit, cases), left, cases.family), missed
    assert best is not None
    return best


def manners(cases: Cases, bench: Bench, node: Node) -> Iterator[Manner]:
    """List the ways to fit an operation's points, the plainest first."""
    sure = {"generic": GUESSED, "measured": OWN}.get(node.device.name.partition("/")[0], 1.0)
    if cases.operation == "elementwise":
        yield Manner(prior=None, certainty=UNSURE)
        if measured(node):
            yield Manner(prior=_warm(bench.prior(cases), bench), certainty=WARM)
        return
    yield Manner(prior=_one_by_one(cases, bench), certainty=sure)
    if measured(node) and cases.operation.startswith("attention"):
        yield Manner(prior=None, certainty=UNSURE)


Finish = Callable[[Fit, Cases], Fit]


def finishes(cases: Cases, bench: Bench, node: Node) -> Iterator[Finish]:
    """List what may be done with a fit to some points: nothing, or keeping what it leaves over of them."""
    yield lambda fit, some: fit
    if measured(node) and cases.operation in INPUTS:
        yield partial(with_residual, bench=bench, fewest=NEAR)


def measured(node: Node) -> bool:
    """Tell whether a device is known by its own samples alone."""
    return node.device.name.startswith("measured/")


def _warm(prior: Fit, bench: Bench) -> Fit:
    """Expect a pass over memory to find some of its bytes in the cache."""
    cache = {"cache": CACHE_SHARE * bench.device.cache, "cache_bandwidth": CACHE_SPEED * prior.params["bandwidth"]}
    return replace(prior, params=MappingProxyType({**prior.params, **cache}))


def _one_by_one(cases: Cases, bench: Bench) -> Fit | None:
    """Expect a launch for each expert, as they are multiplied one by one; of other operations what the sheet says."""
    if cases.operation != "grouped_gemm":
        return None
    prior = bench.prior(cases)
    return replace(prior, params=MappingProxyType({**prior.params, "per_expert": prior.params["launch"]}))

"""What compiling and capturing were measured to take, as fits: a straight line over the layers of the graph.

Compiling for the first time and again, for a shape not seen, do the same work and are one line. What a cache holds
takes as long as it takes to look it up, and guards that fail as long as a call: neither is a price of a change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from moesim.ground.errors import MoesimError
from moesim.ground.units import Source
from moesim.schedules.costs.rebuilding import FORM, STEPS, straight
from moesim.world.hardware import Fit

from .cases import Floats
from .fit import most_probable
from .raw import Sample
from .spread import with_spread

KERNELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    dict(zip(STEPS, (("first", "again"), ("capture",)), strict=True))
)
"""Which samples of an operation are its price."""
EXPECTED: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "compile": MappingProxyType({"launch": 1.0, "per_layer": 0.1}),
        "graph": MappingProxyType({"launch": 1e-3, "per_layer": 1e-4}),
    }
)
"""Seconds about which parameters are sought, to a factor of ten: the orders of magnitude, assumed."""
UNSURE = 2.3
"""Standard deviation of the logarithm of a parameter about that."""
FEWEST = 3
"""Points of a line below which nothing is fitted: one more than it has parameters."""


def fit_compiling(samples: Iterable[Sample], title: str) -> tuple[dict[str, Fit], list[str]]:
    """Fit what compiling and capturing take.

    Returns
    -------
    fits by key, and what was measured and could not be fitted, one line each with the reason
    """
    fits: dict[str, Fit] = {}
    left_out: list[str] = []
    kept = list(samples)
    for key in STEPS:
        ours = [one for one in kept if one.operation == key and one.kernel in KERNELS[key]]
        try:
            fits |= {key: _fitted(key, ours, title)} if ours else {}
        except MoesimError as fault:
            left_out.append(str(fault))
    return fits, left_out


def _fitted(key: str, samples: Sequence[Sample], title: str) -> Fit:
    """Fit a line; how wrong it is, each point tells by a fit to the others.

    Raises
    ------
    MoesimError
        Too few points, or all of graphs of one size.
    """
    layers = np.array([sample.inputs["layers"] for sample in samples])
    seconds = np.array([sample.median for sample in samples])
    if len(samples) < FEWEST or np.ptp(layers) == 0:
        raise MoesimError(
            f"{key}: {len(samples)} points of graphs of {len(set(layers.tolist()))} sizes; a line needs {FEWEST} "
            "points of 2 sizes: measure longer, or --only compilation"
        )
    source = Source(kind="fitted", title=f"{title}, {len(samples)} points")
    fit = replace(
        _line(key, layers, seconds), source=source, box={"layers": (float(layers.min()), float(layers.max()))}
    )
    others = [_line(key, np.delete(layers, one), np.delete(seconds, one)) for one in range(len(samples))]
    left = [np.log(s / straight(other, n)) for other, n, s in zip(others, layers, seconds, strict=True)]
    return with_spread(fit, np.array(left), np.arange(len(left)))


def _line(key: str, layers: Floats, seconds: Floats) -> Fit:
    start = Fit(
        form=FORM,
        params=EXPECTED[key],
        shared=0.0,
        point=0.0,
        box=MappingProxyType({}),
        source=Source(kind="assumed", title="orders of magnitude"),
    )
    widths = dict.fromkeys(EXPECTED[key], UNSURE)
    return most_probable(
        start,
        widths,
        lambda tried: np.array([np.log(straight(tried, n) / s) for n, s in zip(layers, seconds, strict=True)]),
    )

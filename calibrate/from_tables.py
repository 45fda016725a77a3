"""A device's fits from published tables: for each framework those of the kernels it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from moesim.files.profiles import load_profile
from moesim.schedules.costs.collectives import DIRECT
from moesim.world.hardware import RUN_BY, Fit

from .cases import Cases
from .choose import split
from .fastest import Fitted
from .fit import Bench, fit_cases
from .published import published
from .ranking import by_key, framework_of, quickest, ranked
from .residual import with_residual
from .spread import residuals, with_spread
from .tables import DEVICES, NODES, ORIGIN, folder_of

POINTS = 256
"""Points that a shipped fit is made of, where a table has so many more than that."""
FABRIC = "infiniband/rail-400g"
"""What joined nodes where several were measured: a card of 400 Gb/s for each gpu."""
SEED = "moesim 1"
"""Names the splits of all tables."""


def bench_of(system: str, cases: Cases) -> Bench:
    """Return the datasheet machine that a system's points were measured on."""
    bare = replace(load_profile("device", DEVICES[system]).profile, fits=MappingProxyType({}))
    if not cases.kind or cases.operation.startswith("attention"):
        return Bench(device=bare)
    tiers = (*load_profile("node", NODES[system]).profile.tiers, *load_profile("fabric", FABRIC).profile.tiers)
    return Bench(device=bare, tier=next(tier for tier in tiers if tier.name == cases.kind))


def fit_kernel(system: str, cases: Cases, *, others: Sequence[Cases] = ()) -> Fitted:
    """Fit one kernel on the split's points and find how wrong it is on others.

    The fit is made of points of all families of shapes. How wrong it is on families not seen shows in a second fit, to
    one half of them, on the other half. Which of a framework's kernels runs is not known, so that their disagreement
    counts, too: each point once with its own time, and once with that of the kernel that was quickest there.

    Parameters
    ----------
    system : as in `tables.DEVICES`
    cases : the kernel's points
    others : kernels of the same framework among which it was chosen
    """
    among = 1 + len(others)
    bench = bench_of(system, cases)
    chosen = f", the fastest of {among}" if among > 1 else ""
    title = f"{ORIGIN}: {cases.kernel}{chosen}"
    number = min(POINTS, len(cases) // 2)
    fitted = cases.take(split(cases, number, seed=SEED).fitted)
    fit = with_residual(fit_cases(fitted, bench, title=f"{title}, {number} points"), fitted, bench)
    families = len(np.unique(cases.family))
    held_out = families // 2 if families >= FAMILIES else 0
    parts = split(cases, number, seed=f"{SEED} spread", families=held_out, most=UNSEEN)
    fitted, held = cases.take(parts.fitted), cases.take(np.concatenate([parts.spread, parts.scored]))
    other = with_residual(fit_cases(fitted, bench), fitted, bench)
    left = [residuals(points, bench, other) for points in (held, quickest(held, others))]
    fit = with_spread(fit, np.concatenate(left), np.tile(held.family, len(left)))
    return Fitted(cases=cases, bench=bench, fit=fit)


UNSEEN = 500
"""Points at most, in each half of the held-out ones, that tell how wrong a fit is."""
FAMILIES = 6
"""Families of shapes from which half of them can stand for the other half."""


def profile_of(
    system: str, data: Path | None = None, *, told: Callable[[Fitted], None] = lambda one: None
) -> Mapping[str, Fit]:
    """Fit what is published of a system: of each framework the fastest kernel that its form describes.

    Parameters
    ----------
    system : as in `tables.DEVICES`
    data : folder of tables; those of the installed package if not given
    told : called with each kernel's fit as it is made

    Returns
    -------
    what plans look up: under "operation/dtype", "operation/dtype/kind" or "operation/tier" the fastest kernel's fit, or
    that of one which belongs to no framework; and under that and "@framework" the fit of a framework's own
    """
    fits: dict[str, Fit] = {}
    for key, owners in by_key(published(folder_of(system, data), system)).items():
        found = {name: one for name, ones in owners.items() if (one := _first(system, ones, told)) is not None}
        if found:
            usual = found.get("") or next(
                found[framework_of(cases)] for cases in ranked([one.cases for one in found.values()])
            )
            own = key.partition("/")[0] in DIRECT  # which plans use if their framework brings such kernels along
            fits |= {} if own else {key: usual.fit}
            fits |= {f"{key}{RUN_BY}{name}": one.fit for name, one in found.items() if own or one is not usual}
    return fits


def _first(system: str, kernels: Sequence[Cases], told: Callable[[Fitted], None]) -> Fitted | None:
    """Fit kernels in turn until their form describes one."""
    for cases in kernels:
        one = fit_kernel(system, cases, others=[other for other in kernels if other is not cases])
        told(one)
        if understood(one.fit):
            return one
    return None


UNKNOWN = 0.6
"""Standard deviation from which a form says next to nothing of a kernel, which works in other ways by shape."""


def understood(fit: Fit) -> bool:
    """Tell whether a form describes a kernel well enough to be worth keeping."""
    return math.hypot(fit.shared, fit.point) < UNKNOWN

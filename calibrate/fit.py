"""Fit a cost form to timed points: the most probable parameters, given datasheet priors and a robust error.

Residuals are log(predicted / measured). Each parameter has a log-normal prior around its datasheet value (or around
that of a sibling device, see `transfer`), wide where the sheet knows little. The prior is what makes a few points
enough; the soft-L1 error is what survives bad rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import least_squares

from moesim.ground.errors import MoesimError
from moesim.ground.units import Source
from moesim.schedules.costs.collectives import DIRECT, PROTOCOLS, ROUNDS, WAYS
from moesim.schedules.costs.fits import Machine, fit_of, fit_of_tier
from moesim.schedules.costs.priors import NVLINKS, deepep_prior, nccl_prior
from moesim.world.hardware import Device, Fit, Tier

from .asops import CLASSES, Term, price, terms_of
from .cases import Cases, Floats

SCALE = 0.05
"""Residual at which a point begins to count less: the repeatability of one kernel in published tables."""
EVALUATIONS = 400
"""Steps after which a fit stops."""
FAR = 4.0
"""Standard deviations from its prior that a parameter may lie; and the p of a norm is 1 at least, or it is none."""
FEWEST = 4
"""Points below which nothing is fitted, however sure the prior."""

# Standard deviations of log(parameter / prior): how much the datasheet knows of each.
_WIDTHS: Mapping[str, float] = MappingProxyType(
    {
        "peak": 0.15,
        "bandwidth": 0.15,
        "efficiency": 0.3,
        "p": 0.3,
        "launch": 1.0,
        "latency": 0.7,
        "per_slot": 2.0,
        **{f"{name}_launch": 0.7 for name in PROTOCOLS},
        **{f"{name}_efficiency": 0.3 for name in PROTOCOLS},
    }
)
_OTHER = 0.8
"""The same of what no datasheet states: tile overheads, caches, padding."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bench:
    """The machine points were measured on, as far as costs see it: a device and, for transfers, a tier."""

    device: Device
    tier: Tier | None = None

    def machine(self, cases: Cases, fit: Fit) -> Machine:
        """Return the machine with one fit put in place of its own."""
        device = replace(self.device, fits={**self.device.fits, cases.key: fit})
        return Machine(device=device, tiers={self.tier.name: self.tier} if self.tier else {})

    def prior(self, cases: Cases) -> Fit:
        """Return the datasheet's fit of an operation; of an all-to-all that of NCCL's or DeepEP's kernels."""
        if self.tier is not None and cases.operation == "all_to_all" and self.tier.name in NVLINKS:
            return nccl_prior(self.tier)
        if self.tier is not None and cases.operation in DIRECT:
            return deepep_prior(self.tier)
        bare = replace(self.device, fits=MappingProxyType({}))
        if self.tier is not None:
            return fit_of_tier(bare, cases.operation, self.tier)
        return fit_of(bare, cases.operation, cases.dtype or "bf16", cases.kind or "default")


def predict(cases: Cases, bench: Bench, fit: Fit) -> Floats:
    """Return the seconds that a fit predicts for each point."""
    return price(terms_of(cases), bench.machine(cases, fit), len(cases))


def fit_cases(cases: Cases, bench: Bench, *, prior: Fit | None = None, certainty: float = 1.0, title: str = "") -> Fit:
    """Fit the form of an operation to points.

    Parameters
    ----------
    cases : points of one operation
    bench : what they were measured on
    prior : where parameters are expected; the datasheet's if not given
    certainty : how much surer than a datasheet that prior is; priors' widths are divided by it
    title : where the points come from

    Returns
    -------
    a fit of source kind ``fitted`` whose box is the range of its points; `shared` and `point` are the prior's still

    Raises
    ------
    MoesimError
        Fewer points than `FEWEST`, or than parameters where only a datasheet stands behind them; or an input or a time
        that is not a positive number.
    """
    start = prior if prior is not None else bench.prior(cases)
    names = [name for name, value in start.params.items() if value > 0]
    check(cases, fewest=FEWEST if prior is not None else max(FEWEST, len(names)))
    widths = {name: _WIDTHS.get(name, _OTHER) / certainty for name in names}
    terms = terms_of(cases)
    fit = most_probable(start, widths, lambda tried: _residuals(tried, cases, terms, bench))
    source = Source(kind="fitted", title=title or f"{len(cases)} points of {cases.operation}")
    return replace(fit, box=box_of(cases), source=source)


def most_probable(start: Fit, widths: Mapping[str, float], residuals: Callable[[Fit], Floats]) -> Fit:
    """Find a fit's most probable parameters, given what a fit leaves of each point.

    Parameters
    ----------
    start : parameters where they are expected
    widths : of those that are sought, the standard deviation of log(parameter / expected)
    residuals : log(predicted / measured) of every point under a fit
    """
    names = list(widths)
    center, width = np.log([start.params[name] for name in names]), np.array(list(widths.values()))

    def error(steps: Float[np.ndarray, " parameter"]) -> Float[np.ndarray, " residual"]:
        tried = _with(start, names, np.exp(center + steps * width))
        return np.concatenate([_robust(residuals(tried)), steps])

    least = np.array([-center[i] / width[i] if name == "p" else -FAR for i, name in enumerate(names)])
    steps = least_squares(error, np.zeros(len(names)), bounds=(least, FAR), max_nfev=EVALUATIONS).x
    return _with(start, names, np.exp(center + steps * width))


def check(cases: Cases, *, fewest: int) -> None:
    """Refuse points that nothing can be fitted to.

    Raises
    ------
    MoesimError
        There are fewer than `fewest`, or a time is no positive number, or an input no number from zero on.
    """
    if len(cases) < fewest:
        raise MoesimError(f"{cases.key}: {len(cases)} points; a fit needs at least {fewest}: measure more")
    good = np.isfinite(cases.seconds) & (cases.seconds > 0)
    _refuse(cases, "seconds", cases.seconds, good, "no positive time")
    for name, values in cases.inputs.items():
        _refuse(cases, name, values, np.isfinite(values) & (values >= 0), "no number from zero on")


def _refuse(cases: Cases, name: str, values: Floats, good: Bool[np.ndarray, " case"], what: str) -> None:
    if not good.all():
        first = int(np.flatnonzero(~good)[0])
        raise MoesimError(
            f"{cases.key}: {name} of point {first} is {values[first]:g}, {what}, and so are "
            f"{int((~good).sum()) - 1} more; remove those points"
        )


def _with(fit: Fit, names: list[str], values: Floats) -> Fit:
    found = {name: float(value) for name, value in zip(names, values, strict=True)}
    return replace(fit, params=MappingProxyType({**fit.params, **found}))


def _residuals(fit: Fit, cases: Cases, terms: list[Term], bench: Bench) -> Floats:
    predicted = price(terms, bench.machine(cases, fit), len(cases))
    return np.asarray(np.log(predicted / cases.seconds))


def _robust(residuals: Floats) -> Floats:
    """Turn residuals into ones whose squares are soft-L1: 2 (sqrt(1 + z^2) - 1), z = residual / `SCALE`."""
    scaled = residuals / SCALE
    return np.asarray(np.sign(scaled) * np.sqrt(2 * (np.sqrt(1 + scaled * scaled) - 1)))


_BOXED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gemm": ("m", "n", "k"),
        "grouped_gemm": ("rows", "n", "k"),
        "attention_prefill": ("heads", "tokens", "keys"),
        "attention_decode": ("heads", "prompts", "keys"),
        **dict.fromkeys(ROUNDS, ("size", "ranks")),
        **dict.fromkeys(WAYS, ("sent",)),
        "elementwise": ("traffic",),
        "copy": ("size",),
        "send": ("size",),
        "host": ("calls",),
    }
)
"""Sizes of an op that a calibrated range is stated for."""


def box_of(cases: Cases) -> Mapping[str, tuple[float, float]]:
    """Return the range of each input of the ops that were measured; sizes of nothing leave no box."""
    box: dict[str, tuple[float, float]] = {}
    for _, op in terms_of(cases):
        if not isinstance(op, CLASSES[cases.operation]):
            continue
        for name in _BOXED[cases.operation]:
            size = np.asarray(getattr(op, name))
            some = size[size > 0]
            if not some.size:
                continue
            low, high = box.get(name, (np.inf, 0.0))
            box[name] = (min(low, float(some.min())), max(high, float(some.max())))
    return MappingProxyType(box)

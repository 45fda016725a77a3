"""What comes out: a verdict that names the binding constraint, a summary by metric, and tidy tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from moesim.ground.showing import Shown
from moesim.ground.units import SourceKind
from moesim.plans.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A headline number with its range: P10, the number itself, P90, in SI units.

    `source` is the weakest kind of source it rests on. ``float(interval)`` is the number itself.
    """

    low: float
    mid: float
    high: float
    unit: str
    source: SourceKind

    def __float__(self) -> float:
        return self.mid


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a plan fits and meets its targets, what binds it, and why in one sentence with numbers."""

    fits: bool
    meets: Mapping[str, bool]
    binding: str
    why: str

    @property
    def good(self) -> bool:
        """Whether the plan fits and meets every target."""
        return self.fits and all(self.meets.values())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result(Shown):
    """What a verb found out about one plan.

    Attributes
    ----------
    summary : headline numbers by metric name (`metrics.METRICS`), each with its range
    tables : tidy tables by name (breakdown, memory, tasks); units in ``.attrs["units"]`` by column
    source : the weakest kind of source the numbers rest on
    outside : inputs that left the range their cost form was calibrated on
    """

    plan: Plan
    seed: int
    verdict: Verdict
    summary: Mapping[str, Interval]
    tables: Mapping[str, pd.DataFrame]
    source: SourceKind
    outside: tuple[str, ...]

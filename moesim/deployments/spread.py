"""The range of what a simulation measures: what differs from run to run, and what the calibrated costs may be wrong by.

Runs are served again with steps as slow as one in ten draws of the costs' residuals has them, and as fast (`pace`). The
difference that this makes and P10 to P90 of what replications scatter by are independent, so their squares are added.
With one replication nothing is known of the scatter, and the range is that of the costs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from moesim.deployments.capacity import Capacity
from moesim.deployments.judging import headline
from moesim.deployments.metrics import METRICS, base_metric
from moesim.deployments.pace import hurried, slowness
from moesim.deployments.ranges import HIGH, LOW
from moesim.deployments.result import Interval
from moesim.deployments.serving.asked import Asked
from moesim.deployments.serving.measures import Served
from moesim.deployments.staging import Deployment
from moesim.ground.units import SourceKind
from moesim.plans.plan import Plan
from moesim.world.scenario import Scenario

LONGEST = 100_000
"""Requests, the first of a run, that are served again with slower and faster steps."""

NOTHING = 1e-9
"""Relative differences below this are those of rounding."""


def spread(
    summary: Mapping[str, float],
    scenario: Scenario,
    plan: Plan,
    room: Capacity,
    deployment: Deployment,
    runs: Sequence[Served],
    seed: int,
    source: SourceKind,
    progress: Callable[[float], None],
) -> dict[str, Interval]:
    """Give every number of a summary its range, P10 to P90 of what one run like these would show."""
    scatter = _scatter([headline(scenario, plan, room, [run]) for run in runs])
    fast, slow = np.quantile(slowness(scenario, plan, seed), (LOW, HIGH)).tolist()
    asked = _first(runs[0].asked)
    shorter = replace(deployment, warm_up=deployment.warm_up * len(asked.prompt) // len(runs[0].asked.prompt))

    def tried(factor: float) -> dict[str, float]:
        if factor == 1.0 and asked is runs[0].asked:
            return headline(scenario, plan, room, runs[:1])
        run = shorter.serve(hurried(asked, factor), progress, pace=factor, seed=seed)
        return headline(scenario, plan, room, [run], factor=factor)

    as_is, ends = tried(1.0), [tried(fast), tried(slow)]
    return {
        name: _interval(name, value, scatter[name], [end[name] - as_is[name] for end in ends], source)
        for name, value in summary.items()
        if base_metric(name) in METRICS
    }


def exact(summary: Mapping[str, float], source: SourceKind) -> dict[str, Interval]:
    """Write a summary without ranges."""
    known = {name: value for name, value in summary.items() if base_metric(name) in METRICS}
    return {name: _interval(name, value, 0.0, [0.0], source) for name, value in known.items()}


def _first(asked: Asked) -> Asked:
    """Keep the first requests of many."""
    if len(asked.prompt) <= LONGEST:
        return asked
    names = ("arrival", "prompt", "output", "shared", "session")
    return replace(asked, **{name: getattr(asked, name)[:LONGEST] for name in names})


def _scatter(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """How far P10 and P90 of one run lie from the mean over runs; 0 where there is one run alone."""
    if len(each) == 1:
        return dict.fromkeys(each[0], 0.0)
    far = NormalDist().inv_cdf(HIGH)
    return {name: far * float(np.std([one[name] for one in each], ddof=1)) for name in each[0]}


def _interval(name: str, value: float, scatter: float, moved: Sequence[float], source: SourceKind) -> Interval:
    """Add what scatters and what the costs move, each way by itself."""
    unit = METRICS[base_metric(name)].unit
    if not np.isfinite([value, scatter, *moved]).all():
        return Interval(low=value, mid=value, high=value, unit=unit, source=source)
    down, up = (float(np.hypot(scatter, max(*(sign * each for each in moved), 0.0))) for sign in (-1, 1))
    low = max(value - down, 0.0) if value >= 0 else value - down  # headroom may be below zero
    if max(down, up) < NOTHING * abs(value):
        return Interval(low=value, mid=value, high=value, unit=unit, source=source)
    high = min(value + up, 1.0) if name == "utilization" else value + up
    return Interval(low=low, mid=value, high=high, unit=unit, source=source)

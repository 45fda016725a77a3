"""Whether a plan is good: how far it is from every target, and what binds it, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from moesim.deployments.metrics import METRICS, base_metric
from moesim.deployments.result import Verdict
from moesim.deployments.summary import Summary
from moesim.ground.units import show
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving, Target

Numbers = Float[np.ndarray, "plan"]


def targets_of(scenario: Scenario) -> tuple[Target, ...]:
    """List the targets of a scenario; training has none."""
    return scenario.workload.targets if isinstance(scenario.workload, Serving) else ()


def misses(summary: Summary, targets: Sequence[Target]) -> Mapping[str, Numbers]:
    """Relative miss of every target by every plan: value / limit - 1, positive where missed; load is one of them.

    A percentile target is held against the mean that a formula gives; `simulate` has the percentiles.
    """
    found = {
        target.metric: summary.metrics[base_metric(target.metric)] / target.limit - 1
        for target in targets
        if base_metric(target.metric) in summary.metrics
    }
    if summary.offered:
        found["load"] = summary.offered / summary.metrics["throughput"] - 1
    return found


def verdict(summary: Summary, targets: Sequence[Target], index: int, dominant: str) -> Verdict:
    """Say whether one plan that fits is good, and what binds it.

    `dominant` is the named part of the step with the largest exposed time, which binds a plan that meets everything.
    """
    found = {name: float(values[index]) for name, values in misses(summary, targets).items()}
    meets = {name: miss <= 0 for name, miss in found.items()}
    tightest = max(found, key=lambda name: found[name], default="")
    if tightest and found[tightest] > 0:
        return Verdict(fits=True, meets=meets, binding=tightest, why=miss_in_words(summary, targets, tightest, index))
    why = f"meets every target; the tightest is {tightest}, with {-found[tightest]:.0%} to spare" if found else "fits"
    return Verdict(fits=True, meets=meets, binding=dominant, why=why)


def miss_in_words(summary: Summary, targets: Sequence[Target], name: str, index: int) -> str:
    """Write a missed target with its numbers."""
    if name == "load":
        able = float(summary.metrics["throughput"][index])
        return f"carries {able:,.0f} of the {summary.offered:,.0f} output tokens/s asked for"
    limit = next(target.limit for target in targets if target.metric == name)
    value = float(summary.metrics[base_metric(name)][index])
    unit = METRICS[base_metric(name)].unit
    return f"{name} = {show(value, unit)} misses its limit of {show(limit, unit)}"


def worst_miss(summary: Summary, targets: Sequence[Target]) -> Numbers:
    """Largest relative miss of any target (load among them) by every plan; 0 or less where all are met."""
    found = list(misses(summary, targets).values())
    return np.asarray(np.max(found, axis=0)) if found else np.zeros_like(summary.metrics["step"])

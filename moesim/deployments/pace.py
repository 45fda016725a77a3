"""Slower steps by the clock: where all steps take f times as long, all happens as under requests f times as fast.

And it takes f times as long. So one step table serves every draw of what the costs may be wrong by. (What the hand-over
of a cache takes is stretched with it.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from moesim.deployments.deployed import of_role_all
from moesim.deployments.metrics import METRICS, base_metric
from moesim.deployments.pools import estimator_of
from moesim.deployments.ranges import drawn_ranges
from moesim.deployments.serving.asked import Asked
from moesim.deployments.serving.ticks import NEVER
from moesim.passes.table import table_of
from moesim.plans.plan import Plan
from moesim.world.scenario import Scenario

Factors = Float[np.ndarray, "draw"]


def hurried(asked: Asked, factor: float) -> Asked:
    """Let requests come so many times as fast; a closed loop has no times of its own."""
    times = np.rint(np.where(asked.arrival == NEVER, 0, asked.arrival) / factor).astype(np.int64)
    return replace(asked, arrival=np.where(asked.arrival == NEVER, NEVER, times))


def slowed(found: Mapping[str, float], factor: float) -> dict[str, float]:
    """Read what a hurried run measured on the clock of slow steps: times are longer, rates lower."""
    return {name: value * factor ** _power(name) for name, value in found.items()}


def _power(metric: str) -> int:
    """How often the factor is in a metric: once in a time, less than none in a rate, in a share not at all."""
    base = base_metric(metric)
    unit = METRICS[base].unit if base in METRICS else "/s"
    return {"s": 1, "/s": -1, "tokens/s": -1}.get(unit, 0)


def slowness(scenario: Scenario, plan: Plan, seed: int) -> Factors:
    """Draw how many times as long as estimated steps take, from the residuals of the calibrated costs.

    Of a plan with several pools the slower counts in every draw.
    """
    estimator = estimator_of(scenario, table_of(plan.pools), seed=seed)
    pools = np.arange(len(plan.pools))
    estimator.estimate(pools)
    drawn = drawn_ranges(scenario, estimator, of_role_all(estimator.table, pools, np.ones_like(pools)))
    return np.asarray((drawn.drawn["step"] / estimator.estimates.step[:, np.newaxis]).max(axis=0))

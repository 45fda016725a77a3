"""Whether a plan's memory is there at all: what does not fit is not started."""

from __future__ import annotations

from collections.abc import Iterator

from moesim.deployments.capacity import capacity
from moesim.ground.errors import Fault, PlanError
from moesim.passes.footprint import describe
from moesim.plans.plan import Plan
from moesim.world.scenario import Scenario


def refuse_unfit(scenario: Scenario, plan: Plan) -> None:
    """Refuse a serving plan whose weights and buffers leave no room for a cache.

    A cache smaller than full batches want is none such: the engine then holds fewer requests at once.

    Raises
    ------
    PlanError
        Some pool does not fit: each is a fault, with its largest items against what may be used.
    """
    faults = list(_faults(scenario, plan))
    if faults:
        raise PlanError("plan", faults)


def _faults(scenario: Scenario, plan: Plan) -> Iterator[Fault]:
    used = capacity(scenario, plan.pools).used
    for index, (pool, fits) in enumerate(zip(plan.pools, used.fits, strict=True)):
        if not fits:
            yield Fault(
                path=f"pools[{index}]",
                problem=describe(used, index, scenario.hardware.offer(pool.node).node.device.name),
                remedy="spread it over more gpus (tp, ep or pp), take fewer copies of experts, or narrower formats",
            )

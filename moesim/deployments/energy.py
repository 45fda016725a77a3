"""What a simulated deployment draws: gpus by what their replica is at, boxes and whatever is idle all the time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.deployments.serving.measures import Served, busy_shares
from moesim.ground.units import Watts
from moesim.plans.plan import Plan
from moesim.world.power import Power
from moesim.world.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What a plan draws: `fixed` watts at rest, and each replica's gpus at full power, pool by pool."""

    power: Power
    fixed: Watts
    gpus: tuple[tuple[int, Watts], ...]

    def mean(self, served: Served) -> Watts:
        """Watts over the measured window: a gpu at rest draws its idle power, steps add what they take beyond it."""
        rated = np.concatenate([np.full(replicas, watts) for replicas, watts in self.gpus])
        beyond = np.array([self.power.decode, self.power.prompts]) - self.power.idle
        return float(self.fixed + rated @ (busy_shares(served) @ beyond))


def draw_of(scenario: Scenario, plan: Plan) -> Draw:
    """Find what a plan draws, its pools in the order of the replicas that serve it; spares idle with the others."""
    power, fixed = scenario.power, 0.0
    gpus = []
    for number, pool in enumerate(plan.pools):
        node = scenario.hardware.offer(pool.node).node
        nodes = -(-pool.replicas * pool.parallel.gpus // node.gpus) + plan.spare_nodes * (number == 0)
        fixed += nodes * (node.power * power.box + node.gpus * node.device.power * power.idle)
        gpus.append((pool.replicas, pool.parallel.gpus * node.device.power))
    return Draw(power=power, fixed=fixed, gpus=tuple(gpus))

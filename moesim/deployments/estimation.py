"""Estimate one plan by formula: its headline numbers, where the time and the memory go, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from moesim.deployments.arrangements import arrangements
from moesim.deployments.pools import DRAWS, Estimates, Run, estimate_pools, mean_pass, unlike_stages
from moesim.deployments.result import Result, Verdict
from moesim.deployments.summary import Deployments, summarize, verdict
from moesim.deployments.tables import breakdown_table, memory_table, task_table
from moesim.ground.errors import Fault, PlanError
from moesim.ground.units import Seconds
from moesim.passes.breakdown import breakdown
from moesim.passes.footprint import describe
from moesim.passes.timeline import timeline
from moesim.plans.plan import Plan
from moesim.schedules.costs.pricing import price
from moesim.schedules.schedule import Priced, Records
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving


def estimate(scenario: Scenario, plan: Plan, *, seed: int = 0) -> Result:
    """Estimate one plan: milliseconds of computing.

    Parameters
    ----------
    scenario : Scenario
        The world.
    plan : Plan
        One pool that does everything; several pools are for the simulator of deployments.
    seed : int
        Seed of the routing draws.

    Returns
    -------
    Result
        Tables ``breakdown`` (named parts of the slowest stage's pass), ``memory`` and ``tasks``; where the plan does
        not fit, ``memory`` alone.

    Raises
    ------
    PlanError
        The plan has several pools.
    """
    if len(plan.pools) != 1:
        fault = Fault(
            path="pools",
            problem=f"{len(plan.pools)} pools; an estimate covers a plan of one pool with role `all`",
            remedy="estimate each pool as a plan of its own",
        )
        raise PlanError("plan", [fault])
    pool = plan.pools[0]
    estimates = estimate_pools(scenario, [pool], seed=seed)
    deployed = Deployments(
        pools=[pool],
        pool=np.array([0]),
        replicas=np.array([pool.replicas]),
        spare_nodes=np.array([plan.spare_nodes]),
    )
    summary = summarize(scenario, deployed, estimates)
    targets = scenario.workload.targets if isinstance(scenario.workload, Serving) else ()
    tables = {"memory": memory_table(estimates.memory, 0)}
    unfit = _unfit(scenario, plan, estimates)
    if unfit is None:
        tables |= _pass_tables(scenario, plan, estimates, seed)
    dominant = "" if unfit else str(tables["breakdown"]["part"].iloc[0])
    return Result(
        plan=plan,
        seed=seed,
        verdict=unfit or verdict(summary, targets, 0, dominant),
        summary={name: float(values[0]) for name, values in summary.metrics.items()},
        tables=tables,
        source=estimates.source[0],
        outside=estimates.outside,
    )


def _unfit(scenario: Scenario, plan: Plan, estimates: Estimates) -> Verdict | None:
    """Say why a plan cannot run at all; None where it can."""
    if not estimates.memory.fits[0]:
        device = scenario.hardware.offer(plan.pools[0].node).node.device.name
        return Verdict(fits=False, meets={}, binding="memory", why=describe(estimates.memory, 0, device))
    if estimates.refused[0]:
        return Verdict(fits=False, meets={}, binding="policy", why=estimates.refused[0])
    return None


def _pass_tables(scenario: Scenario, plan: Plan, estimates: Estimates, seed: int) -> dict[str, pd.DataFrame]:
    """Run the slowest stage's passes once more with their records kept, and tabulate them.

    The breakdown is that of the mean pass; the tasks are those of a pass that carries prompt tokens.
    """
    share = float(estimates.operation.carrying[0])
    priced, records = slowest_pass(scenario, plan, estimates, seed, carrying=True)
    parts = _scaled(breakdown(priced, records), share)
    if share < 1:
        plain = breakdown(*slowest_pass(scenario, plan, estimates, seed, carrying=False))
        for name, (busy, exposed) in _scaled(plain, 1 - share).items():
            before = parts.get(name, (0.0, 0.0))
            parts[name] = (before[0] + busy, before[1] + exposed)
    return {"breakdown": breakdown_table(parts), "tasks": task_table(priced.schedule, records)}


def _scaled(parts: Mapping[str, tuple[Seconds, Seconds]], share: float) -> dict[str, tuple[Seconds, Seconds]]:
    return {name: (share * busy, share * exposed) for name, (busy, exposed) in parts.items()}


def slowest_pass(
    scenario: Scenario, plan: Plan, estimates: Estimates, seed: int, *, carrying: bool
) -> tuple[Priced, Records]:
    """Price and run the slowest stage's pass, the fastest of its alternatives, with every task's start and finish."""
    pool = plan.pools[0]
    node, fabric = scenario.hardware.offer(pool.node).node, scenario.hardware.fabric
    run = Run(
        scenario=scenario,
        point=estimates.operation,
        arrangements=arrangements(scenario, seed=seed, draws=DRAWS),
    )
    stages = [
        [price(schedule, node, fabric) for schedule in run.stage([pool], [0], stage, carrying=carrying).schedules()]
        for stage in unlike_stages(scenario, pool)
    ]
    slowest = max((min(alternatives, key=_seconds) for alternatives in stages), key=_seconds)
    return slowest, timeline(slowest)


def _seconds(priced: Priced) -> Seconds:
    return float(mean_pass(priced, 1)[0])

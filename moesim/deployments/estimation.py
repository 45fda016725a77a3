"""Estimate one plan by formula: its headline numbers, where the time and the memory go, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moesim.deployments.deployed import NONE, Deployments
from moesim.deployments.operation import Passes
from moesim.deployments.pools import Estimator, estimator_of
from moesim.deployments.ranges import Ranges, drawn_ranges, intervals
from moesim.deployments.reaction import Reaction
from moesim.deployments.result import Result, Verdict
from moesim.deployments.summary import summarize
from moesim.deployments.tables import breakdown_table, kernel_table, memory_table, step_table, task_table
from moesim.deployments.verdicts import targets_of, verdict
from moesim.deployments.whole import mean_pass, unlike_stages, whole_pass
from moesim.ground.errors import Fault, PlanError
from moesim.ground.units import Seconds, weakest
from moesim.passes.breakdown import breakdown
from moesim.passes.columns import stage_layers
from moesim.passes.footprint import describe
from moesim.passes.repetition import shortened
from moesim.passes.table import table_of
from moesim.passes.timeline import timeline
from moesim.plans.plan import Plan
from moesim.schedules.costs.pricing import grounds, price_together
from moesim.schedules.schedule import Priced, Records
from moesim.world.scenario import Scenario
from moesim.world.workload import Training

Parts = Mapping[str, tuple[Seconds, Seconds]]
"""Busy and exposed seconds by named part."""


def estimate(scenario: Scenario, plan: Plan, *, seed: int = 0) -> Result:
    """Estimate one plan: milliseconds of computing.

    Parameters
    ----------
    scenario : Scenario
        The world.
    plan : Plan
        One pool that does everything, or one that prefills and one that decodes.
    seed : int
        Seed of the routing draws and of the residuals.

    Returns
    -------
    Result
        Every headline number with its range; tables ``breakdown`` (named parts of the slowest stage's pass, of the pool
        that decodes), ``memory``, ``tasks`` and, in training, ``step``; where the plan does not fit, ``memory`` alone.

    Raises
    ------
    PlanError
        The plan's pools have other roles.
    """
    return estimate_deployed(scenario, *deployment_of(scenario, plan, seed=seed), 0)


def deployment_of(scenario: Scenario, plan: Plan, *, seed: int = 0) -> tuple[Estimator, Deployments]:
    """Write a plan as the one row of a set of deployments; the pool that decodes is the first of the table."""
    roles = sorted(pool.role for pool in plan.pools)
    if roles not in (["all"], ["decode", "prefill"]):
        fault = Fault(
            path="pools",
            problem=f"pools of roles {', '.join(roles)}",
            remedy="estimate one pool of role `all`, or one of role `prefill` with one of role `decode`",
        )
        raise PlanError("plan", [fault])
    pools = sorted(plan.pools, key=lambda pool: pool.role)
    rows = np.arange(len(pools))
    replicas = np.array([pool.replicas for pool in pools])
    deployed = Deployments(
        table=table_of(pools),
        pool=rows[:1],
        replicas=replicas[:1],
        feeder=rows[1:] if len(pools) > 1 else np.array([NONE]),
        feeders=replicas[1:] if len(pools) > 1 else np.array([0]),
        spare_nodes=np.array([plan.spare_nodes]),
    )
    estimator = estimator_of(scenario, deployed.table, seed=seed)
    estimator.estimate(np.flatnonzero(estimator.memory.fits))
    return estimator, deployed


def estimate_deployed(
    scenario: Scenario,
    estimator: Estimator,
    deployed: Deployments,
    row: int,
    ranges: Ranges | None = None,
    *,
    detailed: bool = True,
) -> Result:
    """Write the result of one of many estimated deployments.

    Parameters
    ----------
    ranges : of this deployment, where they were drawn before
    detailed : whether to tabulate its pass; else the verdict names no part of it
    """
    plan = deployed.plan(row)
    used = [index for index in (int(deployed.pool[row]), int(deployed.feeder[row])) if index != NONE]
    estimates = estimator.estimates
    source = weakest(tuple(estimates.source[index] for index in used))
    tables = {"memory": memory_tables(estimator, used)}
    one = deployed.take([row])
    summary = summarize(scenario, one, estimates)
    unfit = _unfit(scenario, estimator, used)
    if unfit is not None:
        known = intervals(summary, None, 0, source)
        return Result(
            plan=plan, seed=estimator.run.seed, verdict=unfit, summary=known, tables=tables, source=source, outside=()
        )
    if detailed:
        tables |= pass_tables(estimator, used[0])
    dominant = str(tables["breakdown"]["part"].iloc[0]) if detailed else ""
    drawn = ranges or drawn_ranges(scenario, estimator, one)
    reacted = Reaction.of(estimator, used)
    tables |= reacted.tables
    return Result(
        plan=plan,
        seed=estimator.run.seed,
        verdict=reacted.told(verdict(summary, targets_of(scenario), 0, dominant)),
        summary=intervals(summary, drawn, 0, source) | reacted.summary(source),
        tables=tables,
        source=source,
        outside=tuple(sorted(estimates.outside)),
    )


def memory_tables(estimator: Estimator, used: Sequence[int]) -> pd.DataFrame:
    """Itemise the fullest rank of every pool."""
    tables = [memory_table(estimator.memory, row) for row in used]
    if len(tables) > 1:
        for row, table in zip(used, tables, strict=True):
            table.insert(0, "pool", estimator.table.pool(row).role)
    joined = pd.concat(tables, ignore_index=True)
    joined.attrs = tables[0].attrs
    return joined


def _unfit(scenario: Scenario, estimator: Estimator, used: Sequence[int]) -> Verdict | None:
    """Say why a plan cannot run at all; None where it can."""
    for row in used:
        if not estimator.memory.fits[row]:
            device = scenario.hardware.offer(estimator.table.pool(row).node).node.device.name
            return Verdict(fits=False, meets={}, binding="memory", why=describe(estimator.memory, row, device))
        if row in estimator.estimates.refused:
            return Verdict(fits=False, meets={}, binding="policy", why=estimator.estimates.refused[row])
    return None


def pass_tables(estimator: Estimator, row: int) -> dict[str, pd.DataFrame]:
    """Run the slowest stage's passes of one pool once more with their records kept, and tabulate them.

    The breakdown is that of the mean pass, at the framework's pace and with the stage's part of its own time as `host`,
    so that stages times exposed times are the step; the tasks are those of a pass that carries prompt tokens, if any
    does, cut to a few turns of each repeating run of layers.
    """
    share = float(estimator.estimates.operation.carrying[row])
    parts: dict[str, tuple[Seconds, Seconds]] = {}
    shown: SlowestPass | None = None
    for carrying, weight in ((True, share), (False, 1 - share)):
        if weight > 0:
            found = slowest_pass(estimator, row, carrying=carrying)
            shown = shown or found
            _add(parts, found.breakdown(), weight)
    assert shown is not None
    pool, schedule = estimator.table.pool(row), shown.priced[0].schedule
    scenario = estimator.run.scenario
    if not isinstance(scenario.workload, Training):
        parts = _served(estimator, row, parts)
    ground = grounds(schedule, scenario.node(pool.node, pool.framework), scenario.hardware.fabric)
    tables = {
        "breakdown": breakdown_table(parts),
        "kernels": kernel_table(ground.fits),
        "tasks": task_table(schedule, shown.records[0]),
    }
    if isinstance(scenario.workload, Training):
        tables["step"] = step_table(estimator.run.steps(estimator.table, row).parts(0))
    return tables


def _served(estimator: Estimator, row: int, parts: Parts) -> dict[str, tuple[Seconds, Seconds]]:
    """Put the parts of one stage's pass at the pace of their framework, beside its own time for this stage."""
    run, pool = estimator.run, estimator.table.pool(row)
    framework, parallel = run.scenario.frameworks[pool.framework], pool.parallel
    sequences = float(run.point.sequences[row]) * parallel.dp
    host = framework.overhead(len(run.scenario.model.layers), sequences) / parallel.pp
    paced = {name: (framework.pace * busy, framework.pace * exposed) for name, (busy, exposed) in parts.items()}
    return paced | {"host": (framework.pace * host, framework.pace * host)}


def _add(parts: dict[str, tuple[Seconds, Seconds]], more: Parts, weight: float) -> None:
    """Add a share of a breakdown to another."""
    for name, (busy, exposed) in more.items():
        before = parts.get(name, (0.0, 0.0))
        parts[name] = (before[0] + weight * busy, before[1] + weight * exposed)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlowestPass:
    """The pass that sets the step, of its slowest stage, cut to a few turns of each repeating run of layers.

    Attributes
    ----------
    priced, records : the shortened pass, then, for each run of layers that it shortens, the pass with one turn less
    missing : turns of each of these runs that the shortened pass lacks
    """

    priced: tuple[Priced, ...]
    records: tuple[Records, ...]
    missing: tuple[int, ...]

    def breakdown(self) -> Parts:
        """Split the time of the whole pass over its named parts: busy and exposed seconds."""
        each = [breakdown(priced, records) for priced, records in zip(self.priced, self.records, strict=True)]
        parts = dict(each[0])
        for turns, fewer in zip(self.missing, each[1:], strict=True):
            _add(parts, each[0], turns)
            _add(parts, fewer, -turns)
        return parts


def slowest_pass(estimator: Estimator, row: int, *, carrying: bool) -> SlowestPass:
    """Price and run the slowest stage's pass, the fastest of its alternatives, with every task's start and finish."""
    run, table = estimator.run, estimator.table.take([row])
    pool = table.pool(0)
    model, pp = run.scenario.model, pool.parallel.pp
    node, fabric = run.scenario.node(pool.node, pool.framework), run.scenario.hardware.fabric
    passes = Passes(table=table, point=run.point.take([row]), carrying=np.array([carrying]))
    slowest: tuple[Seconds, SlowestPass] | None = None
    for stage in sorted(set(unlike_stages(run.scenario, pool).values())):
        layers = shortened(model, stage_layers(model, pp, stage))
        lowering = run.stage(passes, stage)
        variants = [lowering.schedules(turns) for turns in (layers.base, *layers.without)]
        ways = [
            _timed(price_together(schedules, node, fabric), layers.missing) for schedules in zip(*variants, strict=True)
        ]
        best = min(ways, key=lambda way: way[0])
        slowest = best if slowest is None else max(slowest, best, key=lambda way: way[0])
    assert slowest is not None
    return slowest[1]


def _timed(priced: tuple[Priced, ...], missing: tuple[int, ...]) -> tuple[Seconds, SlowestPass]:
    """Run the variants of one pass; give the time of the whole one."""
    times = np.stack([mean_pass(each, 1) for each in priced])[:, np.newaxis]
    records = tuple(timeline(each) for each in priced)
    return whole_pass(times, missing).item(), SlowestPass(priced=priced, records=records, missing=missing)

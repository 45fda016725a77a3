"""Step times that no estimate of a plan can be below, for all plans of a search at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int

from moesim.deployments.arrangements import Arrangements
from moesim.deployments.operation import Passes
from moesim.deployments.pools import Estimates, Estimator, Run, unlike_stages
from moesim.passes.columns import as_column, group_tiers
from moesim.passes.exchanges import Topology
from moesim.passes.expected import Expected, Phases
from moesim.passes.lowering import halves_wanted, lower_means
from moesim.passes.presence import home_tokens
from moesim.passes.table import PoolTable, batching_of
from moesim.plans.plan import Pool
from moesim.schedules.costs.bounds import floors, of_plans
from moesim.schedules.schedule import Schedule
from moesim.world.hardware import reach
from moesim.world.scenario import Scenario
from moesim.world.workload import Batch, Training

Seconds = Float[np.ndarray, "plan"]


def floor_estimates(estimator: Estimator, rows: Int[np.ndarray, "row"]) -> Estimates:
    """Fill step times of some rows with lower bounds: of what an estimate would give, at the same draws.

    Ops that are the same on all ranks and in all draws count with their price; experts with their mean rows and the
    mean number of them that are read; exchanges with their mean bytes. Where nothing overlaps, all of a pass adds up;
    else the busiest stream does.
    """
    run, share = estimator.run, estimator.run.point.carrying[rows]
    carrying, plain = np.flatnonzero(share > 0), np.flatnonzero(share < 1)
    both = rows[np.concatenate([carrying, plain])]
    kinds = np.repeat([True, False], [len(carrying), len(plain)])
    seconds = _floors(run, Passes(table=estimator.table.take(both), point=run.point.take(both), carrying=kinds))
    times = np.zeros((2, len(rows)))
    times[0, carrying], times[1, plain] = seconds[: len(carrying)], seconds[len(carrying) :]
    step, whole = (np.full(len(estimator.table), np.nan) for _ in range(2))
    step[rows] = share * times[0] + (1 - share) * times[1]
    whole[rows] = np.where(share > 0, times[0], times[1])
    return replace(estimator.estimates, step=step, carrying=whole)


def _floors(run: Run, passes: Passes) -> Seconds:
    """Bound passes, group by group of those that issue the same ops."""
    table, found = passes.table, np.empty(len(passes.table))
    known: dict[Hashable, Phases] = {}
    hardware = run.scenario.hardware

    def ops(pool: Pool) -> Hashable:
        """Name what decides which ops a pool issues, besides its degrees."""
        node = hardware.offer(pool.node).node
        policies = tuple(pool.policy(kind) for kind in ("gating", "alltoall", "shortcut", "buffering"))
        precision = tuple(sorted(pool.precision.items()))
        return reach(node, hardware.fabric), node.gpus, precision, policies, batching_of(pool).speculated

    block = table["ep"] * table["etp"]
    for rows in table.groups(ops, table["pp"], block > 1, _tiers(run.scenario, table)):
        part = Passes(table=table.take(rows), point=passes.point.take(rows), carrying=passes.carrying[rows])
        found[rows] = _group_floors(run, part, known)
    return found


def _tiers(scenario: Scenario, table: PoolTable) -> Int[np.ndarray, "plan"]:
    """Number the combinations of tiers that the groups of each plan cross, of groups that have two ranks."""
    codes: dict[Hashable, int] = {}

    def code(like: Pool, *degrees: int) -> float:
        reaches = reach(scenario.hardware.offer(like.node).node, scenario.hardware.fabric)
        parallel = replace(like.parallel, **dict(zip(("pp", "dp", "tp", "cp"), degrees, strict=True)))
        tiers = group_tiers(parallel, reaches)
        used = {"tp": parallel.tp, "cp": parallel.cp, "stage": parallel.pp}
        crossed = tuple(tiers[kind] for kind, ranks in used.items() if ranks > 1 or kind == "tp")
        return codes.setdefault(crossed, len(codes))

    return table.each(code, "pp", "dp", "tp", "cp").astype(np.int64)


def _group_floors(run: Run, passes: Passes, known: dict[Hashable, Phases]) -> Seconds:
    """Bound passes that issue the same ops: the slowest stage's, times the stages, plus the host's own time."""
    table, scenario = passes.table, run.scenario
    first = table.pool(0)
    node = scenario.hardware.offer(first.node).node
    halves = table.each(halves_wanted)
    batch = passes.batch(scenario.workload, 1 / halves)
    sized = Expected(
        table=table,
        topology=Topology(reach=reach(node, scenario.hardware.fabric), gpus_per_node=node.gpus),
        active=_active(run.arrangements, table, batch, halves),
        distinct=run.arrangements.distinct,
        known=known,
    )
    serial = table.each(_serial) > 0
    if isinstance(scenario.workload, Training):
        serial = np.zeros_like(serial)
    slowest = np.zeros(len(table))
    for stage in unlike_stages(scenario, first):
        blocks = list(lower_means(scenario, table, stage, batch, sized).blocks())
        for rows in table.groups(lambda like: like.node):
            floor = _stage_floor(scenario, table.take(rows), [(of_plans(b, rows), n) for b, n in blocks], serial[rows])
            slowest[rows] = np.maximum(slowest[rows], floor)
    host = table.each(lambda like: scenario.frameworks[like.framework].step)
    return np.asarray(slowest * halves * table["pp"] + host)


def _serial(pool: Pool) -> bool:
    """Whether every task of a pool's pass waits for the one before it."""
    alone = {"overlap": "none", "shortcut": "none", "buffering": "resident"}
    return all(pool.policy(kind).name == name for kind, name in alone.items())


def _stage_floor(
    scenario: Scenario, table: PoolTable, blocks: Sequence[tuple[Schedule, int]], serial: Bool[np.ndarray, "plan"]
) -> Seconds:
    """Bound one stage of plans on one node type: all its tasks in series, or those of its busiest stream."""
    node = scenario.hardware.offer(table.variants[table.variant[0]].node).node
    streams: dict[str, Seconds] = {}
    for block, times in blocks:
        for task, floor in zip(block.tasks, floors(block, node, scenario.hardware.fabric), strict=True):
            streams[task.stream] = streams.get(task.stream, np.zeros(len(table))) + times * floor
    each = list(streams.values())
    return np.asarray(np.where(serial, np.sum(each, axis=0), np.max(each, axis=0)))


def _active(arrangements: Arrangements, table: PoolTable, batch: Batch, halves: Seconds) -> tuple[np.ndarray, ...]:
    """Mean number of experts with rows in an expert block, for each kind of MoE layer."""
    found = []
    block = table["ep"] * table["etp"]
    for layer in arrangements.kinds:
        tokens = np.broadcast_to(home_tokens(layer, arrangements.scenario.model, batch)[:, 0, 0], block.shape)
        keys = np.stack([np.round(tokens * block).astype(np.int64), halves.astype(np.int64)])
        distinct, place = np.unique(keys, axis=1, return_inverse=True)
        means = [np.mean([arrangements.active(int(t), half) for half in range(h)]) for t, h in distinct.T]
        found.append(as_column(np.array(means)[place.reshape(-1)]))
    return tuple(found)

"""Step times that no estimate of a plan can be below, for all plans of a search at once."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int

from moesim.deployments.arrangements import Arrangements
from moesim.deployments.operation import Passes
from moesim.deployments.pools import Estimates, Estimator
from moesim.deployments.running import Run
from moesim.deployments.training import microbatches_of
from moesim.deployments.whole import unlike_stages, whole_pass
from moesim.passes.columns import as_column, group_tiers, stage_layers
from moesim.passes.exchanges import Topology
from moesim.passes.expected import Expected, Phases
from moesim.passes.lowering import halves_wanted, lower_means
from moesim.passes.presence import home_tokens
from moesim.passes.repetition import shortened
from moesim.passes.shortcut import kept_share
from moesim.passes.table import PoolTable, batching_of
from moesim.passes.timeline import makespan
from moesim.plans.plan import Policy, Pool
from moesim.policies.finding import make
from moesim.policies.protocols import Overlap, Pipeline
from moesim.schedules.costs.bounds import floored, floors, of_plans
from moesim.schedules.schedule import Schedule
from moesim.world.hardware import Node, reach
from moesim.world.scenario import Scenario
from moesim.world.workload import Batch, Training

Seconds = Float[np.ndarray, "plan"]

MOVING = ("none", "rebalance")
"""Reacting policies that change nothing but where experts live, which no bound depends on."""

SHORTENED = 0.01
"""Share by which bounds of overlapped passes are lowered: a shortened pass stands for the whole to a thousandth of the
time, and a difference of two ends is no bound by itself."""


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
        policies = tuple(pool.policy(kind) for kind in ("gating", "alltoall", "shortcut", "buffering", "recompute"))
        halves = halves_wanted(pool)
        precision = tuple(sorted(pool.precision.items()))
        return reach(node, hardware.fabric), node.gpus, precision, policies, batching_of(pool).speculated, halves

    block = table["ep"] * table["etp"]
    for rows in table.groups(ops, table["pp"], block > 1, _tiers(run.scenario, table)):
        part = Passes(table=table.take(rows), point=passes.point.take(rows), carrying=passes.carrying[rows])
        found[rows] = _group_floors(run, part, known) * part.table.each(_bounded)
    return found


def _bounded(pool: Pool) -> float:
    """1 where a pool issues the ops of its first step all the way, 0 where reacting changes them: no bound then."""
    return float(all(policy.name in MOVING for policy in pool.adaptation))


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
    """Bound passes that issue the same ops: the slowest stage's, times the stages, plus the host's, at its pace."""
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
    overlap: Overlap = make("overlap", first.policy("overlap"))
    floors_of = {}
    for stage in sorted(set(unlike_stages(scenario, first).values())):
        if overlap.halves > 1:
            floors_of[stage] = _overlapped_floor(scenario, table, stage, batch, sized, overlap)
        else:
            floors_of[stage] = _stage_floor(scenario, table, stage, batch, sized)
    if isinstance(scenario.workload, Training):
        stages = np.stack([floors_of[like] for like in unlike_stages(scenario, first).values()])
        return _step_floors(scenario.workload, table, stages)
    slowest = np.max(list(floors_of.values()), axis=0)
    host = _host(scenario, passes)
    pace = table.each(lambda like: scenario.frameworks[like.framework].pace)
    return np.asarray(pace * (slowest * table["pp"] + host))


def _host(scenario: Scenario, passes: Passes) -> Seconds:
    """Time of the host in every pass."""
    table, layers = passes.table, len(scenario.model.layers)
    fixed = table.each(lambda like: scenario.frameworks[like.framework].overhead(layers, 0.0))
    each = table.each(lambda like: scenario.frameworks[like.framework].sequence)
    return np.asarray(fixed + each * passes.point.sequences * table["dp"])


def _step_floors(workload: Training, table: PoolTable, stages: Float[np.ndarray, "stage plan"]) -> Seconds:
    """Bound training steps: a stage passes all microbatches, between the way there and the way back of its first chunk.

    Where a pipeline has two ways, half of a stage's microbatches pass its mirror image's layers, and nothing is said of
    the way to a stage.
    """

    def pipeline(like: Pool) -> Pipeline:
        found: Pipeline = make("pipeline", like.policy("pipeline"))
        return found

    mirrored = table.each(lambda like: pipeline(like).lanes > 1) > 0
    whole = np.where(mirrored, (stages + stages[::-1]) / 2, stages)
    before = np.cumsum(stages, axis=0) - stages
    way = np.where(mirrored, 0.0, before / table.each(lambda like: pipeline(like).chunks))
    return np.asarray((whole * microbatches_of(workload, table) + way).max(axis=0))


def _serial(pool: Pool) -> bool:
    """Whether every task of a pool's pass waits for the one before it."""
    alone = {"overlap": "none", "shortcut": "none", "buffering": "resident"}
    return all(pool.policy(kind).name == name for kind, name in alone.items())


def _stage_floor(scenario: Scenario, table: PoolTable, stage: int, batch: Batch, sized: Expected) -> Seconds:
    """Bound one stage: all its tasks in series, or those of its busiest stream.

    A backward pass has gradients of weights that nothing waits for: its busiest stream counts, whatever the forward.
    """
    serial = table.each(_serial) > 0
    plain: Overlap = make("overlap", Policy(name="none"))
    lowering = lower_means(scenario, table, stage, batch, sized, plain)
    whole = _stream_floors(scenario, table, list(lowering.blocks()))
    if not batch.backward:
        return np.asarray(np.where(serial, whole.sum(axis=0), whole.max(axis=0)))
    forward = _stream_floors(scenario, table, list(lowering.blocks("forward")))
    backward = whole.copy()
    backward[: len(forward)] -= forward
    return np.asarray(np.where(serial, forward.sum(axis=0) + backward.max(axis=0), whole.max(axis=0)))


def _stream_floors(
    scenario: Scenario, table: PoolTable, blocks: Sequence[tuple[Schedule, int]]
) -> Float[np.ndarray, "stream plan"]:
    """Add up the floors of some blocks' tasks by stream, those of a forward's streams first."""
    names = dict.fromkeys(task.stream for block, _ in blocks for task in block.tasks)
    found = {name: np.zeros(len(table)) for name in names}
    for rows, node in _nodes(scenario, table):
        for block, times in blocks:
            each = floors(of_plans(block, rows), node, scenario.hardware.fabric)
            for task, floor in zip(block.tasks, each, strict=True):
                found[task.stream][rows] += times * floor
    return np.stack(list(found.values()))


def _overlapped_floor(
    scenario: Scenario, table: PoolTable, stage: int, batch: Batch, sized: Expected, overlap: Overlap
) -> Seconds:
    """Bound one stage whose halves run beside each other: run their floors, shortened as estimates are."""
    layers = shortened(scenario.model, stage_layers(scenario.model, table.pool(0).parallel.pp, stage))
    lowering = lower_means(scenario, table, stage, batch, sized, overlap)
    variants = [lowering.schedules(turns)[0] for turns in (layers.base, *layers.without)]
    found = np.zeros(len(table))
    for rows, node in _nodes(scenario, table):
        spans = [makespan(floored(of_plans(each, rows), node, scenario.hardware.fabric)) for each in variants]
        times = np.stack([np.broadcast_to(span, len(rows)) for span in spans])
        found[rows] = whole_pass(times[:, np.newaxis], layers.missing)[0] * (1 - SHORTENED)
    return found


def _nodes(scenario: Scenario, table: PoolTable) -> Iterator[tuple[Int[np.ndarray, "row"], Node]]:
    """Rows of each node type under each framework."""
    for rows in table.groups(lambda like: (like.node, like.framework)):
        like = table.variants[table.variant[rows[0]]]
        yield rows, scenario.node(like.node, like.framework)


def _active(arrangements: Arrangements, table: PoolTable, batch: Batch, halves: Seconds) -> tuple[np.ndarray, ...]:
    """Mean number of experts with rows in an expert block, for each kind of MoE layer."""
    found = []
    block = table["ep"] * table["etp"]
    model = arrangements.scenario.model
    kept = kept_share(model, make("shortcut", table.pool(0).policy("shortcut")))
    for layer in arrangements.kinds:
        tokens = np.broadcast_to(home_tokens(layer, model, batch)[:, 0, 0], block.shape)
        keys = np.stack([np.round(tokens * block).astype(np.int64), halves.astype(np.int64)])
        distinct, place = np.unique(keys, axis=1, return_inverse=True)
        means = [np.mean([arrangements.active(int(t), half, kept) for half in range(h)]) for t, h in distinct.T]
        active = np.array(means)[place.reshape(-1)]
        least = np.minimum(active, arrangements.scenario.routing.topk * kept)
        found.append(as_column(np.where(_followed(table), least, active)))
    return tuple(found)


def _followed(table: PoolTable) -> Bool[np.ndarray, "plan"]:
    """Mark plans that are followed while routing changes: more experts than a token has need not be active then."""
    return np.asarray(table.each(lambda like: float(bool(like.adaptation))) > 0)

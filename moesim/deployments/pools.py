"""Step times of many pools at once: plans of one structure are lowered, priced and run together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from moesim.deployments.arrangements import Arrangements, arrangements
from moesim.deployments.grounding import scenario_grounds
from moesim.deployments.operation import Operation, Passes, operation
from moesim.deployments.residuals import Residuals
from moesim.ground.errors import PolicyError
from moesim.ground.units import SourceKind, weakest
from moesim.passes.columns import stage_layers, structure
from moesim.passes.footprint import Memory, footprint
from moesim.passes.lowering import Lowering, halves_wanted, lower
from moesim.passes.presence import home_tokens
from moesim.passes.repetition import shortened
from moesim.passes.table import PoolTable
from moesim.passes.timeline import makespan
from moesim.plans.plan import Pool
from moesim.schedules.costs.pricing import grounds, price_together
from moesim.schedules.schedule import Priced
from moesim.world.scenario import Scenario

DRAWS = 8
"""Routing draws an estimate averages over; each from another layer of the model."""

BLOCK = 64
"""Plans of one structure estimated at a time, so that a task's array stays within the processor's cache."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimates:
    """What estimating many pools gives, one number per pool.

    `step` is the mean time in which every sequence in flight gets its next token: a microbatch's pass through the
    slowest stage, times the stages; `carrying` is that of a pass that carries prompt tokens. Both are NaN where the
    pool was not timed. `refused` says, by row, why a policy refused. `source` is the weakest kind of source each number
    rests on, `outside` what left the range its cost form was calibrated on.
    """

    operation: Operation
    memory: Memory
    step: Float[np.ndarray, "plan"]
    carrying: Float[np.ndarray, "plan"]
    refused: dict[int, str]
    source: list[SourceKind]
    outside: set[str]

    def take(self, rows: Int[np.ndarray, "row"]) -> Estimates:
        """Keep the numbers of some pools."""
        items = {key: size[rows] for key, size in self.memory.items.items()}
        return replace(
            self,
            operation=self.operation.take(rows),
            memory=Memory(items=items, capacity=self.memory.capacity[rows]),
            step=self.step[rows],
            carrying=self.carrying[rows],
            refused={at: self.refused[int(row)] for at, row in enumerate(rows) if int(row) in self.refused},
            source=[self.source[row] for row in rows],
        )


def estimate_pools(
    scenario: Scenario,
    table: PoolTable,
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> Estimates:
    """Estimate the step time of many pools at their full batch; see `Estimator`."""
    estimator = estimator_of(scenario, table, seed=seed, draws=draws)
    return estimator.estimate(np.flatnonzero(estimator.memory.fits))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Times:
    """Mean seconds of a step, and of a pass that carries prompt tokens; what they rest on, and why none were found."""

    step: Float[np.ndarray, "plan"]
    carrying: Float[np.ndarray, "plan"]
    source: SourceKind
    outside: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimator:
    """Many pools with their operating points and memory, to be timed a few at a time in whatever order.

    What was timed is kept in `estimates`, whose columns are as long as the table.
    """

    run: Run
    table: PoolTable
    memory: Memory
    estimates: Estimates

    def estimate(
        self, rows: Int[np.ndarray, "row"], progress: Callable[[float], None] = lambda share: None
    ) -> Estimates:
        """Time some pools, those of one structure together, and keep the results.

        Parameters
        ----------
        rows : rows of the table; they must fit
        progress : told the share of them done, from 0 to 1
        """
        done = 0
        for group in self.structures(rows):
            for block in (group[i : i + BLOCK] for i in range(0, len(group), BLOCK)):
                for part, times in self.run.parts(self.table, block):
                    self._keep(part, times)
                done += len(block)
                progress(done / len(rows))
        return self.estimates

    def _keep(self, part: Sequence[int], times: Times | PolicyError) -> None:
        """Write the times of some pools down, or why one of them has none."""
        found = self.estimates
        if isinstance(times, PolicyError):
            found.refused[part[0]] = str(times)
            return
        found.step[part], found.carrying[part] = times.step, times.carrying
        found.outside.update(times.outside)
        for index in part:
            found.source[index] = weakest((found.source[index], times.source))

    def structures(self, rows: Int[np.ndarray, "row"]) -> list[list[int]]:
        """Group pools by structure, in order of first appearance."""
        groups: dict[Hashable, list[int]] = {}
        hardware = self.run.scenario.hardware
        for index in map(int, rows):
            pool = self.table.pool(index)
            node = hardware.offer(pool.node).node
            groups.setdefault(structure(pool, node, hardware.fabric), []).append(index)
        return list(groups.values())


def estimator_of(scenario: Scenario, table: PoolTable, *, seed: int = 0, draws: int = DRAWS) -> Estimator:
    """Find the operating point and the memory of every pool; nothing is timed yet.

    Parameters
    ----------
    scenario : Scenario
        The world.
    table : PoolTable
        Pools of any mixture of structures.
    seed : int
        Seed of the routing draws; equal for all pools, so that their differences are theirs.
    draws : int
        Routing draws to average over.
    """
    point = operation(scenario.workload, table)
    memory = footprint(scenario, table, sequences=point.sequences, context=point.kept, tokens=point.most)
    estimates = Estimates(
        operation=point,
        memory=memory,
        step=np.full(len(table), np.nan),
        carrying=np.full(len(table), np.nan),
        refused={},
        source=scenario_grounds(scenario, table),
        outside=set(),
    )
    run = Run(scenario=scenario, point=point, arrangements=arrangements(scenario, seed=seed, draws=draws))
    return Estimator(run=run, table=table, memory=memory, estimates=estimates)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One call's scenario, operating points and shared layouts."""

    scenario: Scenario
    point: Operation
    arrangements: Arrangements

    @property
    def seed(self) -> int:
        """Seed of everything drawn."""
        return self.arrangements.seed

    def parts(self, table: PoolTable, block: Sequence[int]) -> Iterator[tuple[Sequence[int], Times | PolicyError]]:
        """Estimate a block; where a policy refuses one of its plans, each plan alone."""
        try:
            yield block, self.block(table, block)
        except PolicyError as refusal:
            if len(block) == 1:
                yield block, refusal
            else:
                for index in block:
                    yield from self.parts(table, [index])

    def block(self, table: PoolTable, block: Sequence[int], residuals: Residuals | None = None) -> Times:
        """Estimate plans of one structure: passes that carry prompt tokens and those that do not, by their shares.

        Both kinds are rows of one lowering. With residuals, times get a first axis of their draws.
        """
        share = self.point.take(block).carrying
        carrying, plain = np.flatnonzero(share > 0), np.flatnonzero(share < 1)
        rows = np.array(block)[np.concatenate([carrying, plain])]
        kinds = np.repeat([True, False], [len(carrying), len(plain)])
        passes = Passes(table=table.take(rows), point=self.point.take(rows), carrying=kinds)
        seconds, sources, outside = self.passes(passes, residuals)
        both = np.full((2, *seconds.shape[:-1], len(block)), np.nan)
        both[0, ..., carrying] = seconds[..., : len(carrying)].T
        both[1, ..., plain] = seconds[..., len(carrying) :].T
        step = np.where(share > 0, share * both[0], 0.0) + np.where(share < 1, (1 - share) * both[1], 0.0)
        found = np.where(share > 0, both[0], both[1])
        return Times(step=step, carrying=found, source=weakest(sources), outside=outside)

    def passes(
        self, passes: Passes, residuals: Residuals | None = None
    ) -> tuple[Float[np.ndarray, "... pass"], tuple[SourceKind, ...], tuple[str, ...]]:
        """Time passes of one structure: the slowest stage's time, times the stages, plus the host's own."""
        first = passes.table.pool(0)
        node, fabric = self.scenario.hardware.offer(first.node).node, self.scenario.hardware.fabric
        slowest = np.zeros(len(passes.table))
        kinds: list[SourceKind] = []
        outside: set[str] = set()
        for stage in unlike_stages(self.scenario, first):
            layers = shortened(self.scenario.model, stage_layers(self.scenario.model, first.parallel.pp, stage))
            lowering = self.stage(passes, stage)
            base = lowering.schedules(layers.base)
            fewer = [lowering.schedules(without) for without in layers.without]
            priced = price_together([schedule for part in (base, *fewer) for schedule in part], node, fabric)
            if residuals is not None:
                priced = tuple(residuals.applied(each, node, fabric) for each in priced)
            times = np.stack([mean_pass(each, len(passes.table)) for each in priced])
            whole = whole_pass(times.reshape(-1, len(base), *times.shape[1:]), layers.missing)
            slowest = np.maximum(slowest, whole.min(axis=0))
            ground = grounds(base[0], node, fabric)
            kinds.append(ground.weakest)
            outside.update(ground.outside)
        framework = self.scenario.frameworks[first.framework]
        host = framework.overhead(len(self.scenario.model.layers), passes.point.sequences * passes.table["dp"])
        return slowest * first.parallel.pp + host, tuple(kinds), tuple(sorted(outside))

    def stage(self, passes: Passes, stage: int) -> Lowering:
        """Lower one stage of passes of one structure, at their operating points."""
        pools = passes.table.pools()
        halves = halves_wanted(pools[0])
        batch = passes.batch(self.scenario.workload, 1 / halves)
        kinds = [home_tokens(layer, self.scenario.model, batch)[:, 0, 0] for layer in self.arrangements.kinds]
        layouts = [
            self.arrangements.layout(pool, each) for pool, each in zip(pools, batch.tokens[:, 0, 0], strict=True)
        ]
        routed = [
            [
                self.arrangements.routed(pool, [float(kind[index]) for kind in kinds], half)
                for index, pool in enumerate(pools)
            ]
            for half in range(halves)
        ]
        return lower(self.scenario, pools, stage, layouts, [batch] * halves, routed, self.arrangements.sized)


def unlike_stages(scenario: Scenario, pool: Pool) -> tuple[int, ...]:
    """List pipeline stages that differ: the first, the last, and one of each run of equal layers between."""
    pp, model = pool.parallel.pp, scenario.model
    seen: dict[Hashable, int] = {}
    for stage in range(pp):
        layers = tuple(model.layers[number] for number in stage_layers(model, pp, stage))
        seen.setdefault((layers, stage == 0, stage == pp - 1), stage)
    return tuple(seen.values())


def whole_pass(
    times: Float[np.ndarray, "variant alternative *lead"], missing: Sequence[int]
) -> Float[np.ndarray, "alternative *lead"]:
    """Time of a whole stage from that of its shortened one (first) and of those with one more turn left out."""
    turns = np.array(missing, dtype=float).reshape(-1, *[1] * (times.ndim - 1))
    return np.asarray(times[0] + (turns * (times[:1] - times[1:])).sum(axis=0))


def mean_pass(priced: Priced, plans: int) -> Float[np.ndarray, "*lead plan"]:
    """Mean over routing draws of the time from a pass's start to its last task's end, per plan."""
    spans = makespan(priced)
    if spans.ndim < 2:
        return np.broadcast_to(spans, (plans,))
    return np.asarray(np.broadcast_to(spans, (*spans.shape[:-2], plans, spans.shape[-1])).mean(axis=-1))

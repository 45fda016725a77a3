"""Step times of many pools at once: plans of one structure are lowered, priced and run together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from moesim.deployments.arrangements import Arrangements, arrangements
from moesim.deployments.following import Followed, Watched, follow, horizon
from moesim.deployments.grounding import scenario_grounds
from moesim.deployments.operation import Operation, operation
from moesim.deployments.running import BLOCK, Run, Times
from moesim.ground.errors import PolicyError
from moesim.ground.units import SourceKind, weakest
from moesim.passes.columns import structure
from moesim.passes.footprint import Memory, footprint
from moesim.passes.table import PoolTable
from moesim.world.scenario import Scenario

DRAWS = 8
"""Routing draws an estimate averages over; each from another layer of the model."""


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
class Estimator:
    """Many pools with their operating points and memory, to be timed a few at a time in whatever order.

    What was timed is kept in `estimates`, whose columns are as long as the table.
    """

    run: Run
    table: PoolTable
    memory: Memory
    estimates: Estimates
    followed: dict[int, Followed] = field(default_factory=dict)
    _moments: dict[int, Arrangements] = field(default_factory=dict)

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
            followed = self.follow(index)
            if followed:
                found.step[index] *= followed.factor
                found.carrying[index] *= followed.factor

    def follow(self, row: int) -> Followed | None:
        """Follow a pool over the steps in which its routing changes; None where it doesn't, or nobody asks."""
        routing = self.run.scenario.routing
        steps = horizon(routing.period)
        if not self.table.variants[self.table.variant[row]].adaptation or not steps:
            return None
        if row not in self.followed:
            phases = range(0, steps, routing.period)
            watched = Watched(
                scenario=self.run.scenario,
                pool=self.table.pool(row),
                tokens=float(self.run.point.tokens[row]),
                phases=tuple(map(self._moment, phases)),
                timed=partial(self.run.moments, self.table, row),
            )
            self.followed[row] = follow(watched)
        return self.followed[row]

    def _moment(self, step: int) -> Arrangements:
        """Return the layouts and draws of a step, made once for all pools."""
        if step not in self._moments:
            self._moments[step] = self.run.arrangements.at(step)
        return self._moments[step]

    def structures(self, rows: Int[np.ndarray, "row"]) -> list[list[int]]:
        """Group pools by structure, in order of first appearance."""
        groups: dict[Hashable, list[int]] = {}
        hardware = self.run.scenario.hardware
        for index in map(int, rows):
            pool = self.table.pool(index)
            node = hardware.offer(pool.node).node
            groups.setdefault(structure(pool, node, hardware.fabric), []).append(index)
        return list(groups.values())


def estimator_of(
    scenario: Scenario, table: PoolTable, *, seed: int = 0, draws: int = DRAWS, drawn: Arrangements | None = None
) -> Estimator:
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
    drawn : Arrangements
        Layouts and draws at hand, instead of new ones of that seed.
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
    arranged = drawn or arrangements(scenario, seed=seed, draws=draws)
    run = Run(scenario=scenario, point=point, arrangements=arranged)
    return Estimator(run=run, table=table, memory=memory, estimates=estimates)

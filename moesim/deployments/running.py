"""Passes of pools lowered, priced and run: all of a block of plans of one structure together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from moesim.deployments.arrangements import Arrangements
from moesim.deployments.operation import Operation, Passes
from moesim.deployments.residuals import Residuals
from moesim.deployments.stages import Timer
from moesim.deployments.training import Steps, training_steps
from moesim.deployments.whole import unlike_stages
from moesim.ground.errors import PolicyError
from moesim.ground.units import SourceKind, weakest
from moesim.passes.columns import stage_layers
from moesim.passes.lowering import Lowering, halves_wanted, lower
from moesim.passes.presence import home_tokens
from moesim.passes.repetition import shortened
from moesim.passes.table import PoolTable
from moesim.plans.plan import Policy
from moesim.world.scenario import Scenario
from moesim.world.workload import Training

BLOCK = 64
"""Plans of one structure estimated at a time, so that a task's array stays within the processor's cache."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Times:
    """Mean seconds of a step, and of a pass that carries prompt tokens; what they rest on, and why none were found."""

    step: Float[np.ndarray, "plan"]
    carrying: Float[np.ndarray, "plan"]
    source: SourceKind
    outside: tuple[str, ...]


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
        """Time passes of one structure: the slowest stage's time, times the stages, plus the host's own.

        All of it at the pace of the framework. In training, whole steps of as many microbatches as an update takes.
        """
        if isinstance(self.scenario.workload, Training):
            steps = training_steps(self.scenario, passes, self.stage, residuals)
            return steps.seconds(), steps.sources, steps.outside
        first = passes.table.pool(0)
        node, fabric = self.scenario.node(first.node, first.framework), self.scenario.hardware.fabric
        timer = Timer(node=node, fabric=fabric, plans=len(passes.table), residuals=residuals)
        slowest = np.zeros(len(passes.table))
        kinds: list[SourceKind] = []
        outside: set[str] = set()
        for stage in sorted(set(unlike_stages(self.scenario, first).values())):
            layers = shortened(self.scenario.model, stage_layers(self.scenario.model, first.parallel.pp, stage))
            times, ground = timer.passed(self.stage(passes, stage), layers)
            slowest = np.maximum(slowest, times[0])
            kinds.append(ground.weakest)
            outside.update(ground.outside)
        framework = self.scenario.frameworks[first.framework]
        host = framework.overhead(len(self.scenario.model.layers), passes.point.sequences * passes.table["dp"])
        return framework.pace * (slowest * first.parallel.pp + host), tuple(kinds), tuple(sorted(outside))

    def steps(self, table: PoolTable, row: int) -> Steps:
        """Time the stages of one pool that trains."""
        passes = Passes(table=table.take([row]), point=self.point.take([row]), carrying=np.array([True]))
        return training_steps(self.scenario, passes, self.stage)

    def moments(
        self, table: PoolTable, row: int, arranged: Sequence[Arrangements], cached: bool
    ) -> Float[np.ndarray, "moment"]:
        """Time a mean step of one pool under each of some arrangements; `cached` puts the gate beside the experts."""
        alone, found = table.take([row]), []
        if cached:
            aside = {"shortcut": Policy(name="cached")}
            variants = [replace(each, policies={**each.policies, **aside}) for each in alone.variants]
            alone = replace(alone, variants=tuple(variants))
        for first in range(0, len(arranged), BLOCK):
            block = arranged[first : first + BLOCK]
            run = Moments(
                scenario=self.scenario,
                point=self.point.take([row]),
                arrangements=replace(self.arrangements, sized={}),
                arranged=tuple(block),
            )
            found.append(run.block(alone, [0] * len(block)).step)
        return np.concatenate(found)

    def arrangement(self, row: int) -> Arrangements:
        """Return the layouts and draws of a row of passes."""
        return self.arrangements

    def stage(self, passes: Passes, stage: int) -> Lowering:
        """Lower one stage of passes of one structure, at their operating points."""
        pools = passes.table.pools()
        halves = halves_wanted(pools[0])
        batch = passes.batch(self.scenario.workload, 1 / halves)
        kinds = [home_tokens(layer, self.scenario.model, batch)[:, 0, 0] for layer in self.arrangements.kinds]
        tokens = batch.tokens[:, 0, 0]
        layouts = [self.arrangement(row).layout(pool, tokens[row]) for row, pool in enumerate(pools)]
        routed = [
            [
                self.arrangement(row).routed(pool, [float(kind[row]) for kind in kinds], half)
                for row, pool in enumerate(pools)
            ]
            for half in range(halves)
        ]
        return lower(self.scenario, pools, stage, layouts, [batch] * halves, routed, self.arrangements.sized)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments(Run):
    """Passes of one pool, each row with an arrangement of its own; those that carry prompts first, then the others."""

    arranged: tuple[Arrangements, ...]

    def arrangement(self, row: int) -> Arrangements:
        """Return the arrangement of a row."""
        return self.arranged[row % len(self.arranged)]

"""Step times of many pools at once: plans of one structure are lowered, priced and run together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from moesim.deployments.arrangements import Arrangements, arrangements
from moesim.deployments.grounding import scenario_grounds
from moesim.deployments.operation import Operation, batch_share, operation
from moesim.ground.errors import PolicyError
from moesim.ground.units import SourceKind, weakest
from moesim.passes.columns import stage_layers, structure
from moesim.passes.footprint import Memory, footprint
from moesim.passes.lowering import Lowering, halves_wanted, lower
from moesim.passes.presence import home_tokens
from moesim.passes.repetition import shortened
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
    pool does not fit or was refused. `refused` says why ("" where it was not).
    `source` is the weakest kind of source each number rests on.
    """

    operation: Operation
    memory: Memory
    step: Float[np.ndarray, "plan"]
    carrying: Float[np.ndarray, "plan"]
    refused: tuple[str, ...]
    source: tuple[SourceKind, ...]
    outside: tuple[str, ...]


def estimate_pools(
    scenario: Scenario,
    pools: Sequence[Pool],
    *,
    seed: int = 0,
    draws: int = DRAWS,
    progress: Callable[[float], None] = lambda share: None,
) -> Estimates:
    """Estimate the step time of many pools at their full batch.

    Parameters
    ----------
    scenario : Scenario
        The world.
    pools : sequence of Pool
        Any mixture of structures.
    seed : int
        Seed of the routing draws; equal for all pools, so that their differences are theirs.
    draws : int
        Routing draws to average over.
    progress : callable
        Told the share done, from 0 to 1, now and then.
    """
    point = operation(scenario.workload, pools)
    memory = footprint(scenario, pools, sequences=point.sequences, context=point.kept, tokens=point.most)
    run = Run(scenario=scenario, point=point, arrangements=arrangements(scenario, seed=seed, draws=draws))
    step, carrying = np.full(len(pools), np.nan), np.full(len(pools), np.nan)
    refused = [""] * len(pools)
    source = scenario_grounds(scenario, pools)
    outside: set[str] = set()
    done = 0
    for group in _structures(scenario, pools, memory.fits):
        for block in (group[i : i + BLOCK] for i in range(0, len(group), BLOCK)):
            done += len(block)
            progress(done / memory.fits.sum())
            for part, times in run.parts(pools, block):
                if isinstance(times, PolicyError):
                    refused[part[0]] = str(times)
                    continue
                step[part], carrying[part] = times.step, times.carrying
                for index in part:
                    source[index] = weakest((source[index], times.source))
                outside.update(times.outside)
    return Estimates(
        operation=point,
        memory=memory,
        step=step,
        carrying=carrying,
        refused=tuple(refused),
        source=tuple(source),
        outside=tuple(sorted(outside)),
    )


def _structures(scenario: Scenario, pools: Sequence[Pool], fits: Bool[np.ndarray, "plan"]) -> list[list[int]]:
    """Group the pools that fit by structure, in order of first appearance."""
    groups: dict[Hashable, list[int]] = {}
    for index, pool in enumerate(pools):
        if fits[index]:
            node = scenario.hardware.offer(pool.node).node
            groups.setdefault(structure(pool, node, scenario.hardware.fabric), []).append(index)
    return list(groups.values())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Times:
    """Step times of a block of plans, and what they rest on."""

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

    def parts(
        self, pools: Sequence[Pool], block: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], _Times | PolicyError]]:
        """Estimate a block; where a policy refuses one of its plans, each plan alone."""
        try:
            yield block, self.block(pools, block)
        except PolicyError as refusal:
            if len(block) == 1:
                yield block, refusal
            else:
                for index in block:
                    yield from self.parts(pools, [index])

    def block(self, pools: Sequence[Pool], block: Sequence[int]) -> _Times:
        """Estimate plans of one structure: passes that carry prompt tokens and those that do not, by their shares."""
        chosen = [pools[index] for index in block]
        share = self.point.take(block).carrying
        carrying, kinds, outside = self._pass(chosen, block, carrying=True)
        step = carrying
        if np.any(share < 1):
            plain, *_ = self._pass(chosen, block, carrying=False)
            step = share * carrying + (1 - share) * plain
        return _Times(step=step, carrying=carrying, source=weakest(kinds), outside=outside)

    def _pass(
        self, pools: Sequence[Pool], block: Sequence[int], *, carrying: bool
    ) -> tuple[Float[np.ndarray, "plan"], tuple[SourceKind, ...], tuple[str, ...]]:
        """Time one kind of pass: the slowest stage's, times the stages, plus the host's own time."""
        first = pools[0]
        node, fabric = self.scenario.hardware.offer(first.node).node, self.scenario.hardware.fabric
        slowest = np.zeros(len(pools))
        kinds: list[SourceKind] = []
        outside: set[str] = set()
        for stage in unlike_stages(self.scenario, first):
            layers = shortened(self.scenario.model, stage_layers(self.scenario.model, first.parallel.pp, stage))
            lowering = self.stage(pools, block, stage, carrying=carrying)
            base = lowering.schedules(layers.base)
            fewer = [lowering.schedules(without) for without in layers.without]
            priced = price_together([schedule for part in (base, *fewer) for schedule in part], node, fabric)
            times = np.stack([mean_pass(each, len(pools)) for each in priced]).reshape(-1, len(base), len(pools))
            slowest = np.maximum(slowest, whole_pass(times, layers.missing).min(axis=0))
            ground = grounds(base[0], node, fabric)
            kinds.append(ground.weakest)
            outside.update(ground.outside)
        host = self.scenario.frameworks[first.framework].step
        return slowest * first.parallel.pp + host, tuple(kinds), tuple(sorted(outside))

    def stage(self, pools: Sequence[Pool], block: Sequence[int], stage: int, *, carrying: bool) -> Lowering:
        """Lower one stage of plans of one structure, at their operating points."""
        halves = halves_wanted(pools[0])
        point = self.point.take(block)
        batch = batch_share(self.scenario.workload, pools, point, 1 / halves, carrying=carrying)
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
    times: Float[np.ndarray, "variant alternative plan"], missing: Sequence[int]
) -> Float[np.ndarray, "alternative plan"]:
    """Time of a whole stage from that of its shortened one (first) and of those with one more turn left out."""
    turns = np.array(missing, dtype=float)[:, None, None]
    return np.asarray(times[0] + (turns * (times[:1] - times[1:])).sum(axis=0))


def mean_pass(priced: Priced, plans: int) -> Float[np.ndarray, "plan"]:
    """Mean over routing draws of the time from a pass's start to its last task's end, per plan."""
    spans = makespan(priced)
    return np.asarray(np.broadcast_to(spans, (plans, *spans.shape[1:])).reshape(plans, -1).mean(axis=1))

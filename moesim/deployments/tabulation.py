"""Step tables made: a pool's pass lowered once, with the knots of its table as plans, priced and run together.

Knots lie at powers of two of the tokens in an expert block, so that the tables of all plans of one search share their
routing draws, which cost more than everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, log2

import numpy as np
from jaxtyping import Float

from moesim.deployments.arrangements import Arrangements
from moesim.deployments.serving.ticks import PER_SECOND
from moesim.deployments.steps import StepTable
from moesim.deployments.whole import mean_pass, unlike_stages, whole_pass
from moesim.ground.units import SourceKind, weakest
from moesim.passes.columns import column, stage_layers
from moesim.passes.lowering import Lowering, halves_wanted, lower
from moesim.passes.presence import home_tokens
from moesim.passes.repetition import shortened
from moesim.plans.plan import Pool
from moesim.policies.finding import make
from moesim.policies.protocols import Batching
from moesim.schedules.costs.pricing import grounds, price_together
from moesim.world.framework import Framework
from moesim.world.scenario import Scenario
from moesim.world.workload import Batch, Serving

CONTEXTS = (0.125, 1.0, 8.0)
"""Knots of cached context, in mean prompts and answers."""

CROWDED = 3.0
"""Knot of the spread of prompts: how many times as many as evenly dealt the fullest dp group has more. About there
exchanges that send a token to a node once stop growing with the tokens of a rank."""

DISTANCES = (0.25, 4.0)
"""Knots of the tokens a prompt token attends to, in half mean prompts."""


def tabulate(scenario: Scenario, pool: Pool, arrangements: Arrangements, *, most: int) -> StepTable:
    """Tabulate the step times of one replica of a pool, up to steps of `most` tokens.

    Raises
    ------
    PolicyError
        A policy refuses the pool.
    """
    kernels = tabulate_kernels(scenario, pool, arrangements, most=most)
    return with_host(kernels, scenario.frameworks[pool.framework], len(scenario.model.layers))


def with_host(table: StepTable, framework: Framework, layers: int) -> StepTable:
    """Add what a framework costs beyond the kernels of a model of so many layers."""
    pace, slow = framework.pace, framework.pace * framework.prompt
    fixed = framework.overhead(layers, 0.0) * PER_SECOND * pace
    each = framework.overhead(layers, 1.0) * PER_SECOND * pace / table.width - fixed / table.width
    decode = tuple(
        tuple(ticks * pace + fixed + each * tokens for ticks in row)
        for tokens, row in zip(table.tokens, table.decode, strict=True)
    )
    prompts = tuple(tuple((near * slow + fixed, far * slow) for near, far in row) for row in table.prompts)
    return replace(table, decode=decode, prompts=prompts, _rows={})


def tabulate_kernels(scenario: Scenario, pool: Pool, arrangements: Arrangements, *, most: int) -> StepTable:
    """Tabulate what the kernels of a replica's steps take, without what its framework adds.

    Raises
    ------
    PolicyError
        A policy refuses the pool.
    """
    batching: Batching = make("batching", pool.policy("batching"))
    p, serving = pool.parallel, scenario.workload
    assert isinstance(serving, Serving)
    knots = [2**power for power in range(max(ceil(log2(most / (p.edp * p.pp))), 1) + 1)]
    request = serving.requests.input.mean + serving.requests.output.mean
    contexts = [share * request for share in CONTEXTS]
    distances = [share * serving.requests.input.mean / 2 for share in DISTANCES]
    shape = _Shape(scenario=scenario, pool=pool, width=1 + batching.speculated, prompt=serving.requests.input.mean)
    spreads = (0.0, min(CROWDED / (p.dp - 1), 0.5), 1.0) if p.dp > 1 else (0.0,)
    passes = [shape.decoding(knot * p.edp, context) for knot in knots for context in contexts]
    prefills = [
        shape.prompts(knot * p.edp, distance, spread) for knot in knots for spread in spreads for distance in distances
    ]
    timed, kind, outside = pass_times(scenario, pool, arrangements, passes)
    decode = timed.reshape(len(knots), -1)
    timed, other_kind, also_outside = pass_times(scenario, pool, arrangements, prefills)
    prompts = timed.reshape(len(knots), len(spreads), -1)
    return StepTable(
        tokens=tuple(float(knot * p.edp * p.pp) for knot in knots),
        contexts=tuple(contexts),
        decode=tuple(map(tuple, (decode * PER_SECOND).tolist())),
        prompts=tuple(_near_and_far(prompts * PER_SECOND, distances[1] - distances[0])),
        spreads=spreads,
        near=distances[0],
        groups=p.dp,
        width=1 + batching.speculated,
        buckets=batching.buckets,
        source=weakest((kind, other_kind)),
        outside=tuple(sorted({*outside, *also_outside})),
    )


def _near_and_far(
    ticks: Float[np.ndarray, "tokens spread distance"], span: float
) -> Iterator[tuple[tuple[float, float], ...]]:
    """Write times at both distances as (near, far), by tokens and spread."""
    far = (ticks[:, :, 1] - ticks[:, :, 0]) / span
    for near, slope in zip(ticks[:, :, 0].tolist(), far.tolist(), strict=True):
        yield tuple(zip(near, slope, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One knot: what a rank of the fullest dp group works on, and the home tokens of a mean rank."""

    prefill: float
    prompts: float
    pairs: float
    keys: float
    decode: float
    context: float
    home: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """Writes passes of a pool: of `width` tokens per decoded sequence, prompts as long as the mean."""

    scenario: Scenario
    pool: Pool
    width: int
    prompt: float

    def decoding(self, tokens: float, context: float) -> Pass:
        """Decode so many tokens in one stage, every dp group as many of them; no group less than one sequence."""
        p = self.pool.parallel
        each = max(tokens / p.dp, self.width) / (p.tp * p.cp)
        home = tokens / p.ranks
        return Pass(prefill=0.0, prompts=0.0, pairs=0.0, keys=0.0, decode=each, context=context, home=home)

    def prompts(self, tokens: float, distance: float, spread: float) -> Pass:
        """Work on so many prompt tokens in one stage, dealt evenly to the dp groups (0), all to one (1) or between."""
        p = self.pool.parallel
        group = p.tp * p.cp
        each = max(tokens * (1 + spread * (p.dp - 1)) / p.dp, 1.0)
        prompts = max(each / self.prompt, 1.0)
        return Pass(
            prefill=each / group,
            prompts=each / self.prompt / group,
            pairs=each * distance / group,
            keys=prompts * (distance + each / prompts / 2) / group,
            decode=0.0,
            context=0.0,
            home=tokens / p.ranks,
        )


def pass_times(
    scenario: Scenario, pool: Pool, arrangements: Arrangements, passes: list[Pass]
) -> tuple[Float[np.ndarray, "pass"], SourceKind, set[str]]:
    """Time the kernels of passes of one structure through all stages: the slowest stage's, times the stages.

    Beside the times: the weakest source they rest on, and inputs outside their calibrated range.
    """
    node, fabric = scenario.node(pool.node, pool.framework), scenario.hardware.fabric
    slowest = np.zeros(len(passes))
    kinds: list[SourceKind] = []
    outside: set[str] = set()
    for stage in unlike_stages(scenario, pool):
        layers = shortened(scenario.model, stage_layers(scenario.model, pool.parallel.pp, stage))
        lowering = _lowered(scenario, pool, arrangements, passes, stage)
        base = lowering.schedules(layers.base)
        fewer = [lowering.schedules(without) for without in layers.without]
        priced = price_together([schedule for part in (base, *fewer) for schedule in part], node, fabric)
        times = np.stack([mean_pass(each, len(passes)) for each in priced]).reshape(-1, len(base), len(passes))
        slowest = np.maximum(slowest, whole_pass(times, layers.missing).min(axis=0))
        ground = grounds(base[0], node, fabric)
        kinds.append(ground.weakest)
        outside.update(ground.outside)
    return slowest * pool.parallel.pp, weakest(tuple(kinds)), outside


def _lowered(scenario: Scenario, pool: Pool, arrangements: Arrangements, passes: list[Pass], stage: int) -> Lowering:
    """Lower one stage with the passes as plans; experts get the tokens of all ranks, the rest those of the fullest."""
    halves = halves_wanted(pool)
    batch = Batch(
        prefill=column([each.prefill / halves for each in passes]),
        prompts=column([each.prompts / halves for each in passes]),
        pairs=column([each.pairs / halves for each in passes]),
        keys=column([each.keys / halves for each in passes]),
        decode=column([each.decode / halves for each in passes]),
        context=column([each.context for each in passes]),
    )
    seen = [home_tokens(layer, scenario.model, batch)[:, 0, 0] / batch.tokens[:, 0, 0] for layer in arrangements.kinds]
    homes = [[float(kind[index]) * each.home / halves for kind in seen] for index, each in enumerate(passes)]
    routed = [[arrangements.routed(pool, home, half) for home in homes] for half in range(halves)]
    layouts = [arrangements.layout(pool, each.home / halves) for each in passes]
    most = max(
        layouts, key=lambda each: int(each.capacity.max(initial=0))
    )  # knots below a pool's own passes are cut alike
    return lower(scenario, [pool] * len(passes), stage, layouts, [batch] * halves, routed, arrangements.sized, cut=most)

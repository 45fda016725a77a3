"""A training step timed: passes of every stage, then the pipeline of them, then the update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Float, Int

from moesim.deployments.operation import Passes
from moesim.deployments.residuals import Residuals
from moesim.deployments.stages import Timer
from moesim.deployments.whole import unlike_stages
from moesim.ground.errors import PolicyError
from moesim.ground.units import SourceKind
from moesim.passes.columns import columns, stage_layers
from moesim.passes.lowering import Lowering, Part
from moesim.passes.pipelining import Durations, training_step
from moesim.passes.repetition import shortened
from moesim.passes.table import PoolTable
from moesim.passes.timeline import makespan
from moesim.passes.updating import updating
from moesim.plans.plan import Pool
from moesim.policies.finding import make
from moesim.policies.protocols import Pipeline, Sharding
from moesim.schedules.costs.pricing import price
from moesim.world.hardware import Node, Tier
from moesim.world.scenario import Scenario
from moesim.world.workload import Training

ROUNDS = 3
"""Rounds of microbatches, one for each stage, that are run; every further round takes as long as the last: exactly so
where stages are alike, to 3 % however unlike they are (tested)."""

Seconds = Float[np.ndarray, "*lead plan"]


def microbatches_of(workload: Training, table: PoolTable) -> Int[np.ndarray, "plan"]:
    """Microbatches that each data-parallel group works through in a step.

    Examples
    --------
    >>> from moesim.passes.table import table_of
    >>> from moesim.plans.plan import Parallel
    >>> pool = Pool(role="all", node="n", replicas=1, parallel=Parallel(dp=8), microbatch=2)
    >>> microbatches_of(Training(sequence=4096, sequences=64, tokens=1.0, optimizer="adam"), table_of([pool]))
    array([4])
    """
    return np.asarray(workload.sequences // (table["dp"] * table["microbatch"]))


def unpiped(scenario: Scenario, pool: Pool) -> str:
    """Say why a pool cannot train in such steps, and a remedy; nothing where it can."""
    workload, p = scenario.workload, pool.parallel
    assert isinstance(workload, Training)
    taken = p.dp * pool.microbatch
    if workload.sequences % taken:
        return (
            f"{p.dp} data-parallel groups with microbatches of {pool.microbatch} do not divide {workload.sequences} "
            "sequences a step; choose another dp or microbatch"
        )
    pipeline: Pipeline = make("pipeline", pool.policy("pipeline"))
    return pipeline.fault(p.pp, workload.sequences // taken, len(scenario.model.layers))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Steps:
    """Training steps of plans of one structure, their stages timed.

    Attributes
    ----------
    durations : what every stage does, over plans and stages
    orders : pipeline and sharding policy of each plan, and the microbatches of a step
    """

    node: Node
    fabric: tuple[Tier, ...]
    durations: Durations
    orders: Sequence[tuple[Pipeline, Sharding, int]]
    sources: tuple[SourceKind, ...]
    outside: tuple[str, ...]

    def seconds(self, *, updated: bool = True) -> Seconds:
        """Time a step, with its update or without."""
        found = np.empty(self.durations.forward.shape[:-1])
        for order in dict.fromkeys(self.orders):
            rows = [plan for plan, each in enumerate(self.orders) if each == order]
            part = {kind: getattr(self.durations, kind)[..., rows, :] for kind in KINDS}
            found[..., rows] = self._step(Durations(**part), *order, updated)
        return found

    def _step(
        self, durations: Durations, pipeline: Pipeline, sharding: Sharding, microbatches: int, updated: bool
    ) -> Seconds:
        """Run steps of so many microbatches; of many, a few rounds and the difference that one more makes."""
        sharded, stages = _sharded(durations, sharding), durations.forward.shape[-1]
        rounds, odd = divmod(microbatches, stages)
        kept = min(rounds, ROUNDS)

        def run(rounds: int) -> Seconds:
            number = rounds * stages + odd
            step = training_step(pipeline, number, sharded, behind=sharding.behind, updated=updated)
            return makespan(price(step, self.node, self.fabric))

        base = run(kept)
        return base if rounds == kept else np.asarray(base + (rounds - kept) * (base - run(kept - 1)))

    def parts(self, plan: int) -> Mapping[str, float]:
        """Split one plan's step into named parts, which add up to it.

        ``forward`` and ``backward`` are those of the stage that works longest, ``bubble`` what it waits; ``gradients``
        and ``weights`` what reducing and gathering adds, beyond what computing hides.
        """
        pipeline, sharding, number = self.orders[plan]
        sharded = _sharded(self.durations, sharding)
        bare = replace(self, durations=replace(self.durations, gathered=np.zeros_like(self.durations.gathered)))
        whole, ungathered = float(self.seconds()[plan]), float(bare.seconds()[plan])
        piped = float(self.seconds(updated=False)[plan])
        passed = np.stack([sharded.forward[plan], sharded.backward[plan]])
        if pipeline.lanes > 1:
            passed = (passed + passed[:, ::-1]) / 2
        forward, backward = number * passed[:, passed.sum(axis=0).argmax()]
        update = float(self.durations.update[plan].max())
        return {
            "forward": float(forward),
            "backward": float(backward),
            "bubble": piped - float(forward + backward),
            "gradients": ungathered - piped - update,
            "weights": whole - ungathered,
            "update": update,
        }


def training_steps(
    scenario: Scenario,
    passes: Passes,
    lowered: Callable[[Passes, int], Lowering],
    residuals: Residuals | None = None,
) -> Steps:
    """Time the stages of plans of one structure.

    Parameters
    ----------
    lowered : lowers one stage of the passes
    residuals : gives times a first axis of its draws

    Raises
    ------
    PolicyError
        A plan's microbatches do not suit its pipeline.
    """
    workload, pools = scenario.workload, passes.table.pools()
    assert isinstance(workload, Training)
    for pool in pools:
        wrong = unpiped(scenario, pool)
        if wrong:
            raise PolicyError(wrong)
    node, fabric = scenario.node(pools[0].node, pools[0].framework), scenario.hardware.fabric
    orders = [
        (make("pipeline", pool.policy("pipeline")), make("sharding", pool.policy("sharding")), int(number))
        for pool, number in zip(pools, microbatches_of(workload, passes.table), strict=True)
    ]
    timer = Timer(node=node, fabric=fabric, plans=len(pools), residuals=residuals)
    stages = _Stages(scenario=scenario, passes=passes, lowered=lowered, timer=timer, paired=orders[0][0].lanes > 1)
    likes = unlike_stages(scenario, pools[0])
    timed = {stage: stages.timed(stage) for stage in set(likes.values())}
    times = np.stack([timed[like].times for like in likes.values()], axis=-1)
    return Steps(
        node=node,
        fabric=fabric,
        durations=Durations(**dict(zip(KINDS, times, strict=True))),
        orders=orders,
        sources=tuple(each.source for each in timed.values()),
        outside=tuple(sorted({line for each in timed.values() for line in each.outside})),
    )


KINDS = tuple(each.name for each in fields(Durations))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Timed:
    """One stage's durations by kind, and what they rest on."""

    times: Float[np.ndarray, "kind *lead plan"]
    source: SourceKind
    outside: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Stages:
    """Times the stages of passes of one structure; `paired` says whether passes run beside each other."""

    scenario: Scenario
    passes: Passes
    lowered: Callable[[Passes, int], Lowering]
    timer: Timer
    paired: bool

    def timed(self, stage: int) -> _Timed:
        """Time all that a stage does in a step."""
        table, pp = self.passes.table, int(self.passes.table["pp"][0])
        lowering = self.lowered(self.passes, stage)
        layers = shortened(self.scenario.model, stage_layers(self.scenario.model, pp, stage))
        parts: tuple[Part, ...] = ("whole", "forward", *(("weights", "beside") if self.paired else ()))
        passed, ground = self.timer.passed(lowering, layers, parts)
        once = updating(self.scenario, columns(table, self.scenario.model, folded=True), stage)
        whole, forward = passed[:2]
        none = np.zeros_like(whole)
        handed = [lowering.hop()] if pp > 1 else []
        gradients, gathered, update, *send = self.timer.alone([once.gradients, once.gathered, once.update, *handed])
        found = {
            "forward": forward,
            "backward": whole - forward,
            "weights": passed[2] if self.paired else none,
            "beside": passed[3] if self.paired else none,
            "send": send[0] if send else none,
            "gradients": gradients,
            "gathered": gathered,
            "update": update,
        }
        times = np.stack([np.broadcast_to(found[kind], whole.shape) for kind in KINDS])
        return _Timed(times=times, source=ground.weakest, outside=ground.outside)


def _sharded(durations: Durations, sharding: Sharding) -> Durations:
    """Add what every microbatch has to gather and reduce where more than the optimizer is shared out.

    Gradients that are shared out are reduced after every backward, weights gathered for every forward and backward.
    """

    def with_(passed: np.ndarray, extra: np.ndarray) -> np.ndarray:
        return np.asarray(np.maximum(passed, extra) if sharding.behind else passed + extra)

    if sharding.stage < 2:
        return durations
    reduced, gathered = durations.gradients, durations.gathered if sharding.stage > 2 else 0.0 * durations.gathered
    return replace(
        durations,
        forward=with_(durations.forward, gathered),
        backward=with_(durations.backward, gathered + reduced),
        beside=with_(durations.beside, 2 * gathered + reduced),
    )

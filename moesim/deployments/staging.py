"""A plan made ready to serve: each pool's step table and limits, its replicas, and the links between pools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moesim.deployments.arrangements import Arrangements
from moesim.deployments.capacity import Capacity
from moesim.deployments.drifting import drifted, followed
from moesim.deployments.following import Followed, horizon
from moesim.deployments.rebalancing import rebalanced, rebalancing_of, usual_step
from moesim.deployments.serving.asked import Asked
from moesim.deployments.serving.book import Book, open_book
from moesim.deployments.serving.control import Controller, Swap
from moesim.deployments.serving.limits import Limits
from moesim.deployments.serving.links import Links
from moesim.deployments.serving.loop import Stage, serve
from moesim.deployments.serving.measures import Served
from moesim.deployments.serving.replica import Replica
from moesim.deployments.serving.ticks import ticks
from moesim.deployments.steps import StepTable
from moesim.deployments.tabulation import tabulate
from moesim.deployments.upkeeping import Keeping, keeping
from moesim.ground.streams import stream
from moesim.ground.units import Bytes
from moesim.plans.layout import NO_LIMIT
from moesim.plans.plan import Plan, Policy, Pool
from moesim.policies.finding import make
from moesim.policies.protocols import Batching, Router
from moesim.world.hardware import Tier
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving

WEIGHTS = ("expert weights", "attention weights", "dense weights", "vocabulary")
"""Items of memory that are loaded when an engine starts."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ready:
    """A pool made ready.

    `per_token` is the bytes that a token's cache takes on a rank, `keeping` what happens to replicas besides requests,
    `way` what its policies make of a routing that changes.
    """

    pool: Pool
    table: StepTable
    limits: Limits
    per_token: Bytes
    keeping: Keeping | None = None
    way: Followed | None = None

    def stage(self, book: Book, router: Policy) -> Stage:
        """Start idle replicas that write into a book, behind a router."""
        policy: Router = make("router", router)
        sessions = book.session
        return Stage(
            replicas=[Replica(self.table, self.limits, book) for _ in range(self.pool.replicas)],
            route=lambda request, hand: policy(request, sessions[request], hand),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deployment:
    """A plan made ready: one pool, or a prefill pool and the decode pool behind it, joined by a tier."""

    pools: tuple[Ready, ...]
    router: Policy
    tier: Tier
    emitted: float
    warm_up: int
    spares: int = 0

    def serve(
        self,
        asked: Asked,
        progress: Callable[[float], None] = lambda share: None,
        *,
        pace: float = 1.0,
        seed: int | None = None,
        turn: int = 0,
    ) -> Served:
        """Serve all requests, from idle to idle.

        Parameters
        ----------
        progress : callable
            Told the share of requests that have come.
        pace : float
            How many times as fast everything outside the steps happens.
        seed, turn : int
            Of failures, and which repetition it is; without a seed nothing happens to replicas besides requests.
        """
        steps = np.ceil((asked.output - 1) / self.emitted).astype(np.int64)
        book = open_book(asked, steps.tolist())
        stages = [pool.stage(book, self.router) for pool in self.pools]
        links = self._links() if len(stages) > 1 else None
        control = None if seed is None else self._control(seed, turn, pace)
        serve(book, stages, links, concurrency=asked.concurrency, control=control, progress=progress)
        replicas = [replica for stage in stages for replica in stage.replicas]
        record = control.record if control else ()
        return Served(asked=asked, book=book, replicas=replicas, warm_up=self.warm_up, record=record)

    def _control(self, seed: int, turn: int, pace: float) -> Controller | None:
        """Start what happens to replicas; None where nothing ever does."""
        upkeeps = [ready.keeping.upkeep(ready.pool, pace) for ready in self.pools if ready.keeping]
        if len(upkeeps) < len(self.pools) or not any(upkeep.acts for upkeep in upkeeps):
            return None
        return Controller(upkeeps, spares=self.spares, rng=stream(seed, "failures", turn))

    def _links(self) -> Links:
        """Every rank sends its part of a cache by itself; the side with larger parts sets the pace."""
        first = self.pools[0].pool
        size = max(pool.per_token for pool in self.pools)
        return Links(
            replicas=first.replicas,
            groups=first.parallel.dp,
            ticks=max(ticks(size * self.tier.sharers / self.tier.bandwidth), 1),
            latency=ticks(self.tier.latency),
        )


def deploy(scenario: Scenario, plan: Plan, room: Capacity, drawn: Arrangements) -> Deployment:
    """Make a plan ready.

    Raises
    ------
    PolicyError
        A policy refuses one of its pools.
    """
    assert isinstance(scenario.workload, Serving)
    last: Batching = make("batching", plan.pools[-1].policy("batching"))
    node = scenario.hardware.offer(plan.pools[0].node).node
    pools = [_ready(scenario, plan, room, drawn, number) for number in range(len(plan.pools))]
    return Deployment(
        pools=tuple(pools),
        router=plan.router,
        tier=(*scenario.hardware.fabric, *node.tiers)[0],
        emitted=last.emitted,
        warm_up=scenario.workload.warm_up,
        spares=plan.spare_nodes,
    )


def _ready(scenario: Scenario, plan: Plan, room: Capacity, drawn: Arrangements, number: int) -> Ready:
    """Make one pool of a plan ready; spare nodes are of the first pool's type."""
    pool = in_order(plan.pools)[number]
    table = tabulate(scenario, pool, drawn, most=most_tokens(scenario, pool))
    weights = sum(float(room.memory.items[name][number]) for name in WEIGHTS if name in room.memory.items)
    kept = keeping(scenario, pool, weights, spared=pool.node == plan.pools[0].node)
    way = followed(scenario, pool, drawn)
    swaps = drifted(way, table) if way else _rebalancing(scenario, pool, drawn, table)
    kept = replace(kept, swaps=swaps, again=horizon(scenario.routing.period) > 0)
    return Ready(
        pool=pool, table=table, limits=room.limits[number], per_token=room.per_token[number], keeping=kept, way=way
    )


def _rebalancing(scenario: Scenario, pool: Pool, drawn: Arrangements, table: StepTable) -> tuple[Swap, ...]:
    """Find the step tables that a pool's replicas change to where the routing stays as it is."""
    policy = rebalancing_of(scenario, pool)
    if policy is None:
        return ()
    step, most = usual_step(scenario, pool, table), most_tokens(scenario, pool)
    return rebalanced(scenario, pool, policy, drawn, most=most, step=step)


def in_order(pools: Sequence[Pool]) -> list[Pool]:
    """List a plan's pools as requests meet them.

    Examples
    --------
    >>> from moesim.plans.plan import Parallel
    >>> roles = [Pool(role=role, node="n", replicas=1, parallel=Parallel()) for role in ("decode", "prefill")]
    >>> [pool.role for pool in in_order(roles)]
    ['prefill', 'decode']
    """
    return sorted(pools, key=lambda pool: ("all", "prefill", "decode").index(pool.role))


def most_tokens(scenario: Scenario, pool: Pool) -> int:
    """Tokens of the largest step worth a knot: the budget of all dp groups, or a full batch and a few prompts."""
    assert isinstance(scenario.workload, Serving)
    batching: Batching = make("batching", pool.policy("batching"))
    decoded = batching.max_batch * (1 + batching.speculated)
    usual = decoded + round(4 * scenario.workload.requests.input.mean)
    return (usual if batching.budget == NO_LIMIT else batching.budget) * pool.parallel.dp

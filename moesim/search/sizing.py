"""The fewest replicas of a layout that meet every target at peak with the confidence asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moesim.deployments.arrangements import arrangements
from moesim.deployments.deployed import of_role_all
from moesim.deployments.energy import draw_of
from moesim.deployments.pace import Factors, slowness
from moesim.deployments.pools import DRAWS, estimator_of
from moesim.deployments.summary import summarize
from moesim.ground.errors import PolicyError
from moesim.passes.table import table_of
from moesim.plans.plan import Plan, Policy
from moesim.search.buying import Buying
from moesim.search.money import Bill, bill, nodes_used, spares
from moesim.search.trials import Bench, Replicas, Trials, bench
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving

TRIALS = 12
"""Trials by which a number of replicas is judged."""

REQUESTS = 600
"""Requests in each trial."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Option:
    """A layout with the fewest replicas found that meet the targets, its spares, and its price."""

    bench: Bench
    plan: Plan
    trials: Trials
    bill: Bill


def replicas_of(plan: Plan) -> Replicas:
    """List the replicas of each pool."""
    return tuple(pool.replicas for pool in plan.pools)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sizer:
    """Sizes layouts in one world."""

    scenario: Scenario
    buying: Buying
    seed: int

    @property
    def allowed(self) -> int:
        """Trials that may miss."""
        return int((1 - self.buying.confidence) * TRIALS + 1e-9)

    def sized(self, plan: Plan) -> Option | None:
        """Size a layout, beginning with a plan's own replicas; None where all nodes on offer are too few."""
        ready = self.ready(plan)
        found = ready and self.fewest(ready, replicas_of(ready.plan))
        return self.option(ready, *found) if ready and found else None

    def ready(self, plan: Plan) -> Bench | None:
        """Make a layout ready for trials; None where it cannot serve."""
        workload = self.scenario.workload
        assert isinstance(workload, Serving)
        requests = min(workload.horizon, REQUESTS)
        warm_up = workload.warm_up * requests // workload.horizon
        world = replace(self.scenario, workload=replace(workload, horizon=requests, warm_up=warm_up))
        plan = replace(plan, router=Policy(name=self.buying.router), spare_nodes=0)
        try:
            drawn = arrangements(world, seed=self.seed, draws=DRAWS)
            factors, rates = self.slowness(plan, TRIALS), self.rates(plan)
            return bench(world, plan, drawn, rates=rates, factors=factors, seed=self.seed)
        except PolicyError:
            return None

    def rates(self, plan: Plan) -> tuple[float, ...]:
        """Output tokens/s that one replica of each pool can do, by formula."""
        estimator = estimator_of(self.scenario, table_of(plan.pools), seed=self.seed)
        pools = np.arange(len(plan.pools))
        estimator.estimate(pools)
        deployed = of_role_all(estimator.table, pools, np.ones_like(pools))
        found = summarize(self.scenario, deployed, estimator.estimates.take(pools)).metrics["throughput"]
        return tuple(found.tolist())

    def slowness(self, plan: Plan, number: int) -> Factors:
        """Draw how many times as long as estimated steps take: evenly spaced quantiles, slowest first."""
        factors = slowness(self.scenario, plan, self.seed)
        return np.asarray(np.quantile(factors, (np.arange(number) + 0.5) / number)[::-1])

    def fewest(self, ready: Bench, start: Replicas, known: Trials | None = None) -> tuple[Replicas, Trials] | None:
        """Add replicas until few enough trials miss, or take away as many as can be spared; `known`: of the start."""
        trials = ready.run(start, allowed=self.allowed) if known is None else known
        if trials.missed.sum() <= self.allowed:
            return self._fewer(ready, start, trials)
        most = self._most(ready.plan, start)
        if ready.run(most, allowed=self.allowed).missed.sum() > self.allowed:
            return None
        replicas = start
        while replicas != most:
            replicas = _more(replicas, most)
            trials = ready.run(replicas, allowed=self.allowed)
            if trials.missed.sum() <= self.allowed:
                break
        return replicas, trials

    def grown(self, option: Option) -> Option | None:
        """Add replicas to the pool of an option where that helps most; None where all that are on offer are in it."""
        replicas = replicas_of(option.plan)
        apart = [
            tuple(_more_of(number) if place == pool else number for place, number in enumerate(replicas))
            for pool in range(len(replicas))
        ]
        larger = [
            self.option(option.bench, more, option.bench.run(more))
            for more in apart
            if self._offered(option.plan, more)
        ]
        return min(larger, key=lambda each: (each.trials.missed.sum(), each.bill.cheapest), default=None)

    def _fewer(self, ready: Bench, replicas: Replicas, trials: Trials) -> tuple[Replicas, Trials]:
        while max(replicas) > 1:
            fewer = tuple(max(number - 1, 1) for number in replicas)
            tried = ready.run(fewer, allowed=self.allowed)
            if tried.missed.sum() > self.allowed:
                break
            replicas, trials = fewer, tried
        return replicas, trials

    def _most(self, plan: Plan, start: Replicas) -> Replicas:
        """As many replicas as the nodes on offer hold beside spares, pools in the proportions they start with."""
        share = 1
        while self._offered(plan, tuple(number * (share + 1) for number in start)):
            share += 1
        most = tuple(number * share for number in start)
        while self._offered(plan, more := tuple(number + 1 for number in most)):
            most = more
        return most

    def _offered(self, plan: Plan, replicas: Replicas) -> bool:
        """Whether so many replicas, and their spares, are within the nodes on offer."""
        whole = self.with_spares(_numbered(plan, replicas))
        return all(
            nodes <= self.scenario.hardware.offer(name).max_nodes
            for name, nodes in nodes_used(self.scenario, whole).items()
        )

    def with_spares(self, plan: Plan) -> Plan:
        """Keep as many spare nodes as availability needs."""
        nodes = sum(nodes_used(self.scenario, plan).values())
        gpus = self.scenario.hardware.offer(plan.pools[0].node).node.gpus
        return replace(plan, spare_nodes=spares(nodes, gpus, self.scenario.failures, self.buying.availability))

    def option(self, ready: Bench, replicas: Replicas, trials: Trials) -> Option:
        """Write an option out with its spares and its price."""
        plan = self.with_spares(_numbered(ready.plan, replicas))
        resting = draw_of(self.scenario, plan).fixed - draw_of(self.scenario, replace(plan, spare_nodes=0)).fixed
        power = float(trials.power.mean()) + resting
        return Option(bench=ready, plan=plan, trials=trials, bill=bill(self.scenario, plan, self.buying, power=power))


def _more(replicas: Replicas, most: Replicas) -> Replicas:
    """Add an eighth to each pool, one replica at least, as far as there are any.

    Examples
    --------
    >>> _more((1, 16), (4, 17))
    (2, 17)
    """
    return tuple(min(_more_of(number), last) for number, last in zip(replicas, most, strict=True))


def _more_of(number: int) -> int:
    return number + max(1, number // 8)


def _numbered(plan: Plan, replicas: Replicas) -> Plan:
    """Give each pool of a plan its number of replicas, without spares."""
    pools = zip(plan.pools, replicas, strict=True)
    return replace(plan, pools=tuple(replace(pool, replicas=number) for pool, number in pools), spare_nodes=0)

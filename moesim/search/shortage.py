"""How probable it is that a purchase misses, counting the time in which too few nodes are up."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.deployments.pace import Factors
from moesim.plans.plan import Plan
from moesim.search.money import downs, nodes_used, up_share
from moesim.search.sizing import replicas_of
from moesim.search.trials import Bench, Replicas, Trials
from moesim.world.scenario import Scenario

NEGLIGIBLE = 2e-3
"""Rarer shortages are not tried: they count as misses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Odds:
    """How probable it is that a plan misses a target.

    Attributes
    ----------
    share : probability of a miss, over how many nodes are up and over trials with the replicas that are left
    error : its standard error; trials meet the same requests whatever is left, so errors add up
    short : share of the time in which more nodes are in repair than there are spares
    """

    share: float
    error: float
    short: float


def odds(bench: Bench, plan: Plan, trials: Trials, *, first: int = 0, factors: Factors | None = None) -> Odds:
    """Weigh trials of a whole plan with those of what shortages leave of it, each by how probable it is.

    Parameters
    ----------
    plan : Plan
        Of the bench's layout, with its replicas and spares.
    trials : Trials
        Of all its replicas; none cut short.
    first, factors
        As those trials had them.
    """
    weights = shortages(bench.scenario, plan)
    share, error = weights[0] * trials.share, weights[0] * trials.error
    tried = {replicas_of(plan): trials}
    for lost in range(1, len(weights)):
        rest = sum(weights[lost:])
        replicas = remaining(bench.scenario, plan, lost)
        if rest < NEGLIGIBLE or min(replicas) == 0 or trials.missed.all():
            share += rest  # what has failed with more nodes, fails with fewer
            break
        if replicas not in tried:
            tried[replicas] = bench.run(replicas, first=first, factors=factors)
        trials = tried[replicas]
        share, error = share + weights[lost] * trials.share, error + weights[lost] * trials.error
    return Odds(share=share, error=error, short=sum(weights[1:]))


def shortages(scenario: Scenario, plan: Plan) -> list[float]:
    """Probability that a plan is short of 0, 1, 2 ... nodes, its spares taken into use first."""
    nodes = sum(nodes_used(scenario, plan).values())
    gpus = scenario.hardware.offer(plan.pools[0].node).node.gpus
    weights = downs(nodes, up_share(gpus, scenario.failures))
    return [sum(weights[: plan.spare_nodes + 1]), *weights[plan.spare_nodes + 1 :]]


def remaining(scenario: Scenario, plan: Plan, lost: int) -> Replicas:
    """Count the replicas of each pool that nodes which are up still hold.

    Nodes stand in for each other, and every pool gives up its share of those lost, in whole nodes.
    """
    per_node = [scenario.hardware.offer(pool.node).node.gpus for pool in plan.pools]
    nodes = [-(-pool.replicas * pool.parallel.gpus // each) for pool, each in zip(plan.pools, per_node, strict=True)]
    up = [number * (sum(nodes) - lost) // sum(nodes) for number in nodes]
    return tuple(
        max(min(pool.replicas, left * each // pool.parallel.gpus), 0)
        for pool, left, each in zip(plan.pools, up, per_node, strict=True)
    )

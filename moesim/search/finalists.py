"""Finalists: the first plans of a ranking under the scenario's requests, because queues are in no formula.

A formula sizes pools for the mean load, and bursts may need more. So where a finalist misses a target, the same plan
with one node more waits in its place, and takes its turn by what it would cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

import numpy as np
from jaxtyping import Float, Int

from moesim.deployments.deployed import NONE, Deployments, Row, listed, nodes_of, together
from moesim.deployments.metrics import base_metric
from moesim.deployments.result import Result
from moesim.deployments.simulation import simulate_many
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving

WANTED = 2
"""Plans that are to meet every target when simulated: the first and its runner-up."""

TRIED = 3
"""Plans simulated where no plan meets every target by its estimate."""

MOST = 24
"""Plans simulated at most."""

REQUESTS = 2000
"""Requests each of them faces."""

PARTS = {"replicas": "pool", "feeders": "feeder"}
"""How many there are of a deployment's pools, and which they are."""

AT_FAULT = {"ttft": "feeders", "tpot": "replicas", "itl": "replicas"}
"""Which of two pools a target hangs on; others hang on both."""

Rank = Callable[[Deployments], Float[np.ndarray, "plan 3"]]
Rows = Int[np.ndarray, "plan"]
Part = tuple[str, int, int]
"""Feeders or replicas, of which pool, and how many."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finals:
    """Simulates deployments, the best first, all under the same requests.

    Parameters
    ----------
    rank : what estimated deployments are ranked by; the first number is how far one misses its targets
    seed : of arrivals and routing
    """

    scenario: Scenario
    rank: Rank
    seed: int

    def run(self, candidates: Deployments) -> tuple[Deployments, tuple[Result, ...]]:
        """Simulate candidates, and larger ones in place of those that miss a target, until two meet all.

        Where no candidate meets its targets by its estimate, the first few are simulated as they are.

        Returns
        -------
        the deployments that were simulated, the best first by their estimates, and their results; none in training,
        which has no queue
        """
        if not isinstance(self.scenario.workload, Serving):
            return candidates.take([]), ()
        promising = np.flatnonzero(self.rank(candidates)[:, 0] <= 0)
        if len(promising):
            tried, results = self._sized(candidates.take(promising))
        else:
            tried = candidates.take(np.arange(min(len(candidates), TRIED)))
            results = [self._simulated(tried.take([place])) for place in range(len(tried))]
        order = self._order(tried)
        return tried.take(order), tuple(results[place] for place in order)

    def _sized(self, candidates: Deployments) -> tuple[Deployments, list[Result]]:
        """Try the best of those that wait; in place of one that misses a target, larger ones wait.

        What is short of nodes in one plan is so in all, and those are enlarged untried.
        """
        tried, results, short = candidates.take([]), list[Result](), set[Part]()
        waiting, known = self._ranked(candidates), set(candidates.rows())
        heapify(waiting)
        while waiting and len(results) < MOST and sum(result.verdict.good for result in results) < WANTED:
            first = listed(candidates.table, [heappop(waiting)[1]])
            lacking = [number for number in PARTS if _part(first, number) in short][:1]
            if not lacking:
                found = self._simulated(first)
                tried, results = together(tried, first), [*results, found]
                lacking = _lacking(first, found)
                short |= {_part(first, number) for number in lacking if len(lacking) == 1}
            for number in lacking:
                for entry in self._ranked(self._larger(first, number)):
                    if entry[1] not in known:
                        known.add(entry[1])
                        heappush(waiting, entry)
        return tried, results

    def _ranked(self, deployed: Deployments) -> list[tuple[tuple[float, ...], Row]]:
        return list(zip(map(tuple, self.rank(deployed).tolist()), deployed.rows(), strict=True))

    def _order(self, deployed: Deployments) -> Rows:
        return np.lexsort(self.rank(deployed).T[::-1])

    def _simulated(self, one: Deployments) -> Result:
        return simulate_many(self.scenario, [one.plan(0)], requests=REQUESTS, seed=self.seed)[0]

    def _larger(self, one: Deployments, number: str) -> Deployments:
        """Fill one node more with replicas of a pool; no deployment where the offer has no such node."""
        table, at = one.table, getattr(one, PARTS[number])
        offer = self.scenario.hardware.offer(table.pool(int(at[0])).node)
        nodes = nodes_of(self.scenario, table, at, getattr(one, number)) + 1
        more = replace(one, **{number: nodes * offer.node.gpus // table.gpus[at]})
        return more.take(np.flatnonzero(self._nodes(more) <= offer.max_nodes))

    def _nodes(self, deployed: Deployments) -> Rows:
        fed = deployed.feeder != NONE
        feeding = nodes_of(self.scenario, deployed.table, np.where(fed, deployed.feeder, 0), deployed.feeders)
        return nodes_of(self.scenario, deployed.table, deployed.pool, deployed.replicas) + np.where(fed, feeding, 0)


def _part(one: Deployments, number: str) -> Part:
    return number, int(getattr(one, PARTS[number])[0]), int(getattr(one, number)[0])


def _lacking(one: Deployments, found: Result) -> list[str]:
    """Name the pools that may be too few where a simulated deployment misses targets."""
    if one.feeder[0] == NONE:
        return [] if found.verdict.good else ["replicas"]
    missed = [base_metric(name) for name, met in found.verdict.meets.items() if not met]
    return sorted({number for name in missed for number in ([AT_FAULT[name]] if name in AT_FAULT else PARTS)})


def standing(results: Sequence[Result]) -> Rows:
    """Order simulated plans: those that meet every target, then those that miss one, each part in its own order."""
    return np.argsort([not result.verdict.good for result in results], kind="stable")

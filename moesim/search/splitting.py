"""Prefill and decode on pools of their own: the search over pairs of them.

A pair's price is the sum of its pools' prices, its time to first token is the prefill pool's and its time per token the
decode pool's (with the hand-over), and the fewest replicas that carry the load are enough for either. So what a pool
contributes is two numbers, nodes and a latency, and a pair is as good as its pools: it is enough to bound and estimate
the pools, each beside the best partners it could have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from moesim.deployments.deployed import Deployments, nodes_of
from moesim.deployments.metrics import base_metric
from moesim.deployments.pools import Estimates, Estimator
from moesim.deployments.summary import Summary, offered_rate, pool_metrics, summarize
from moesim.deployments.verdicts import targets_of
from moesim.passes.table import Whole
from moesim.search.deploying import paired, replicas_needed
from moesim.search.frontier import dominated, front
from moesim.search.objectives import Objectives, objectives
from moesim.search.pruning import distinct
from moesim.world.hardware import Offer
from moesim.world.scenario import Scenario

ADDITIVE = frozenset({"price", "price_per_token", "gpus", "ttft", "tpot"})
"""Metrics of which a pair is as good as its pools."""

Numbers = Float[np.ndarray, "pool"]


TURN = 8
"""Pools of either side estimated at a time."""

LATENCIES = ("ttft", "tpot")
"""The latency that the pool which prefills, and the one which decodes, is for."""


def splits(scenario: Scenario, goal: str, frontier: Sequence[str]) -> str:
    """Say why pools are not split in this search; "" where they are."""
    if not offered_rate(scenario.workload):
        return "no arrival rate: pools that prefill and decode apart have nothing to be sized for"
    others = {base_metric(name) for name in (goal, *frontier)} - ADDITIVE
    return f"of a pair of pools, {', '.join(sorted(others))} does not follow from each alone" if others else ""


@dataclass(slots=True, kw_only=True)
class Side:
    """Pools of one role on one node type: what each contributes to a pair, by bound until it is estimated.

    `able` is what the fewest replicas that carry the load can do, output tokens/s.
    """

    rows: Whole
    nodes: Whole
    able: Numbers
    latency: Numbers
    known: Bool[np.ndarray, "pool"]

    def edge(self) -> Whole:
        """Places of the pools that no other beats in both nodes and latency."""
        return np.flatnonzero(front(np.stack([self.nodes.astype(float), self.latency], axis=1)))


Sides = tuple[Side, Side]
"""Pools that prefill, and pools that decode."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Splitter:
    """Searches the pairs on one offer."""

    scenario: Scenario
    estimator: Estimator
    goal: str
    frontier: tuple[str, ...]

    def sides(self, roles: tuple[Whole, Whole], floors: Estimates) -> Sides:
        """Bound the pools on an offer.

        Parameters
        ----------
        roles : rows of the pools that fit: those that prefill, those that decode
        floors : bounds of every pool
        """
        prefill, decode = (self._side(rows, floors, metric) for rows, metric in zip(roles, LATENCIES, strict=True))
        return prefill, decode

    def best(self, offer: Offer, sides: Sides) -> tuple[float, ...]:
        """Rank that no pair on an offer can be before; infinitely bad where there is none."""
        lower, _ = self._beside(offer, sides, 0, sides[0].edge())
        first = lower.order(np.arange(len(lower.rank)))[:1]
        return tuple(lower.rank[first].ravel().tolist()) or (np.inf,)

    def search(self, offer: Offer, sides: Sides, incumbents: Objectives) -> Deployments:
        """Estimate pools until no pair with one that is left can matter; return all pairs of estimated pools.

        Parameters
        ----------
        sides : the pools on this offer, by bound; what is estimated is written into them
        incumbents : objectives of the plans that a pair must beat
        """
        while True:
            pairs = self._pairs(sides)
            best = _joined(incumbents, self.objectives(pairs))
            chosen = [self._next(offer, sides, turn, best) for turn in (0, 1)]
            if not any(len(places) for places in chosen):
                return pairs
            self.estimator.estimate(np.sort(np.concatenate([s.rows[p] for s, p in zip(sides, chosen, strict=True)])))
            for side, places, metric in zip(sides, chosen, LATENCIES, strict=True):
                self._fill(side, places, self.estimator.estimates, metric)
                side.known[places] = True

    def objectives(self, deployed: Deployments) -> Objectives:
        """Objectives of estimated pairs."""
        summary = summarize(self.scenario, deployed, self.estimator.estimates)
        return objectives(summary, targets_of(self.scenario), self.goal, self.frontier)

    def _side(self, rows: Whole, floors: Estimates, metric: str) -> Side:
        number = len(rows)
        side = Side(
            rows=rows,
            nodes=np.zeros(number, np.int64),
            able=np.zeros(number),
            latency=np.zeros(number),
            known=np.zeros(number, bool),
        )
        self._fill(side, np.arange(number), floors, metric)
        return side

    def _fill(self, side: Side, places: Whole, estimates: Estimates, metric: str) -> None:
        """Write what pools contribute, by bounds or by estimates; a pool that a policy refused contributes nothing."""
        rows = side.rows[places]
        table = self.estimator.table.take(rows)
        metrics = pool_metrics(self.scenario, table, estimates.take(rows))
        replicas = replicas_needed(metrics["rate"], offered_rate(self.scenario.workload))
        side.nodes[places] = nodes_of(self.scenario, table, np.arange(len(rows)), replicas)
        side.able[places] = metrics["rate"] * replicas
        side.latency[places] = np.nan_to_num(metrics[metric], nan=np.inf)

    def _next(self, offer: Offer, sides: Sides, turn: int, best: Objectives) -> Whole:
        """Choose pools of one side to estimate: of those that may matter, the ones that rank first by their bounds."""
        own = sides[turn]
        places = np.flatnonzero(~own.known)
        places = places[~self._beaten(own, places, LATENCIES[turn])]
        lower, at = self._beside(offer, sides, turn, places)
        matters = np.flatnonzero(_ranks_first(lower, best) | _extends(lower, best))
        return distinct(at[lower.order(matters)])[:TURN]

    def _beside(self, offer: Offer, sides: Sides, turn: int, places: Whole) -> tuple[Objectives, Whole]:
        """Bound pairs of some pools of one side and the best partners they could have; say whose each pair is."""
        own, other = sides[turn], sides[1 - turn]
        partners = other.edge()
        at, partner = (part.reshape(-1) for part in np.meshgrid(places, partners, indexing="ij"))
        nodes = own.nodes[at] + other.nodes[partner]
        at, partner = at[nodes <= offer.max_nodes], partner[nodes <= offer.max_nodes]
        latencies = (own.latency[at], other.latency[partner])
        able = np.minimum(own.able[at], other.able[partner])
        nodes = own.nodes[at] + other.nodes[partner]
        return self._bounds(offer, nodes, able, *(latencies if turn == 0 else latencies[::-1])), at

    def _beaten(self, side: Side, places: Whole, metric: str) -> Bool[np.ndarray, "pool"]:
        """Whether an estimated pool needs no more nodes and is no slower, as far as that matters.

        A latency that is neither goal nor traded off only has to keep within its target.
        """
        wanted = {base_metric(name) for name in (self.goal, *self.frontier)}
        limits = [each.limit for each in targets_of(self.scenario) if base_metric(each.metric) == metric]
        allowed = 0.0 if metric in wanted else min(limits, default=np.inf)
        points = np.stack([side.nodes.astype(float), np.maximum(side.latency, allowed)], axis=1)
        return dominated(points[places], points[side.known])

    def _bounds(self, offer: Offer, nodes: Whole, able: Numbers, ttft: Numbers, tpot: Numbers) -> Objectives:
        """Objectives of pairs, no worse than they can be."""
        offered = offered_rate(self.scenario.workload)
        gpus = nodes * float(offer.node.gpus)
        summary = Summary(
            metrics={
                "gpus": gpus,
                "price": gpus * offer.rent,
                "price_per_token": gpus * offer.rent / offered,
                "ttft": ttft,
                "tpot": tpot,
                "throughput": able,
                "step": tpot,
            },
            offered=0.0,
        )
        return objectives(summary, targets_of(self.scenario), self.goal, self.frontier)

    def _pairs(self, sides: Sides) -> Deployments:
        """Combine estimated pools at the fewest replicas that carry the load, where no other beats them on their side.

        A pool that another beats makes no pair that the other's would not beat.
        """
        sized = []
        for side in sides:
            places = np.flatnonzero(side.known & np.isfinite(side.latency))
            edge = np.stack([side.nodes[places].astype(float), side.latency[places], -side.able[places]], axis=1)
            rows = side.rows[places[np.flatnonzero(front(edge))]]
            table = self.estimator.table.take(rows)
            rate = pool_metrics(self.scenario, table, self.estimator.estimates.take(rows))["rate"]
            sized.append((rows, replicas_needed(rate, offered_rate(self.scenario.workload))))
        return paired(self.scenario, self.estimator.table, sized[0], sized[1])


def _joined(first: Objectives, second: Objectives) -> Objectives:
    return Objectives(rank=np.concatenate([first.rank, second.rank]), front=np.concatenate([first.front, second.front]))


def _ranks_first(lower: Objectives, best: Objectives) -> Bool[np.ndarray, "pair"]:
    """Whether a pair may rank before every incumbent."""
    known = np.flatnonzero(~np.isnan(best.rank[:, 0]))
    if not len(known):
        return np.ones(len(lower.rank), bool)
    return lower.before(best.rank[best.order(known)[0]])


def _extends(lower: Objectives, best: Objectives) -> Bool[np.ndarray, "pair"]:
    """Whether a pair may be on the frontier."""
    known = np.flatnonzero(~np.isnan(best.rank[:, 0]))
    good = best.front[known[best.meets[known]]]
    return np.asarray(lower.meets & ~dominated(lower.front, good[front(good)]))

"""The search itself: every plan is bounded, and estimated where its bound may matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from moesim.deployments.deployed import Deployments, together
from moesim.deployments.floors import floor_estimates
from moesim.deployments.pools import Estimates, Estimator
from moesim.deployments.summary import summarize
from moesim.deployments.verdicts import targets_of
from moesim.passes.table import Whole
from moesim.search.deploying import every_number_of_replicas
from moesim.search.objectives import Objectives, objectives
from moesim.search.pruning import best_first
from moesim.search.splitting import Splitter, splits
from moesim.world.scenario import Scenario

SLACK = 1e-9
"""Bounds are lowered by this share, so that rounding never makes one exceed what it bounds."""

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """Every plan that was estimated, and how many were considered.

    `unsplit` says why no pools were split although the space asks for it.
    """

    deployed: Deployments
    considered: int
    unfit: int
    refused: int
    gap: float
    unsplit: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Search:
    """One search: bounds first, then estimates.

    `traded` are the metrics of the frontier.
    """

    scenario: Scenario
    estimator: Estimator
    roles: tuple[str, ...]
    goal: str
    traded: tuple[str, ...]

    def run(self, progress: Progress) -> Outcome:
        """Search pools that do everything, then pairs of pools that share the work."""
        table, fits = self.estimator.table, self.estimator.memory.fits
        floors = _lowered(floor_estimates(self.estimator, np.flatnonzero(fits)))
        role = np.array([like.role for like in table.variants])[table.variant]
        alls = np.flatnonzero(role == "all") if "all" in self.roles else np.zeros(0, np.int64)
        every = every_number_of_replicas(self.scenario, table, alls)
        whole = every.take(np.flatnonzero(fits[every.pool]))
        lower = self.objectives(whole, floors)
        known = np.zeros(len(table), bool)

        def estimate(rows: Whole) -> Objectives:
            known[rows] = True
            return self.objectives(whole, self.estimator.estimate(rows))

        best_first(whole.pool, lower, estimate, progress)
        done = whole.take(np.flatnonzero(known[whole.pool]))
        left = lower.rank[~known[whole.pool]]
        outcome = Outcome(
            deployed=done,
            considered=len(every),
            unfit=len(every) - len(whole),
            refused=int(np.isin(done.pool, list(self.estimator.estimates.refused)).sum()),
            gap=0.0,
            unsplit="",
        )
        if any("+" in roles for roles in self.roles):
            outcome = self._split(outcome, role, floors)
        return replace(outcome, gap=self._gap(outcome.deployed, left))

    def objectives(self, deployed: Deployments, estimates: Estimates) -> Objectives:
        """Objectives of deployments by estimates or by bounds."""
        summary = summarize(self.scenario, deployed, estimates)
        return objectives(summary, targets_of(self.scenario), self.goal, self.traded)

    def _split(self, outcome: Outcome, role: np.ndarray, floors: Estimates) -> Outcome:
        """Search pairs of pools on every offer, the best bound first: what is found there may rule others out."""
        why = splits(self.scenario, self.goal, self.traded)
        if why:
            return replace(outcome, unsplit=why)
        splitter = Splitter(scenario=self.scenario, estimator=self.estimator, goal=self.goal, frontier=self.traded)
        table, fits = self.estimator.table, self.estimator.memory.fits
        names = np.array([like.node for like in table.variants])[table.variant]
        tries = []
        for offer in self.scenario.hardware.offers:
            here = [np.flatnonzero((names == offer.node.name) & (role == side)) for side in ("prefill", "decode")]
            sides = splitter.sides((here[0][fits[here[0]]], here[1][fits[here[1]]]), floors)
            tries.append((splitter.best(offer, sides), len(here[0]) * len(here[1]), offer, sides))
        for _, everything, offer, sides in sorted(tries, key=lambda each: each[0]):
            before = outcome.deployed
            pairs = splitter.search(offer, sides, self.objectives(before, self.estimator.estimates))
            outcome = replace(
                outcome,
                deployed=together(before, pairs),
                considered=outcome.considered + everything,
                unfit=outcome.unfit + everything - len(sides[0].rows) * len(sides[1].rows),
            )
        return outcome

    def _gap(self, deployed: Deployments, left: np.ndarray) -> float:
        """By how much the best bound that is left beats the first plan's goal; nothing is left that does."""
        if not len(deployed) or not len(left):
            return 0.0
        found = self.objectives(deployed, self.estimator.estimates)
        known = np.flatnonzero(~np.isnan(found.rank[:, 0]))
        if not len(known):
            return 0.0
        miss, goal, _ = found.rank[found.order(known)[0]]
        rivals = left[left[:, 0] <= miss, 1]
        return max(0.0, float((goal - rivals.min()) / abs(goal))) if len(rivals) and goal else 0.0


def _lowered(floors: Estimates) -> Estimates:
    return replace(floors, step=floors.step * (1 - SLACK), carrying=floors.carrying * (1 - SLACK))

"""What a search returns: plans ranked, ranges drawn, the first few simulated, and everything counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from moesim.deployments.deployed import Deployments, together, without
from moesim.deployments.estimation import estimate_deployed
from moesim.deployments.metrics import METRICS, base_metric
from moesim.deployments.ranges import Ranges, drawn_ranges
from moesim.deployments.result import Result
from moesim.deployments.summary import summarize
from moesim.deployments.verdicts import targets_of
from moesim.passes.table import Whole
from moesim.search.finalists import Finals, standing
from moesim.search.frontier import front
from moesim.search.naming import estimated_table, plans_table, unfit_table
from moesim.search.objectives import objectives
from moesim.search.pruning import SHOWN
from moesim.search.ranking import Certificate, Comparison, Ranking
from moesim.search.searching import Outcome, Search
from moesim.search.space import Enumerated


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finish:
    """Writes what a search found."""

    search: Search
    found: Enumerated
    outcome: Outcome

    def ranking(self) -> Ranking:
        """Rank, draw ranges for what is shown, and simulate the first few."""
        search, deployed = self.search, self.outcome.deployed
        values = search.objectives(deployed, search.estimator.estimates)
        known = np.flatnonzero(~np.isnan(values.rank).any(axis=1))
        order = values.order(known)
        top = deployed.take(self._best_of_each_layout(order))
        good = known[values.meets[known]]
        edge = good[front(values.front[good])] if len(good) else good
        edge = edge[np.argsort(values.front[edge, 0], kind="stable")]
        finals = Finals(scenario=search.scenario, rank=self._rank, seed=search.estimator.run.seed)
        tried, results = finals.run(top)
        stand = standing(results)
        shown = together(tried.take(stand), without(top, tried)).take(slice(SHOWN))
        simulated = tuple(results[place] for place in stand[:SHOWN])
        ranges = drawn_ranges(search.scenario, search.estimator, shown) if len(top) else None
        return Ranking(
            goal=search.goal,
            plans=_marked(self._table(shown, self._rank(shown)[:, 0].tolist(), ranges), simulated),
            frontier=self._table(deployed.take(edge), [0.0] * len(edge), None),
            chosen=(
                *(result.plan for result in simulated),
                *(shown.plan(row) for row in range(len(simulated), len(shown))),
            ),
            traded=tuple(deployed.plan(int(row)) for row in edge),
            results=tuple(
                estimate_deployed(
                    search.scenario,
                    search.estimator,
                    shown,
                    row,
                    ranges.only(row) if ranges else None,
                    detailed=row == 0,
                )
                for row in range(min(len(shown), 2))
            ),
            estimated=self._estimated(known, values.meets[known].tolist()),
            simulated=simulated,
            comparison=self._comparison(shown, ranges, simulated),
            certificate=self._certificate(len(known), len(results), self._overtaken(top, shown)),
            unfit=unfit_table(search.scenario, search.estimator, np.arange(len(self.found.table))),
            meets=len(good),
        )

    def _best_of_each_layout(self, order: Whole) -> Whole:
        """Keep the best number of replicas of each layout, in order."""
        deployed = self.outcome.deployed
        names = np.stack([deployed.pool[order], deployed.feeder[order]])
        _, first = np.unique(names, axis=1, return_index=True)
        return order[np.sort(first)]

    def _estimated(self, known: Whole, meets: Sequence[bool]) -> pd.DataFrame:
        search, deployed = self.search, self.outcome.deployed.take(known)
        summary = summarize(search.scenario, deployed, search.estimator.estimates)
        return estimated_table(search.scenario, deployed, summary, meets, self._also())

    def _also(self) -> list[str]:
        """List the metrics that tables show because of the question."""
        return [base_metric(name) for name in (self.search.goal, *self.search.traded)]

    def _table(self, deployed: Deployments, miss: Sequence[float], ranges: Ranges | None) -> pd.DataFrame:
        search = self.search
        summary = summarize(search.scenario, deployed, search.estimator.estimates)
        return plans_table(search.scenario, deployed, summary, miss, search.estimator, ranges, self._also())

    def _overtaken(self, ranked: Deployments, shown: Deployments) -> int:
        """Count the layouts that are estimated better than the plan that came out first."""
        if not len(shown):
            return 0
        values = self.search.objectives(ranked, self.search.estimator.estimates)
        return int(values.before(self._rank(shown)[0]).sum())

    def _rank(self, deployed: Deployments) -> Float[np.ndarray, "plan 3"]:
        return self.search.objectives(deployed, self.search.estimator.estimates).rank

    def _comparison(self, shown: Deployments, ranges: Ranges | None, simulated: Sequence[Result]) -> Comparison | None:
        """Set the first plan beside the second, in the estimate and under every draw."""
        if len(shown) < 2 or ranges is None:
            return None
        search = self.search
        targets = targets_of(search.scenario)
        names = ("miss", search.goal, "throughput")
        first, second = self._rank(shown)[:2]
        at = next((place for place in range(3) if first[place] != second[place]), 2)
        drawn = [objectives(ranges.summary(plan), targets, search.goal, search.traded).rank for plan in (0, 1)]
        wins = [tuple(one) < tuple(other) for one, other in zip(*(rank.tolist() for rank in drawn), strict=True)]
        sign = 1.0 if names[at] == "miss" or METRICS[names[at]].less_is_better else -1.0
        return Comparison(
            metric=names[at],
            first=float(sign * first[at]),
            second=float(sign * second[at]),
            probability=float(np.mean(wins)),
            missed=simulated[1].verdict.why if tuple(second) < tuple(first) else "",
        )

    def _certificate(self, estimated: int, simulated: int, overtaken: int) -> Certificate:
        outcome = self.outcome
        return Certificate(
            layouts=len(self.found.table),
            considered=outcome.considered,
            invalid=self.found.invalid,
            unfit=outcome.unfit,
            refused=outcome.refused,
            bounded=outcome.considered - outcome.unfit - outcome.refused - estimated,
            estimated=estimated,
            simulated=simulated,
            gap=outcome.gap,
            overtaken=overtaken,
            unsplit=outcome.unsplit,
        )


def _marked(plans: pd.DataFrame, simulated: Sequence[Result]) -> pd.DataFrame:
    """Say of each plan whether it met every target when it was simulated; those that were stand first."""
    words = ["meets" if result.verdict.good else "misses" for result in simulated]
    plans["simulated"] = [*words, *["no"] * (len(plans) - len(words))]
    return plans

"""Search: the best plans of a space, its frontier, and the proof that no plan of it is estimated better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from moesim.deployments.deployed import Deployments, together
from moesim.deployments.estimation import estimate_deployed
from moesim.deployments.floors import floor_estimates
from moesim.deployments.metrics import METRICS, base_metric
from moesim.deployments.pools import Estimates, Estimator, estimator_of
from moesim.deployments.ranges import Ranges, drawn_ranges
from moesim.deployments.result import Result
from moesim.deployments.simulation import simulate_many
from moesim.deployments.summary import estimated_metrics, summarize
from moesim.deployments.verdicts import targets_of
from moesim.ground.errors import Fault, PlanError, nearest
from moesim.passes.table import Whole
from moesim.plans.plan import Space
from moesim.search.deploying import every_number_of_replicas
from moesim.search.frontier import front
from moesim.search.naming import estimated_table, plans_table, unfit_table
from moesim.search.objectives import Objectives, objectives
from moesim.search.pruning import SHOWN, best_first
from moesim.search.ranking import Certificate, Comparison, Ranking
from moesim.search.resuming import Arrays, Journal, journaled
from moesim.search.space import Enumerated, enumerate_pools, roles_wanted
from moesim.search.splitting import Splitter, splits
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving

SLACK = 1e-9
"""Bounds are lowered by this share, so that rounding never makes one exceed what it bounds."""

FINALISTS = 3
"""Plans simulated under the scenario's requests."""

REQUESTS = 2000
"""Requests each of them faces."""

Progress = Callable[[float], None]


def optimize(
    scenario: Scenario,
    space: Space | None = None,
    *,
    goal: str = "price_per_token",
    frontier: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = lambda share: None,
    journal: Journal | None = None,
    kept: Sequence[Arrays] = (),
) -> Ranking:
    """Rank the plans of a space by a goal; plans that miss a target come after all that meet them.

    Every plan is bounded; plans are estimated best bound first, until no bound that is left can enter the ranked table
    or the frontier. The first few are simulated under the same requests.

    Parameters
    ----------
    scenario : Scenario
        The world.
    space : Space
        Alternatives by dotted path; none: every valid layout on the scenario's offers.
    goal : str
        A metric's name; ties are broken by throughput.
    frontier : sequence of str
        Metrics to trade off against each other; none: the goal and the time per output token (in training: and the
        step time). A percentile is read as the mean, until the simulation.
    seed : int
        Seed of the routing draws, residuals and requests, equal for all plans.
    progress : callable
        Told the share of the search done, from 0 to 1, now and then.
    journal : Journal
        Keeps what is estimated, turn by turn, so that a search that was stopped can go on; none: nothing is kept.
    kept : sequence of mappings from name to array
        The turns that the journal of a stopped search of the same question holds.

    Returns
    -------
    Ranking

    Raises
    ------
    PlanError
        The goal or a metric of the frontier is not estimated, or the space holds no valid plan.
    """
    traded = tuple(frontier) or (goal, "tpot" if isinstance(scenario.workload, Serving) else "step")
    _check_metrics(scenario, goal, traded)
    found = enumerate_pools(scenario, space or Space(axes={}))
    if not len(found.table):
        left_out = "".join(f"; {count:,} left out: {reason}" for reason, count in found.invalid.items())
        remedy = "degrees must divide GPUs, experts, heads and layers; an axis left out is tried in full"
        raise PlanError("space", [Fault(path="", problem=f"holds no valid layout{left_out}", remedy=remedy)])
    estimator = estimator_of(scenario, found.table, seed=seed)
    search = _Search(
        scenario=scenario,
        estimator=journaled(estimator, journal, kept) if journal else estimator,
        roles=roles_wanted(space or Space(axes={}), scenario.workload),
        goal=goal,
        traded=tuple(dict.fromkeys(traded)),
    )
    return _Finish(search=search, found=found, outcome=search.run(progress)).ranking()


def _check_metrics(scenario: Scenario, goal: str, traded: Sequence[str]) -> None:
    """Refuse metrics that no estimate gives."""
    known = estimated_metrics(scenario.workload)
    faults = []
    for path, name in [("goal", goal), *(("frontier", name) for name in traded)]:
        base = name if path == "goal" else base_metric(name)
        if base not in known:
            problem = f"`{name}` isn't estimated here" if base in METRICS else f"`{name}` is no metric"
            faults.append(Fault(path=path, problem=problem, remedy=nearest(base, known)))
    if faults:
        raise PlanError("goal" if faults[0].path == "goal" else "frontier", faults)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Outcome:
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
class _Search:
    """One search: bounds first, then estimates."""

    scenario: Scenario
    estimator: Estimator
    roles: tuple[str, ...]
    goal: str
    traded: tuple[str, ...]

    def run(self, progress: Progress) -> _Outcome:
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
        outcome = _Outcome(
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

    def _split(self, outcome: _Outcome, role: np.ndarray, floors: Estimates) -> _Outcome:
        """Search pairs of pools on every offer."""
        why = splits(self.scenario, self.goal, self.traded)
        if why:
            return replace(outcome, unsplit=why)
        splitter = Splitter(scenario=self.scenario, estimator=self.estimator, goal=self.goal, frontier=self.traded)
        table, fits = self.estimator.table, self.estimator.memory.fits
        names = np.array([like.node for like in table.variants])[table.variant]
        for offer in self.scenario.hardware.offers:
            here = [np.flatnonzero((names == offer.node.name) & (role == side)) for side in ("prefill", "decode")]
            fit = (here[0][fits[here[0]]], here[1][fits[here[1]]])
            before = outcome.deployed
            pairs = splitter.search(
                offer,
                fit,
                floors,
                lambda before=before: self.objectives(before, self.estimator.estimates),  # type: ignore[misc]
            )
            everything = len(here[0]) * len(here[1])
            outcome = replace(
                outcome,
                deployed=together(before, pairs),
                considered=outcome.considered + everything,
                unfit=outcome.unfit + everything - len(fit[0]) * len(fit[1]),
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Finish:
    """Writes what a search found."""

    search: _Search
    found: Enumerated
    outcome: _Outcome

    def ranking(self) -> Ranking:
        """Rank, draw ranges for what is shown, and simulate the first few."""
        search, deployed = self.search, self.outcome.deployed
        values = search.objectives(deployed, search.estimator.estimates)
        known = np.flatnonzero(~np.isnan(values.rank).any(axis=1))
        order = values.order(known)
        top = self._best_of_each_layout(order)[:SHOWN]
        good = known[values.meets[known]]
        edge = good[front(values.front[good])] if len(good) else good
        edge = edge[np.argsort(values.front[edge, 0], kind="stable")]
        shown = deployed.take(top)
        ranges = drawn_ranges(search.scenario, search.estimator, shown) if len(top) else None
        simulated = self._simulated(shown)
        return Ranking(
            goal=search.goal,
            plans=self._table(shown, values.rank[top, 0].tolist(), ranges),
            frontier=self._table(deployed.take(edge), [0.0] * len(edge), None),
            chosen=tuple(shown.plan(row) for row in range(len(shown))),
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
            comparison=self._comparison(values, top, ranges),
            certificate=self._certificate(len(known), len(simulated)),
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

    def _simulated(self, shown: Deployments) -> tuple[Result, ...]:
        """Simulate the first few plans under the same requests."""
        search = self.search
        plans = [shown.plan(row) for row in range(min(len(shown), FINALISTS))]
        if not isinstance(search.scenario.workload, Serving) or not plans:
            return ()
        return tuple(simulate_many(search.scenario, plans, requests=REQUESTS, seed=search.estimator.run.seed))

    def _comparison(self, values: Objectives, top: Whole, ranges: Ranges | None) -> Comparison | None:
        """Set the first plan beside the second, in the estimate and under every draw."""
        if len(top) < 2 or ranges is None:
            return None
        search = self.search
        targets = targets_of(search.scenario)
        names = ("miss", search.goal, "throughput")
        first, second = values.rank[top[0]], values.rank[top[1]]
        at = next((place for place in range(3) if first[place] != second[place]), 2)
        drawn = [objectives(ranges.summary(plan), targets, search.goal, search.traded).rank for plan in (0, 1)]
        wins = [tuple(one) < tuple(other) for one, other in zip(*(rank.tolist() for rank in drawn), strict=True)]
        sign = 1.0 if names[at] == "miss" or METRICS[names[at]].less_is_better else -1.0
        return Comparison(
            metric=names[at],
            first=float(sign * first[at]),
            second=float(sign * second[at]),
            probability=float(np.mean(wins)),
        )

    def _certificate(self, estimated: int, simulated: int) -> Certificate:
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
            unsplit=outcome.unsplit,
        )

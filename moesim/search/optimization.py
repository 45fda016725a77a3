"""Search: the best plans of a space, its frontier, and the proof that no plan of it is estimated better."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.deployments.metrics import METRICS, base_metric
from moesim.deployments.pools import estimator_of
from moesim.deployments.summary import estimated_metrics
from moesim.ground.errors import Fault, PlanError, nearest
from moesim.plans.plan import Space
from moesim.search.finishing import Finish
from moesim.search.ranking import Ranking
from moesim.search.resuming import Arrays, Journal, journaled
from moesim.search.searching import Progress, Search
from moesim.search.space import enumerate_pools, roles_wanted
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving


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
    or the frontier. The first few are simulated under the same requests, and those that then miss a target stand behind
    those that meet them all.

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
        remedy = "change what they name"
        if not found.invalid:
            remedy = "degrees must divide GPUs, experts, heads and layers; an axis left out is tried in full"
        raise PlanError("space", [Fault(path="", problem=f"holds no valid layout{left_out}", remedy=remedy)])
    estimator = estimator_of(scenario, found.table, seed=seed)
    search = Search(
        scenario=scenario,
        estimator=journaled(estimator, journal, kept) if journal else estimator,
        roles=roles_wanted(space or Space(axes={}), scenario.workload),
        goal=goal,
        traded=tuple(dict.fromkeys(traded)),
    )
    return Finish(search=search, found=found, outcome=search.run(progress)).ranking()


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

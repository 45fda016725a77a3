"""Simulate deployments request by request: the queues, percentiles and rates that a formula cannot give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from moesim.deployments.arrangements import Arrangements, arrangements
from moesim.deployments.capacity import Capacity, capacity
from moesim.deployments.graphing import PILOT, graph_table, unchosen, with_graphs
from moesim.deployments.grounding import scenario_grounds
from moesim.deployments.judging import headline, judge, unfit
from moesim.deployments.pools import DRAWS
from moesim.deployments.reaction import reaction_tables
from moesim.deployments.result import Result, Verdict
from moesim.deployments.serving.asked import Asked, generate
from moesim.deployments.serving.measures import Served, event_table, request_table, step_table
from moesim.deployments.spread import exact, spread
from moesim.deployments.staging import Deployment, deploy, in_order
from moesim.deployments.tables import memory_table
from moesim.deployments.upkeeping import upkeep_table
from moesim.ground.errors import Fault, PlanError, PolicyError, WorkloadError
from moesim.ground.units import SourceKind, weakest
from moesim.passes.footprint import Memory
from moesim.passes.table import table_of
from moesim.plans.plan import Plan
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving

Progress = Callable[[float], None]

DEPLOYMENTS = (["all"], ["prefill", "decode"])
"""Roles of the pools that make a deployment together."""


def simulate(
    scenario: Scenario,
    plan: Plan,
    *,
    seed: int = 0,
    replications: int = 1,
    progress: Progress = lambda share: None,
) -> Result:
    """Simulate one deployment under the scenario's requests.

    Parameters
    ----------
    scenario : Scenario
        A world with a serving workload.
    plan : Plan
        One pool of replicas that do everything, or a prefill pool and a decode pool.
    seed : int
        Seed of arrivals, lengths and routing draws; plans simulated with one seed face the same requests.
    replications : int
        Independent repetitions that the summary is the mean of; the tables are those of the first.
    progress : callable
        Told the share done, from 0 to 1, now and then.

    Returns
    -------
    Result
        Of the plan with its graphs chosen, where it leaves their sizes open. Every number of the summary with its range
        (`spread`): what differs between replications, and what the calibrated costs may be wrong by. Tables
        ``requests`` (one row per request), ``steps`` (one row per run of equal steps), ``upkeep`` (cold start, failures
        to expect, scaling and rebalancing, by pool), ``events`` (what happened to replicas besides requests),
        ``graphs`` (what compiled ones are used for), ``memory`` and, where a pool reacts to its routing, ``reaction``
        and ``changes``; where the plan does not fit, ``memory`` alone.

    Raises
    ------
    WorkloadError
        The workload is training.
    PlanError
        The plan's pools do not make a deployment together.
    """
    return simulate_many(scenario, [plan], seed=seed, replications=replications, ranged=True, progress=progress)[0]


def simulate_many(
    scenario: Scenario,
    plans: Sequence[Plan],
    *,
    requests: int | None = None,
    seed: int = 0,
    replications: int = 1,
    ranged: bool = False,
    progress: Progress = lambda share: None,
) -> list[Result]:
    """Simulate several deployments under the same requests, sharing what they have in common.

    Parameters
    ----------
    requests : int
        How many requests; none: the workload's horizon. The share of them that warms up stays as it is.
    ranged : bool
        Whether numbers get their ranges, which takes two more runs of each plan, and reacting is held against full
        knowledge.
    """
    if not isinstance(scenario.workload, Serving):
        fault = Fault(path="kind", problem="only serving is simulated", remedy="estimate training instead")
        raise WorkloadError("workload", [fault])
    workload = scenario.workload if requests is None else _shorter(scenario.workload, requests)
    scenario = replace(scenario, workload=workload)
    asked = [generate(workload, seed=seed, replication=turn) for turn in range(replications)]
    _check_warm_up(workload, asked[0])
    drawn = arrangements(scenario, seed=seed, draws=DRAWS)
    return [
        _simulated(scenario, _checked(plan), asked, drawn, seed, ranged, _part(progress, number, len(plans)))
        for number, plan in enumerate(plans)
    ]


def _shorter(workload: Serving, requests: int) -> Serving:
    warm_up = workload.warm_up * requests // workload.horizon
    return replace(workload, horizon=requests, warm_up=warm_up)


def _check_warm_up(workload: Serving, asked: Asked) -> None:
    """Refuse a warm-up that leaves nothing of a short trace to measure."""
    if workload.warm_up >= len(asked.prompt):
        problem = f"{workload.warm_up} leaves none of {len(asked.prompt)} recorded requests to measure"
        raise WorkloadError("workload", [Fault(path="horizon.warm_up", problem=problem, remedy="give fewer")])


def _part(progress: Progress, number: int, parts: int) -> Progress:
    """Report the progress of one of several equal parts."""
    return lambda share: progress((number + share) / parts)


def _checked(plan: Plan) -> Plan:
    """Put a plan's pools in order, if they make a deployment together."""
    roles = [pool.role for pool in in_order(plan.pools)]
    if roles not in DEPLOYMENTS:
        problem = f"do not make a deployment together (roles: {', '.join(roles)})"
        remedy = "give one pool with role `all`, or one `prefill` and one `decode` pool"
        raise PlanError("plan", [Fault(path="pools", problem=problem, remedy=remedy)])
    return replace(plan, pools=tuple(in_order(plan.pools)))


def _simulated(
    scenario: Scenario,
    plan: Plan,
    asked: Sequence[Asked],
    drawn: Arrangements,
    seed: int,
    ranged: bool,
    progress: Progress,
) -> Result:
    """Simulate one plan."""
    assert isinstance(scenario.workload, Serving)
    room = capacity(scenario, plan.pools)
    source = weakest(tuple(scenario_grounds(scenario, table_of(plan.pools))))
    verdict = unfit(scenario, plan, room)
    if verdict is not None:
        return _hopeless(plan, room, source, seed, verdict)
    try:
        plan, room, deployment = _deployed(scenario, plan, room, drawn, seed)
    except PolicyError as refusal:
        verdict = Verdict(fits=False, meets={}, binding="policy", why=str(refusal))
        return _hopeless(plan, room, source, seed, verdict)
    parts = len(asked) + 2 * ranged
    runs = [
        deployment.serve(each, _part(progress, turn, parts), seed=seed, turn=turn) for turn, each in enumerate(asked)
    ]
    summary = headline(scenario, plan, room, runs)
    tables = [ready.table for ready in deployment.pools]
    grounds = weakest((source, *(table.source for table in tables)))
    rest = _part(progress, parts // 2, parts // 2 + 1)
    return Result(
        plan=plan,
        seed=seed,
        verdict=judge(scenario.workload.targets, summary, runs, min(limits.largest for limits in room.limits)),
        summary=spread(summary, scenario, plan, room, deployment, runs, seed, grounds, rest)
        if ranged
        else exact(summary, grounds),
        tables=_tables(plan, room, deployment, runs[0], ranged),
        source=grounds,
        outside=tuple(sorted({name for table in tables for name in table.outside})),
    )


def _deployed(
    scenario: Scenario, plan: Plan, room: Capacity, drawn: Arrangements, seed: int
) -> tuple[Plan, Capacity, Deployment]:
    """Make a deployment ready; where its plan leaves the sizes of graphs open, a pilot run chooses them first."""
    assert isinstance(scenario.workload, Serving)
    deployment = deploy(scenario, plan, room, drawn)
    if not unchosen(plan):
        return plan, room, deployment
    plan = with_graphs(scenario, plan, deployment, generate(scenario.workload, seed=seed, replication=PILOT))
    room = capacity(scenario, plan.pools)
    return plan, room, deploy(scenario, plan, room, drawn)


def _tables(plan: Plan, room: Capacity, deployment: Deployment, run: Served, ranged: bool) -> dict[str, pd.DataFrame]:
    """Tabulate the first run and what its pools are made of."""
    pools = deployment.pools
    return {
        "requests": request_table(run),
        "steps": step_table(run),
        "upkeep": upkeep_table([(ready.pool, ready.keeping) for ready in pools if ready.keeping]),
        "events": event_table(run),
        "graphs": graph_table(run, pools),
        "memory": _memory(plan, room.used),
        **reaction_tables({ready.pool.role: ready.way for ready in pools if ready.way and ranged}),
    }


def _hopeless(plan: Plan, room: Capacity, source: SourceKind, seed: int, verdict: Verdict) -> Result:
    """Say what stands in the way of a plan that cannot serve at all."""
    tables = {"memory": _memory(plan, room.memory)}
    return Result(plan=plan, seed=seed, verdict=verdict, summary={}, tables=tables, source=source, outside=())


def _memory(plan: Plan, memory: Memory) -> pd.DataFrame:
    """Itemise the fullest rank of every pool."""
    tables = [memory_table(memory, number) for number in range(len(plan.pools))]
    if len(tables) == 1:
        return tables[0]
    for pool, table in zip(plan.pools, tables, strict=True):
        table.insert(0, "pool", pool.role)
    joined = pd.concat(tables, ignore_index=True)
    joined.attrs = tables[0].attrs
    return joined

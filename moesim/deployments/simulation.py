"""Simulate deployments request by request: the queues, percentiles and rates that a formula cannot give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moesim.deployments.arrangements import Arrangements, arrangements
from moesim.deployments.capacity import Capacity, capacity
from moesim.deployments.grounding import scenario_grounds
from moesim.deployments.metrics import base_metric
from moesim.deployments.pools import DRAWS
from moesim.deployments.result import Result, Verdict
from moesim.deployments.serving.asked import Asked, generate
from moesim.deployments.serving.book import open_book
from moesim.deployments.serving.limits import Limits
from moesim.deployments.serving.loop import Route, serve
from moesim.deployments.serving.measures import Served, latencies, rates, request_table, step_table
from moesim.deployments.serving.replica import Replica
from moesim.deployments.steps import StepTable
from moesim.deployments.tables import memory_table
from moesim.deployments.tabulation import tabulate
from moesim.ground.errors import Fault, PlanError, PolicyError, WorkloadError
from moesim.ground.units import show, weakest
from moesim.passes.footprint import describe
from moesim.plans.layout import NO_LIMIT
from moesim.plans.plan import Plan
from moesim.policies.finding import make
from moesim.policies.protocols import Batching
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving, Target

LATENCIES = ("ttft", "tpot", "e2e")
"""Metrics of single requests: one is good when it keeps the limits on these, whatever their percentile."""

BEHIND = 0.05
"""How far the output tokens of a window may stay behind those asked for in it before the load counts as missed."""

Progress = Callable[[float], None]


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
        One pool of replicas that do everything.
    seed : int
        Seed of arrivals, lengths and routing draws; plans simulated with one seed face the same requests.
    replications : int
        Independent repetitions that the summary is the mean of; the tables are those of the first.
    progress : callable
        Told the share done, from 0 to 1, now and then.

    Returns
    -------
    Result
        Tables ``requests`` (one row per request), ``steps`` (one row per run of equal steps) and ``memory``; where the
        plan does not fit, ``memory`` alone.

    Raises
    ------
    WorkloadError
        The workload is training.
    PlanError
        The plan has several pools.
    """
    return simulate_many(scenario, [plan], seed=seed, replications=replications, progress=progress)[0]


def simulate_many(
    scenario: Scenario,
    plans: Sequence[Plan],
    *,
    requests: int | None = None,
    seed: int = 0,
    replications: int = 1,
    progress: Progress = lambda share: None,
) -> list[Result]:
    """Simulate several deployments under the same requests, sharing what they have in common.

    Parameters
    ----------
    requests : int
        How many requests; none: the workload's horizon. The share of them that warms up stays as it is.
    """
    if not isinstance(scenario.workload, Serving):
        fault = Fault(path="kind", problem="only serving is simulated", remedy="estimate training instead")
        raise WorkloadError("workload", [fault])
    workload = scenario.workload if requests is None else _shorter(scenario.workload, requests)
    scenario = replace(scenario, workload=workload)
    asked = [generate(workload, seed=seed, replication=turn) for turn in range(replications)]
    drawn = arrangements(scenario, seed=seed, draws=DRAWS)
    results = []
    for number, plan in enumerate(plans):
        _check(plan)
        share = _part(progress, number, len(plans))
        results.append(_simulated(scenario, plan, asked, drawn, seed, share))
    return results


def _shorter(workload: Serving, requests: int) -> Serving:
    warm_up = workload.warm_up * requests // workload.horizon
    return replace(workload, horizon=requests, warm_up=warm_up)


def _part(progress: Progress, number: int, parts: int) -> Progress:
    """Report the progress of one of several equal parts."""
    return lambda share: progress((number + share) / parts)


def _check(plan: Plan) -> None:
    if len(plan.pools) != 1:
        problem = f"{len(plan.pools)} pools; a simulation covers a plan of one pool with role `all`"
        raise PlanError(
            "plan", [Fault(path="pools", problem=problem, remedy="simulate each pool as a plan of its own")]
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Engine:
    """What every replication of one plan's simulation has in common."""

    table: StepTable
    limits: Limits
    replicas: int
    emitted: float
    warm_up: int

    def serve(self, asked: Asked, progress: Progress) -> Served:
        """Run all requests through the replicas."""
        steps = np.ceil((asked.output - 1) / self.emitted).astype(np.int64)
        book = open_book(asked, steps.tolist())
        replicas = [Replica(self.table, self.limits, book) for _ in range(self.replicas)]
        serve(replicas, book, _route(self.replicas), concurrency=asked.concurrency, progress=progress)
        return Served(asked=asked, book=book, replicas=replicas, warm_up=self.warm_up)


def _route(replicas: int) -> Route:
    return lambda request, _: request % replicas


def _simulated(
    scenario: Scenario, plan: Plan, asked: Sequence[Asked], drawn: Arrangements, seed: int, progress: Progress
) -> Result:
    """Simulate one plan."""
    pool = plan.pools[0]
    room = capacity(scenario, [pool])
    memory = memory_table(room.memory, 0)
    source = scenario_grounds(scenario, [pool])[0]
    verdict = _unfit(scenario, plan, room)
    if verdict is None:
        try:
            table = tabulate(scenario, pool, drawn, most=_most_tokens(scenario, plan))
        except PolicyError as refusal:
            verdict = Verdict(fits=False, meets={}, binding="policy", why=str(refusal))
    if verdict is not None:
        return Result(
            plan=plan, seed=seed, verdict=verdict, summary={}, tables={"memory": memory}, source=source, outside=()
        )
    batching: Batching = make("batching", pool.policy("batching"))
    assert isinstance(scenario.workload, Serving)
    engine = _Engine(
        table=table,
        limits=room.limits[0],
        replicas=pool.replicas,
        emitted=batching.emitted,
        warm_up=scenario.workload.warm_up,
    )
    runs = [engine.serve(each, _part(progress, turn, len(asked))) for turn, each in enumerate(asked)]
    summary = _summary(scenario, plan, room, runs)
    return Result(
        plan=plan,
        seed=seed,
        verdict=_verdict(scenario.workload.targets, summary, runs, engine.limits),
        summary={name: value for name, value in summary.items() if name != "offered"},
        tables={"requests": request_table(runs[0]), "steps": step_table(runs[0]), "memory": memory},
        source=weakest((source, table.source)),
        outside=table.outside,
    )


def _most_tokens(scenario: Scenario, plan: Plan) -> int:
    """Tokens of the largest step worth a knot: the budget of all dp groups, or a full batch and a few prompts."""
    assert isinstance(scenario.workload, Serving)
    pool = plan.pools[0]
    batching: Batching = make("batching", pool.policy("batching"))
    decoded = batching.max_batch * (1 + batching.speculated)
    usual = decoded + round(4 * scenario.workload.requests.input.mean)
    return (usual if batching.budget == NO_LIMIT else batching.budget) * pool.parallel.dp


def _unfit(scenario: Scenario, plan: Plan, room: Capacity) -> Verdict | None:
    """Say why a plan cannot hold a single request; None where it can."""
    if room.limits[0].blocks:
        return None
    device = scenario.hardware.offer(plan.pools[0].node).node.device.name
    return Verdict(fits=False, meets={}, binding="memory", why=describe(room.memory, 0, device))


def _summary(scenario: Scenario, plan: Plan, room: Capacity, runs: Sequence[Served]) -> dict[str, float]:
    """Headline numbers: the mean over replications of latencies and rates, and what follows from the plan alone."""
    assert isinstance(scenario.workload, Serving)
    limits = {
        base_metric(target.metric): target.limit
        for target in scenario.workload.targets
        if base_metric(target.metric) in LATENCIES
    }
    each = [latencies(run) | rates(run, limits) for run in runs]
    found = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    gpus, price = _bill(scenario, plan)
    return found | {
        "throughput_per_gpu": found["throughput"] / gpus,
        "price": price,
        "price_per_token": price / found["throughput"] if found["throughput"] else np.inf,
        "gpus": gpus,
        "memory_headroom": float(room.memory.headroom[0]),
    }


def _bill(scenario: Scenario, plan: Plan) -> tuple[float, float]:
    """Gpus of all nodes, spares too, and their price rate."""
    pool = plan.pools[0]
    offer = scenario.hardware.offer(pool.node)
    nodes = -(-pool.replicas * pool.parallel.gpus // offer.node.gpus) + plan.spare_nodes
    gpus = float(nodes * offer.node.gpus)
    return gpus, gpus * offer.rent


def _verdict(
    targets: Sequence[Target], summary: Mapping[str, float], runs: Sequence[Served], limits: Limits
) -> Verdict:
    """Hold every target against its own percentile, and the load against what was served."""
    refused = sum(sum(run.book.refused) for run in runs)
    found = {target.metric: _value(summary, target.metric) / target.limit - 1 for target in targets}
    found["load"] = summary["offered"] / max(summary["throughput"], 1e-9) * (1 - BEHIND) - 1
    meets = {name: bool(miss <= 0) for name, miss in found.items()} | {"served": refused == 0}
    if refused:
        longest = max(max(run.book.last) for run in runs)
        number = sum(len(run.book.refused) for run in runs)
        why = (
            f"{refused:,} of {number:,} requests were refused: with up to {longest:,} tokens they outgrow the cache of "
            f"a dp group, {limits.largest:,} tokens"
        )
        return Verdict(fits=True, meets=meets, binding="kv cache", why=why)
    tightest = max(found, key=lambda name: found[name])
    if found[tightest] <= 0:
        why = f"meets every target; the tightest is {tightest}, with {-found[tightest]:.0%} to spare"
    elif tightest == "load":
        able = summary["throughput"]
        why = f"serves {able:,.0f} of the {summary['offered']:,.0f} output tokens/s asked for"
    else:
        limit = next(target.limit for target in targets if target.metric == tightest)
        why = f"{tightest} = {show(_value(summary, tightest), 's')} misses its limit of {show(limit, 's')}"
    return Verdict(fits=True, meets=meets, binding=tightest, why=why)


def _value(summary: Mapping[str, float], metric: str) -> float:
    """The value a target limits: its statistic, or the mean where it names none."""
    return summary[metric] if metric in summary else summary[f"{metric}.mean"]

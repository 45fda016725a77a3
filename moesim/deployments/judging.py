"""What a simulated deployment amounts to: headline numbers, and a verdict on its targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from moesim.deployments.capacity import Capacity
from moesim.deployments.energy import draw_of
from moesim.deployments.metrics import METRICS, base_metric
from moesim.deployments.pace import slowed
from moesim.deployments.result import Verdict
from moesim.deployments.serving.measures import Served, latencies, rates
from moesim.ground.units import DollarsPerSecond, show
from moesim.passes.footprint import describe
from moesim.plans.plan import Plan
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving, Target

LATENCIES = ("ttft", "tpot", "e2e")
"""Metrics of single requests: one is good when it keeps the limits on these, whatever their percentile."""

BEHIND = 0.05
"""How far the output tokens of a window may stay behind those asked for in it before the load counts as missed."""


def headline(
    scenario: Scenario, plan: Plan, room: Capacity, runs: Sequence[Served], *, factor: float = 1.0
) -> dict[str, float]:
    """Latencies and rates, the mean over replications, and what follows from the plan; with them what was `offered`.

    Of runs that were hurried by a factor, on the clock of slow steps.
    """
    assert isinstance(scenario.workload, Serving)
    targets = {base_metric(target.metric): target.limit for target in scenario.workload.targets}
    limits = {name: limit / factor for name, limit in targets.items() if name in LATENCIES}
    draw = draw_of(scenario, plan)
    each = [slowed(latencies(run) | rates(run, limits), factor) | {"power": draw.mean(run)} for run in runs]
    found = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    gpus, price = bill(scenario, plan)
    return found | {
        "throughput_per_gpu": found["throughput"] / gpus,
        "price": price,
        "price_per_token": _per(price, found["throughput"]),
        "energy_per_token": _per(found["power"], found["throughput"]),
        "energy_per_request": _per(found["power"], found["completed"]),
        "gpus": gpus,
        "memory_headroom": float(room.used.headroom.min()),
    }


def _per(amount: float, rate: float) -> float:
    """What one of a rate takes; endless where there is none."""
    return amount / rate if rate else np.inf


def bill(scenario: Scenario, plan: Plan) -> tuple[float, DollarsPerSecond]:
    """Gpus of all nodes, spares too, and their price rate; spare nodes are of the first pool's kind."""
    gpus = price = 0.0
    for number, pool in enumerate(plan.pools):
        offer = scenario.hardware.offer(pool.node)
        nodes = -(-pool.replicas * pool.parallel.gpus // offer.node.gpus) + plan.spare_nodes * (number == 0)
        gpus += nodes * offer.node.gpus
        price += nodes * offer.node.gpus * offer.rent
    return gpus, price


def unfit(scenario: Scenario, plan: Plan, room: Capacity) -> Verdict | None:
    """Say why a plan cannot hold a single block of cache; None where it can."""
    for number, (pool, limits) in enumerate(zip(plan.pools, room.limits, strict=True)):
        if not limits.blocks:
            device = scenario.hardware.offer(pool.node).node.device.name
            return Verdict(fits=False, meets={}, binding="memory", why=describe(room.memory, number, device))
    return None


def judge(targets: Sequence[Target], summary: Mapping[str, float], runs: Sequence[Served], largest: int) -> Verdict:
    """Hold every target against its own percentile, and the load against what was served.

    `largest` is the most tokens that one request may have cached.
    """
    values = {target.metric: _value(summary, target.metric) for target in targets}
    misses = {target.metric: values[target.metric] / target.limit - 1 for target in targets}
    misses = {name: -1.0 if np.isnan(miss) else miss for name, miss in misses.items()}  # no request has such a time
    misses["load"] = summary["offered"] * (1 - BEHIND) / max(summary["throughput"], 1e-9) - 1
    refused = sum(sum(run.book.refused) for run in runs)
    meets = {name: bool(miss <= 0) for name, miss in misses.items()} | {"served": refused == 0}
    if refused:
        why = _refusal(refused, runs, largest)
        return Verdict(fits=True, meets=meets, binding="kv cache", why=why)
    if misses["load"] <= 0 and targets:
        del misses["load"]  # one cannot carry more than is asked for: its slack says nothing
    tightest = max(misses, key=lambda name: misses[name])
    why = _in_words(tightest, misses[tightest], targets, summary)
    return Verdict(fits=True, meets=meets, binding=tightest, why=why)


def _value(summary: Mapping[str, float], metric: str) -> float:
    """The value a target limits: its statistic, or the mean where it names none."""
    return summary[metric] if metric in summary else summary[f"{metric}.mean"]


def _refusal(refused: int, runs: Sequence[Served], largest: int) -> str:
    number, longest = sum(len(run.book.last) for run in runs), max(max(run.book.last) for run in runs)
    return (
        f"{refused:,} of {number:,} requests were refused: with up to {longest:,} tokens they outgrow the cache of "
        f"a dp group, {largest:,} tokens"
    )


def _in_words(name: str, miss: float, targets: Sequence[Target], summary: Mapping[str, float]) -> str:
    """Write the tightest target with its numbers."""
    if name == "load" and miss <= 0:
        return f"carries the {summary['offered']:,.0f} output tokens/s asked for"
    if miss <= 0:
        return f"meets every target; the tightest is {name}, with {-miss:.0%} to spare"
    if name == "load":
        return f"serves {summary['throughput']:,.0f} of the {summary['offered']:,.0f} output tokens/s asked for"
    limit = next(target.limit for target in targets if target.metric == name)
    unit = METRICS[base_metric(name)].unit
    return f"{name} = {show(_value(summary, name), unit)} misses its limit of {show(limit, unit)}"

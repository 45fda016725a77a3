"""From step times to what a plan delivers: tokens per second, latencies, price, and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from moesim.deployments.metrics import METRICS, SIMULATED, base_metric
from moesim.deployments.pools import Estimates
from moesim.deployments.result import Verdict
from moesim.ground.units import FlopPerSecond, show
from moesim.passes.columns import formats
from moesim.passes.presence import presence
from moesim.plans.plan import Pool
from moesim.world.formats import COMPUTE_OF
from moesim.world.model import Model, active_parameters, layer_parameters
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving, Target, Training

Numbers = Float[np.ndarray, "plan"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Summary:
    """Headline numbers of many plans by metric name, and the output tokens/s asked for (0: as many as can be)."""

    metrics: Mapping[str, Numbers]
    offered: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deployments:
    """Many deployments of estimated pools: which pool, how many replicas of it, how many spare nodes."""

    pools: Sequence[Pool]
    pool: Int[np.ndarray, "plan"]
    replicas: Int[np.ndarray, "plan"]
    spare_nodes: Int[np.ndarray, "plan"]


def estimated_metrics(workload: Serving | Training) -> tuple[str, ...]:
    """List the metrics an estimate gives: latencies have no meaning in training."""
    latencies = ("ttft", "tpot") if isinstance(workload, Training) else ()
    return tuple(name for name in METRICS if name not in SIMULATED and name not in latencies)


def offered_rate(workload: Serving | Training) -> float:
    """Output tokens per second the workload asks for; 0 where it asks for as many as there can be."""
    if isinstance(workload, Training):
        return 0.0
    return workload.requests.arrivals.rate * workload.requests.output.mean


def summarize(scenario: Scenario, deployed: Deployments, estimates: Estimates) -> Summary:
    """Turn step times of pools into headline numbers of deployments.

    Throughput is what the replicas can do at full batch; the price per token is over the tokens asked for, where the
    workload asks for fewer.
    """
    per_pool = _per_pool(scenario, deployed.pools, estimates)
    metrics = {name: values[deployed.pool] for name, values in per_pool.items()}
    offers = [scenario.hardware.offer(pool.node) for pool in deployed.pools]
    per_node = np.array([offer.node.gpus for offer in offers])[deployed.pool]
    replica = np.array([pool.parallel.gpus for pool in deployed.pools])[deployed.pool]
    rent = np.array([offer.rent for offer in offers])[deployed.pool]
    nodes = -(-deployed.replicas * replica // per_node) + deployed.spare_nodes
    gpus = (nodes * per_node).astype(float)
    throughput = metrics.pop("replica_throughput") * deployed.replicas
    offered = offered_rate(scenario.workload)
    served = np.minimum(throughput, offered) if offered else throughput
    metrics |= {
        "throughput": throughput,
        "throughput_per_gpu": throughput / gpus,
        "price": gpus * rent,
        "price_per_token": gpus * rent / served,
        "gpus": gpus,
    }
    return Summary(metrics=metrics, offered=offered)


def _per_pool(scenario: Scenario, pools: Sequence[Pool], estimates: Estimates) -> dict[str, Numbers]:
    """Headline numbers of one replica of each pool."""
    training = isinstance(scenario.workload, Training)
    point, step = estimates.operation, estimates.step

    def of(value: Callable[[Pool], float]) -> Numbers:
        return np.array([float(value(pool)) for pool in pools])

    groups, stages = of(lambda pool: pool.parallel.dp), of(lambda pool: pool.parallel.pp)
    per_step = point.chunk * stages if training else point.sequences * point.emitted
    members = of(lambda pool: pool.parallel.tp * pool.parallel.cp)
    work = pass_work(scenario.model, point.chunk * point.carrying, point.tokens * members, training=training)
    peak = of(lambda pool: expert_peak(scenario, pool))
    metrics = {
        "replica_throughput": per_step * groups / step,
        "step": step,
        "mfu": work * groups * stages / (step * peak * of(lambda pool: pool.parallel.gpus)),
        "memory_headroom": estimates.memory.headroom,
    }
    if not training:
        metrics |= {"tpot": step / point.emitted, "ttft": step / 2 + estimates.carrying * point.prefills}
    return metrics


def pass_work(model: Model, prompts: Numbers, tokens: Numbers, *, training: bool) -> Numbers:
    """FLOP of a pass on `tokens`, of which `prompts` are prompt tokens: each layer's active weights on those it sees.

    Backward is twice the work of forward. The head goes with the last layer.
    """
    work = np.zeros_like(tokens)
    head = active_parameters(model)
    seen = np.zeros_like(tokens)
    for layer in model.layers:
        prompt, answer = presence(layer, model, backward=training)
        seen = prompts * prompt + (tokens - prompts) * answer
        weights = layer_parameters(layer, active=True)
        work = work + seen * weights
        head -= weights
    return np.asarray(2.0 * (work + seen * head) * (3.0 if training else 1.0))


def expert_peak(scenario: Scenario, pool: Pool) -> FlopPerSecond:
    """Dense peak of a pool's device in the dtype its experts are multiplied in."""
    rates = scenario.hardware.offer(pool.node).node.device.flop_rate
    dtypes = COMPUTE_OF[formats(pool, scenario.model)["experts"]]
    return next((rates[dtype] for dtype in dtypes if dtype in rates), max(rates.values()))


def misses(summary: Summary, targets: Sequence[Target]) -> Mapping[str, Numbers]:
    """Relative miss of every target by every plan: value / limit - 1, positive where missed; load is one of them.

    A percentile target is held against the mean that a formula gives; `simulate` has the percentiles.
    """
    found = {
        target.metric: summary.metrics[base_metric(target.metric)] / target.limit - 1
        for target in targets
        if base_metric(target.metric) in summary.metrics
    }
    if summary.offered:
        found["load"] = summary.offered / summary.metrics["throughput"] - 1
    return found


def verdict(summary: Summary, targets: Sequence[Target], index: int, dominant: str) -> Verdict:
    """Say whether one plan that fits is good, and what binds it.

    `dominant` is the named part of the step with the largest exposed time, which binds a plan that meets everything.
    """
    found = {name: float(values[index]) for name, values in misses(summary, targets).items()}
    meets = {name: miss <= 0 for name, miss in found.items()}
    tightest = max(found, key=lambda name: found[name], default="")
    if tightest and found[tightest] > 0:
        return Verdict(fits=True, meets=meets, binding=tightest, why=miss_in_words(summary, targets, tightest, index))
    why = f"meets every target; the tightest is {tightest}, with {-found[tightest]:.0%} to spare" if found else "fits"
    return Verdict(fits=True, meets=meets, binding=dominant, why=why)


def miss_in_words(summary: Summary, targets: Sequence[Target], name: str, index: int) -> str:
    """Write a missed target with its numbers."""
    if name == "load":
        able = float(summary.metrics["throughput"][index])
        return f"carries {able:,.0f} of the {summary.offered:,.0f} output tokens/s asked for"
    limit = next(target.limit for target in targets if target.metric == name)
    value = float(summary.metrics[base_metric(name)][index])
    return f"{name} = {show(value, 's')} misses its limit of {show(limit, 's')}"

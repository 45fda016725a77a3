"""From step times to what a plan delivers: tokens per second, latencies, price, and a verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from moesim.deployments.deployed import NONE, Deployments, nodes_of
from moesim.deployments.metrics import LATENCIES, METRICS, REACTING, SIMULATED, TRAINED
from moesim.deployments.pools import Estimates
from moesim.deployments.runs import training_run
from moesim.deployments.training import microbatches_of
from moesim.ground.units import FlopPerSecond
from moesim.passes.columns import column, formats
from moesim.passes.footprint import cache_bytes
from moesim.passes.presence import presence
from moesim.passes.table import PoolTable, Whole
from moesim.plans.plan import Pool
from moesim.schedules.costs.collectives import send
from moesim.schedules.costs.fits import machine_of
from moesim.world.formats import COMPUTE_OF
from moesim.world.hardware import network
from moesim.world.model import Model, active_parameters, layer_parameters
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving, Training

Numbers = Float[np.ndarray, "plan"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Summary:
    """Headline numbers of many plans by metric name, and the output tokens/s asked for (0: as many as can be)."""

    metrics: Mapping[str, Numbers]
    offered: float


def estimated_metrics(workload: Serving | Training) -> tuple[str, ...]:
    """List the metrics an estimate gives: latencies have no meaning in training, nor ends of it in serving."""
    others = LATENCIES if isinstance(workload, Training) else TRAINED
    return tuple(name for name in METRICS if name not in SIMULATED | REACTING | others)


def offered_rate(workload: Serving | Training) -> float:
    """Output tokens per second the workload asks for; 0 where it asks for as many as there can be."""
    if isinstance(workload, Training):
        return 0.0
    return workload.requests.arrivals.rate * workload.requests.output.mean


def summarize(
    scenario: Scenario, deployed: Deployments, estimates: Estimates, rent: Mapping[str, Numbers] | None = None
) -> Summary:
    """Turn step times of pools into headline numbers of deployments.

    Throughput is what the replicas can do at full batch; the price per token is over the tokens asked for, where the
    workload asks for fewer. Of a pool that prefills and one that decodes, the slower decides what both deliver.

    Parameters
    ----------
    rent : USD/s per gpu of each node type, one number per deployment; the offers' own where it is left out
    """
    deployed, estimates = _used(deployed, estimates)
    per_pool = pool_metrics(scenario, deployed.table, estimates)
    metrics = {name: values[deployed.pool] for name, values in per_pool.items()}
    gpus, price = _bill(scenario, deployed, rent)
    throughput = metrics.pop("rate") * deployed.replicas
    fed = deployed.feeder != NONE
    if fed.any():
        feeder = {name: np.where(fed, values[deployed.feeder], np.nan) for name, values in per_pool.items()}
        throughput = np.where(fed, np.fmin(throughput, feeder["rate"] * deployed.feeders), throughput)
        metrics["ttft"] = np.where(fed, feeder["ttft"], metrics["ttft"])
        metrics["tpot"] = metrics["tpot"] + np.where(fed, transfer(scenario, deployed), 0.0)
        metrics["memory_headroom"] = np.fmin(metrics["memory_headroom"], feeder["memory_headroom"])
    offered = offered_rate(scenario.workload)
    served = np.minimum(throughput, offered) if offered else throughput
    metrics |= {
        "throughput": throughput,
        "throughput_per_gpu": throughput / gpus,
        "price": price,
        "price_per_token": price / served,
        "gpus": gpus,
    }
    if isinstance(scenario.workload, Training):
        metrics |= training_run(scenario, deployed.table, deployed.pool, throughput, price)
    return Summary(metrics=metrics, offered=offered)


def _used(deployed: Deployments, estimates: Estimates) -> tuple[Deployments, Estimates]:
    """Keep the pools that are deployed."""
    pools = np.concatenate([deployed.pool, deployed.feeder])
    rows, place = np.unique(pools[pools != NONE], return_inverse=True)
    if len(rows) == len(deployed.table):
        return deployed, estimates
    pools[pools != NONE] = place
    pool, feeder = np.split(pools, 2)
    return replace(deployed, table=deployed.table.take(rows), pool=pool, feeder=feeder), estimates.take(rows)


def _bill(scenario: Scenario, deployed: Deployments, rent: Mapping[str, Numbers] | None) -> tuple[Numbers, Numbers]:
    """Gpus of all nodes, spares too, and their price rate."""
    table, offer = deployed.table, scenario.hardware.offer
    gpus, price = np.zeros(len(deployed)), np.zeros(len(deployed))
    used = [(deployed.pool, deployed.replicas, deployed.spare_nodes)]
    used.append((deployed.feeder, deployed.feeders, np.zeros_like(deployed.feeders)))
    per_node = table.each(lambda like: offer(like.node).node.gpus)
    own = table.each(lambda like: offer(like.node).rent)
    for pool, replicas, spares in used:
        here = (nodes_of(scenario, table, pool, replicas) + spares) * per_node[pool] * (pool != NONE)
        gpus += here
        price += here * (own[pool] if rent is None else _rent(table, pool, rent))
    return gpus, price


def _rent(table: PoolTable, pool: Whole, rent: Mapping[str, Numbers]) -> Numbers:
    """Pick each deployment's price by its pool's node type."""
    names = np.array([like.node for like in table.variants])[table.variant[pool]]
    return np.asarray(np.select([names == name for name in rent], list(rent.values())))


def transfer(scenario: Scenario, deployed: Deployments) -> Numbers:
    """Seconds that handing a prompt's cache over adds to each output token after the first.

    The cache of a prompt crosses from one pool's node to the other's, each rank of the dp group that decodes it
    receiving its share: latency + bytes / bandwidth (a message, `collectives.send`), over the other output tokens.
    """
    workload, hardware = scenario.workload, scenario.hardware
    assert isinstance(workload, Serving)

    def seconds(like: Pool, tp: int, cp: int) -> float:
        node = hardware.offer(like.node).node
        tier = network(node, hardware.fabric[:1])[-1]
        context, group = column([workload.requests.input.mean]), (column([tp]), column([cp]))
        share = cache_bytes(scenario.model.layers, formats(like, scenario.model)["kv"], context, *group)
        params = machine_of(node, hardware.fabric).transfer("send", tier.name).params
        return float(send(share, params=params, tier=tier).item())

    each = deployed.table.each(seconds, "tp", "cp")[deployed.pool]
    return np.asarray(each / max(workload.requests.output.mean - 1.0, 1.0))


def pool_metrics(scenario: Scenario, table: PoolTable, estimates: Estimates) -> dict[str, Numbers]:
    """Headline numbers of one replica of each pool; `rate` is what it can do in output tokens/s (training: tokens/s).

    A pool that only prefills is rated by the output tokens of the requests whose prompts it finishes.
    """
    workload = scenario.workload
    training = isinstance(workload, Training)
    point, step = estimates.operation, estimates.step
    per_step = point.sequences * point.emitted * table["dp"]
    passes = table["pp"]
    prefilling = table.each(lambda like: like.role == "prefill") > 0
    if isinstance(workload, Serving):
        new = workload.requests.input.mean * (1 - workload.requests.prefix_hits)
        finished = point.chunk * table["pp"] / new * workload.requests.output.mean
        per_step = np.where(prefilling, finished * table["dp"], per_step)
    else:
        per_step = np.full(len(table), float(workload.sequences) * workload.sequence)
        passes = microbatches_of(workload, table)
    prompts = point.chunk * point.carrying * point.carriers
    work = pass_work(scenario.model, prompts, point.tokens * table.members, training=training)
    peak = table.each(lambda like: expert_peak(scenario, like))
    with np.errstate(divide="ignore"):  # a bound of nothing on the step is none on the rate
        rate, mfu = per_step / step, work * table["dp"] * passes / (step * peak * table.gpus)
    metrics = {"rate": rate, "step": step, "mfu": mfu, "memory_headroom": estimates.memory.headroom}
    if not training:
        metrics["tpot"] = np.where(prefilling, np.nan, step / np.where(prefilling, 1.0, point.emitted))
        metrics["ttft"] = step / 2 + estimates.carrying * point.prefills
    return metrics


def pass_work(model: Model, prompts: Numbers, tokens: Numbers, *, training: bool) -> Numbers:
    """FLOP of a pass on `tokens`, of which `prompts` are prompt tokens: each layer's active weights on those it sees.

    Backward is twice the work of forward. The head goes with the last layer.
    """
    work = np.zeros_like(tokens)
    head = active_parameters(model)
    for layer, times in Counter(model.layers).items():
        prompt, answer = presence(layer, model, backward=training)
        seen = prompts * prompt + (tokens - prompts) * answer
        weights = times * layer_parameters(layer, active=True)
        work = work + seen * weights
        head -= weights
    prompt, answer = presence(model.layers[-1], model, backward=training)
    seen = prompts * prompt + (tokens - prompts) * answer
    return np.asarray(2.0 * (work + seen * head) * (3.0 if training else 1.0))


def expert_peak(scenario: Scenario, pool: Pool) -> FlopPerSecond:
    """Dense peak of a pool's device in the dtype its experts are multiplied in."""
    rates = scenario.hardware.offer(pool.node).node.device.flop_rate
    dtypes = COMPUTE_OF[formats(pool, scenario.model)["experts"]]
    return next((rates[dtype] for dtype in dtypes if dtype in rates), max(rates.values()))

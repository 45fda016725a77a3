"""Short names for plans, and the rows they get in tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from moesim.deployments.deployed import NONE, Deployments, nodes_of
from moesim.deployments.metrics import METRICS
from moesim.deployments.pools import Estimator
from moesim.deployments.ranges import HIGH, LOW, Ranges
from moesim.deployments.summary import Summary
from moesim.deployments.tables import with_units
from moesim.ground.units import weakest
from moesim.passes.footprint import describe
from moesim.passes.table import Whole, batching_of
from moesim.plans.layout import NO_LIMIT
from moesim.plans.plan import DEFAULT_POLICIES, TRAINING_POLICIES, Policy, Pool
from moesim.world.scenario import Scenario
from moesim.world.workload import Training

COLUMNS = ("throughput", "throughput_per_gpu", "ttft", "tpot", "price_per_token", "memory_headroom", "mfu")
"""Metrics in the ranked table."""

BAND = "price_per_token"
"""The metric whose range the table shows, in the columns ``price_low`` and ``price_high``."""

ALWAYS = ("alltoall", "placement", "overlap", "shortcut")
"""Kinds of policy that a layout's name tells; doing nothing goes without saying."""
OTHERWISE = ("gating", "buffering", "prefetch")
"""Those that it tells where they are not the default."""


def layout(pool: Pool, *, training: bool = False) -> str:
    """Name a pool's layout in short: the degrees above one, then policies and batch.

    Examples
    --------
    >>> from moesim.plans.plan import Parallel
    >>> layout(Pool(role="all", node="n", replicas=1, parallel=Parallel(dp=8, ep=8)))
    'dp8 ep8 linear contiguous batch 256'
    """
    p = pool.parallel
    degrees = [f"{name}{getattr(p, name)}" for name in ("pp", "dp", "tp", "cp", "ep", "etp") if getattr(p, name) > 1]
    usual = {**{kind: DEFAULT_POLICIES[kind] for kind in OTHERWISE}, **(TRAINING_POLICIES if training else {})}
    kinds = [*ALWAYS, *(kind for kind, policy in usual.items() if pool.policy(kind) != policy)]
    words = [*degrees, *(_in_short(policy) for policy in (*map(pool.policy, kinds), *pool.adaptation))]
    return " ".join([*filter(None, words), _size(pool, training)])


def _size(pool: Pool, training: bool) -> str:
    """Name what limits a pool's batch."""
    if training:
        return f"microbatch {pool.microbatch}"
    batching = batching_of(pool)
    if pool.role == "prefill" and batching.budget != NO_LIMIT:
        return f"budget {batching.budget}"
    graphs = len(batching.buckets) or batching.graphs
    return f"batch {batching.max_batch}" + (f" graphs {graphs}" if graphs else "")


def _in_short(policy: Policy | None) -> str:
    """Name a policy with the values of its settings; doing nothing goes without saying."""
    if policy is None or policy.name == "none":
        return ""
    values = ",".join(name if value is True else str(value) for name, value in policy.settings.items())
    return policy.name + (f":{values}" if values else "")


def plans_table(
    scenario: Scenario,
    deployed: Deployments,
    summary: Summary,
    miss: Sequence[float],
    estimator: Estimator,
    ranges: Ranges | None = None,
    also: Sequence[str] = (),
) -> pd.DataFrame:
    """Write plans as rows: cluster, pools, replicas, layout, headline numbers, largest miss, source.

    `also` names metrics to show besides those of `COLUMNS`.
    """
    shown = [name for name in dict.fromkeys((*COLUMNS, *also)) if name in summary.metrics]
    rows = []
    for index in range(len(deployed)):
        row = _named(scenario, deployed, index)
        row |= {name: float(summary.metrics[name][index]) for name in shown}
        if ranges is not None:
            low, high = np.quantile(ranges.drawn[BAND][index], (LOW, HIGH)).tolist()
            mid = float(summary.metrics[BAND][index])
            row |= {"price_low": min(low, mid), "price_high": max(high, mid)}
        used = [pool for pool in (int(deployed.pool[index]), int(deployed.feeder[index])) if pool != NONE]
        source = weakest(tuple(estimator.estimates.source[pool] for pool in used))
        rows.append(row | {"miss": float(miss[index]), "source": source})
    units = {name: METRICS[name].unit for name in shown} | dict.fromkeys(
        ("price_low", "price_high"), METRICS[BAND].unit
    )
    return with_units(pd.DataFrame(rows), units)


def estimated_table(
    scenario: Scenario, deployed: Deployments, summary: Summary, meets: Sequence[bool], also: Sequence[str]
) -> pd.DataFrame:
    """List every estimated plan in short: cluster, price, latencies and what `also` names, whether it meets all."""
    wanted = dict.fromkeys((*also, "price_per_token", "tpot", "ttft", "throughput"))
    metrics = {name: summary.metrics[name] for name in wanted if name in summary.metrics}
    table = pd.DataFrame({"cluster": _clusters(scenario, deployed), **metrics, "meets": meets})
    return with_units(table, {name: METRICS[name].unit for name in metrics})


def _clusters(scenario: Scenario, deployed: Deployments) -> list[str]:
    """Name the cluster of every plan: nodes of its pools, and their type."""
    table, split = deployed.table, deployed.feeder != NONE
    nodes = nodes_of(scenario, table, deployed.pool, deployed.replicas) + deployed.spare_nodes
    feeding = nodes_of(scenario, table, deployed.feeder, deployed.feeders)
    types = [table.variants[variant].node for variant in table.variant[deployed.pool].tolist()]
    counts = zip(split.tolist(), feeding.tolist(), nodes.tolist(), types, strict=True)
    return [f"{fed} + {own} x {node}" if two else f"{own} x {node}" for two, fed, own, node in counts]


def _named(scenario: Scenario, deployed: Deployments, index: int) -> dict[str, object]:
    """Name one plan's cluster, pools, replicas and layout."""
    own, replicas = deployed.table.pool(int(deployed.pool[index])), int(deployed.replicas[index])
    cluster: dict[str, object] = {"cluster": _clusters(scenario, deployed.take([index]))[0]}
    if deployed.feeder[index] == NONE:
        named = layout(own, training=isinstance(scenario.workload, Training))
        return cluster | {"pools": own.role, "replicas": str(replicas), "layout": named}
    feeder = deployed.table.pool(int(deployed.feeder[index]))
    return cluster | {
        "pools": "prefill + decode",
        "replicas": f"{int(deployed.feeders[index])} + {replicas}",
        "layout": f"{layout(feeder)} + {layout(own)}",
    }


def unfit_table(scenario: Scenario, estimator: Estimator, rows: Whole) -> pd.DataFrame:
    """For every node type, count the layouts that do not fit and show the one that misses by least."""
    training, memory, table = isinstance(scenario.workload, Training), estimator.memory, estimator.table
    nodes = np.array([like.node for like in table.variants])[table.variant[rows]]
    numbers = Counter(nodes.tolist())
    found = []
    for node in dict.fromkeys(nodes[~memory.fits[rows]].tolist()):
        here = rows[(nodes == node) & ~memory.fits[rows]]
        nearest = int(here[np.argmax(memory.headroom[here])])
        row = {"node": node, "unfit": len(here), "of": numbers[node]}
        row |= {"nearest": layout(table.pool(nearest), training=training)}
        row |= {"why": describe(memory, nearest, scenario.hardware.offer(node).node.device.name)}
        found.append(row)
    return pd.DataFrame(found, columns=["node", "unfit", "of", "nearest", "why"])

"""From layouts to deployments: every number of replicas an offer holds, and pools that prefill for others."""

from __future__ import annotations

import numpy as np

from moesim.deployments.deployed import Deployments, nodes_of, of_role_all
from moesim.passes.table import PoolTable, Whole
from moesim.world.scenario import Scenario
from moesim.world.workload import Training


def every_number_of_replicas(scenario: Scenario, table: PoolTable, rows: Whole) -> Deployments:
    """Deploy each pool with as many replicas as 1, 2, ... nodes hold, and no number twice; one replica trains."""
    hardware = scenario.hardware
    if isinstance(scenario.workload, Training):
        return of_role_all(table, rows, np.ones_like(rows))
    gpus = table.gpus[rows]
    per_node = table.each(lambda like: hardware.offer(like.node).node.gpus)[rows].astype(np.int64)
    most = table.each(lambda like: hardware.offer(like.node).max_nodes)[rows].astype(np.int64)
    pools, replicas = [], []
    before = np.zeros(len(rows), np.int64)
    for nodes in range(1, int(most.max(initial=0)) + 1):
        number = nodes * per_node // gpus
        more = (number > before) & (nodes <= most)
        pools.append(rows[more])
        replicas.append(number[more])
        before = np.maximum(before, number)
    joined = (np.concatenate(pools), np.concatenate(replicas)) if pools else (rows, rows)
    return of_role_all(table, *joined)


def replicas_needed(rate: np.ndarray, offered: float) -> Whole:
    """Fewest replicas that carry the load; 0 where a rate is not known."""
    known = np.isfinite(rate) & (rate > 0)
    return np.where(known, np.ceil(offered / np.where(known, rate, 1.0) * (1 - 1e-12)), 0).astype(np.int64)


def paired(
    scenario: Scenario, table: PoolTable, feeders: tuple[Whole, Whole], pools: tuple[Whole, Whole]
) -> Deployments:
    """Combine pools that prefill with pools that decode on the same node type, as far as its offer goes.

    Parameters
    ----------
    feeders, pools : rows of the table, and the number of replicas of each
    """
    (fed, fed_replicas), (pool, replicas) = feeders, pools
    names = np.array([like.node for like in table.variants])
    most = {offer.node.name: offer.max_nodes for offer in scenario.hardware.offers}
    a, b = (part.reshape(-1) for part in np.meshgrid(np.arange(len(fed)), np.arange(len(pool)), indexing="ij"))
    node, other = names[table.variant[fed[a]]], names[table.variant[pool[b]]]
    nodes = nodes_of(scenario, table, fed[a], fed_replicas[a]) + nodes_of(scenario, table, pool[b], replicas[b])
    limit = np.array([most[str(name)] for name in other], np.int64).reshape(-1)
    good = (node == other) & (nodes <= limit)
    a, b = a[good], b[good]
    return Deployments(
        table=table,
        pool=pool[b],
        replicas=replicas[b],
        feeder=fed[a],
        feeders=fed_replicas[a],
        spare_nodes=np.zeros(len(a), np.int64),
    )

"""Many deployments as columns: which pools of a table, how many replicas of each, how many spare nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moesim.passes.table import PoolTable, Whole
from moesim.plans.plan import Plan, Pool
from moesim.world.scenario import Scenario

COLUMNS = ("pool", "replicas", "feeder", "feeders", "spare_nodes")

Row = tuple[int, ...]
"""One deployment: a number for each column."""

NONE = -1
"""Row of a pool that a deployment does without."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deployments:
    """Many deployments of estimated pools, as rows of their table.

    Attributes
    ----------
    pool, replicas : the pool that decodes, and how many replicas of it
    feeder, feeders : the pool that prefills for it, `NONE` where the first does both, and how many replicas of it
    spare_nodes : idle nodes of the first pool's type
    """

    table: PoolTable
    pool: Whole
    replicas: Whole
    feeder: Whole
    feeders: Whole
    spare_nodes: Whole

    def __len__(self) -> int:
        return len(self.pool)

    def take(self, rows: Sequence[int] | Whole | slice) -> Deployments:
        """Keep some of the deployments."""
        return Deployments(table=self.table, **{name: getattr(self, name)[rows] for name in COLUMNS})

    def rows(self) -> list[Row]:
        """Write every deployment as the numbers of its columns."""
        return list(zip(*(getattr(self, name).tolist() for name in COLUMNS), strict=True))

    def plan(self, row: int) -> Plan:
        """Write one deployment out."""
        pools = [self._sized(self.pool[row], self.replicas[row])]
        if self.feeder[row] != NONE:
            pools.insert(0, self._sized(self.feeder[row], self.feeders[row]))
        return Plan(pools=tuple(pools), spare_nodes=int(self.spare_nodes[row]))

    def _sized(self, row: int, replicas: int) -> Pool:
        return replace(self.table.pool(int(row)), replicas=int(replicas))


def listed(table: PoolTable, rows: Sequence[Row]) -> Deployments:
    """Read deployments from the numbers of their columns."""
    columns = np.array(rows, np.int64).reshape(-1, len(COLUMNS)).T
    return Deployments(table=table, **dict(zip(COLUMNS, columns, strict=True)))


def of_role_all(table: PoolTable, pool: Whole, replicas: Whole, spare_nodes: int = 0) -> Deployments:
    """Deploy pools that do everything."""
    none = np.zeros_like(pool)
    return Deployments(
        table=table, pool=pool, replicas=replicas, feeder=none + NONE, feeders=none, spare_nodes=none + spare_nodes
    )


def together(first: Deployments, second: Deployments) -> Deployments:
    """List two sets of deployments of one table one after the other."""
    columns = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in COLUMNS}
    return Deployments(table=first.table, **columns)


def without(deployed: Deployments, others: Deployments) -> Deployments:
    """Leave out those of some deployments that are among others of the same table."""
    known = set(others.rows())
    return deployed.take(np.flatnonzero([row not in known for row in deployed.rows()]))


def nodes_of(scenario: Scenario, table: PoolTable, pool: Whole, replicas: Whole) -> Whole:
    """Nodes that so many replicas of each pool fill."""
    per_node = table.each(lambda like: scenario.hardware.offer(like.node).node.gpus)[pool]
    return np.asarray(np.ceil(replicas * table.gpus[pool] / per_node).astype(np.int64))

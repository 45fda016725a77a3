"""What happens to a pool's replicas besides requests, from the scenario's failures and the pool's policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import pandas as pd

from moesim.deployments.serving.control import Swap, Upkeep
from moesim.deployments.serving.ticks import PER_SECOND, ticks
from moesim.ground.units import Bytes, Seconds
from moesim.plans.plan import Policy, Pool
from moesim.policies.finding import make
from moesim.policies.protocols import Scaling
from moesim.world.hardware import memory_tier
from moesim.world.scenario import Failures, Scenario

STEADY = Policy(name="none")
"""The scaling of a pool that names none."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Keeping:
    """What happens to the replicas of a pool, times in seconds.

    `start` is how long one takes from nothing to serving, `node` the gpus of a node; `swaps` are the step tables that
    replicas change to, `again` whether these come again.
    """

    failures: Failures
    scaling: Scaling
    start: Seconds
    node: int
    spared: bool
    swaps: tuple[Swap, ...] = ()
    again: bool = False

    @property
    def changes(self) -> Seconds:
        """Mean time between changes to the replicas: rebalancing, recompiling, switching."""
        made = sum(bool(swap.what) for swap in self.swaps)
        return sum(swap.wait + swap.stall for swap in self.swaps) / made / PER_SECOND if made else inf

    def upkeep(self, pool: Pool, pace: float) -> Upkeep:
        """Write it for so many replicas, on a clock that is so many times as fast."""

        def at(seconds: Seconds) -> int:
            return ticks(seconds / pace)

        swaps = tuple(replace(each, stall=round(each.stall / pace)) for each in self.swaps)
        return Upkeep(
            replicas=pool.replicas,
            gpus=pool.parallel.gpus,
            node=self.node,
            interval=at(self.failures.interval),
            crash=at(self.failures.crash),
            repair=at(self.failures.repair),
            start=at(self.start),
            spared=self.spared,
            scaling=self.scaling,
            every=at(self.scaling.every),
            lag=at(self.scaling.lag),
            hold=at(self.scaling.hold),
            swaps=swaps,
            again=self.again,
        )


def keeping(scenario: Scenario, pool: Pool, weights: Bytes, *, spared: bool) -> Keeping:
    """Find what happens to a pool's replicas, the weights of whose fullest rank are so many bytes."""
    return Keeping(
        failures=scenario.failures,
        scaling=make("scaling", pool.policies.get("scaling", STEADY)),
        start=starting(scenario, pool, weights),
        node=scenario.hardware.offer(pool.node).node.gpus,
        spared=spared,
    )


def upkeep_table(kept: Sequence[tuple[Pool, Keeping]]) -> pd.DataFrame:
    """One row per pool: its cold start, how often one of its gpus fails, how it scales, and how often it changes."""
    rows = [
        {
            "pool": pool.role,
            "cold_start": each.start,
            "node_fails": _every(each.failures.interval, pool),
            "rank_fails": _every(each.failures.crash, pool),
            "scaling": pool.policies.get("scaling", STEADY).name,
            "changes": each.changes,
        }
        for pool, each in kept
    ]
    table = pd.DataFrame(rows, columns=["pool", "cold_start", "node_fails", "rank_fails", "scaling", "changes"])
    table.attrs["units"] = dict.fromkeys(("cold_start", "node_fails", "rank_fails", "changes"), "s")
    return table


def _every(interval: Seconds, pool: Pool) -> Seconds:
    """Mean time between failures of all gpus of a pool."""
    return interval / (pool.replicas * pool.parallel.gpus) if interval else inf


def starting(scenario: Scenario, pool: Pool, weights: Bytes) -> Seconds:
    """From nothing to serving: weights go from disk through the host to every gpu, then the engine starts.

    The slower of the two ways sets the pace of the weights.
    """
    node = scenario.hardware.offer(pool.node).node
    tiers = [memory_tier(node, name) for name in ("disk", "host")]
    loading = max(weights * tier.sharers / tier.bandwidth for tier in tiers)
    return float(np.asarray(loading + scenario.frameworks[pool.framework].start))

"""What a replica can hold: its memory, and the blocks of cache that the rest of it leaves room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.deployments.operation import operation
from moesim.deployments.serving.limits import Limits
from moesim.deployments.steps import GRAIN
from moesim.passes.footprint import Memory, footprint
from moesim.plans.plan import Pool
from moesim.policies.finding import make
from moesim.policies.protocols import Batching
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving

_ENDLESS = 2**40
"""Blocks of a model that caches nothing per token."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Capacity:
    """Memory of some pools at full batch, and what one replica of each may hold.

    `room` is the bytes that everything else leaves for the cache on the fullest rank.
    """

    memory: Memory
    room: tuple[float, ...]
    limits: tuple[Limits, ...]


def capacity(scenario: Scenario, pools: Sequence[Pool]) -> Capacity:
    """Find what one replica of each pool may hold.

    A token's cache is taken to be that of the mean request over its tokens: sliding windows and constant states make
    long requests cheaper per token than short ones.
    """
    assert isinstance(scenario.workload, Serving)
    point = operation(scenario.workload, pools)
    memory = footprint(scenario, pools, sequences=point.sequences, context=point.kept, tokens=point.most)
    cache = memory.items["kv cache"]
    room = memory.capacity - (memory.total - cache)
    per_token = cache / (point.sequences * point.kept)
    tokens = np.full(len(pools), np.inf)
    np.divide(np.maximum(room, 0.0), per_token, out=tokens, where=per_token > 0)
    limits = [_limits(scenario, pool, cached) for pool, cached in zip(pools, tokens.tolist(), strict=True)]
    return Capacity(memory=memory, room=tuple(room.tolist()), limits=tuple(limits))


def _limits(scenario: Scenario, pool: Pool, tokens: float) -> Limits:
    """Limits of a replica whose dp groups have room for so many cached tokens each."""
    batching: Batching = make("batching", pool.policy("batching"))
    block = scenario.frameworks[pool.framework].block
    blocks = int(min(tokens / block, _ENDLESS))
    return Limits(
        sequences=batching.max_batch * pool.parallel.dp,
        budget=batching.budget,
        blocks=blocks * pool.parallel.dp,
        block=block,
        largest=blocks * block,
        whole=batching.speculated > 0,
        growth=round(batching.emitted * GRAIN),
    )

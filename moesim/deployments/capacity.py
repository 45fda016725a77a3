"""What a replica can hold: its memory, and the blocks of cache that the rest of it leaves room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moesim.deployments.operation import operation
from moesim.deployments.serving.limits import Limits
from moesim.deployments.serving.ticks import ticks
from moesim.deployments.steps import GRAIN
from moesim.ground.units import Bytes
from moesim.passes.footprint import Memory, footprint
from moesim.passes.table import table_of
from moesim.plans.plan import Pool
from moesim.policies.finding import make
from moesim.policies.protocols import Batching
from moesim.world.hardware import memory_tier
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving

_ENDLESS = 2**40
"""Blocks of a model that caches nothing per token."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Capacity:
    """Memory of some pools at full batch, and what one replica of each may hold.

    `room` is the bytes that everything else leaves for the cache on the fullest rank, `per_token` those that a token's
    cache takes there.
    """

    memory: Memory
    room: tuple[Bytes, ...]
    per_token: tuple[Bytes, ...]
    limits: tuple[Limits, ...]

    @property
    def used(self) -> Memory:
        """Memory as a run uses it at most: the cache is no larger than its room, however many sequences wait for it."""
        wanted = self.memory.items["kv cache"]
        return replace(
            self.memory, items={**self.memory.items, "kv cache": np.minimum(wanted, np.maximum(self.room, 0.0))}
        )


def capacity(scenario: Scenario, pools: Sequence[Pool]) -> Capacity:
    """Find what one replica of each pool may hold.

    A token's cache is taken to be that of the mean request over its tokens: sliding windows and constant states make
    long requests cheaper per token than short ones.
    """
    assert isinstance(scenario.workload, Serving)
    columns = table_of(pools)
    point = operation(scenario.workload, columns)
    memory = footprint(scenario, columns, sequences=point.sequences, context=point.kept, tokens=point.most)
    cache = memory.items["kv cache"]
    room = memory.capacity - (memory.total - cache)
    per_token = cache / (point.sequences * point.kept)
    tokens = np.full(len(pools), np.inf)
    np.divide(np.maximum(room, 0.0), per_token, out=tokens, where=per_token > 0)
    sizes: list[Bytes] = per_token.tolist()
    return Capacity(
        memory=memory,
        room=tuple(room.tolist()),
        per_token=tuple(sizes),
        limits=tuple(_limits(scenario, *each) for each in zip(pools, tokens.tolist(), sizes, strict=True)),
    )


def _limits(scenario: Scenario, pool: Pool, tokens: float, size: Bytes) -> Limits:
    """Limits of a replica whose dp groups have room for so many cached tokens each, of a size on a rank."""
    batching: Batching = make("batching", pool.policy("batching"))
    framework = scenario.frameworks[pool.framework]
    block = framework.block
    blocks = int(min(tokens / block, _ENDLESS))
    return Limits(
        sequences=batching.max_batch * pool.parallel.dp,
        budget=batching.budget,
        blocks=blocks * pool.parallel.dp,
        block=block,
        largest=blocks * block,
        whole=framework.cache == "whole" or batching.speculated > 0,
        growth=round(batching.emitted * GRAIN),
        swap=_copying(scenario, pool, size) if batching.preemption == "swap" else 0,
        prompts_first=framework.prompts == "first",
        poll=framework.poll,
        hands_over=pool.role == "prefill",
        prefixes=blocks * block * pool.parallel.dp,
    )


def _copying(scenario: Scenario, pool: Pool, size: Bytes) -> int:
    """Ticks in which the ranks of a dp group copy their parts of a token's cache to the host, or back."""
    tier = memory_tier(scenario.hardware.offer(pool.node).node, "host")
    return max(ticks(size * tier.sharers / tier.bandwidth), 1)

"""What is kept beside weights and caches of requests: compiled graphs, and the assignments of a data set."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from moesim.passes.columns import Column
from moesim.passes.table import batching_of
from moesim.plans.plan import Pool
from moesim.policies.adaptation.caching import Caching
from moesim.policies.finding import make
from moesim.world.framework import Framework
from moesim.world.model import Layer, Moe

ASSIGNMENT = 4.0
"""Bytes of a cached assignment: one int32 for each expert of a token (FlexFlow, branch of 2021)."""


def kept(pool: Pool, layers: Sequence[Layer], framework: Framework, tokens: Column) -> Iterator[tuple[str, Column]]:
    """Itemise what a pool's compiled graphs and cached assignments take on a rank; nothing for a pool without.

    Parameters
    ----------
    layers : of one pipeline stage
    tokens : tokens per rank in one pass
    """
    batching = batching_of(pool)
    graphs = len(batching.buckets) or batching.graphs
    if graphs:
        yield "compiled graphs", graphs * len(layers) * framework.graph + 0.0 * tokens
    batches = max((policy.batches for policy in _cachings(pool)), default=0)
    chosen = sum(layer.tokens * layer.ffn.topk for layer in layers if isinstance(layer.ffn, Moe))
    if batches and chosen:
        yield "cached assignments", batches * tokens * chosen * ASSIGNMENT


def kept_like(pool: Pool) -> Hashable:
    """Name what decides what is kept."""
    batching = batching_of(pool)
    return batching.buckets, batching.graphs, tuple(_cachings(pool))


def _cachings(pool: Pool) -> Iterator[Caching]:
    made = (make("adaptation", policy) for policy in pool.adaptation)
    return (policy for policy in made if isinstance(policy, Caching))

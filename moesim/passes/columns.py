"""A batch of plans of one structure as columns: every degree and size an array over plans, ready to broadcast.

Columns have shape [plan, 1, 1]: plan, draw, rank.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from jaxtyping import Shaped

from moesim.passes.folding import CLASSES
from moesim.passes.table import PoolTable
from moesim.plans.plan import Parallel, Pool
from moesim.policies.finding import make
from moesim.policies.protocols import Batching, Pipeline
from moesim.world.hardware import Node, Tier, reach, tier_between
from moesim.world.model import Model

Column = Shaped[np.ndarray, "plan 1 1"]
Sizes = Shaped[np.ndarray, "... #rank"]


def column(values: Sequence[float]) -> Column:
    """Stack one number per plan."""
    return np.array(values, dtype=float).reshape(-1, 1, 1)


def as_column(values: Shaped[np.ndarray, "plan"]) -> Column:
    """Give one number per plan the axes of draws and ranks."""
    return values.astype(float).reshape(-1, 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """The degrees of a batch of plans, and whether their ranks are kept apart.

    `formats` is the storage format of each class of tensors (`TENSORS`).
    `folded` says that rank rows are classes of a drawn load rather than the ranks themselves; then a batch must be
    alike on all ranks.
    """

    table: PoolTable
    folded: bool
    formats: Mapping[str, str]
    tp: Column
    cp: Column
    dp: Column
    ep: Column
    etp: Column
    ranks: Column

    @property
    def first(self) -> Pool:
        """The pool whose names stand for all: plans of one structure differ in numbers only."""
        return self.table.pool(0)

    def group_sum(self, size: Sizes) -> Sizes:
        """Add a size over each tensor-parallel group: what attention and dense layers of a group work on."""
        if size.shape[-1] == 1:
            return np.asarray(size * self.tp)
        tp = self.first.parallel.tp
        blocks = size.reshape(*size.shape[:-1], -1, tp).sum(axis=-1)
        return np.repeat(blocks, tp, axis=-1)


def columns(table: PoolTable, model: Model, *, folded: bool) -> Columns:
    """Read the degrees of pools that differ in numbers only into columns."""
    return Columns(
        table=table,
        folded=folded,
        formats=formats(table.variants[table.variant[0]], model),
        tp=as_column(table["tp"]),
        cp=as_column(table["cp"]),
        dp=as_column(table["dp"]),
        ep=as_column(table["ep"]),
        etp=as_column(table["etp"]),
        ranks=as_column(table.ranks),
    )


@lru_cache(maxsize=4096)
def group_tiers(parallel: Parallel, reaches: tuple[tuple[str, int], ...]) -> Mapping[str, str]:
    """Name the outermost tier each kind of group crosses, for the group of rank 0: tp, cp, dp, edp, next stage.

    `reaches` lists (tier, gpus one hop reaches), as `hardware.reach` does.
    """
    p = parallel
    last = {
        "tp": p.tp - 1,
        "cp": (p.cp - 1) * p.tp,
        "dp": p.ranks - 1,
        "edp": p.ranks - p.ep * p.etp,
        "stage": p.ranks,
    }
    return MappingProxyType({key: tier_between(reaches, 0, gpu) for key, gpu in last.items()})


ISSUING = ("gating", "alltoall", "shortcut", "overlap", "buffering", "prefetch", "recompute")
"""Kinds of policy that decide which tasks a pass has."""


def structure(pool: Pool, node: Node, fabric: tuple[Tier, ...]) -> Hashable:
    """Name everything that decides which tasks a pool's pass has; plans of one structure differ in sizes only."""
    p = pool.parallel
    batching: Batching = make("batching", pool.policy("batching"))
    pipeline: Pipeline = make("pipeline", pool.policy("pipeline"))
    return (
        pool.node,
        pool.framework,
        p.pp,
        tuple(degree > 1 for degree in (p.dp, p.tp, p.cp, p.ep, p.etp, p.edp)),
        tuple(group_tiers(p, reach(node, fabric)).values()),
        p.ep * p.etp > node.gpus,
        min(p.ep * p.etp, CLASSES),
        pool.policy("gating").settings.get("flexible", True) or p.ep * p.etp,
        tuple(sorted(pool.precision.items())),
        tuple(map(pool.policy, ISSUING)),
        batching.speculated,
        pipeline.lanes,
    )


def stage_layers(model: Model, pp: int, stage: int) -> range:
    """Deal the layers to the stages in order, as evenly as they go; earlier stages get the remainder.

    Examples
    --------
    >>> from moesim.world.model import Layer
    >>> plain = Layer(part="decoder", dim=8, tokens=1.0, attention=None, ffn=None)
    >>> model = Model(name="five", layers=(plain,) * 5, vocab=0, dtype_of={})
    >>> [list(stage_layers(model, 2, stage)) for stage in (0, 1)]
    [[0, 1, 2], [3, 4]]
    """
    size, extra = divmod(len(model.layers), pp)
    start = stage * size + min(stage, extra)
    return range(start, start + size + (stage < extra))


TENSORS = ("experts", "attention", "dense", "embedding", "kv", "dispatch", "combine")


def formats(pool: Pool, model: Model) -> Mapping[str, str]:
    """Return the storage format of each class of tensors: the pool's own, else the model's, else bf16."""
    return {tensors: pool.precision.get(tensors) or model.dtype_of.get(tensors, "bf16") for tensors in TENSORS}

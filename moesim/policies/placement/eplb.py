"""EPLB placement: DeepSeek's balancer, which copies hot experts and packs the copies, node by node where it can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from moesim.policies.placement.greedy import balanced_slots, packed, rounded_slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Eplb:
    """Pack groups of experts on nodes, copy the hottest within each node, and pack the copies on its ranks.

    deepseek-ai/EPLB, README and DeepSeek-V3 report, section 3.4. Keeping a group on one node serves routers that limit
    the groups, and so the nodes, of a token. Where nodes do not divide the groups (or ranks or slots do not divide
    over nodes) all ranks are balanced as one node.

    Attributes
    ----------
    redundant : copies beyond one per expert
    groups : groups of consecutive experts that the router chooses among; 1: balance all ranks as one node
    """

    balances: ClassVar[bool] = True

    redundant: int = 0
    groups: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.redundant < 0:
            raise ValueError(f"redundant = {self.redundant}; give 0 or more")
        if self.groups < 1:
            raise ValueError(f"groups = {self.groups}; give at least 1")

    def slots(self, experts: int, ranks: int) -> int:
        """Round experts and redundant copies up to a multiple of `ranks`."""
        return rounded_slots(experts + self.redundant, ranks)

    def __call__(
        self,
        load: Float[np.ndarray, "step layer expert"],
        slots: int,
        ranks: int,
        nodes: int,
        rng: np.random.Generator,
    ) -> Int[np.ndarray, "layer slot"]:
        """Place each layer by its load averaged over the steps."""
        mean = load.mean(axis=0)
        if self.groups % nodes or mean.shape[1] % self.groups or ranks % nodes:
            return balanced_slots(mean, slots, ranks)
        return _by_node(mean, slots, ranks, nodes, self.groups)


policy = Eplb


def _by_node(
    load: Float[np.ndarray, "layer expert"], slots: int, ranks: int, nodes: int, groups: int
) -> Int[np.ndarray, "layer slot"]:
    """Deal whole groups to nodes, then balance each node by itself."""
    layers, experts = load.shape
    size = experts // groups
    group_of_place = packed(load.reshape(layers, groups, size).sum(axis=2), nodes)
    expert_of_place = (group_of_place[..., None] * size + np.arange(size)).reshape(layers, experts)
    load_by_node = np.take_along_axis(load, expert_of_place, axis=1).reshape(layers * nodes, -1)
    place_of_slot = balanced_slots(load_by_node, slots // nodes, ranks // nodes).reshape(layers, nodes, -1)
    start = np.arange(nodes)[:, None] * (experts // nodes)
    return np.take_along_axis(expert_of_place, (place_of_slot + start).reshape(layers, slots), axis=1)

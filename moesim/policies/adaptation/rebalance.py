"""Rebalancing: experts are placed anew by what they received of late, and their weights moved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from moesim.plans.layout import Layout
from moesim.policies.placement.eplb import Eplb
from moesim.policies.placement.greedy import Greedy
from moesim.policies.protocols import Change, Seen, Sizes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """What every expert received: on average before, and in how many steps since what; steps since a placement."""

    load: Float[np.ndarray, "layer expert"]
    counts: Shaped[np.ndarray, "layer expert"]
    steps: int
    since: int
    sizes: Sizes

    def averaged(self, memory: float) -> Float[np.ndarray, "layer expert"]:
        """Return the moving average: n steps alike move it (1 - g)^n of the way as one moves it 1 - g."""
        if not self.load.any():
            return self.counts.astype(float)
        return np.asarray(self.counts + (self.load - self.counts) * (1 - memory) ** self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebalance:
    """Place by the moving average of the load every so often, where the heaviest rank gets lighter by enough.

    DeepSeek-V3 (arXiv 2412.19437, section 3.4) does so about every 10 minutes; TensorRT-LLM moves layer by layer
    because moving all at once stalls for 0.5 to 1 s.

    Attributes
    ----------
    every : steps between placements
    gain : share by which the mean of the heaviest ranks must fall
    memory : weight of the newest step in the load
    placement : which policy places
    background : whether steps go on while weights move
    """

    profiles: ClassVar[bool] = False

    every: int = 100
    gain: float = 0.05
    memory: float = 0.05
    placement: Literal["eplb", "greedy"] = "eplb"
    background: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.every < 1:
            raise ValueError(f"every = {self.every}; give at least 1 step")
        if not 0 <= self.gain < 1:
            raise ValueError(f"gain = {self.gain}; give a share from 0 to below 1")
        if not 0 < self.memory <= 1:
            raise ValueError(f"memory = {self.memory}; give a weight above 0, up to 1")

    def start(self, layout: Layout, sizes: Sizes) -> State:
        """Start with no load seen."""
        none = np.zeros((len(layout.expert_of_slot), layout.capacity.shape[1]))
        return State(load=none, counts=none, steps=0, since=0, sizes=sizes)

    def __call__(self, state: State, seen: Seen, rng: np.random.Generator) -> tuple[State, Change | None]:
        """Move the averages; place anew when it is due and pays."""
        same = seen.counts is state.counts
        state = State(
            load=state.load if same else state.averaged(self.memory),
            counts=seen.counts,
            steps=state.steps + 1 if same else 1,
            since=state.since + 1,
            sizes=state.sizes,
        )
        if state.since < self.every:
            return state, None
        return replace(state, since=0), self._change(state, seen, rng)

    def _change(self, state: State, seen: Seen, rng: np.random.Generator) -> Change | None:
        """Return the new placement, if the heaviest ranks get lighter by enough."""
        before, load = seen.layout.expert_of_slot, state.averaged(self.memory)
        ranks = int(seen.layout.rank_of_slot.max()) + 1
        place = Eplb() if self.placement == "eplb" else Greedy()
        after = place(load[None], before.shape[1], ranks, state.sizes.nodes, rng)
        heavy, light = (heaviest(slots, load, ranks).mean() for slots in (before, after))
        if light > heavy * (1 - self.gain):
            return None
        fresh = (after != before).reshape(len(after), ranks, -1).sum(axis=(0, 2)).max()
        layout = replace(seen.layout, expert_of_slot=after)
        return Change(layout=layout, moved=float(fresh) * state.sizes.moving, background=self.background)


policy = Rebalance


def heaviest(
    expert_of_slot: Int[np.ndarray, "layer slot"], load: Float[np.ndarray, "layer expert"], ranks: int
) -> Float[np.ndarray, "layer"]:
    """Load of the heaviest rank of every layer; an expert's copies share its load.

    Examples
    --------
    >>> heaviest(np.array([[0, 1, 2, 0]]), np.array([[6.0, 1.0, 2.0]]), 2)
    array([5.])
    """
    layer = np.arange(len(load))[:, None]
    copies = np.zeros(load.shape)
    np.add.at(copies, (layer, expert_of_slot), 1.0)
    share = (load / np.maximum(copies, 1.0))[layer, expert_of_slot]
    return np.asarray(share.reshape(len(load), ranks, -1).sum(axis=2).max(axis=1))

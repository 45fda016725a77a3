"""DynaMoE's adaptation: capacities follow a moving average of the load, at the price of recompiling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from moesim.plans.layout import Layout
from moesim.policies.capacities import ROUNDING
from moesim.policies.protocols import Change, Seen, Sizes
from moesim.policies.scores import LOAD_MEMORY, load_factor, moved


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """Scores and capacity factors of every expert (alike in a layer unless `local`), and steps since a recompile."""

    score: Float[np.ndarray, "layer expert"]
    alpha: Float[np.ndarray, "layer expert"]
    since: int
    sizes: Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamoe:
    """Trigger on the score, alter the capacities (FlexFlow, commits f2d064c3 and 722001f6 of 2021).

    The score of a layer is a moving average of its largest load factor, n / (k B) x count. Where it is below
    `threshold` times the capacity factor, the factor is cut to `room` times the score; where it is above the factor,
    tokens are being dropped, and the factor grows to the same, at most `largest`. A change recompiles.

    Attributes
    ----------
    threshold : share of the capacity below which the load must fall
    room : new capacity over score
    memory : weight of the newest step in the score
    largest : capacity factor never exceeded
    cool_down : steps between recompiles
    local : whether every expert has a factor of its own
    """

    profiles: ClassVar[bool] = False

    threshold: float = 0.5
    room: float = 1.3
    memory: float = LOAD_MEMORY
    largest: float = 4.0
    cool_down: int = 0
    local: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold = {self.threshold}; give a share between 0 and 1")
        if self.room < 1 or self.threshold * self.room >= 1:
            raise ValueError(f"room = {self.room}; give 1 or more, below 1 / threshold, or a cut would not cut")
        if not 0 < self.memory <= 1:
            raise ValueError(f"memory = {self.memory}; give a weight above 0, up to 1")
        if self.largest <= 0 or self.cool_down < 0:
            raise ValueError(f"largest = {self.largest} and cool_down = {self.cool_down}; give positive numbers")

    def start(self, layout: Layout, sizes: Sizes) -> State:
        """Start the scores at the capacity factors in force."""
        alpha = layout.capacity * layout.capacity.shape[1] / (sizes.topk * sizes.tokens)
        return State(score=alpha, alpha=alpha, since=self.cool_down, sizes=sizes)

    def __call__(self, state: State, seen: Seen, rng: np.random.Generator) -> tuple[State, Change | None]:
        """Move the scores; alter where the trigger says so."""
        load = load_factor(seen.counts, state.sizes.tokens * state.sizes.gpus, state.sizes.topk)
        if not self.local:
            load = np.broadcast_to(load.max(axis=1, keepdims=True), load.shape)
        score = moved(state.score, load, self.memory)
        since = state.since + 1
        cut, grown = score < self.threshold * state.alpha, (score > state.alpha) & (state.alpha < self.largest)
        if since <= self.cool_down or not np.any(cut | grown):
            return replace(state, score=score, since=since), None
        alpha = np.where(cut | grown, np.minimum(self.room * score, self.largest), state.alpha)
        rows = np.ceil(alpha * state.sizes.topk / alpha.shape[1] * state.sizes.tokens - ROUNDING).astype(np.int64)
        layout = replace(seen.layout, capacity=rows)
        return replace(state, score=score, alpha=alpha, since=0), Change(layout=layout, rebuilt=1)


policy = Dynamoe

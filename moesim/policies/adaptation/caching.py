"""DynaMoE's assignment caching: experts read last epoch's assignments while these agree with what the gate says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from moesim.plans.layout import Layout
from moesim.policies.protocols import Change, Seen, Sizes
from moesim.policies.scores import AGREEMENT_MEMORY, moved


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The score of agreement, and steps since the last recompile."""

    score: float
    since: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Caching:
    """Cache above `on`, stop below `off`, and recompile for either, not sooner than `cool_down` steps after the last.

    FlexFlow, commit 32b75946 of 2021. It needs one order of the samples in every epoch, and memory for the assignments
    of all of its batches.

    Attributes
    ----------
    on, off : scores at which caching starts and stops
    cool_down : steps between recompiles
    memory : weight of the newest step in the score
    batches : batches of the data set, for each of which assignments are kept
    """

    profiles: ClassVar[bool] = False

    on: float = 0.95
    off: float = 0.85
    cool_down: int = 2000
    memory: float = AGREEMENT_MEMORY
    batches: int = 100

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.off < self.on <= 1:
            raise ValueError(f"on = {self.on} and off = {self.off}; give shares, off below on")
        if not 0 < self.memory <= 1:
            raise ValueError(f"memory = {self.memory}; give a weight above 0, up to 1")
        if self.cool_down < 0:
            raise ValueError(f"cool_down = {self.cool_down}; give 0 or more steps")
        if self.batches < 1:
            raise ValueError(f"batches = {self.batches}; give the batches of the data set, at least 1")

    def start(self, layout: Layout, sizes: Sizes) -> State:
        """Start without agreement, long after a recompile."""
        return State(score=0.0, since=self.cool_down)

    def __call__(self, state: State, seen: Seen, rng: np.random.Generator) -> tuple[State, Change | None]:
        """Move the score; switch where it has crossed."""
        state = State(
            score=float(moved(np.asarray(state.score), np.asarray(seen.agreement), self.memory)), since=state.since + 1
        )
        wanted = state.score > self.on or (seen.layout.cached and state.score >= self.off)
        if wanted == seen.layout.cached or state.since <= self.cool_down:
            return state, None
        return replace(state, since=0), Change(layout=replace(seen.layout, cached=wanted), rebuilt=1)


policy = Caching

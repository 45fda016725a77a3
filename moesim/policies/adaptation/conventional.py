"""Conventional switching: knobs are chosen as Tutel does, but every r stores experts its own way, and weights move."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from moesim.plans.layout import Layout
from moesim.policies.knobs import Knobs, Turning, knobs_of, turning, with_knobs
from moesim.policies.parallelism import CAPACITY_STEP, key, migration
from moesim.policies.protocols import Change, Seen, Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Conventional:
    """Switch parallelism by moving weights, where a layer gains enough; degree and all-to-all turn freely.

    What Tutel is set beside (Hwang et al., "Tutel", MLSys 2023, section 3): whole experts under expert + data
    parallelism and slices under expert + model parallelism lie in different layouts, so every gpu copies in its share
    of a layer's weights when the layer's r changes, and in training of what the optimizer keeps of them: whoever keeps
    it, whole or a share, it is cut as the weights are.

    Attributes
    ----------
    step : rows of capacity per key of the dictionary
    gain : share of a layer's time that another r must save
    cool_down : steps between two switches
    """

    profiles: ClassVar[bool] = True

    step: int = CAPACITY_STEP
    gain: float = 0.05
    cool_down: int = 100

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.step < 1:
            raise ValueError(f"step = {self.step}; give at least 1 row")
        if not 0 <= self.gain < 1:
            raise ValueError(f"gain = {self.gain}; give a share from 0 to below 1")
        if self.cool_down < 0:
            raise ValueError(f"cool_down = {self.cool_down}; give 0 or more steps")

    def start(self, layout: Layout, sizes: Sizes) -> Turning:
        """Start with an empty dictionary, long after a switch; experts of a slot are 1 / r of whole ones."""
        whole = layout.expert_of_slot.shape[1] * (sizes.expert + sizes.state) * int(layout.r[0])
        return replace(turning(layout, sizes), moved=migration(whole, 1.0, sizes.gpus), since=self.cool_down)

    def __call__(self, state: Turning, seen: Seen, rng: np.random.Generator) -> tuple[Turning, Change | None]:
        """Give every layer the best knobs of its capacity at its r, or at another where that gains enough."""
        keys = [key(int(most), self.step) for most in seen.most]
        state = replace(state.met(seen, keys, own=True), since=state.since + 1)
        present, free = knobs_of(seen.layout), state.since > self.cool_down
        wanted = [self._wanted(state, each, r, free) for each, (r, _, _) in zip(keys, present, strict=True)]
        switched = sum(was[0] != now[0] for was, now in zip(present, wanted, strict=True))
        if tuple(wanted) == present:
            return state, None
        change = Change(layout=with_knobs(seen.layout, wanted), moved=switched * state.moved)
        return (replace(state, since=0) if switched else state), change

    def _wanted(self, state: Turning, key: int, r: int, free: bool) -> Knobs:
        """Choose a layer's knobs: those of its r, unless it is free to switch and gains."""
        (now, knobs), (least, best) = state.of_r[key][r], min(state.of_r[key].values())
        return best if free and least < now * (1 - self.gain) else knobs


policy = Conventional

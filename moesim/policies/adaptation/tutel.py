"""Tutel's adaptation: parallelism, pipelining degree and all-to-all chosen anew for the capacity of every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from moesim.plans.layout import Layout
from moesim.policies.parallelism import ALGORITHMS, CAPACITY_STEP, DEGREES, family, key
from moesim.policies.protocols import Change, Seen, Sizes

Knobs = tuple[int, int, str]
"""r, degree, all-to-all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The dictionary: best knobs by capacity, and how many trials filling it has taken."""

    choices: tuple[Knobs, ...]
    best: Mapping[int, Knobs] = field(default_factory=lambda: MappingProxyType({}))
    trials: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tutel:
    """Look up the capacity each layer needed; run what was best for it when it was first met.

    All r share one layout of the experts, so a switch moves nothing and costs nothing (Hwang et al., "Tutel", MLSys
    2023, section 3). A capacity whose key, floor(c / step), is new is profiled under every choice, which counts as
    trials.

    Attributes
    ----------
    step : rows of capacity per key
    r : whether the parallelism adapts; otherwise it stays as it is
    """

    profiles: ClassVar[bool] = True

    step: int = CAPACITY_STEP
    r: bool = True

    def __post_init__(self) -> None:
        """Check the range."""
        if self.step < 1:
            raise ValueError(f"step = {self.step}; give at least 1 row")

    def start(self, layout: Layout, sizes: Sizes) -> State:
        """List the choices; the dictionary is empty."""
        experts = layout.expert_of_slot.shape[1]
        known = family(sizes.gpus, experts) if self.r else (int(layout.r[0]),)
        node = sizes.gpus // sizes.nodes
        algorithms = ALGORITHMS if sizes.gpus > node else ALGORITHMS[:1]
        return State(choices=tuple(product(known, DEGREES, algorithms)))

    def __call__(self, state: State, seen: Seen, rng: np.random.Generator) -> tuple[State, Change | None]:
        """Give every layer the best knobs of its capacity."""
        keys = [key(int(most), self.step) for most in seen.most]
        fresh = {each: layer for layer, each in enumerate(keys) if each not in state.best}
        if fresh:
            state = self._profiled(state, seen, fresh)
        wanted = [state.best[each] for each in keys]
        layout = _with(seen.layout, wanted)
        return state, None if _knobs(layout) == _knobs(seen.layout) else Change(layout=layout)

    def _profiled(self, state: State, seen: Seen, fresh: Mapping[int, int]) -> State:
        """Try every choice once for keys never met, each on a layer that needs it."""
        layers = len(seen.most)
        costs = np.stack([seen.cost_of(_with(seen.layout, [choice] * layers)) for choice in state.choices])
        best = {each: state.choices[int(costs[:, layer].argmin())] for each, layer in fresh.items()}
        return replace(
            state,
            best=MappingProxyType({**state.best, **best}),
            trials=state.trials + len(fresh) * len(state.choices),
        )


policy = Tutel


def _with(layout: Layout, knobs: list[Knobs]) -> Layout:
    """Set the knobs of every layer."""
    r, degree, alltoall = zip(*knobs, strict=True)
    return replace(layout, r=np.array(r), degree=np.array(degree), alltoall=tuple(alltoall))


def _knobs(layout: Layout) -> tuple[Knobs, ...]:
    return tuple(zip(layout.r.tolist(), layout.degree.tolist(), layout.alltoall, strict=True))

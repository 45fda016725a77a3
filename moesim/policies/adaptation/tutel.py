"""Tutel's adaptation: parallelism, pipelining degree and all-to-all chosen anew for the capacity of every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.plans.layout import Layout
from moesim.policies.knobs import Turning, knobs_of, turning, with_knobs
from moesim.policies.parallelism import CAPACITY_STEP, key
from moesim.policies.protocols import Change, Seen, Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Tutel:
    """Look up the capacity each layer needed; run what was best for it when it was first met.

    All r share one layout of the experts, so a switch moves nothing and costs nothing (Hwang et al., "Tutel", MLSys
    2023, section 3). A capacity whose key, floor(c / step), is new is tried under every degree and all-to-all, for each
    of them under the r that a search of the family looks at; each try is a trial.

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

    def start(self, layout: Layout, sizes: Sizes) -> Turning:
        """Start with an empty dictionary."""
        return turning(layout, sizes, every_r=self.r)

    def __call__(self, state: Turning, seen: Seen, rng: np.random.Generator) -> tuple[Turning, Change | None]:
        """Give every layer the best knobs of its capacity."""
        keys = [key(int(most), self.step) for most in seen.most]
        state = state.met(seen, keys)
        layout = with_knobs(seen.layout, [state.best[each] for each in keys])
        return state, None if knobs_of(layout) == knobs_of(seen.layout) else Change(layout=layout)


policy = Tutel

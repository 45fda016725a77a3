"""Passes of one pipeline stage timed: a few layers for all, the fastest alternative, what the times rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from moesim.deployments.residuals import Residuals
from moesim.deployments.whole import mean_pass, whole_pass
from moesim.passes.lowering import Lowering, Part
from moesim.passes.repetition import Shortened
from moesim.schedules.costs.pricing import Grounds, grounds, price_together
from moesim.schedules.schedule import Priced, Schedule
from moesim.world.hardware import Node, Tier


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timer:
    """Prices and runs passes of so many plans on a node; with residuals, times get a first axis of their draws."""

    node: Node
    fabric: tuple[Tier, ...]
    plans: int
    residuals: Residuals | None = None

    def priced(self, schedules: Sequence[Schedule]) -> tuple[Priced, ...]:
        """Price schedules that share ops."""
        found = price_together(schedules, self.node, self.fabric)
        if self.residuals is None:
            return found
        return tuple(self.residuals.applied(each, self.node, self.fabric) for each in found)

    def passed(
        self, lowering: Lowering, layers: Shortened, parts: Sequence[Part] = ("whole",)
    ) -> tuple[Float[np.ndarray, "part *lead plan"], Grounds]:
        """Time the parts of a stage's pass, of the alternative whose first part is fastest."""
        turns = (layers.base, *layers.without)
        written = [[lowering.schedules(each, part) for each in turns] for part in parts]
        priced = self.priced([schedule for part in written for ways in part for schedule in ways])
        times = np.stack([mean_pass(each, self.plans) for each in priced])
        times = times.reshape(len(parts), len(written[0]), -1, *times.shape[1:])
        whole = np.stack([whole_pass(part, layers.missing) for part in times])
        fastest = whole[0].argmin(axis=0)[np.newaxis, np.newaxis]
        ground = grounds(written[0][0][0], self.node, self.fabric)
        return np.take_along_axis(whole, fastest, axis=1)[:, 0], ground

    def alone(self, schedules: Sequence[Schedule]) -> list[Float[np.ndarray, "*lead plan"]]:
        """Time schedules, each by itself; an empty one takes no time."""
        some = iter(self.priced([each for each in schedules if each.tasks]))
        return [mean_pass(next(some), self.plans) if each.tasks else np.zeros(self.plans) for each in schedules]

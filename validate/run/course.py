"""What moesim expects of a plan over a course of steps: its policies walk the very routing that is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from moesim.deployments.adaptation import Charges, Trace, Walk, walk
from moesim.deployments.residuals import Residuals
from moesim.ground.streams import stream
from moesim.ground.units import Seconds
from moesim.passes.lowering import arrange
from moesim.passes.timeline import makespan
from moesim.plans.layout import Layout
from moesim.plans.plan import Pool
from moesim.policies.finding import make
from moesim.policies.protocols import Adaptation, Sizes
from moesim.schedules.schedule import Priced
from moesim.world.scenario import Scenario

from .batches import Chosen, counts_of, used
from .bundle import COMPILE, Predicted
from .predicting import DRAWN, Forecast, drawn_steps, outside_of, parts_of, predicted_of, priced_ways


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuild:
    """What it takes to compile a layer anew for another capacity.

    Attributes
    ----------
    spread : standard deviation of the logarithm
    """

    seconds: Seconds
    spread: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """Predictions for a course: of a mean step with what it stands still for, and without."""

    forecast: Forecast
    aside: Predicted


def walked(
    scenario: Scenario, pool: Pool, chosen: Chosen, rebuild: Rebuild, *, seed: int, drift: float = 0.0
) -> Walked:
    """Predict a mean step of a plan whose policies react between steps.

    Parameters
    ----------
    scenario : on the machine at hand
    pool : one replica over all ranks
    chosen : the experts that tokens use, a step of the course after the other
    rebuild : the price of a change
    drift : as of `predicting.forecast`

    Raises
    ------
    PolicyError
        A policy refuses the plan.
    """
    steps = _Steps(scenario=scenario, pool=pool, chosen=chosen)
    layout = arrange(scenario, pool, tokens=chosen.shape[2], seed=seed)
    still = float(_walk(pool, layout, steps, rebuild).stalls.mean())
    stretches = list(steps.stretches())
    drawn = _drawn(stretches, scenario, seed, drift)
    mean = sum(share * float(makespan(priced).mean()) for share, priced in stretches)
    slower = np.exp(rebuild.spread * stream(seed, "residuals recompile").standard_normal(DRAWN))
    parts = {name: sum(share * parts_of(priced)[name] for share, priced in stretches) for name in _names(stretches)}
    outside = outside_of(stretches[0][1], scenario)
    whole = predicted_of(mean + still, drawn + still * slower, {**parts, COMPILE: still}, outside)
    found = Forecast(predicted=whole, layout=layout, way=0, schedule=stretches[0][1].schedule)
    return Walked(forecast=found, aside=predicted_of(mean, drawn, {}, outside))


Stretches = Sequence[tuple[float, Priced]]
"""Steps under one layout, and their share of the course."""


def _drawn(stretches: Stretches, scenario: Scenario, seed: int, drift: float) -> Float[np.ndarray, "residual"]:
    """Draw what the mean step may be wrong by; the same draws for all layouts."""
    residuals = Residuals(seed=seed, number=DRAWN)
    each = [share * drawn_steps(priced, scenario, residuals, drift) for share, priced in stretches]
    return np.asarray(sum(each))


def _names(stretches: Stretches) -> tuple[str, ...]:
    return tuple(parts_of(stretches[0][1]))


def _walk(pool: Pool, layout: Layout, steps: _Steps, rebuild: Rebuild) -> Walk:
    """Let the plan's policies react to what the ranks will see."""
    counts, (*_, tokens, topk) = steps.counts, steps.chosen.shape
    trace = Trace(
        counts=counts.sum(axis=1)[:, np.newaxis],
        most=counts.max(axis=(1, 2))[:, np.newaxis],
        agreement=np.zeros(len(counts)),
    )
    sizes = Sizes(tokens=tokens, topk=topk, gpus=pool.parallel.ranks, nodes=1, expert=0.0)
    policies: list[Adaptation] = [make("adaptation", policy) for policy in pool.adaptation]
    return walk(policies, layout, sizes, trace, steps, charges=Charges(rebuild=rebuild.seconds))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Steps:
    """Prices of the steps of a course under each layout that comes to be in force."""

    scenario: Scenario
    pool: Pool
    chosen: Chosen
    _seconds: dict[bytes, Float[np.ndarray, "step"]] = field(default_factory=dict)
    _met: dict[bytes, tuple[Layout, list[int]]] = field(default_factory=dict)

    @property
    def counts(self) -> Int[np.ndarray, "step rank expert"]:
        """Tokens of each rank that use each expert."""
        return counts_of(used(self.scenario, self.pool, self.chosen), self.scenario.routing.experts)

    def __call__(self, layout: Layout, step: int) -> Float[np.ndarray, "layer"]:
        """Price a step, and note what it is run under."""
        key = layout.capacity.tobytes()
        if key not in self._seconds:
            (priced,) = priced_ways(self.scenario, self.pool, layout, self.chosen)
            self._seconds[key] = makespan(priced).reshape(len(self.chosen), -1).mean(axis=1)
        self._met.setdefault(key, (layout, []))[1].append(step)
        return self._seconds[key][step : step + 1]

    def stretches(self) -> Iterator[tuple[float, Priced]]:
        """Yield the steps that each layout was in force for, priced."""
        for layout, steps in self._met.values():
            (priced,) = priced_ways(self.scenario, self.pool, layout, self.chosen[steps])
            yield len(steps) / len(self.chosen), priced

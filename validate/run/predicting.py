"""What moesim expects of a plan: the layers of a pass, lowered, priced and run for the very routing drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from moesim.deployments.residuals import Residuals
from moesim.ground.streams import stream
from moesim.passes.breakdown import breakdown
from moesim.passes.lowering import arrange, lower
from moesim.passes.timeline import makespan, timeline
from moesim.plans.layout import Layout
from moesim.plans.plan import Pool
from moesim.policies.caches import run_caches
from moesim.policies.finding import make
from moesim.policies.protocols import Buffering
from moesim.schedules.costs.pricing import grounds, price_together
from moesim.schedules.schedule import Priced, Schedule, Task
from moesim.world.scenario import Scenario

from .batches import Chosen, batch_of, counts_of, routed, used
from .bundle import Predicted

LOW, HIGH = 0.1, 0.9
DRAWN = 64
"""Draws of the residuals of the costs."""
FILLED = 3
"""Times that a cache has seen all draws before its misses are counted: as often as before the first round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A plan's prediction, the layout it is made with, and which of its alternatives of structure is fastest."""

    predicted: Predicted
    layout: Layout
    way: int
    schedule: Schedule


def forecast(scenario: Scenario, pool: Pool, chosen: Chosen, *, seed: int, drift: float = 0.0) -> Forecast:
    """Predict the mean time of a plan's step over its draws.

    Parameters
    ----------
    scenario : on the machine at hand
    pool : one replica over all ranks
    chosen : the experts that tokens use
    drift : how far a run may lie from what the machine was measured in, standard deviation of the logarithm

    Raises
    ------
    PolicyError
        A policy refuses the plan.
    """
    layout = arrange(scenario, pool, tokens=chosen.shape[2], seed=seed)
    ways = priced_ways(scenario, pool, layout, chosen)
    totals = [float(makespan(each).mean()) for each in ways]
    way = int(np.argmin(totals))
    drawn = drawn_steps(ways[way], scenario, Residuals(seed=seed, number=DRAWN), drift)
    predicted = predicted_of(totals[way], drawn, parts_of(ways[way]), outside_of(ways[way], scenario))
    return Forecast(predicted=predicted, layout=layout, way=way, schedule=ways[way].schedule)


def priced_ways(scenario: Scenario, pool: Pool, layout: Layout, chosen: Chosen) -> tuple[Priced, ...]:
    """Lower and price the layer in each way its plan leaves open; a draw is a plan of its own along the first axis.

    So it is because caches hold other experts in each draw.
    """
    counts = counts_of(used(scenario, pool, chosen), scenario.routing.experts)
    layouts = [replace(layout, missing=share) for share in _missing(pool, layout, counts)]
    steps = [routed(scenario, pool, layout, each) for each in counts]
    lowered = lower(scenario, [pool] * len(steps), 0, layouts, [batch_of(scenario, chosen.shape[2])], [steps])
    ways = [only_layer(way, scenario) for way in lowered.schedules()]
    return price_together(ways, scenario.hardware.offers[0].node, scenario.hardware.fabric)


def only_layer(whole: Schedule, scenario: Scenario) -> Schedule:
    """Leave out what is no part of the layers themselves: embedding and head."""
    last = len(scenario.model.layers) - 1
    return without(whole, [i for i, task in enumerate(whole.tasks) if not 0 <= task.layer <= last])


def without(schedule: Schedule, dropped: Sequence[int]) -> Schedule:
    """Leave tasks out; what waited for one waits for what that one waited for."""
    gone = set(dropped)
    place: dict[int, set[int]] = {}
    kept: list[Task] = []
    for index, task in enumerate(schedule.tasks):
        waits = {i for before in task.after for i in place[before]}
        if index in gone:
            place[index] = waits
        else:
            place[index] = {len(kept)}
            kept.append(replace(task, after=tuple(sorted(waits))))
    out = sorted({i for end in schedule.out for i in place[end]})
    return replace(schedule, tasks=tuple(kept), out=tuple(out))


def _missing(pool: Pool, layout: Layout, counts: Int[np.ndarray, "draw rank expert"]) -> list[float]:
    """Return, for each draw, the share of used experts that the busiest rank has to fetch, once caches have filled."""
    policy: Buffering = make("buffering", pool.policy("buffering"))
    slots = layout.slots_per_rank
    resident = policy.resident_of(slots)
    if resident == slots:
        return [0.0] * len(counts)
    blocks = counts.shape[1] // pool.parallel.ep
    received = counts.reshape(len(counts), blocks, -1, counts.shape[2]).sum(axis=2)
    held = layout.expert_of_slot[0].reshape(pool.parallel.ep, slots)
    accessed = (received[:, :, held] > 0).reshape(len(counts), -1, slots)
    run = run_caches(policy, np.tile(accessed, (FILLED + 1, 1, 1)), resident)
    missed = run.missed[-len(counts) :].sum(axis=2)
    return [float(m.max() / max(a.max(), 1)) for m, a in zip(missed, accessed.sum(axis=2), strict=True)]


def drawn_steps(
    priced: Priced, scenario: Scenario, residuals: Residuals, drift: float
) -> Float[np.ndarray, "residual"]:
    """Seconds of a mean step with what each cost may be wrong by, and the whole run."""
    offer, fabric = scenario.hardware.offers[0], scenario.hardware.fabric
    steps = makespan(residuals.applied(priced, offer.node, fabric))
    slower = np.exp(drift * stream(residuals.seed, "residuals drift").standard_normal(residuals.number))
    return np.asarray(steps.reshape(residuals.number, -1).mean(axis=1) * slower)


def outside_of(priced: Priced, scenario: Scenario) -> tuple[str, ...]:
    """Name the sizes that left what their costs were fitted on."""
    return grounds(priced.schedule, scenario.hardware.offers[0].node, scenario.hardware.fabric).outside


def predicted_of(
    mean: float, drawn: Float[np.ndarray, "residual"], parts: Mapping[str, float], outside: tuple[str, ...]
) -> Predicted:
    """Put a prediction together."""
    low, high = np.quantile(drawn, (LOW, HIGH)).tolist()
    return Predicted(seconds=mean, low=min(low, mean), high=max(high, mean), parts=parts, outside=outside)


def parts_of(priced: Priced) -> Mapping[str, float]:
    """Busy seconds of each named part, of the rank on which it is longest."""
    return {name: float(busy) for name, (busy, _) in breakdown(priced, timeline(priced)).items()}

"""From a few layers' times to a whole pass: stages that differ, repeated layers, means over draws."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from moesim.passes.columns import stage_layers
from moesim.passes.timeline import makespan
from moesim.plans.plan import Pool
from moesim.schedules.schedule import Priced
from moesim.world.scenario import Scenario


def unlike_stages(scenario: Scenario, pool: Pool) -> Mapping[int, int]:
    """Name for every pipeline stage the first one like it: its layers are equal, and it is as much at an end.

    The values are the stages that differ: the first, the last, and one of each run of equal layers between.
    """
    pp, model = pool.parallel.pp, scenario.model
    seen: dict[Hashable, int] = {}
    found = {}
    for stage in range(pp):
        layers = tuple(model.layers[number] for number in stage_layers(model, pp, stage))
        found[stage] = seen.setdefault((layers, stage == 0, stage == pp - 1), stage)
    return found


def whole_pass(
    times: Float[np.ndarray, "variant alternative *lead"], missing: Sequence[int]
) -> Float[np.ndarray, "alternative *lead"]:
    """Time of a whole stage from that of its shortened one (first) and of those with one more turn left out."""
    turns = np.array(missing, dtype=float).reshape(-1, *[1] * (times.ndim - 1))
    return np.asarray(times[0] + (turns * (times[:1] - times[1:])).sum(axis=0))


def mean_pass(priced: Priced, plans: int) -> Float[np.ndarray, "*lead plan"]:
    """Mean over routing draws of the time from a pass's start to its last task's end, per plan."""
    spans = makespan(priced)
    if spans.ndim < 2:
        return np.broadcast_to(spans, (plans,))
    return np.asarray(np.broadcast_to(spans, (*spans.shape[:-2], plans, spans.shape[-1])).mean(axis=-1))

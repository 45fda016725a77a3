"""Finalists: the first plans of a ranking under the scenario's requests, because queues are in no formula."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from moesim.deployments.result import Result
from moesim.deployments.simulation import simulate_many
from moesim.plans.plan import Plan
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving

TURN = 3
"""Plans simulated at a time, and at least."""

WANTED = 2
"""Plans that are to meet every target when simulated: the first and its runner-up."""

REQUESTS = 2000
"""Requests each of them faces."""


def simulated(scenario: Scenario, plans: Sequence[Plan], promising: int, *, seed: int) -> tuple[Result, ...]:
    """Simulate plans in their order, all under the same requests, until two of them meet every target.

    Parameters
    ----------
    plans : the best first
    promising : how many of them meet every target by their estimates; of the others none is tried but the first few
    seed : of arrivals and routing

    Returns
    -------
    results of the first plans; none in training, which has no queue
    """
    results: list[Result] = []
    if not isinstance(scenario.workload, Serving):
        return ()
    tried = plans[: max(promising, TURN)]
    while len(results) < len(tried) and sum(result.verdict.good for result in results) < WANTED:
        turn = tried[len(results) : len(results) + TURN]
        results += simulate_many(scenario, turn, requests=REQUESTS, seed=seed)
    return tuple(results)


def standing(results: Sequence[Result], plans: int) -> Int[np.ndarray, "plan"]:
    """Order plans by how they fared: simulated ones that meet every target, those that miss one, then the others.

    Each part keeps the order of the estimates.
    """
    missed = np.array([not result.verdict.good for result in results], dtype=bool)
    return np.concatenate([np.argsort(missed, kind="stable"), np.arange(len(results), plans)])

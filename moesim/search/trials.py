"""Trials of a layout: whether it meets its targets, with so many replicas, under so much traffic, however slow it is.

A layout is made ready once. In each trial its steps take a drawn factor times as long as estimated (by the clock, as
`pace` has it), and the requests are drawn anew; the same factors and requests for every number of replicas and every
layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from moesim.deployments.arrangements import Arrangements
from moesim.deployments.capacity import capacity
from moesim.deployments.energy import Draw, draw_of
from moesim.deployments.judging import unfit
from moesim.deployments.metrics import SIMULATED, TIMES, base_metric
from moesim.deployments.pace import Factors, hurried, slowed
from moesim.deployments.serving.asked import generate
from moesim.deployments.serving.measures import Served, latencies, rates
from moesim.deployments.staging import Deployment, deploy, in_order
from moesim.deployments.summary import offered_rate
from moesim.plans.plan import Plan
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving, Target

Replicas = tuple[int, ...]


def with_traffic(workload: Serving, share: float) -> Serving:
    """Let requests come so many times as often."""
    requests = workload.requests
    arrivals = replace(requests.arrivals, rate=requests.arrivals.rate * share)
    recorded = requests.recorded
    if recorded is not None:
        recorded = replace(recorded, speed=recorded.speed * share, arrival=recorded.arrival / share)
    return replace(workload, requests=replace(requests, arrivals=arrivals, recorded=recorded))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trials:
    """What came of some trials.

    Attributes
    ----------
    values : each target's metric in every trial, SI; of targets that a trial measures
    power : what the plan drew in every trial, W
    missed : whether a trial missed a target or refused a request, or its replicas cannot carry the load
    """

    values: dict[str, Float[np.ndarray, "trial"]]
    power: Float[np.ndarray, "trial"]
    missed: Bool[np.ndarray, "trial"]

    @property
    def share(self) -> float:
        """Share of the trials that missed."""
        return float(self.missed.mean())

    @property
    def error(self) -> float:
        """Standard error of that share, of one more miss and one more hit than there were (Laplace's rule)."""
        number = len(self.missed) + 2
        share = (self.missed.sum() + 1) / number
        return float(np.sqrt(share * (1 - share) / number))


def joined(parts: Sequence[Trials]) -> Trials:
    """Put trials of the same plan behind each other."""
    names = parts[0].values
    return Trials(
        values={name: np.concatenate([part.values[name] for part in parts]) for name in names},
        power=np.concatenate([part.power for part in parts]),
        missed=np.concatenate([part.missed for part in parts]),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bench:
    """A layout made ready, and what it is tried with.

    Attributes
    ----------
    rates : output tokens/s that one replica of each pool can do by formula
    factors : how many times as long as estimated steps take in each trial, slowest first
    """

    scenario: Scenario
    plan: Plan
    deployment: Deployment
    workload: Serving
    rates: tuple[float, ...]
    factors: Factors
    seed: int

    def run(self, replicas: Replicas, *, first: int = 0, factors: Factors | None = None, allowed: int = -1) -> Trials:
        """Try so many replicas of each pool.

        Parameters
        ----------
        first : number of the first replication of the requests
        factors : to try instead of the bench's own
        allowed : misses after which there is no use in going on; below 0: all are run
        """
        pools = zip(self.deployment.pools, replicas, strict=True)
        ready = tuple(replace(each, pool=replace(each.pool, replicas=number)) for each, number in pools)
        deployment = replace(self.deployment, pools=ready)
        draw = draw_of(self.scenario, replace(self.plan, pools=tuple(each.pool for each in ready)))
        found: list[tuple[dict[str, float], bool]] = []
        for turn, factor in enumerate(self.factors if factors is None else factors):
            asked = hurried(generate(self.workload, seed=self.seed, replication=first + turn), float(factor))
            values, late = _judged(deployment.serve(asked, _silent), draw, self.workload.targets, float(factor))
            found.append((values, late or not self._carries(replicas, float(factor))))
            if 0 <= allowed < sum(missed for _, missed in found):
                break
        names = [target.metric for target in self.workload.targets if measured(target.metric)]
        return Trials(
            values={name: np.array([values[name] for values, _ in found]) for name in names},
            power=np.array([values["power"] for values, _ in found]),
            missed=np.array([missed for _, missed in found]),
        )

    def _carries(self, replicas: Replicas, factor: float) -> bool:
        """Whether so many replicas keep up for ever; a trial is too short to tell a growing queue from a long one."""
        able = min(rate * number for rate, number in zip(self.rates, replicas, strict=True))
        return able >= offered_rate(self.workload) * factor


def _silent(share: float) -> None:
    """Report no progress."""


def measured(metric: str) -> bool:
    """Whether a trial measures what a target limits: what is bought decides prices and gpus."""
    return base_metric(metric) in SIMULATED.union(TIMES)


def _judged(run: Served, draw: Draw, targets: Sequence[Target], factor: float) -> tuple[dict[str, float], bool]:
    """Hold a run against the targets, on the clock of steps that take so many times as long."""
    found = slowed(latencies(run) | rates(run, {}), factor) | {"power": draw.mean(run)}
    found["energy_per_token"] = found["power"] / max(found["throughput"], 1e-9)
    found["energy_per_request"] = found["power"] / max(found["completed"], 1e-9)
    held = [target for target in targets if measured(target.metric)]
    values = {each.metric: found.get(each.metric, found.get(f"{each.metric}.mean", np.nan)) for each in held}
    late = any(values[each.metric] > each.limit for each in held)  # a time that no request has misses none
    return values | {"power": found["power"]}, late or any(run.book.refused)


def bench(
    scenario: Scenario, plan: Plan, drawn: Arrangements, *, rates: tuple[float, ...], factors: Factors, seed: int
) -> Bench | None:
    """Make a layout ready for trials; None where it cannot hold a single block of cache.

    Raises
    ------
    PolicyError
        A policy refuses one of its pools.
    """
    assert isinstance(scenario.workload, Serving)
    plan = replace(plan, pools=tuple(in_order(plan.pools)))
    room = capacity(scenario, plan.pools)
    if unfit(scenario, plan, room) is not None:
        return None
    return Bench(
        scenario=scenario,
        plan=plan,
        deployment=deploy(scenario, plan, room, drawn),
        workload=scenario.workload,
        rates=rates,
        factors=factors,
        seed=seed,
    )

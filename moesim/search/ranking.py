"""What a search returns: ranked plans, the frontier, and the proof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from moesim.deployments.result import Result
from moesim.ground.showing import Shown
from moesim.plans.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What became of every plan of a space, and what is proven.

    A plan is a layout with a number of replicas, or two pools with theirs. It is either unfit, refused by a policy,
    bounded (its bound shows that it can enter neither the ranked table nor the frontier) or estimated.

    Attributes
    ----------
    layouts : pools considered, without their number of replicas
    considered : plans considered
    invalid : combinations left out as senseless, by reason; they are no plans
    gap : by how much the best bound of any plan that was not estimated is better than the first plan's goal, relative;
        0: proven first
    overtaken : layouts estimated better than the first that stand behind it, because they missed a target when
        simulated, or have no more of a pool than one that did
    unsplit : why no pools that prefill and decode apart were tried; "" where they were, or the space has none
    of : what the certificate is about
    """

    layouts: int
    considered: int
    invalid: Mapping[str, int]
    unfit: int
    refused: int
    bounded: int
    estimated: int
    simulated: int
    gap: float
    overtaken: int = 0
    unsplit: str = ""
    of: str = "estimate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The first plan beside the runner-up, a plan of another layout.

    Attributes
    ----------
    metric : the number by which the runner-up lost: the first that differs of miss, goal and throughput
    first, second : that number of either
    probability : share of the draws of all that is uncertain in which the first ranks before the second
    missed : the target that the second, estimated better, misses when simulated, in words; "" where its estimate lost
    """

    metric: str
    first: float
    second: float
    probability: float
    missed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking(Shown):
    """Plans in order of a goal, the frontier of several metrics, and what was left out and why.

    Plans that missed a target when they were simulated stand behind those simulated that missed none.

    Attributes
    ----------
    goal : the metric plans are ranked by, after their targets
    plans : one row per layout at its best number of replicas; units by column in ``.attrs["units"]``; `simulated` says
        whether the plan meets or misses its targets under requests, or "no" where it was not simulated
    frontier : plans that meet every target and that no other beats in all of the frontier's metrics
    chosen : the plans of `plans`, in its order
    traded : the plans of `frontier`, in its order
    results : the first plan with its tables, and the runner-up
    estimated : every estimated plan in short: cluster, price, latencies, and whether it meets every target
    simulated : the first few plans under the scenario's requests, all under the same
    comparison : the first against the runner-up; None where there is no second
    certificate : what became of every plan
    unfit : for each node type how many layouts do not fit, and the one that misses by least
    meets : plans found that carry the load and meet every target
    """

    goal: str
    plans: pd.DataFrame
    frontier: pd.DataFrame
    chosen: tuple[Plan, ...]
    traded: tuple[Plan, ...]
    results: tuple[Result, ...]
    estimated: pd.DataFrame
    simulated: tuple[Result, ...]
    comparison: Comparison | None
    certificate: Certificate
    unfit: pd.DataFrame
    meets: int

    @property
    def best(self) -> Result | None:
        """The first plan's result; None where no plan fits."""
        return self.results[0] if self.results else None

    @property
    def good(self) -> bool:
        """Whether the first plan meets every target by its estimate and, where it was simulated, under requests."""
        return self.meets > 0 and (not self.simulated or self.simulated[0].verdict.good)

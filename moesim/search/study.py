"""What a scenario file holds: the world, and the question asked about it."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.ground.showing import Shown
from moesim.plans.plan import Space
from moesim.search.buying import Buying
from moesim.world.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Study(Shown):
    """A scenario with a goal.

    Attributes
    ----------
    scenario : the world plans are judged in
    space : alternatives to search; None: every valid plan on the offers
    goal : the metric to optimize
    frontier : metrics to trade off against each other; empty: the goal alone
    buy : what a purchase must stand; None: nothing is bought
    """

    scenario: Scenario
    space: Space | None
    goal: str
    frontier: tuple[str, ...] = ()
    buy: Buying | None = None

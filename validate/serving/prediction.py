"""What moesim predicts for measurements: a step table for each layout, then the closed loop of every load.

One step table serves all lengths and loads of a layout, and equal setups are simulated once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from moesim.deployments.arrangements import Arrangements, arrangements
from moesim.deployments.capacity import capacity
from moesim.deployments.serving.asked import generate
from moesim.deployments.staging import Deployment, Ready
from moesim.deployments.steps import StepTable
from moesim.deployments.tabulation import tabulate_kernels, with_host
from moesim.ground.errors import MoesimError
from moesim.ground.units import Seconds
from moesim.plans.plan import Policy
from moesim.world.framework import Framework
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving

from .measured import Setup, throughput
from .runs import launch_of
from .worlds import batching, frameworks, pool, world

DRAWS = 4
"""Routing draws of a step: rows differ by far more than draws do."""

USUAL = 2048
"""Prompts and answers, by name, that the step tables are made around; their knots reach from 460 to 29,000 tokens."""

MOST = 16384
"""Tokens of the largest step tabled."""


ROUTER = Policy(name="round_robin")

LAG = 1
"""Steps after which a token is seen: all three engines plan and start the next one before they hand it out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What is predicted for a setup, or why nothing is."""

    ttft: Seconds = math.nan
    tpot: Seconds = math.nan
    throughput: float = math.nan
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """Predicts setups under given frameworks, and keeps the step tables, which hold kernels' time alone."""

    _tables: dict[Hashable, StepTable] = field(default_factory=dict)
    _drawn: dict[Hashable, Arrangements] = field(default_factory=dict)

    def predict(
        self,
        setups: Iterable[Setup],
        habits: Mapping[str, Framework] | None = None,
        progress: Callable[[float], None] = lambda share: None,
    ) -> list[Predicted]:
        """Predict setups; equal ones once.

        Parameters
        ----------
        setups : what to predict
        habits : frameworks by name; those that are shipped where not given
        progress : told the share done, from 0 to 1
        """
        known, found = frameworks() if habits is None else habits, dict[Setup, Predicted]()
        wanted = list(setups)
        for number, setup in enumerate(wanted):
            if setup not in found:
                found[setup] = self._predicted(setup, known)
                progress((number + 1) / len(wanted))
        return [found[setup] for setup in wanted]

    def _predicted(self, setup: Setup, habits: Mapping[str, Framework]) -> Predicted:
        try:
            scenario = replace(world(setup, isl=setup.isl, osl=setup.osl), frameworks=habits)
            chosen = pool(setup)
            framework = habits[chosen.framework]
            room = capacity(scenario, [chosen])
            if room.limits[0].largest < setup.isl + setup.osl:
                return Predicted(reason="weights leave no room for the cache of one request")
            table = with_host(self._kernels(setup), framework, len(scenario.model.layers))
            limits = replace(room.limits[0], poll=launch_of(setup).polls(setup, framework.poll))
            ready = Ready(pool=chosen, table=table, limits=limits, per_token=room.per_token[0])
            return _served(setup, scenario, ready, framework)
        except MoesimError as refusal:
            return Predicted(reason=str(refusal).replace("\n", "; "))
        except Exception as flaw:  # whatever it is: one row is lost, not the file
            return Predicted(reason=f"moesim itself fails at this row, please report it: {flaw!r}")

    def _kernels(self, setup: Setup) -> StepTable:
        """Tabulate the kernels of a layout's steps, for all lengths and loads."""
        chosen = replace(pool(setup), replicas=1)
        chosen = replace(chosen, policies={**chosen.policies, "batching": batching(1)})
        like = (setup.model, setup.system, chosen.framework, setup.layout, tuple(sorted(chosen.precision.items())))
        if like not in self._tables:
            scenario = world(setup, isl=USUAL, osl=USUAL)
            drawn = self._arranged(setup, scenario)
            self._tables[like] = tabulate_kernels(drawn.scenario, chosen, drawn, most=MOST)
        return self._tables[like]

    def _arranged(self, setup: Setup, scenario: Scenario) -> Arrangements:
        """Share routing draws among all layouts of a model on a system."""
        like = setup.model, setup.system
        if like not in self._drawn:
            self._drawn[like] = arrangements(scenario, seed=0, draws=DRAWS)
        return self._drawn[like]


def _served(setup: Setup, scenario: Scenario, ready: Ready, framework: Framework) -> Predicted:
    """Run the closed loop from its opening burst to its end, and take means over all requests."""
    deployment = Deployment(pools=(ready,), router=ROUTER, tier=scenario.hardware.fabric[0], emitted=1.0, warm_up=0)
    assert isinstance(scenario.workload, Serving)
    served = deployment.serve(generate(scenario.workload, seed=0), lambda share: None)
    tpot = float(np.nanmean(served.tpot))
    ttft = float(np.mean(served.ttft)) + LAG * tpot + framework.latency + framework.crowd * setup.concurrency
    if not math.isfinite(ttft + tpot):
        return Predicted(reason="a request never fits in the cache, or gives one token only")
    return Predicted(ttft=ttft, tpot=tpot, throughput=throughput(setup, ttft, tpot))

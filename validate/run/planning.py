"""From a scenario to a bundle: the search's pick and its rivals, each as a layer, a routing and a prediction."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from moesim.ground.errors import Fault, InputError, PlanError, PolicyError
from moesim.plans.plan import Plan, Pool, Space
from moesim.search.paths import changed
from moesim.search.study import Study
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving

from .batches import Chosen, choices, tokens_of
from .bundle import Bundle, Predicted, Setting, Trial, write_bundle
from .choosing import MOST, axes_of, crossings, named, pairs_of, picks, rivals
from .course import walked
from .gauging import DRAWS as GAUGE_DRAWS
from .gauging import Gauge, gauges, kind_of
from .machine import on_machine
from .machines import AS_PROFILED, Layer, Machines, gauge_bundle, measured_machines
from .predicting import Forecast, forecast
from .specs import spec_of
from .tuning import Point

DRAWS = 4
"""Steps of the routing that a trial is run with, each with tokens of its own."""
ASIDE = ", stalls aside"
"""What a trial of a course's steps alone is called beside that of the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be run besides the scenario.

    Attributes
    ----------
    setting : ranks, and the link between them
    profile : the calibrated node, a name or a file
    pools : the plans to run in place of the search's; none: the search's
    most : plans to run at most
    course : steps that plans whose policies react are run for, in order; 0: draws by themselves, and nothing reacts
    rounds, draws : how often all are run by turns, with how many batches each
    changes : of the scenario, by dotted path, such as ``routing.cv``
    batch : sequences of a step on each rank in place of the space's; 0: the space's
    seed : of everything drawn
    """

    setting: Setting
    profile: str
    pools: tuple[Pool, ...] = ()
    most: int = MOST
    rounds: int = 10
    draws: int = DRAWS
    changes: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 0
    course: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A bundle before it is written, with its predictions and the plans that no layer can carry out, by reason."""

    bundle: Bundle
    predictions: Mapping[str, Predicted]
    left_out: Mapping[str, str]


def prepared(study: Study, asked: Asked) -> tuple[Study, Scenario]:
    """Return a study with the changes asked for, and its scenario on the machine at hand, as profiled.

    Raises
    ------
    InputError
        The scenario has no experts.
    """
    study = _changed(study, asked)
    scenario = on_machine(study.scenario, asked.profile, asked.setting)
    if not scenario.model.moe_layers:
        raise InputError(scenario.name, [Fault(path="model", problem="has no experts", remedy="give one that has")])
    return study, scenario


def measure(study: Study, asked: Asked, folder: Path) -> Machines:
    """Measure the machine at hand with layers of the scenario's shape: before anything is predicted."""
    study, scenario = prepared(study, asked)
    assert study.space is not None
    drawn = _Drawn(scenario=scenario, asked=replace(asked, draws=GAUGE_DRAWS, course=0, seed=asked.seed + 1))
    layers = [drawn.layer(gauge) for gauge in gauges(scenario, study.space, asked.setting.ranks)]
    bundle = gauge_bundle(scenario.name, asked.setting, layers, drawn.choices)
    return measured_machines(scenario, layers, bundle, folder, f"layers of {scenario.name} at other sizes")


def plan(study: Study, asked: Asked, machines: Machines = AS_PROFILED) -> Planned:
    """Choose, predict and describe what is to be run.

    Raises
    ------
    MoesimError
        The scenario has no mixture, its space holds no plan that can be run, or the machine has no such ranks.
    """
    study, scenario = prepared(study, asked)
    drawn = _Drawn(scenario=scenario, asked=asked, machines=machines)
    pools = _pools(study, drawn)
    made: list[Made] = []
    left_out: dict[str, str] = {}
    for name, pool in zip(named(pools), pools, strict=True):
        try:
            made.append(drawn.made(name, pool))
        except (PolicyError, InputError) as fault:
            left_out[name] = str(fault)
        if len(made) == asked.most:
            break
    if len(made) < 2:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "it holds one plan"
        raise PlanError("space", [Fault(path="", problem=f"has no two plans to compare: {why}", remedy="widen it")])
    return Planned(
        bundle=_bundle(scenario, asked, made, drawn.choices),
        predictions={
            trial.name: predicted for each in made for trial, predicted in zip(each.trials, each.predicted, strict=True)
        },
        left_out=left_out,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A plan, the trial that carries it out (of a course, with that of its steps alone), and what is expected of it."""

    pool: Pool
    trials: tuple[Trial, ...]
    predicted: tuple[Predicted, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """Makes trials for one scenario; those of as many tokens are run with the same routing."""

    scenario: Scenario
    asked: Asked
    machines: Machines = AS_PROFILED
    choices: dict[str, Chosen] = field(default_factory=dict)

    def made(self, name: str, pool: Pool) -> Made:
        """Predict one plan and describe its layer."""
        if self.asked.course:
            return self._walked(name, pool)
        if any(policy.name != "none" for policy in pool.adaptation):
            raise PolicyError("policies that react are run over a course of steps; give --course")
        trial, found = self._both(name, pool)
        return Made(pool=pool, trials=(trial,), predicted=(found.predicted,))

    def _walked(self, name: str, pool: Pool) -> Made:
        """Predict one plan over a course, with what it stands still for and without."""
        key, tokens = self._routing(pool)
        scenario = self.machines.scenario(self.scenario, kind_of(pool))
        rebuild = self.machines.rebuilt(scenario, pool)
        found = walked(scenario, pool, self.choices[key], rebuild, seed=self.asked.seed, drift=self.machines.apart)
        spec = spec_of(scenario, pool, found.forecast.layout, tokens, 0, self.asked.setting)
        whole = Trial(name=name, spec=spec.json(), choices=key, plan=axes_of(pool))
        steps = replace(whole, name=f"{name}{ASIDE}", aside=name)
        return Made(pool=pool, trials=(whole, steps), predicted=(found.forecast.predicted, found.aside))

    def layer(self, gauge: Gauge) -> Layer:
        """Describe a layer that the machine is measured with."""
        trial, found = self._both(gauge.name, gauge.pool)
        return Layer(gauge=gauge, trial=trial, point=Point(schedule=found.schedule, parts={}))

    def _routing(self, pool: Pool) -> tuple[str, int]:
        """Draw what a plan's tokens choose, unless another of as many did, and return its name with their number."""
        tokens, asked = tokens_of(self.scenario, pool), self.asked
        key = f"t{tokens}"
        if key not in self.choices:
            draws = asked.course or asked.draws
            self.choices[key] = choices(self.scenario, tokens, asked.setting.ranks, draws, asked.seed)
        return key, tokens

    def _both(self, name: str, pool: Pool) -> tuple[Trial, Forecast]:
        key, tokens = self._routing(pool)
        scenario = self.machines.scenario(self.scenario, kind_of(pool))
        found = forecast(scenario, pool, self.choices[key], seed=self.asked.seed, drift=self.machines.apart)
        spec = spec_of(scenario, pool, found.layout, tokens, found.way, self.asked.setting)
        return Trial(name=name, spec=spec.json(), choices=key, plan=axes_of(pool)), found


def _pools(study: Study, drawn: _Drawn) -> list[Pool]:
    """Return the plans asked for, or the search's pick, the best that a layer carries out, and its rivals."""
    asked, scenario = drawn.asked, drawn.machines.scenario(drawn.scenario, "dynamic")
    ranks = asked.setting.ranks
    if asked.pools:
        return [replace(pool, node=scenario.hardware.offers[0].node.name) for pool in asked.pools]
    assert study.space is not None
    why = "it holds none"
    for best in picks(study, scenario, ranks, asked.seed):
        try:
            drawn.made("", best)
        except (PolicyError, InputError) as fault:
            why = str(fault)
        else:
            found = rivals(best, study.space, ranks, asked.seed)
            return [best, *(pool for _, pool in found), *crossings(best, found, study.space, ranks)]
    raise PlanError("space", [Fault(path="", problem=f"has no plan that can be run: {why}", remedy="widen it")])


def _bundle(scenario: Scenario, asked: Asked, made: Sequence[Made], chosen: Mapping[str, Chosen]) -> Bundle:
    """Gather trials; the first one is the pick, and it is run a second time in every round for the noise."""
    pools = [each.pool for each in made]
    trials = [trial for each in made for trial in each.trials]
    again = replace(trials[0], name=f"{trials[0].name} (again)")
    sets = zip(*(each.trials for each in made), strict=True)  # whole courses are compared, and steps alone
    return Bundle(
        scenario=scenario.name,
        setting=asked.setting,
        trials=(*trials, again),
        pairs=tuple(pair for some in sets for pair in pairs_of([trial.name for trial in some], pools)),
        pick=trials[0].name,
        repeated=again.name,
        rounds=asked.rounds,
        course=asked.course > 0,
        choices=chosen,
    )


def _changed(study: Study, asked: Asked) -> Study:
    """Change numbers of a scenario by their dotted paths, and the batch that its space leaves open."""
    scenario = study.scenario
    for path, value in asked.changes.items():
        scenario, _ = changed(scenario, Plan(pools=()), path, value)
    axes = dict(study.space.axes) if study.space else {}
    if asked.batch:
        axes["max_batch" if isinstance(scenario.workload, Serving) else "microbatch"] = (asked.batch,)
    return replace(study, scenario=scenario, space=Space(axes=axes))


def write(folder: Path, planned: Planned, profile: str, machines: Machines = AS_PROFILED) -> str:
    """Write a planned bundle with its predictions and what they rest on, and return their hash."""
    grounds = {
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "profile": profile,
        "fits": machines.told(),
        "drift": machines.drift,
        "recompile": asdict(machines.rebuild) if machines.rebuild is not None else {},
        "left_out": dict(planned.left_out),
    }
    return write_bundle(folder, planned.bundle, planned.predictions, grounds)

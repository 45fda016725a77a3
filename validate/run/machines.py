"""A machine measured for one scenario: layers of its shape are run, and moesim's costs fitted to their parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from types import MappingProxyType

import numpy as np

from moesim.ground.errors import MoesimError
from moesim.plans.plan import Pool
from moesim.schedules.costs.collectives import WAYS
from moesim.schedules.costs.rebuilding import STEPS
from moesim.schedules.ops import Copy
from moesim.world.hardware import Hardware, Node, Tier
from moesim.world.scenario import Scenario

from . import execute
from .bundle import Bundle, Choices, Setting, Trial, write_bundle
from .course import Rebuild
from .gauging import COLD_ROUNDS, RECOMPILE, ROUNDS, Gauge
from .results import Measured, read_results
from .tuning import LEVELS, Part, Point, cold, fitted, told, tuned


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """The machine at hand, once for each kind of gating: experts in a loop and in a batch are different kernels.

    Attributes
    ----------
    nodes : by kind; none: the profile's node serves all
    rebuild : compiling a layer anew; None: what the framework's file says
    drift : by how much a layer takes longer or shorter in one run than in the next, standard deviation of the logarithm
    """

    nodes: Mapping[str, Node]
    rebuild: Rebuild | None = None
    drift: float = 0.0

    @property
    def apart(self) -> float:
        """The same of a run to come and the mean of those that the machine was measured in."""
        return self.drift * math.sqrt(1 + 1 / SESSIONS)

    def scenario(self, scenario: Scenario, kind: str) -> Scenario:
        """Put the node of a kind into a scenario; where it was not measured, that of the first kind."""
        if not self.nodes:
            return scenario
        node = self.nodes.get(kind) or next(iter(self.nodes.values()))
        offer = replace(scenario.hardware.offers[0], node=node)
        frameworks = dict(scenario.frameworks)
        if self.rebuild is not None:
            frameworks = {name: replace(each, recompile=self.rebuild.seconds) for name, each in frameworks.items()}
        hardware = Hardware(offers=(offer,), fabric=scenario.hardware.fabric)
        return replace(scenario, hardware=hardware, frameworks=frameworks)

    def rebuilt(self, scenario: Scenario, pool: Pool) -> Rebuild:
        """Say what a change of capacity takes."""
        return self.rebuild or Rebuild(seconds=scenario.frameworks[pool.framework].recompile)

    def told(self) -> dict[str, dict[str, Mapping[str, float]]]:
        """Return all that was fitted, by kind and key."""
        return {kind: dict(told(node)) for kind, node in self.nodes.items()}


AS_PROFILED = Machines(nodes={})
"""The machine as its profile says."""


def run_bundles(*folders: Path) -> int:
    """Run bundles, whose ranks are processes of their own, and return the exit code.

    Raises
    ------
    KeyboardInterrupt
        It was stopped, and so is what asked for it.
    """
    code = execute.main([str(folder) for folder in folders])
    if code == execute.STOPPED:
        raise KeyboardInterrupt
    return code


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer that a machine is measured with: a trial, the point that its time becomes, and each session's times."""

    gauge: Gauge
    trial: Trial
    point: Point
    found: tuple[Measured, ...] = ()


def measured_machines(scenario: Scenario, layers: list[Layer], bundle: Bundle, folder: Path, title: str) -> Machines:
    """Run layers of the scenario's shape, in sessions of their own processes, and fit the machine to them.

    Raises
    ------
    MoesimError
        None of them could be run.
    """
    folders = [folder / f"session-{number}" for number in range(1, SESSIONS + 1)]
    for each in folders:
        write_bundle(each, bundle, {}, {"note": "layers that the machine is measured with"})
        run_bundles(each)
    sessions = [read_results(each).trials for each in folders]
    points = [seen for each in layers if (seen := _seen(each, sessions)) is not None]
    rebuild = _rebuild([one.compiled for each in points if each.gauge.kind == RECOMPILE for one in each.found])
    own = (*WAYS[1:], *(STEPS if rebuild is not None else ()))
    node, fabric = without(scenario.hardware.offers[0].node, own), scenario.hardware.fabric
    nodes: dict[str, Node] = {}
    for kind in dict.fromkeys(each.gauge.kind for each in points if each.gauge.kind not in EXTRA):
        some = [each.point for each in points if each.gauge.kind == kind]
        nodes[kind] = _with_tiers(tuned(node, fabric, some, title), fabric, points, title)
    if not nodes:
        raise MoesimError(f"{folder}: no layer could be measured; its results say why")
    return Machines(nodes=nodes, rebuild=rebuild, drift=_drift(points))


def without(node: Node, operations: Sequence[str]) -> Node:
    """Drop a profile's fits of what the layers themselves tell about: it would come before what they tell."""
    fits = {key: fit for key, fit in node.device.fits.items() if key.partition("/")[0] not in operations}
    return replace(node, device=replace(node.device, fits=MappingProxyType(fits)))


SESSIONS = 2
"""How often the layers are run, each time in new processes: what differs is how far two runs of one plan lie apart."""
EXTRA = ("two_dh", "cache", RECOMPILE)
"""Kinds of layers that tell about a tier alone, or about compiling."""


def _rebuild(seconds: Sequence[float]) -> Rebuild | None:
    """Take the mean and the spread of what compiling anew took, in logarithms; None where nothing was compiled."""
    if len(seconds) < 2:
        return None
    logs = np.log(seconds)
    return Rebuild(seconds=float(np.exp(logs.mean())), spread=float(logs.std(ddof=1)))


def _seen(each: Layer, sessions: Sequence[Mapping[str, Measured]]) -> Layer | None:
    """Put a layer's measured parts into its point, the mean over sessions; None where one did not run it to its end.

    None of these layers overlaps anything, so parts are scaled to add up to a step as it was timed without a clock, by
    turns with other layers, whose weights had taken its own out of the caches.
    """
    found = [session[each.trial.name] for session in sessions if each.trial.name in session]
    if len(found) < len(sessions) or any(one.failed or not one.parts for one in found):
        return None
    whole = each.gauge.kind == "cache"
    scaled = [(one, 1.0 if whole else one.typical / sum(one.parts.values())) for one in found]
    parts = {name: fmean(scale * one.parts[name] for one, scale in scaled) for name in found[0].parts}
    point = replace(each.point, parts={**parts, "step": fmean(one.typical for one in found)})
    return replace(each, point=point, found=tuple(found))


def _drift(points: Sequence[Layer]) -> float:
    """Return how far the runs of a layer lie about their mean, in logarithms, over all layers."""
    logs = np.log([[one.typical for one in each.found] for each in points])
    return float(np.sqrt(logs.var(axis=1, ddof=1).mean()))


def _with_tiers(node: Node, fabric: tuple[Tier, ...], points: list[Layer], title: str) -> Node:
    """Fit the tiers that a few layers tell about: the link inside nodes, and where cold experts are."""
    two = [each.point for each in points if each.gauge.kind == "two_dh"]
    if two:
        node = fitted(node, fabric, two, LEVELS, title)
    for each in points:
        if each.gauge.kind == "cache":
            node = fitted(node, fabric, [_fetching(each, points)], _cold_part(each), title)
    return node


def _cold_part(each: Layer) -> Part:
    return cold(next(task.op.source for task in each.point.schedule.tasks if isinstance(task.op, Copy)))


def _fetching(each: Layer, points: list[Layer]) -> Point:
    """Return what a step takes longer than the one whose experts are all there, of as many tokens."""
    choices = each.trial.choices
    there = next((other for other in points if other.trial.choices == choices and other is not each), None)
    resident = there.point.parts["step"] if there is not None else 0.0
    return replace(each.point, parts={"fetch": max(each.point.parts["step"] - resident, 1e-9)})


def gauge_bundle(name: str, setting: Setting, layers: list[Layer], choices: Mapping[str, Choices]) -> Bundle:
    """Gather the layers into a bundle; nothing is compared in it."""
    trials = tuple(each.trial for each in layers)
    return Bundle(
        scenario=f"{name}: the machine",
        setting=setting,
        trials=trials,
        pairs=(),
        pick=trials[0].name,
        repeated="",
        rounds=COLD_ROUNDS if any(each.gauge.kind == "cache" for each in layers) else ROUNDS,
        choices=choices,
    )

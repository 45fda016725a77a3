"""A study written in full: every model, node, device, framework, price and routing number in one file, with its source.

Such a file is read with no look-up of anything shipped, so it means the same under every later version of the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moesim.deployments.metrics import METRICS, base_metric
from moesim.files.buying import CHOICES
from moesim.files.layers import KINDS
from moesim.files.policies import policy_tree
from moesim.files.routings import routing_tree
from moesim.files.trees import Tree
from moesim.files.written import UNSOURCED, Sourcing, written
from moesim.ground.units import Source, spell
from moesim.passes.repetition import pattern
from moesim.plans.plan import Policy, Space
from moesim.search.buying import Buying
from moesim.search.study import Study
from moesim.world.framework import Framework
from moesim.world.hardware import MEMORY_TIERS, Hardware
from moesim.world.model import Layer, Model
from moesim.world.power import Power
from moesim.world.scenario import Failures, Scenario
from moesim.world.workload import Requests, Serving, Target, Training

Sources = Mapping[str, Source]


def study_tree(study: Study) -> dict[str, Tree]:
    """Write a scenario and the question asked about it as a plain tree that reads back equal."""
    tree = scenario_tree(study.scenario) | {"goal": study.goal}
    if study.frontier:
        tree["frontier"] = list(study.frontier)
    if study.space is not None:
        tree["space"] = space_tree(study.space)
    if study.buy is not None:
        tree["buy"] = buying_tree(study.buy, _below(study.scenario.sources, "buy."))
    return tree


def buying_tree(buying: Buying, sources: Sources) -> dict[str, Tree]:
    """Write what a purchase must stand."""
    sourcing = Sourcing(sources, bare=CHOICES)
    return written(buying, sourcing) | {"sources": sourcing.section()}


def scenario_tree(scenario: Scenario) -> dict[str, Tree]:
    """Write a scenario as a plain tree that reads back equal.

    Numbers that were given in Python without a source are written as assumed.

    Raises
    ------
    InputError
        The routing has no form in a file.
    """
    tree: dict[str, Tree] = {
        "name": scenario.name,
        "model": model_tree(scenario.model, scenario.sources.get("model", UNSOURCED)),
        "hardware": hardware_tree(scenario.hardware, _below(scenario.sources, "hardware.")),
        "workload": workload_tree(scenario.workload),
    }
    if scenario.model.moe_layers:
        tree["routing"] = routing_tree(scenario.routing, _below(scenario.sources, "routing."))
    if scenario.failures != Failures():
        tree["failures"] = written(scenario.failures)
    tree["power"] = power_tree(scenario.power, _below(scenario.sources, "power."))
    tree["frameworks"] = {
        name: framework_tree(framework, _below(scenario.sources, f"frameworks.{name}."))
        for name, framework in scenario.frameworks.items()
    }
    return tree


def _below(sources: Sources, prefix: str) -> dict[str, Source]:
    return {path.removeprefix(prefix): source for path, source in sources.items() if path.startswith(prefix)}


def model_tree(model: Model, source: Source) -> dict[str, Tree]:
    """Write a model as a list of layers, repeated patterns once."""
    layers = [_group_tree(*group) for group in _groups(model.layers)]
    return {"source": written(source), **written(model, leave_out=("layers",)), "layers": layers}


def _groups(layers: Sequence[Layer]) -> Iterator[tuple[Sequence[Layer], int]]:
    """Split layers into patterns and how often each follows itself."""
    place = 0
    while place < len(layers):
        period, turns = pattern(layers[place:])
        yield layers[place : place + period], turns
        place += period * turns


def _group_tree(layers: Sequence[Layer], turns: int) -> Tree:
    trees = [_layer_tree(layer) for layer in layers]
    return trees[0] if len(trees) == turns == 1 else {"repeat": turns, "layers": trees}


def _layer_tree(layer: Layer) -> dict[str, Tree]:
    return written(layer, leave_out=tuple(KINDS)) | {name: _part_tree(name, getattr(layer, name)) for name in KINDS}


def _part_tree(name: str, part: Any) -> Tree:
    if part is None:
        return "none"
    kind = next(kind for kind, record in KINDS[name].items() if type(part) is record)
    return {"kind": kind, **written(part)}


def hardware_tree(hardware: Hardware, sources: Sources) -> dict[str, Tree]:
    """Write what is on offer, nodes and devices in full."""
    implied = tuple(f".tiers.{tier}.ranks" for tier in MEMORY_TIERS)
    sourcing = Sourcing(sources, bare=("max_nodes", "fits"), implied=implied)
    return written(hardware, sourcing) | {"sources": sourcing.section()}


def framework_tree(framework: Framework, sources: Sources) -> dict[str, Tree]:
    """Write a framework; its own source follows from those of its numbers."""
    sourcing = Sourcing(sources)
    return written(framework, sourcing, leave_out=("source",)) | {"sources": sourcing.section()}


def power_tree(power: Power, sources: Sources) -> dict[str, Tree]:
    """Write what gpus draw."""
    sourcing = Sourcing(sources)
    return written(power, sourcing) | {"sources": sourcing.section()}


def requests_tree(requests: Requests) -> dict[str, Tree]:
    """Write requests by their laws, or by the trace they come from."""
    recorded = requests.recorded
    if recorded is None:
        return written(requests)
    tree: dict[str, Tree] = {"trace": recorded.file, "prefix_hits": requests.prefix_hits}
    if requests.arrivals.concurrency:
        return tree | {"concurrency": requests.arrivals.concurrency}
    return tree | {"speed": recorded.speed}


def workload_tree(workload: Serving | Training) -> dict[str, Tree]:
    """Write the load."""
    if isinstance(workload, Training):
        return {"kind": "training", **written(workload)}
    tree: dict[str, Tree] = {"kind": "serving", "requests": requests_tree(workload.requests)}
    if workload.targets:
        tree["targets"] = {target.metric: _limit(target) for target in workload.targets}
    return tree | {"horizon": {"requests": workload.horizon, "warm_up": workload.warm_up}}


def _limit(target: Target) -> str:
    return spell(target.limit, METRICS[base_metric(target.metric)].unit)


def space_tree(space: Space) -> dict[str, Tree]:
    """Write a space; a setting that is a list becomes a list inside a list, as a list alone means alternatives."""
    return {axis: [_alternative(value) for value in values] for axis, values in space.axes.items()}


def _alternative(value: object) -> Tree:
    if isinstance(value, tuple):
        return [_alternative(policy) for policy in value]
    if not isinstance(value, Policy):
        return value
    tree = policy_tree(value)
    if isinstance(tree, str):
        return tree
    return {name: [item] if isinstance(item, list) else item for name, item in tree.items()}

"""Scenario files, section by section: the world, and the question asked about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NewType

from moesim.deployments.metrics import METRICS, PERCENTILES
from moesim.files import models
from moesim.files.buying import read_buying
from moesim.files.checked import Readers, by_name, check, gather, refuse, shown
from moesim.files.failures import read_failures
from moesim.files.frameworks import built_in_frameworks, load_framework, read_framework
from moesim.files.offers import read_hardware
from moesim.files.power import built_in_power, read_power
from moesim.files.routings import make_routing, read_routing
from moesim.files.spaces import read_space
from moesim.files.trees import Tree
from moesim.files.workloads import read_workload
from moesim.ground.errors import nearest
from moesim.ground.units import Source
from moesim.plans.plan import Space
from moesim.search.buying import Buying
from moesim.search.study import Study
from moesim.world.framework import Framework
from moesim.world.generators import Balanced
from moesim.world.hardware import Hardware
from moesim.world.model import Model
from moesim.world.power import Power
from moesim.world.routing import Routing
from moesim.world.scenario import Failures, Scenario
from moesim.world.workload import Serving, Training

_Metric = NewType("_Metric", str)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A scenario file; later sections are read knowing those above them."""

    name: str
    model: Model
    hardware: Hardware
    workload: Serving | Training
    routing: Routing | None = None
    failures: Failures = field(default_factory=Failures)
    power: Power | None = None
    frameworks: Mapping[str, Framework] = field(default_factory=dict)
    goal: _Metric = _Metric("")
    frontier: tuple[_Metric, ...] = ()
    space: Space | None = None
    buy: Buying | None = None


class _Sections:
    """Reads the sections of one file, keeping what later sections and the scenario need of them."""

    def __init__(self, file: str, folder: Path, *, built_in: bool, priced: bool) -> None:
        self.file = file
        self.priced = priced
        self.folder = folder
        self.sources: dict[str, Source] = {}
        self.frameworks: dict[str, Framework] = {}
        self.nodes: list[str] = []
        self.models: list[Model] = []
        for framework, sources in built_in_frameworks().values() if built_in else ():
            self.keep(framework, sources)

    def readers(self) -> Readers:
        """Say how each section is read."""
        return {
            (_File, "model"): self.model,
            (_File, "hardware"): self.hardware,
            (_File, "workload"): lambda tree: read_workload(tree, self.file, self.folder),
            (_File, "routing"): self.routing,
            (_File, "frameworks"): self.own_frameworks,
            (_File, "failures"): self.failures,
            (_File, "power"): self.power,
            (_File, "space"): self.space,
            (_File, "buy"): self.buying,
            _Metric: self.metric,
        }

    def model(self, tree: Tree) -> Model:
        """Read a name, ``{config: PATH}``, or a model written out as a list of layers."""
        if isinstance(tree, Mapping) and "layers" in tree:
            found = models.read_layers(tree, self.file)
        else:
            name = tree.get("config") if isinstance(tree, Mapping) and set(tree) == {"config"} else tree
            if not isinstance(name, str):
                remedy = "give a built-in name, `{config: config.json}`, or its `layers`"
                raise refuse(self.file, f"{shown(tree)} is not a model", remedy)
            found = by_name(self.file, name, lambda: models.load_entry(name, self.folder))
        self.models.append(found.model)
        self.sources["model"] = found.source
        return found.model

    def hardware(self, tree: Tree) -> Hardware:
        """Read what is on offer."""
        found = read_hardware(tree, self.file, self.folder, priced=self.priced)
        self.sources.update({f"hardware.{path}": source for path, source in found.sources.items()})
        hardware: Hardware = found.profile
        self.nodes += [offer.node.name for offer in hardware.offers]
        return hardware

    def routing(self, tree: Tree) -> Routing | None:
        """Make the routing for the model's experts; nothing where the model is at fault."""
        asked = read_routing(tree, self.file)
        self.sources.update({f"routing.{path}": source for path, source in asked.sources.items()})
        return make_routing(asked, self.models[0], self.file) if self.models else None

    def own_frameworks(self, tree: Tree) -> Mapping[str, Framework]:
        """Read a list of files to add to the built-in frameworks, or a section that writes out all there are."""
        if isinstance(tree, Mapping):
            loaded = gather(self.file, tree.items(), self.inline_framework)
        elif isinstance(tree, list):
            loaded = gather(self.file, enumerate(tree), lambda _, path: load_framework(self.folder / str(path)))
        else:
            raise refuse(self.file, f"{shown(tree)} is not a list", "list the paths of your own framework files")
        for framework, sources in loaded.values():
            self.keep(framework, sources)
        return self.frameworks

    def inline_framework(self, name: str, tree: Tree) -> tuple[Framework, Mapping[str, Source]]:
        """Read a framework written out in place."""
        if not isinstance(tree, Mapping):
            raise refuse(self.file, f"{shown(tree)} is not a section", "write its fields below its name")
        return read_framework({"name": name, **tree}, self.file)

    def failures(self, tree: Tree) -> Failures:
        """Read how often gpus fail."""
        found, sources = read_failures(tree, self.file)
        self.sources.update({f"failures.{path}": source for path, source in sources.items()})
        return found

    def power(self, tree: Tree) -> Power:
        """Read what gpus draw."""
        return self.keep_power(*read_power(tree, self.file))

    def keep_power(self, power: Power, sources: Mapping[str, Source]) -> Power:
        """Keep the sources of what gpus draw."""
        self.sources.update({f"power.{path}": source for path, source in sources.items()})
        return power

    def keep(self, framework: Framework, sources: Mapping[str, Source]) -> None:
        """Make a framework known, with the sources of its numbers."""
        self.frameworks[framework.name] = framework
        self.sources.update({f"frameworks.{framework.name}.{path}": source for path, source in sources.items()})

    def space(self, tree: Tree) -> Space:
        """Read the alternatives to search."""
        return read_space(tree, self.file, frameworks=self.frameworks, nodes=self.nodes)

    def buying(self, tree: Tree) -> Buying:
        """Read what a purchase must stand."""
        found, sources = read_buying(tree, self.file)
        self.sources.update({f"buy.{path}": source for path, source in sources.items()})
        return found

    def metric(self, name: Tree) -> str:
        """Read a metric's name, with or without a percentile."""
        base, _, statistic = str(name).partition(".")
        if base not in METRICS:
            raise refuse(self.file, f"no metric is called `{name}`", nearest(base, METRICS))
        if statistic and statistic not in PERCENTILES:
            raise refuse(self.file, f"no statistic is called `{statistic}`", nearest(statistic, PERCENTILES))
        return str(name)


def read_study(tree: dict[str, Tree], file: str, folder: Path) -> Study:
    """Read a scenario file.

    Parameters
    ----------
    tree : dict
        Its content.
    file : str
        How messages name it.
    folder : Path
        What relative paths in it start from.

    Raises
    ------
    InputError
        With every fault of the file.
    """
    priced = str(tree.get("goal")).startswith("price") or "buy" in tree
    sections = _Sections(file, folder, built_in=not isinstance(tree.get("frameworks"), Mapping), priced=priced)
    found = check(_File, tree, file, readers=sections.readers(), rules={_File: _file_faults})
    scenario = Scenario(
        name=found.name,
        model=found.model,
        hardware=found.hardware,
        workload=found.workload,
        routing=found.routing or Balanced(layers=0, experts=1, topk=1),
        failures=found.failures,
        power=found.power or sections.keep_power(*built_in_power()),
        frameworks=sections.frameworks,
        sources=sections.sources,
    )
    usual = "price_per_token" if isinstance(found.workload, Serving) else "price_to_train"
    return Study(scenario=scenario, space=found.space, goal=found.goal or usual, frontier=found.frontier, buy=found.buy)


def _file_faults(found: _File) -> Iterator[tuple[str, str, str]]:
    if found.model.moe_layers and found.routing is None:
        yield "routing", "is missing, and the model has experts", "give one, as in `routing: {preset: deepseek}`"
    if found.buy is not None:
        yield from _buying_faults(found, found.buy)


def _buying_faults(found: _File, buy: Buying) -> Iterator[tuple[str, str, str]]:
    if isinstance(found.workload, Training):
        yield "buy", "is for serving, and the workload is training", "leave it out; `optimize` ranks training plans"
    elif found.workload.requests.recorded is None and found.workload.requests.arrivals.concurrency:
        yield "buy", "needs traffic that comes by itself, and the workload is a closed loop", "give `arrivals` a `rate`"
    if buy.own is not None and not any(offer.buy for offer in found.hardware.offers):
        yield (
            "buy.own",
            "nothing on offer has a price to buy at",
            "add `buy: {value: 35000 USD, from: KEY}` to an offer",
        )
    if buy.availability and not (found.failures.interval and found.failures.repair):
        remedy = "give `failures: {interval: ..., repair: ...}`, per gpu"
        yield "buy.availability", "rests on how often gpus fail, which is not told", remedy

"""What the world is like: model, hardware, workload and routing, together with where every number came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from moesim.ground.showing import Shown
from moesim.ground.units import Bytes, Seconds, Source
from moesim.world.framework import Framework
from moesim.world.hardware import Hardware, Node, run_by
from moesim.world.model import Model
from moesim.world.power import Power
from moesim.world.routing import Routing
from moesim.world.workload import Serving, Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Mean times between failures per gpu (0 = never fails), time to repair, bytes of a checkpoint.

    After `interval` a gpu takes its node out for repair; after `crash` its process dies, and a restart mends it.
    """

    interval: Seconds = 0.0
    crash: Seconds = 0.0
    repair: Seconds = 0.0
    checkpoint: Bytes = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario(Shown):
    """The world a plan is judged in; one scenario serves all plans.

    `sources` maps the dotted path of a number in the scenario's files to where it came from.
    """

    name: str
    model: Model
    hardware: Hardware
    workload: Serving | Training
    routing: Routing
    failures: Failures = field(default_factory=Failures)
    power: Power = field(default_factory=Power)
    frameworks: Mapping[str, Framework] = field(default_factory=lambda: MappingProxyType({}))
    sources: Mapping[str, Source] = field(default_factory=lambda: MappingProxyType({}))

    def node(self, name: str, framework: str) -> Node:
        """Return a node on offer with the kernels that a framework runs on it."""
        return run_by(self.hardware.offer(name).node, framework)

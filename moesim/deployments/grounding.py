"""What a plan's numbers rest on: the weakest source among the scenario's numbers that it uses."""

from __future__ import annotations

from moesim.ground.units import SourceKind, weakest
from moesim.passes.table import PoolTable
from moesim.world.hardware import MEMORY_TIERS
from moesim.world.scenario import Scenario


def scenario_grounds(scenario: Scenario, table: PoolTable) -> list[SourceKind]:
    """Name, for each pool, the weakest kind of source among the node, fabric, price, framework and routing numbers.

    Host and disk tiers are left out: a plan whose experts are all resident does not use them.
    """
    kinds = [_ground(scenario, like.node, like.framework) for like in table.variants]
    return [kinds[variant] for variant in table.variant]


def _ground(scenario: Scenario, node_name: str, framework: str) -> SourceKind:
    node = f"hardware.offers.{node_name}."
    memory = tuple(f"{node}node.tiers.{tier}." for tier in MEMORY_TIERS)
    used = (node, "hardware.fabric.", f"frameworks.{framework}.", "routing.")
    kinds = tuple(
        source.kind
        for path, source in scenario.sources.items()
        if path.startswith(used) and not path.startswith(memory)
    )
    return weakest(kinds or ("assumed",))  # numbers given in Python without a source are somebody's assumption

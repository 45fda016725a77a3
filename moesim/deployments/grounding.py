"""What a plan's numbers rest on: the weakest source among the scenario's numbers that it uses."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.ground.units import SourceKind, weakest
from moesim.plans.plan import Pool
from moesim.world.hardware import MEMORY_TIERS
from moesim.world.scenario import Scenario


def scenario_grounds(scenario: Scenario, pools: Sequence[Pool]) -> list[SourceKind]:
    """Name, for each pool, the weakest kind of source among the node, fabric, price, framework and routing numbers.

    Host and disk tiers are left out: a plan whose experts are all resident does not use them.
    """
    kinds = {names: _ground(scenario, *names) for names in {(pool.node, pool.framework) for pool in pools}}
    return [kinds[pool.node, pool.framework] for pool in pools]


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

"""The machine a bundle is run on, as a scenario sees it: ranks of a calibrated node, and the link between them."""

from __future__ import annotations

from dataclasses import replace

from moesim.files.profiles import load_profile
from moesim.world.hardware import MEMORY_TIERS, Hardware, Node, Offer, Tier
from moesim.world.scenario import Scenario

from .bundle import Setting

CABLE = "cable"
"""Name of the tier between nodes."""
SETTLING = 100e-6
"""Latency of a cable beside that of the loopback, s: a queue of the kernel's on either side; assumed."""


def on_machine(scenario: Scenario, profile: str, setting: Setting) -> Scenario:
    """Replace what is on offer by the machine at hand.

    Parameters
    ----------
    profile : a node's name or file, as calibrated
    """
    node: Node = load_profile("node", profile).profile
    local = setting.ranks // setting.nodes
    tiers = tuple(tier if tier.name in MEMORY_TIERS else replace(tier, ranks=local) for tier in node.tiers)
    node = replace(node, gpus=local, tiers=tiers)
    fabric = (_cable(node, setting),) if setting.nodes > 1 else ()
    offer = Offer(node=node, max_nodes=setting.nodes)
    return replace(scenario, hardware=Hardware(offers=(offer,), fabric=fabric))


def _cable(node: Node, setting: Setting) -> Tier:
    """Return the tier between nodes: its rate is known, since the kernel was told it; ranks of a node share it."""
    loopback = next(tier for tier in node.tiers if tier.name not in MEMORY_TIERS)
    return Tier(
        name=CABLE,
        ranks=setting.ranks,
        bandwidth=setting.rate,
        latency=loopback.latency + (setting.latency or SETTLING),
        sharers=setting.ranks // setting.nodes,
    )

import networkx as nx
import pytest

from moesim.files.profiles import load_profile, profile_names
from moesim.files.yaml import load_hardware
from moesim.world.hardware import graph, memory_tier, network, reach, tier_between, tiers

NODES = profile_names("node")
FABRICS = profile_names("fabric")


def by_reach(rows):
    return sorted(rows, key=lambda tier: (tier.ranks, tier.name))


@pytest.mark.parametrize("fabric", FABRICS)
@pytest.mark.parametrize("node", NODES)
def test_a_graph_reduces_to_the_tiers_it_was_drawn_from(node, fabric):
    hardware = load_hardware(node, nodes=2, fabric=fabric)
    (offer,) = hardware.offers
    drawn = graph(offer, hardware.fabric, 2)
    assert by_reach(tiers(drawn)) == by_reach(offer.node.tiers + hardware.fabric)


@pytest.mark.parametrize("node", NODES)
def test_every_gpu_reaches_every_other(node):
    hardware = load_hardware(node, nodes=2)
    (offer,) = hardware.offers
    drawn = graph(offer, hardware.fabric, 2)
    gpus = [name for name, kind in drawn.nodes(data="kind") if kind == "gpu"]
    assert len(gpus) == 2 * offer.node.gpus
    assert nx.is_connected(drawn)


def test_the_graph_of_an_hgx_node_has_its_parts():
    hardware = load_hardware("nvidia/hgx-h200", nodes=2, fabric="infiniband/rail-400g")
    drawn = graph(hardware.offers[0], hardware.fabric, 2)
    kinds = [kind for _, kind in drawn.nodes(data="kind")]
    counted = {kind: kinds.count(kind) for kind in ("gpu", "switch", "host", "disk", "nic", "leaf", "spine")}
    assert counted == {"gpu": 16, "switch": 2, "host": 4, "disk": 2, "nic": 16, "leaf": 1, "spine": 1}


def test_a_link_narrowed_by_hand_is_what_its_tier_becomes():
    hardware = load_hardware("nvidia/hgx-h200", nodes=1)
    drawn = graph(hardware.offers[0], (), 1)
    drawn.edges["gpu3", "nvlink-switch0"]["bandwidth"] = 1e9
    assert next(tier for tier in tiers(drawn) if tier.name == "nvlink").bandwidth == 1e9


def test_the_tier_between_two_gpus_is_the_innermost_that_holds_both():
    node = load_profile("node", "nvidia/hgx-h100").profile
    fabric = load_profile("fabric", "infiniband/rail-400g").profile.tiers
    reached = reach(node, fabric)
    assert reached == (("nvlink", 8), ("rail", 256), ("spine", 2048))
    assert [tier_between(reached, 0, other) for other in (7, 8, 255, 256)] == ["nvlink", "rail", "rail", "spine"]


def test_memory_tiers_carry_no_traffic_between_gpus():
    node = load_profile("node", "nvidia/hgx-h100").profile
    assert [tier.name for tier in network(node, ())] == ["nvlink"]
    assert memory_tier(node, "host").bandwidth == 64e9

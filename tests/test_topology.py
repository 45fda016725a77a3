"""The drawing of a node or a cluster: everything is there, once, inside the canvas."""

import re
import sys
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from moesim.files.profiles import load_profile
from moesim.ground.errors import MoesimError
from moesim.views.topology import draw_topology, write_png, write_svg
from moesim.world.hardware import Offer, graph

SVG = "{http://www.w3.org/2000/svg}"
NODES = ("amd/mi300x-x8", "nvidia/gb200-nvl72", "nvidia/gh200", "nvidia/hgx-h100", "pcie/l40s-x8")


def cluster(node, fabric="", nodes=1):
    tiers = load_profile("fabric", fabric).profile.tiers if fabric else ()
    return graph(Offer(node=load_profile("node", node).profile, max_nodes=nodes), tiers, nodes)


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("fabric", ["", "infiniband/fat-tree-400g"])
def test_every_vertex_and_edge_is_drawn_once_and_inside(node, fabric):
    drawn = cluster(node, fabric, 2 if fabric else 1)
    tree = ElementTree.fromstring(draw_topology(drawn, node))
    width, height = map(float, tree.get("viewBox").split()[2:])
    boxes = [rect for rect in tree.iter(f"{SVG}rect") if rect.get("class") in ("box", "gpu")]
    tipped = [line for line in tree.iter(f"{SVG}line") if line.find(f"{SVG}title") is not None]
    assert sorted(box.find(f"{SVG}title").text for box in boxes) == sorted(drawn)
    assert len(tipped) == drawn.number_of_edges()
    for box in boxes:
        x, y, wide = (float(box.get(name)) for name in ("x", "y", "width"))
        assert x >= 0
        assert x + wide <= width
        assert 0 <= y <= height


def test_gpus_do_not_cover_each_other_and_rows_run_from_spine_to_disk():
    tree = ElementTree.fromstring(draw_topology(cluster("nvidia/gb200-nvl72"), "a rack"))
    across = sorted(float(box.get("x")) for box in tree.iter(f"{SVG}rect") if box.get("class") == "gpu")
    wide = float(next(box for box in tree.iter(f"{SVG}rect") if box.get("class") == "gpu").get("width"))
    assert min(b - a for a, b in pairwise(across)) >= wide
    tree = ElementTree.fromstring(draw_topology(cluster("pcie/l40s-x8", "infiniband/rail-400g", 2), "two boxes"))
    rows = [label.text for label in tree.iter(f"{SVG}text") if label.get("class") == "row"]
    expected = ["spine", "rail", "network cards", "socket", "socket links", "pcie", "gpus", "host memory"]
    assert rows == [*expected, "disk links", "drives"]


def test_the_key_says_bandwidth_latency_and_who_shares():
    words = draw_topology(cluster("nvidia/hgx-h200"), "a box")
    assert "nvlink: 450 GB/s each way, 2.00 us" in words
    assert re.search(r"host: 64.0 GB/s each way, 10.0 us, shared by 2 gpus", words)


def test_a_picture_that_cannot_be_made_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(MoesimError, match=r"a PNG needs the library vl-convert-python; .* or draw with --svg"):
        write_png(tmp_path / "box.png", "<svg/>")
    with pytest.raises(MoesimError, match="cannot be written"):
        write_svg(tmp_path / "nowhere" / "box.svg", "<svg/>")
    assert not list(tmp_path.iterdir())

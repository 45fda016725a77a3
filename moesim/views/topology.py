"""A cluster's graph drawn in rows: gpus in the middle, what joins them above, memory below."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import networkx as nx

from moesim.ground.errors import MoesimError
from moesim.ground.units import show
from moesim.views.svg import drawing, element, text, tip

ROW, LEFT, TOP, BOX = 66.0, 110.0, 14.0, 24.0
PITCHES = ((16, 84.0), (32, 44.0), (10**9, 26.0))
"""Pixels between gpus: (up to how many, so far apart)."""
COLORS = ("#3b6fb6", "#d97b29", "#3f9b6b", "#b5495b", "#8163b0", "#8a6a50", "#2f9fb3")
LOOK = """
text { font: 11px system-ui, "Segoe UI", Roboto, sans-serif; fill: #1c2128; text-anchor: middle; }
text.row { fill: #5d6670; text-anchor: start; } text.key { text-anchor: start; }
rect.back { fill: #ffffff; } rect.box { fill: #f6f8fa; stroke: #5d6670; } rect.gpu { fill: #dfe9f6; stroke: #3b6fb6; }
line { stroke-width: 1.6; }
"""
LEVELS: Mapping[str, int] = {"spine": 0, "leaf": 0, "nic": 1, "switch": 2, "gpu": 3, "host": 4, "disk": 5}
NAMES: Mapping[str, str] = {"nic": "network cards", "gpu": "gpus", "host": "host memory", "disk": "drives"}
Places = Mapping[str, tuple[float, float]]


def draw_topology(graph: nx.Graph[str], title: str) -> str:
    """Draw a graph made by `world.hardware.graph` as an SVG that stands alone.

    Parameters
    ----------
    graph : networkx.Graph
        Vertices with ``kind`` and ``tier``; edges with ``tier``, ``bandwidth``, ``latency``, ``sharers``, ``ranks``.
    title : str
        What is drawn, for who cannot see it.
    """
    tiers = {edge["tier"]: edge for _, _, edge in graph.edges(data=True) if edge["tier"] != "card"}
    rows = _rows(graph, tiers)
    places = _places(graph, rows)
    below = TOP + ROW * len(rows)
    width = max(620.0, max(x for x, _ in places.values()) + 60)
    parts = [
        element("style", LOOK),
        element("rect", width=width, height=below + 20 * len(tiers) + 10, class_="back"),
        *_lines(graph, places, list(tiers)),
        *_boxes(graph, places),
        *(text(name, 8, TOP + ROW * number + BOX / 2 + 4, class_="row") for number, name in enumerate(rows)),
        *_key(tiers, below),
    ]
    return drawing(width, below + 20 * len(tiers) + 10, title, parts)


def _rows(graph: nx.Graph[str], tiers: Mapping[str, Any]) -> dict[str, list[str]]:
    """Sort vertices into named rows, the outermost switches first; a link shared by gpus is next to them."""
    rows: dict[tuple[int, int, int, str], list[str]] = {}
    for vertex, given in graph.nodes(data=True):
        kind, tier = given["kind"], given["tier"]
        port = kind == "port"
        level = LEVELS[tier if tier in LEVELS else "switch"] if port else LEVELS[kind]
        reach = tiers[tier]["ranks"] if tier in tiers else 0
        name = f"{tier} links" if port else NAMES.get(kind, tier)
        near = (1 if level < LEVELS["gpu"] else -1) if port else 0
        rows.setdefault((level, -reach, near, name), []).append(vertex)
    return {key[-1]: vertices for key, vertices in sorted(rows.items())}


def _places(graph: nx.Graph[str], rows: Mapping[str, list[str]]) -> dict[str, tuple[float, float]]:
    """Put gpus side by side, and everything else over the middle of the gpus that it serves."""
    kinds = {vertex: given["kind"] for vertex, given in graph.nodes(data=True)}
    gpus = [vertex for vertex, kind in kinds.items() if kind == "gpu"]
    pitch = next(pitch for most, pitch in PITCHES if len(gpus) <= most)
    across = {gpu: LEFT + pitch * (number + 0.5) for number, gpu in enumerate(gpus)}
    shared = [vertex for vertex, kind in kinds.items() if kind in ("port", "nic")]
    hubs = [vertex for vertex in graph if vertex not in across and vertex not in set(shared)]
    for vertex in (*shared, *hubs):
        across[vertex] = mean(across[other] for other in graph[vertex] if other in across)
    return {
        vertex: (across[vertex], TOP + ROW * number + BOX / 2)
        for number, vertices in enumerate(rows.values())
        for vertex in vertices
    }


def _lines(graph: nx.Graph[str], places: Places, tiers: list[str]) -> Iterator[str]:
    for one, other, edge in graph.edges(data=True):
        (x1, y1), (x2, y2) = places[one], places[other]
        color = "#b6bec7" if edge["tier"] == "card" else COLORS[tiers.index(edge["tier"]) % len(COLORS)]
        yield element("line", tip(_link(edge)), x1=x1, y1=y1, x2=x2, y2=y2, stroke=color)


def _link(edge: Mapping[str, Any]) -> str:
    """Say in words what a link is."""
    shared = f", shared by {edge['sharers']} gpus" if edge["sharers"] > 1 else ""
    return f"{edge['tier']}: {show(edge['bandwidth'], 'B/s')} each way, {show(edge['latency'], 's')}{shared}"


def _boxes(graph: nx.Graph[str], places: Places) -> Iterator[str]:
    gap = min((abs(places[a][0] - places[b][0]) for a, b in _neighbors(places)), default=60.0)
    for vertex, given in graph.nodes(data=True):
        x, y = places[vertex]
        gpu = given["kind"] == "gpu"
        words = str(given["number"]) if gpu else vertex
        wide = min(gap - 4, 60.0) if gpu else 7.0 * len(words) + 10 if given["kind"] not in ("port", "nic") else 12.0
        box = element(
            "rect",
            tip(vertex),
            x=x - wide / 2,
            y=y - BOX / 2,
            width=wide,
            height=BOX,
            rx=4,
            class_="gpu" if gpu else "box",
        )
        yield box + (text(words, x, y + 4) if wide > 16 else "")


def _neighbors(places: Places) -> Iterator[tuple[str, str]]:
    gpus = [vertex for vertex in places if vertex.startswith("gpu")]
    yield from pairwise(gpus)


def _key(tiers: Mapping[str, Any], top: float) -> Iterator[str]:
    for number, edge in enumerate(tiers.values()):
        y = top + 20 * number
        yield element("line", x1=8.0, x2=34.0, y1=y, y2=y, stroke=COLORS[number % len(COLORS)])
        yield text(_link(edge), 42, y + 4, class_="key")


def write_svg(path: Path, svg: str) -> None:
    """Write a drawing; a file that is there is replaced whole or not at all."""
    _write(path, svg.encode())


def write_png(path: Path, svg: str) -> None:
    """Write a drawing as a picture of pixels.

    Raises
    ------
    MoesimError
        The optional library that draws pixels is not there.
    """
    try:
        library = import_module("vl_convert")
    except ModuleNotFoundError:
        remedy = "`pip install vl-convert-python`, or draw with --svg"
        raise MoesimError(f"{path}: a PNG needs the library vl-convert-python; {remedy}") from None
    _write(path, library.svg_to_png(svg, scale=2))


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.partial")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as refusal:
        raise MoesimError(f"{path}: cannot be written: {refusal.strerror}") from None

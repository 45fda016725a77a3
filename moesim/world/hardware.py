"""What may be bought or is owned: devices, nodes on offer, tiers of links and memory, and the fabric.

Peak and achieved are apart: a `Device` holds datasheet peaks, its `fits` hold what was calibrated. Bandwidth is in
one direction, per gpu, everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from moesim.ground.units import (
    Bytes,
    BytesPerSecond,
    Dollars,
    DollarsPerSecond,
    FlopPerSecond,
    Seconds,
    Source,
    Watts,
)

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """What a cost form leaves over of the points it was fitted to, as `schedules/costs/residuals` interpolates it.

    Attributes
    ----------
    inputs : sizes by which points are told apart
    lengths : by input, the change of its logarithm over which residuals change
    places : by point, the logarithm of each input; beyond the range of them there is no residual
    weights : by point
    """

    inputs: tuple[str, ...]
    lengths: tuple[float, ...]
    places: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One calibrated cost form: its parameters, how wrong it is, and where it may be trusted.

    `shared` and `point` are standard deviations of log(measured / predicted): the part common to all shapes and the
    part of each shape. `box` is the calibrated range of every input; a prediction outside it is flagged. `residual`
    says what the form leaves over, if that is known; it never counts outside the points it was found on.
    """

    form: str
    params: Mapping[str, float]
    shared: float
    point: float
    box: Mapping[str, tuple[float, float]]
    source: Source
    residual: Residual | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One kind of gpu (or the CPU, when that is what runs the model).

    `flop_rate` is the dense peak by dtype. `processors` counts streaming multiprocessors (compute units, cores) and
    `cache` is the last-level cache; both enter the kernel forms. `fits` is keyed "operation/dtype/kernel", and
    "operation/dtype/kernel@framework" where a framework runs another kernel than the fastest (see `run_by`).
    `interference[kind][other]` is how much a kernel of one kind slows while one of the other runs beside it.
    """

    name: str
    memory: Bytes
    bandwidth: BytesPerSecond
    power: Watts
    processors: int
    cache: Bytes
    flop_rate: Mapping[str, FlopPerSecond]
    fits: Mapping[str, Fit] = field(default_factory=lambda: MappingProxyType({}))
    interference: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A level of the network or of memory, as costs see it.

    `ranks` is how many gpus one hop can reach, counted in blocks from gpu 0 (8 on an HGX node's NVLink); a memory
    tier (``host``, ``disk``) reaches no other gpu and has 1. `bandwidth` is per gpu in one direction, `sharers` the
    number of gpus behind one such link (2 = two gpus on one PCIe switch port of that bandwidth).
    """

    name: str
    ranks: int
    bandwidth: BytesPerSecond
    latency: Seconds
    sharers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Gpus in one box, with the tiers inside it from the innermost outwards, and its host memory.

    `power` is what the box draws besides its gpus. `disk` is the capacity of its local drives, `pcie` the generation of
    the links to the host (0: none, as with NVLink-C2C) and `numa` the number of memory domains (sockets), which gpus
    share evenly; what these mean for time is in the tiers. `host_bandwidth` is that of the host's memory and
    `host_flop_rate` the dense peak of its CPUs in the format they multiply fastest, of all domains together; 0: not
    known, so nothing can be computed there.
    """

    name: str
    device: Device
    gpus: int
    tiers: tuple[Tier, ...]
    host_memory: Bytes
    power: Watts
    disk: Bytes = 0.0
    pcie: int = 0
    numa: int = 1
    host_bandwidth: BytesPerSecond = 0.0
    host_flop_rate: FlopPerSecond = 0.0


RUN_BY = "@"
"""Stands in a fit's key between an operation and the framework whose kernel it is: "gemm/fp8@vllm"."""


def run_by(node: Node, framework: str) -> Node:
    """Return a node whose fits are those of the kernels that a framework runs, where it is known to have its own.

    Examples
    --------
    >>> source = Source(kind="assumed", title="an example")
    >>> usual, own = (Fit(form="gemm", params={"launch": t}, shared=0, point=0, box={}, source=source) for t in (2, 3))
    >>> device = Device(name="d", memory=1, bandwidth=1, power=1, processors=1, cache=0, flop_rate={},
    ...                 fits={"gemm/bf16": usual, "gemm/bf16@vllm": own})
    >>> node = Node(name="n", device=device, gpus=1, tiers=(), host_memory=0.0, power=0.0)
    >>> [run_by(node, name).device.fits["gemm/bf16"].params["launch"] for name in ("vllm", "plain")]
    [3, 2]
    """
    ending = RUN_BY + framework
    own = {key.removesuffix(ending): fit for key, fit in node.device.fits.items() if key.endswith(ending)}
    if not own:
        return node
    return replace(node, device=replace(node.device, fits=MappingProxyType({**node.device.fits, **own})))


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A node type that may be had: at most how many, and at what price per gpu (0 = already owned).

    `rent_low` and `rent_high` are the ends of what is asked for it; 0 = no more is known than `rent`.
    """

    node: Node
    max_nodes: int
    rent: DollarsPerSecond = 0.0
    buy: Dollars = 0.0
    rent_low: DollarsPerSecond = 0.0
    rent_high: DollarsPerSecond = 0.0

    @property
    def rent_band(self) -> tuple[DollarsPerSecond, DollarsPerSecond]:
        """Lowest and highest rent asked."""
        return self.rent_low or self.rent, self.rent_high or self.rent


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """All node types on offer and the fabric that joins nodes, as tiers from the innermost outwards."""

    offers: tuple[Offer, ...]
    fabric: tuple[Tier, ...]

    def offer(self, node: str) -> Offer:
        """Return the offer of a node type by name; a plan that names another was refused at the edge."""
        return next(offer for offer in self.offers if offer.node.name == node)


MEMORY_TIERS = ("host", "disk")

CPU = "cpu"
"""The link that computing on the host holds: a memory domain's processors and memory, shared by its gpus."""


def network(node: Node, fabric: tuple[Tier, ...]) -> tuple[Tier, ...]:
    """List the tiers that carry traffic between gpus, from the innermost outwards."""
    return tuple(tier for tier in node.tiers if tier.name not in MEMORY_TIERS) + fabric


def computes(node: Node) -> bool:
    """Whether a node says what its host can compute."""
    return node.host_bandwidth > 0 and node.host_flop_rate > 0


def memory_tier(node: Node, name: str) -> Tier:
    """Return a node's ``host`` or ``disk`` tier."""
    return next(tier for tier in node.tiers if tier.name == name)


def reach(node: Node, fabric: tuple[Tier, ...]) -> tuple[tuple[str, int], ...]:
    """List (tier, gpus one hop reaches) from the innermost outwards: all of the topology that policies may see."""
    return tuple((tier.name, tier.ranks) for tier in network(node, fabric))


def tier_between(reaches: tuple[tuple[str, int], ...], gpu: int, other: int) -> str:
    """Name the innermost tier that holds both gpus in one block.

    Examples
    --------
    >>> tier_between((("nvlink", 8), ("rail", 512)), 3, 5), tier_between((("nvlink", 8), ("rail", 512)), 3, 9)
    ('nvlink', 'rail')
    """
    for name, ranks in reaches:
        if gpu // ranks == other // ranks:
            return name
    return reaches[-1][0]


def graph(offer: Offer, fabric: tuple[Tier, ...], nodes: int) -> nx.Graph[str]:
    """Draw a cluster as a graph: gpus, switches, hosts, network cards, leaves and spines.

    Parameters
    ----------
    offer : Offer
        The node type.
    fabric : tuple of Tier
        Tiers between nodes, from the innermost outwards.
    nodes : int
        How many nodes.

    Returns
    -------
    networkx.Graph
        Vertices carry ``kind`` (gpu, switch, port, host, disk, nic, leaf, spine), ``tier`` and, on gpus, ``number``.
        Edges carry ``tier``, ``bandwidth`` (bytes per second, one direction), ``latency`` (seconds, of the whole hop)
        and ``sharers``. `tiers` reduces the graph to the rows it was drawn from.
    """
    import networkx as nx  # a tenth of a second that only drawings need

    drawn: nx.Graph[str] = nx.Graph(name=offer.node.name, gpus_per_node=offer.node.gpus)
    total = nodes * offer.node.gpus
    for gpu in range(total):
        drawn.add_node(f"gpu{gpu}", kind="gpu", number=gpu, tier="")
    for tier in offer.node.tiers:
        _draw_node_tier(drawn, tier, total, offer.node)
    for level, tier in enumerate(fabric):
        _draw_fabric_tier(drawn, tier, level, total)
    return drawn


def _draw_node_tier(drawn: nx.Graph[str], tier: Tier, total: int, box: Node) -> None:
    """Join each gpu to the switch of its block, or through the link it shares to its memory domain or drives."""
    for gpu in range(total):
        node = gpu // box.gpus
        if tier.name in MEMORY_TIERS:
            domains = box.numa if tier.name == "host" else 1
            hub, kind = f"{tier.name}{gpu * domains // box.gpus}", tier.name
        else:
            hub, kind = f"{tier.name}-switch{gpu // tier.ranks}", "switch"
        drawn.add_node(hub, kind=kind, node=node, tier=tier.name)
        near = f"gpu{gpu}"
        if tier.sharers > 1:
            port = f"{tier.name}-port{gpu // tier.sharers}"
            drawn.add_node(port, kind="port", tier=tier.name)
            drawn.add_edge(near, port, **_edge(tier))
            near = port
        drawn.add_edge(near, hub, **_edge(tier))


def _draw_fabric_tier(drawn: nx.Graph[str], tier: Tier, level: int, total: int) -> None:
    """Join network cards to leaves (the first fabric tier), and leaves to spines (the tiers above)."""
    for gpu in range(total):
        card = f"nic{gpu // tier.sharers}"
        drawn.add_node(card, kind="nic", tier="card")
        hub = f"{tier.name}{gpu // tier.ranks}"
        drawn.add_node(hub, kind="leaf" if level == 0 else "spine", tier=tier.name)
        drawn.add_edge(f"gpu{gpu}", card, tier="card", bandwidth=tier.bandwidth, latency=0.0, sharers=1, ranks=1)
        drawn.add_edge(card, hub, **_edge(tier))


def _edge(tier: Tier) -> dict[str, Any]:
    return {
        "tier": tier.name,
        "bandwidth": tier.bandwidth,
        "latency": tier.latency,
        "sharers": tier.sharers,
        "ranks": tier.ranks,
    }


def tiers(drawn: nx.Graph[str]) -> tuple[Tier, ...]:
    """Reduce a graph to its tiers, which is all that costs ever see; the innermost first, memory tiers too.

    Bandwidth is the narrowest link of the tier and latency its longest hop, so a graph edited by hand reduces to
    the row its slowest gpu sees.
    """
    rows: dict[str, Tier] = {}
    for _, _, edge in drawn.edges(data=True):
        name = edge["tier"]
        if name == "card":
            continue
        seen = rows.get(name)
        rows[name] = Tier(
            name=name,
            ranks=edge["ranks"],
            bandwidth=min(edge["bandwidth"], seen.bandwidth if seen else edge["bandwidth"]),
            latency=max(edge["latency"], seen.latency if seen else edge["latency"]),
            sharers=max(edge["sharers"], seen.sharers if seen else 1),
        )
    return tuple(sorted(rows.values(), key=lambda tier: (tier.ranks, tier.name)))

"""What is on offer: nodes at a price, and the fabric between them, as a scenario's ``hardware`` section says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from moesim.files.checked import Readers, Rules, below, check, not_positive, refuse, shown
from moesim.files.fits import FITS
from moesim.files.prices import BAND, load_price
from moesim.files.profiles import FABRIC_RULES, Fabric, Sourced, load_profile, made_node, named, within
from moesim.files.sources import split
from moesim.files.trees import Tree
from moesim.files.written import written
from moesim.ground.errors import Fault, InputError
from moesim.ground.units import Source, spell
from moesim.world.hardware import Hardware, Node, Offer, Tier

OWNED = Source(kind="assumed", title="owned: no rent is paid")

Written = tuple[dict[str, Tree], dict[str, Tree]]
"""Fields of an offer, and the sources that they name."""


def read_hardware(tree: Tree, file: str, folder: Path, *, priced: bool = False) -> Sourced:
    """Read a ``hardware`` section: offers with prices, the fabric between nodes, and sources.

    Nodes, their devices and the fabric are named, or written out in place with the section's own ``sources``. Numbers
    are called ``offers.<node>.rent``, ``offers.<node>.node.device.memory``, ``fabric.<tier>.bandwidth``.

    A rent is a number with its source, optionally with ``low`` and ``high`` beside its ``value``; or ``list``, the
    dated price of the device that ships; or ``owned``. Left out, it is the list price where there is one; where there
    is none and `priced` says that prices matter, the offer is at fault.

    Raises
    ------
    InputError
        With every fault; paths are relative to the section, except those found in other files.
    """
    if not isinstance(tree, Mapping):
        raise refuse(file, f"{shown(tree)} is not a section", "give its `offers`, `fabric` and `sources`")
    section, unpriced = _with_rents(tree, file, folder, priced=priced)
    parts = split(section, file, bare=("max_nodes", FITS))
    sources = dict(parts.sources)

    def node(value: Tree) -> Node:
        inline = isinstance(value, Mapping)
        found = made_node(within(parts, value), file, folder) if inline else named("node", value, file, folder)
        sources.update({f"offers.{found.profile.name}.node.{path}": source for path, source in found.sources.items()})
        made: Node = found.profile
        return made

    def fabric(value: Tree) -> tuple[Tier, ...]:
        if isinstance(value, list):
            return check(Fabric, {"name": "fabric", "tiers": value}, file, rules=FABRIC_RULES).tiers
        found = named("fabric", value, file, folder)
        sources.update({f"fabric.{path.removeprefix('tiers.')}": source for path, source in found.sources.items()})
        made: tuple[Tier, ...] = found.profile.tiers
        return made

    readers: Readers = {Node: node, tuple[Tier, ...]: fabric}
    rules: Rules = {Offer: _offer_faults, Hardware: _hardware_faults}
    also = (*parts.faults, *unpriced)
    hardware = check(Hardware, parts.plain, file, readers=readers, rules=rules, also=also)
    return Sourced(profile=hardware, sources=sources)


def _with_rents(
    tree: Mapping[str, Tree], file: str, folder: Path, *, priced: bool
) -> tuple[dict[str, Tree], list[Fault]]:
    """Write out in numbers every rent that is said in a word or left out; tells which nobody knows, too."""
    faults: list[Fault] = []
    sources: dict[str, Tree] = {}
    offers: list[Tree] = []
    for number, offer in enumerate(tree["offers"] if isinstance(tree.get("offers"), list) else ()):
        try:
            rent, known = _rent(offer, file, folder, priced=priced) if isinstance(offer, Mapping) else ({}, {})
        except InputError as flaw:
            faults += below(f"offers.{number}.rent", flaw.faults)
            rent, known = {}, {}
        told = isinstance(offer, Mapping)
        offers.append({name: value for name, value in offer.items() if name != "rent"} | rent if told else offer)
        sources |= known
    own = tree.get("sources", {})
    section = {**tree, "offers": offers} if isinstance(tree.get("offers"), list) else dict(tree)
    return section | ({"sources": {**sources, **own}} if sources and isinstance(own, Mapping) else {}), faults


def _rent(offer: Mapping[str, Tree], file: str, folder: Path, *, priced: bool) -> Written:
    """Write an offer's rent in numbers; nothing is looked up for a node that is written out in full."""
    given = offer.get("rent")
    if isinstance(given, Mapping):
        return _banded(given), {}
    if given == "owned":
        return {"rent": {"value": "0 USD/h", "from": "owned, no rent"}}, {"owned, no rent": written(OWNED)}
    if given not in (None, "list"):
        return {"rent": given}, {}
    if given is None and ("buy" in offer or not isinstance(offer.get("node"), str)):
        return {}, {}
    device = _device(offer.get("node"), folder)
    rent = _listed(device)
    if not rent[0] and device and (given or priced):
        remedy = "give yours, as in `rent: {value: 2.50 USD/h, from: KEY}`, or say `rent: owned`"
        raise refuse(file, f"no dated price is known for `{device}`", remedy)
    return rent


def _banded(given: Mapping[str, Tree]) -> dict[str, Tree]:
    """Take ``low`` and ``high`` apart from the value they stand beside; they have its source."""
    ends = {f"rent_{end}": {"value": given[end], "from": given.get("from")} for end in ("low", "high") if end in given}
    return {"rent": {name: value for name, value in given.items() if name not in ("low", "high")}} | ends


def _device(node: Tree, folder: Path) -> str:
    """Name the device of a node; nothing where the node is at fault, which is told elsewhere."""
    if isinstance(node, Mapping):
        inner = node.get("device")
        return str(inner.get("name", "")) if isinstance(inner, Mapping) else str(inner)
    try:
        return str(load_profile("node", str(node), folder).profile.device.name)
    except InputError:
        return ""


def _listed(device: str) -> Written:
    """Write the dated price of a device that ships, if there is one."""
    found = load_price(device)
    if found is None or not found.price.rent:
        return {}, {}
    fields: dict[str, Tree] = {}
    sources: dict[str, Tree] = {}
    for end in BAND:
        key = f"{device}, {end}"
        fields["rent" if end == "mid" else f"rent_{end}"] = {
            "value": spell(found.price.rent[end], "USD/s"),
            "from": key,
        }
        sources[key] = written(found.sources[f"rent.{end}"])
    return fields, sources


def _offer_faults(offer: Offer) -> Iterator[tuple[str, str, str]]:
    yield from not_positive(offer, "max_nodes")
    if not offer.rent_band[0] <= offer.rent <= offer.rent_band[1]:
        yield "rent", "is not between its low and its high", "give low, value and high in order"


def _hardware_faults(hardware: Hardware) -> Iterator[tuple[str, str, str]]:
    if not hardware.offers:
        yield "offers", "names no node", "offer at least one, as in `{node: nvidia/hgx-h200, max_nodes: 8}`"
    seen: set[str] = set()
    for number, offer in enumerate(hardware.offers):
        if offer.node.name in seen:
            yield f"offers.{number}.node", f"`{offer.node.name}` is offered twice", "join the two offers"
        seen.add(offer.node.name)
    yield from _reach_faults(hardware)


def _reach_faults(hardware: Hardware) -> Iterator[tuple[str, str, str]]:
    for number, offer in enumerate(hardware.offers):
        gpus = offer.max_nodes * offer.node.gpus
        reached = max((tier.ranks for tier in hardware.fabric), default=offer.node.gpus)
        if gpus > reached:
            problem = f"{offer.max_nodes} nodes have {gpus} gpus, and the fabric reaches {reached}"
            yield f"offers.{number}.max_nodes", problem, "offer fewer nodes or choose a larger fabric"

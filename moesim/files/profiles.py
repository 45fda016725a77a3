"""Hardware profiles: devices, nodes and fabrics, by name or file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moesim.files.checked import Rules, by_name, check, not_positive, refuse, shown
from moesim.files.fits import FITS, by_key, fit_faults, load_fits
from moesim.files.sources import Split, split
from moesim.files.trees import Tree, names_under, packaged, read
from moesim.ground.errors import Fault, ProfileError, nearest
from moesim.ground.units import Source, weakest
from moesim.world.formats import BITS
from moesim.world.hardware import MEMORY_TIERS, Device, Fit, Node, Tier

PROFILES = "moesim.hardware_profiles"
FOLDERS: Mapping[str, str] = {"device": "", "node": "nodes", "fabric": "fabrics"}
"""Where each kind of profile lies: devices by vendor, nodes and fabrics in folders of their own."""

DTYPES = tuple(BITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """What joins nodes: tiers from the innermost outwards."""

    name: str
    tiers: tuple[Tier, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sourced:
    """A device, node or fabric, with the source of each of its numbers by dotted path."""

    profile: Any
    sources: Mapping[str, Source]


def profile_names(kind: str) -> tuple[str, ...]:
    """List the built-in devices, nodes or fabrics."""
    folder = packaged(f"{PROFILES}/{FOLDERS[kind]}" if FOLDERS[kind] else PROFILES)
    others = () if FOLDERS[kind] else (*filter(None, FOLDERS.values()), FITS)
    return names_under(folder, leave_out=(*others, "__pycache__"))


def load_profile(kind: str, name: str, folder: Path | None = None) -> Sourced:
    """Load a device, node or fabric.

    Parameters
    ----------
    kind : str
        "device", "node" or "fabric".
    name : str
        A built-in name, or the path of a YAML file.
    folder : Path, optional
        What a relative path starts from.

    Raises
    ------
    ProfileError
        No such profile, or one with faults.
    """
    if _is_path(name):
        path = (folder or Path()) / name
        return _load(kind, path, str(path))
    if name not in profile_names(kind):
        problem = f"no {kind} is called `{name}`"
        raise ProfileError(name, [Fault(path="", problem=problem, remedy=nearest(name, profile_names(kind)))])
    return _built_in(kind, name)


def find_profile(name: str) -> tuple[str, Sourced]:
    """Load a node, a device or a fabric, whichever is called so, or whichever a file holds; says which it is.

    Raises
    ------
    ProfileError
        Nothing is called so, the file says not what it is, or it has faults.
    """
    if _is_path(name):
        kind = _kind_of(read(Path(name), name, ProfileError), name)
        return kind, load_profile(kind, name)
    kind = next((kind for kind in _SOUGHT if name in profile_names(kind)), "")
    if not kind:
        known = [known for kind in _SOUGHT for known in profile_names(kind)]
        near = nearest(name, [other for other in known if name and name in other] or known)
        raise ProfileError(name, [Fault(path="", problem="no device, node or fabric is called so", remedy=near)])
    return kind, load_profile(kind, name)


_SOUGHT = ("node", "device", "fabric")
"""A node comes before the device of the same name, which it shows, too."""


def _kind_of(tree: Mapping[str, Tree], file: str) -> str:
    """Tell what a file describes by a field that only such a file has; one that is like another, by that one."""
    if "like" in tree and tree["like"] in profile_names("device"):
        return "device"
    marks = {
        "flop_rate": "device",
        "processors": "device",
        "gpus": "node",
        "device": "node",
        "tiers": "fabric",
        "like": "node",
    }
    kind = next((kind for mark, kind in marks.items() if mark in tree), "")
    if not kind:
        remedy = "a device has a `flop_rate`, a node `gpus`, a fabric `tiers`"
        raise ProfileError(file, [Fault(path="", problem="is neither a device nor a node nor a fabric", remedy=remedy)])
    return kind


@lru_cache(maxsize=256)
def _built_in(kind: str, name: str) -> Sourced:
    file = _file(kind, name)
    found = _load(kind, packaged(PROFILES).joinpath(file), f"hardware_profiles/{file}")
    return _with_fits(found) if kind == "device" else found


def _load(kind: str, file: Traversable, label: str) -> Sourced:
    tree = read(file, label, ProfileError)
    loader = {"device": _device, "node": _node, "fabric": _fabric}[kind]
    return loader(tree, label, file.parent if isinstance(file, Path) else None)


def _device(tree: dict[str, Tree], file: str, folder: Path | None) -> Sourced:
    return _made_device(_completed("device", tree, file, folder), file)


def _completed(kind: str, tree: dict[str, Tree], file: str, folder: Path | None) -> Split:
    """Split a tree; what it does not say itself is said by the profile it is ``like``, whole fields at a time."""
    parts = split(tree, file, bare=(FITS,))
    if "like" not in tree:
        return parts
    own = {name: value for name, value in parts.plain.items() if name != "like"}
    base = _base(kind, tree["like"], file, folder)
    sources = {path: source for path, source in base.sources.items() if path.partition(".")[0] not in own}
    return replace(
        parts,
        plain={name: value for name, value in base.plain.items() if name != FITS} | own,
        sources={path: _carried(source, tree["like"]) for path, source in sources.items()} | dict(parts.sources),
    )


def _base(kind: str, name: Tree, file: str, folder: Path | None) -> Split:
    """Read the profile that another is like, which must be whole and without fault."""
    path = _place(kind, name, folder)
    if path is None:
        near = nearest(str(name), profile_names(kind))
        raise ProfileError(file, [Fault(path="like", problem=f"no {kind} is called `{name}`", remedy=near)])
    tree = read(path, str(name), ProfileError)
    if "like" in tree:
        remedy = f"name that one: `{tree['like']}`"
        raise ProfileError(file, [Fault(path="like", problem=f"`{name}` is itself like another", remedy=remedy)])
    load_profile(kind, name, folder)  # which raises what is wrong with it
    return split(tree, name, bare=(FITS,))


def _place(kind: str, name: Tree, folder: Path | None) -> Traversable | None:
    """Find the file of a built-in profile or of a path; nothing where there is no such profile."""
    if isinstance(name, str) and _is_path(name):
        return (folder or Path()) / name
    return packaged(PROFILES).joinpath(_file(kind, name)) if name in profile_names(kind) else None


def _carried(source: Source, name: str) -> Source:
    """Say that a number was taken over from another profile; it is then no better than derived."""
    kind = weakest((source.kind, "derived"))
    return replace(source, kind=kind, title=f"as {name}: {source.title}")


def _is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml", ".json"))


def _file(kind: str, name: str) -> str:
    """Say where a built-in profile lies below the folder of profiles."""
    return "/".join(filter(None, (FOLDERS[kind], f"{name}.yaml")))


def _with_fits(found: Sourced) -> Sourced:
    """Add what was fitted for a built-in device, which lies in a file of its own; a key of the device's file stays."""
    device: Device = found.profile
    file = packaged(PROFILES).joinpath(FITS, f"{device.name}.yaml")
    if not file.is_file():
        return found
    fits = load_fits(file, f"hardware_profiles/{FITS}/{device.name}.yaml")
    return replace(found, profile=replace(device, fits=MappingProxyType({**fits, **device.fits})))


def _made_device(parts: Split, file: str) -> Sourced:
    device = check(
        Device,
        parts.plain,
        file,
        error=ProfileError,
        readers=by_key(parts, file),
        rules={Device: _device_faults, Fit: fit_faults},
        also=parts.faults,
    )
    return Sourced(profile=device, sources=parts.sources)


def _device_faults(device: Device) -> Iterator[tuple[str, str, str]]:
    yield from not_positive(device, "memory", "processors")
    if not device.flop_rate:
        yield "flop_rate", "names no dtype", "give the dense peak of at least one, as in `bf16: 989 TFLOP/s`"
    for dtype in device.flop_rate:
        if dtype not in DTYPES:
            yield f"flop_rate.{dtype}", "unknown dtype", nearest(dtype, DTYPES)


def _node(tree: dict[str, Tree], file: str, folder: Path | None) -> Sourced:
    return made_node(_completed("node", tree, file, folder), file, folder)


def made_node(parts: Split, file: str, folder: Path | None) -> Sourced:
    """Make a node of a split tree; its device is named or written out in place."""
    _fill_memory_tiers(parts.plain)
    devices: list[Sourced] = []

    def device(value: Tree) -> Device:
        inline = isinstance(value, Mapping)
        devices.append(_made_device(within(parts, value), file) if inline else named("device", value, file, folder))
        found: Device = devices[-1].profile
        return found

    node = check(
        Node,
        parts.plain,
        file,
        error=ProfileError,
        readers={Device: device},
        rules={Node: _node_faults, Tier: _tier_faults},
        also=parts.faults,
    )
    inner = {f"device.{path}": source for path, source in devices[0].sources.items()}
    return Sourced(profile=node, sources={**parts.sources, **inner})


def within(parts: Split, section: Mapping[str, Tree]) -> Split:
    """Take a section out of a split tree, which keeps the sources of its numbers for itself."""
    return Split(plain=dict(section), sources={}, faults=(), table=parts.table)


def named(kind: str, name: Tree, file: str, folder: Path | None) -> Sourced:
    """Load a profile that a file names; that there is none is the fault of that file."""
    if not isinstance(name, str):
        raise refuse(file, f"{shown(name)} is not a name", "name a built-in profile or the path of a YAML file")
    return by_name(file, name, lambda: load_profile(kind, name, folder))


def _fill_memory_tiers(tree: dict[str, Tree]) -> None:
    """A memory tier reaches no other gpu, so its file need not say so."""
    for tier in tree["tiers"] if isinstance(tree.get("tiers"), list) else ():
        if isinstance(tier, dict) and tier.get("name") in MEMORY_TIERS:
            tier.setdefault("ranks", 1)


def _tier_faults(tier: Tier) -> Iterator[tuple[str, str, str]]:
    yield from not_positive(tier, "ranks", "sharers")


def _node_faults(node: Node) -> Iterator[tuple[str, str, str]]:
    yield from not_positive(node, "gpus", "numa")
    yield from _order_faults([tier for tier in node.tiers if tier.name not in MEMORY_TIERS])
    for name in MEMORY_TIERS:
        if name not in [tier.name for tier in node.tiers]:
            yield "tiers", f"has no `{name}` tier", f"add one: the path from a gpu to the {name}"


def _order_faults(tiers: Iterable[Tier]) -> Iterator[tuple[str, str, str]]:
    reached, inner = 0, ""
    for tier in tiers:
        if tier.ranks <= reached:
            problem = f"`{tier.name}` reaches {tier.ranks} gpus, no more than `{inner}` within it ({reached})"
            yield "tiers", problem, "list tiers from the innermost outwards"
        reached, inner = tier.ranks, tier.name


def _fabric(tree: dict[str, Tree], file: str, _: Path | None) -> Sourced:
    parts = split(tree, file)
    fabric = check(Fabric, parts.plain, file, error=ProfileError, rules=FABRIC_RULES, also=parts.faults)
    return Sourced(profile=fabric, sources=parts.sources)


FABRIC_RULES: Rules = {Tier: _tier_faults, Fabric: lambda fabric: _order_faults(fabric.tiers)}

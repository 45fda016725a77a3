"""A measured machine as a file: a node with its device in place, which a scenario names under ``hardware``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from moesim.files.fits import FITS
from moesim.files.trees import write
from moesim.files.written import Sourcing, written
from moesim.ground.errors import MoesimError
from moesim.ground.units import Source
from moesim.world.hardware import Fit, Node

from .measured import Profile
from .raw import Line

DIGITS = 4
"""Significant digits of a number: a thousandth of what it is known to."""
ASSUMED = Source(kind="assumed", title="not measured, and of no account for times")


def write_node(path: Path, profile: Profile, header: Line, raw: str) -> None:
    """Write a measured machine; the file appears when it is whole.

    Parameters
    ----------
    path : where to
    profile : the machine
    header : of the raw file: which machine it was, and when
    raw : the raw file's name, for sources

    Raises
    ------
    MoesimError
        The file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(node_text(profile, header, raw), encoding="utf-8")
        partial.replace(path)
    except OSError as fault:
        raise MoesimError(f"{path}: {fault.strerror}; name another file with --out") from None
    finally:
        partial.unlink(missing_ok=True)


def node_text(profile: Profile, header: Line, raw: str) -> str:
    """Return the file's text: comments on what it is, the node, and where its numbers come from."""
    node = _short(profile.node)
    source = Source(kind="measured", title=_machine(header), read=str(header.get("started", ""))[:10], raw=raw)
    sourcing = Sourcing({path: _source(path, source) for path in _paths(node)}, bare=(FITS,))
    tree = written(node, sourcing)
    noise = "" if profile.noise is None else f" Identical visits differ by {profile.noise:.0%}, in the median."
    head = f"# {_machine(header)}\n# Fitted by `moesim calibrate` to {raw}.{noise}\n"
    return (
        head
        + "".join(f"# Left out: {why}\n" for why in profile.left_out)
        + write({**tree, "sources": sourcing.section()})
    )


def _machine(header: Line) -> str:
    machine: Mapping[str, object] = header["machine"]
    return f"{header['device']}, {machine['cores']} cores, torch {machine['torch']}, as measured"


def _source(path: str, measured: Source) -> Source:
    return ASSUMED if path.rpartition(".")[2] in ("power", "disk") else measured


def _paths(node: Node) -> Iterator[str]:
    """List the numbers of a node as the file calls them."""
    yield from ("gpus", "host_memory", "power", "disk")
    yield from (f"device.{name}" for name in ("memory", "bandwidth", "power", "processors", "cache"))
    yield from (f"device.flop_rate.{dtype}" for dtype in node.device.flop_rate)
    yield from (
        f"device.interference.{kind}.{other}" for kind, row in node.device.interference.items() for other in row
    )
    yield from (
        f"tiers.{tier.name}.{name}" for tier in node.tiers for name in ("ranks", "bandwidth", "latency", "sharers")
    )


def _short(node: Node) -> Node:
    """Round everything that was measured."""
    device = node.device
    return replace(
        node,
        device=replace(
            device,
            bandwidth=_rounded(device.bandwidth),
            flop_rate=MappingProxyType({dtype: _rounded(rate) for dtype, rate in device.flop_rate.items()}),
            fits=MappingProxyType({key: _short_fit(fit) for key, fit in sorted(device.fits.items())}),
            interference=MappingProxyType(
                {
                    kind: {other: _rounded(slow) for other, slow in row.items()}
                    for kind, row in device.interference.items()
                }
            ),
        ),
        tiers=tuple(
            replace(tier, bandwidth=_rounded(tier.bandwidth), latency=_rounded(tier.latency)) for tier in node.tiers
        ),
    )


def _short_fit(fit: Fit) -> Fit:
    return replace(
        fit,
        params=MappingProxyType({name: _rounded(value) for name, value in fit.params.items()}),
        shared=_rounded(fit.shared),
        point=_rounded(fit.point),
        box=MappingProxyType({name: (_outwards(low, -1), _outwards(high, 1)) for name, (low, high) in fit.box.items()}),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _outwards(value: float, way: int) -> float:
    """Round away from what lies within."""
    if not value:
        return value
    step = 10.0 ** (math.floor(math.log10(abs(value))) - DIGITS + 1)
    return (math.ceil if way > 0 else math.floor)(value / step - way * 1e-9) * step

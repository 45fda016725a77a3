"""A machine's costs fitted to parts of layers that were measured on it: moesim's own forms, a few parameters each.

Parts are fitted one after another, since some hold ops of an earlier one. What a part holds besides its own kernel is
priced as it stands. Parameters are sought as `calibrate fit` seeks them, near where the profile has them, the more so
the fewer points there are. How wrong a fit is on a layer that it has not seen follows from leaving out each in turn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from moesim.ground.units import Source
from moesim.schedules.costs.fits import Machine, fit_of, fit_of_tier, machine_of
from moesim.schedules.costs.pricing import priced_ops
from moesim.schedules.ops import AllToAll, Copy, Op
from moesim.schedules.schedule import Schedule
from moesim.world.hardware import MEMORY_TIERS, Fit, Node, Tier

from .wing import fit, spread

Floats = Float[np.ndarray, "point"]

WIDE = 3.0
"""Standard deviation of log(parameter / where it is sought): a factor of twenty either way is not unexpected."""
MATCHED = "gemm/bf16"

FREE: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "gemm": {"overhead": 0.0, "throttle": 0.0, "tail": 0.0, "thin": 0.0, "cache": 0.0, "split": 0.0, "p": 1.0},
        "grouped_gemm": {"overhead": 0.0, "throttle": 0.0, "tail": 0.0, "thin": 0.0, "pad": 0.0, "p": 1.0},
        "all_to_all": {"latency": 0.0, "per_message": 0.0, "efficiency": 0.9},
        "elementwise": {},
        "attention_prefill": {"tail": 0.0, "overhead": 0.0},
        "copy": {"latency": 0.0},
    }
)
"""Parameters that are not fitted: terms of a gpu's kernels are off, and times that overlap on one are added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one part of a layer tells about.

    Attributes
    ----------
    names : of the tasks that make it up
    seen : the names under which a layer tells its time
    key : of the fit
    sought : its parameters
    """

    names: tuple[str, ...]
    seen: tuple[str, ...]
    key: str
    sought: tuple[str, ...]


PARTS = (
    Part(names=("norm",), seen=("norm",), key="elementwise", sought=("launch", "bandwidth")),
    Part(names=("experts",), seen=("experts",), key="grouped_gemm/bf16", sought=("launch", "peak", "bandwidth")),
    Part(names=("mlp", "shared"), seen=("mlp", "shared"), key=MATCHED, sought=("launch", "peak", "bandwidth")),
    Part(names=("gate",), seen=("gate",), key="elementwise/bf16/gate", sought=("launch", "bandwidth")),
    Part(names=("pack",), seen=("pack", "regroup"), key="elementwise/bf16/pack", sought=("launch", "bandwidth")),
    Part(names=("unpack",), seen=("unpack",), key="elementwise/bf16/unpack", sought=("launch", "bandwidth")),
    Part(
        names=("attention",),
        seen=("attention",),
        key="attention_prefill/bf16/gqa",
        sought=("launch", "peak", "bandwidth"),
    ),
)
DENSE = Part(
    names=("pack", "unpack"),
    seen=("pack", "regroup", "unpack"),
    key="elementwise/bf16/mask",
    sought=("launch", "bandwidth"),
)
"""What packs and unpacks where there is a mask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A layer that was measured: its schedule, and seconds of its parts."""

    schedule: Schedule
    parts: Mapping[str, float]


def tuned(node: Node, fabric: tuple[Tier, ...], points: Sequence[Point], title: str) -> Node:
    """Return a node with costs fitted to the parts of layers of one kind."""
    masked = any(getattr(task.op, "kernel", "") == "mask" for point in points for task in point.schedule.tasks)
    parts = [part for part in PARTS if not (masked and part.names[0] in DENSE.names)]
    for part in [*parts, *([DENSE] if masked else []), _exchange(node, fabric)]:
        node = fitted(node, fabric, points, part, title)
        if part.key.startswith("grouped_gemm"):
            node = _alike(node, title)
    return node


LEVELS = Part(
    names=("dispatch", "combine"), seen=("dispatch", "combine"), key="all_to_all/loopback", sought=("launch",)
)
"""What tells about the link inside nodes, where an exchange in two phases uses both."""


def cold(tier: str) -> Part:
    """Say what tells about a cold tier: the time that a step takes longer when its experts have to be fetched."""
    return Part(names=("fetch",), seen=("fetch",), key=f"copy/{tier}", sought=("efficiency",))


def _exchange(node: Node, fabric: tuple[Tier, ...]) -> Part:
    """Say what tells about the outermost link between ranks."""
    tiers = [tier for tier in (*node.tiers, *fabric) if tier.name not in MEMORY_TIERS]
    names = ("dispatch", "combine")
    return Part(names=names, seen=names, key=f"all_to_all/{tiers[-1].name}", sought=("launch", "efficiency"))


def _alike(node: Node, title: str) -> Node:
    """Take dense products to be as fast as experts', until a part tells about them, and count activations with them."""
    source = Source(kind="fitted", title=title)
    experts = node.device.fits["grouped_gemm/bf16"]
    prior = fit_of(node.device, "gemm")
    shared = {name: experts.params[name] for name in ("peak", "bandwidth")}
    gemm = replace(
        prior, params=MappingProxyType({**prior.params, **FREE["gemm"], **shared, "launch": 1e-6}), source=source
    )
    idle = fit_of(node.device, "elementwise")
    none = replace(idle, params=MappingProxyType({"launch": 1e-9, "bandwidth": 1e15}), source=source, box={})
    return with_fits(node, {MATCHED: gemm, "elementwise/bf16/activation": none})


def with_fits(node: Node, fits: Mapping[str, Fit]) -> Node:
    """Put fits into a node's device."""
    device = replace(node.device, fits=MappingProxyType({**node.device.fits, **fits}))
    return replace(node, device=device)


def fitted(node: Node, fabric: tuple[Tier, ...], points: Sequence[Point], part: Part, title: str) -> Node:
    """Fit one part's kernel to the points that have it; a node without such points is left as it is."""
    some = [point for point in points if _seconds(point, part) > 0 and _ops(point.schedule, part)]
    if not some:
        return node
    start = _start(node, fabric, part)
    widths = dict.fromkeys(part.sought, WIDE)

    def left(points: Sequence[Point], tried: Fit) -> Floats:
        machine = machine_of(with_fits(node, {part.key: tried}), fabric)
        measured = np.array([_seconds(point, part) for point in points])
        return np.log([_priced(point.schedule, part, machine) for point in points] / measured)

    def found(points: Sequence[Point]) -> Fit:
        return fit.most_probable(start, widths, lambda tried: left(points, tried))

    made = replace(found(some), source=Source(kind="fitted", title=title), box={})
    if len(some) > 1:
        unseen = [left([each], found([other for other in some if other is not each])) for each in some]
        made = _together(spread.with_spread(made, np.concatenate(unseen), np.arange(len(some))))
    return with_fits(node, {part.key: made})


def _together(fit: Fit) -> Fit:
    """Let all shapes err alike: the layers that are compared lie between those that were measured, near one another."""
    return replace(fit, shared=math.hypot(fit.shared, fit.point), point=0.0)


def _start(node: Node, fabric: tuple[Tier, ...], part: Part) -> Fit:
    """Return where parameters are sought, with those that are not fitted at their fixed values."""
    operation, _, rest = part.key.partition("/")
    bare = replace(node.device, fits=MappingProxyType({}))
    if operation in ("all_to_all", "copy"):
        tier = next(tier for tier in (*node.tiers, *fabric) if tier.name == rest)
        prior = fit_of_tier(bare, operation, tier)
    else:
        dtype, _, kernel = rest.partition("/")
        prior = fit_of(bare, operation, dtype or "bf16", kernel if operation.startswith("attention") else "default")
    fixed = {**FREE[operation], **{name: prior.params[name] for name in part.sought if prior.params[name] > 0}}
    return replace(prior, params=MappingProxyType({**prior.params, **fixed}))


def _seconds(point: Point, part: Part) -> float:
    return sum(point.parts.get(name, 0.0) for name in part.seen)


def _ops(schedule: Schedule, part: Part) -> list[int]:
    return [index for index, task in enumerate(schedule.tasks) if task.name in part.names]


def _priced(schedule: Schedule, part: Part, machine: Machine) -> float:
    """Price a part's ops: the slowest rank's, but of an exchange the quickest's, mean over draws; links are shared."""
    indices = _ops(schedule, part)
    prices = priced_ops([schedule.tasks[index].op for index in indices], machine)
    exchange = part.key.startswith("all_to_all")
    total = 0.0
    for index in indices:
        op = schedule.tasks[index].op
        seconds = prices[id(op)][0]
        shared = _sharers(op, machine, schedule.rows)
        slowest = (seconds.min(axis=-1) if exchange else seconds.max(axis=-1)).mean()
        total += float(slowest) * shared
    return total


def _sharers(op: Op, machine: Machine, ranks: int) -> int:
    """How many ranks use one link at once where all do the same."""
    tiers = op.tiers[-1:] if isinstance(op, AllToAll) else [op.source] if isinstance(op, Copy) else []
    return min([ranks, *(machine.tier(name).sharers for name in tiers)]) if tiers else 1


def told(node: Node) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Yield the parameters of every fit of a node, by key: what a prediction says that it rests on."""
    for key, each in sorted(node.device.fits.items()):
        yield key, {**{name: float(f"{value:.4g}") for name, value in each.params.items()}, "shared": each.shared}

"""The one pricing pass: every op of a schedule becomes a duration per rank and a demand on shared links.

Each op object is priced once, however many tasks hold it. Ops of one kind whose shapes agree are stacked along a new
leading axis and priced in one evaluation, as many at a time as stay in the cache.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType, MappingProxyType

import numpy as np

from moesim.ground.units import SourceKind, weakest
from moesim.schedules.costs.fits import Machine, machine_of
from moesim.schedules.costs.forms import OUTWARD, Demand, Form, capacity, form_of
from moesim.schedules.costs.kernels import Size, Time
from moesim.schedules.ops import Op
from moesim.schedules.schedule import Link, Priced, Schedule
from moesim.world.hardware import Fit, Node, Tier

STACK = 2**14
"""Elements up to which ops are copied together: beyond, one op's work hides the cost of a call."""
BLOCK = 2**17
"""Elements above which an op is priced in pieces: 1 MiB an array, so that its intermediates stay in the cache."""

_Prices = dict[int, tuple[Time, Demand]]
_Place = tuple[EllipsisType | slice, ...]


def price(schedule: Schedule, node: Node, fabric: tuple[Tier, ...]) -> Priced:
    """Turn every op into a duration and a demand on links.

    Parameters
    ----------
    schedule : what to do and how much of it
    node : the node type it runs on
    fabric : tiers between nodes

    Returns
    -------
    Durations in seconds and demands in bytes by link, each ending in a rank axis of size 1 or `schedule.rows`. The
    links are the tiers that any op uses; a copy away from the device uses "<tier> out".

    Raises
    ------
    MoesimError
        An op has no cost form, or names a tier that the node lacks.

    Examples
    --------
    >>> from moesim.schedules.ops import fixed
    >>> from moesim.schedules.schedule import Task
    >>> from moesim.world.hardware import Device
    >>> device = Device(name="d", memory=1, bandwidth=1, power=1, processors=1, cache=0, flop_rate={"bf16": 1.0})
    >>> node = Node(name="n", device=device, gpus=1, tiers=(), host_memory=0.0, power=0.0)
    >>> price(Schedule(tasks=(Task(name="embed", stream="compute", op=fixed(2.0)),), out=(0,)), node, ()).duration
    (array([2.]),)
    """
    return price_together((schedule,), node, fabric)[0]


def price_together(schedules: Sequence[Schedule], node: Node, fabric: tuple[Tier, ...]) -> tuple[Priced, ...]:
    """Price schedules that share op objects, each op once; see `price`."""
    machine = machine_of(node, fabric)
    prices = priced_ops([task.op for schedule in schedules for task in schedule.tasks], machine)
    return tuple(_priced(schedule, prices, machine) for schedule in schedules)


def _priced(schedule: Schedule, prices: _Prices, machine: Machine) -> Priced:
    """Lay the prices of a schedule's ops out by task."""
    used = {id(task.op) for task in schedule.tasks}
    tiers = sorted({name for op in used for name in prices[op][1]})
    none = np.zeros(1)
    return Priced(
        schedule=schedule,
        duration=tuple(prices[id(task.op)][0] for task in schedule.tasks),
        demand=MappingProxyType(
            {name: tuple(prices[id(task.op)][1].get(name, none) for task in schedule.tasks) for name in tiers}
        ),
        links=MappingProxyType({name: _link(name, schedule, machine) for name in tiers}),
        slowdown=machine.device.interference,
    )


def priced_ops(ops: Sequence[Op], machine: Machine) -> _Prices:
    """Price each distinct op once: by its identity, its duration and its bytes by tier."""
    prices: _Prices = {}
    for alike in _alike(ops):
        times, demands = _priced_alike(alike, form_of(alike[0]), machine)
        demands = {name: sizes.astype(np.float64, copy=False) for name, sizes in demands.items()}
        for i, op in enumerate(alike):
            prices[id(op)] = (times[i], {name: sizes[i] for name, sizes in demands.items()})
    return prices


def _alike(ops: Sequence[Op]) -> list[list[Op]]:
    """Gather the distinct ops that can be stacked: of one kind, alike in what is no size, with sizes of equal shape."""
    groups: dict[Hashable, list[Op]] = {}
    for op in {id(op): op for op in ops}.values():
        form = form_of(op)
        shapes = tuple(getattr(op, name).shape for name in form.sizes)
        groups.setdefault((type(op), form.alike(op), shapes), []).append(op)
    return list(groups.values())


def _priced_alike(ops: Sequence[Op], form: Form, machine: Machine) -> tuple[Time, Demand]:
    """Price ops that can be stacked, a block at a time, into one array with an op axis before the leading ones.

    A block's results are copied to where they stay while they are in the cache: a few large arrays cost far fewer page
    faults than many small ones, which would be most of the time where ranks are many.
    """
    largest = max(getattr(ops[0], name).size for name in form.sizes)
    room = max(STACK // largest, 1)
    if room >= len(ops) and largest <= BLOCK:
        return form.price(_stacked(ops, form), machine)
    kept: list[Size] = []
    demand: Demand = {}
    for first in range(0, len(ops), room):
        chunk = slice(first, first + room)
        for piece, places, shape in _pieces(_stacked(ops[chunk], form), form):
            time, demand = form.price(piece, machine)
            results = (time, *demand.values())
            if not kept:
                kept = [np.empty((len(ops), *(shape or result.shape[1:]))) for result in results]
            for place, result in zip(kept, results, strict=True):
                place[chunk][places] = result
    return kept[0], dict(zip(demand, kept[1:], strict=True))


def _pieces(op: Op, form: Form) -> Iterator[tuple[Op, _Place, tuple[int, ...]]]:
    """Cut a stacked op along its longest axis into pieces of a block; give each its place, and the shape of one op.

    An op that needs no cutting comes back whole, with no shape: its result says it.
    """
    sizes = {name: getattr(op, name) for name in form.sizes}
    lead = np.broadcast_shapes(*(size.shape[int(name in form.inner) :] for name, size in sizes.items()))
    largest = max(size.size for size in sizes.values())
    if largest <= BLOCK:
        yield op, (...,), ()
        return
    longest = int(np.argmax(lead)) - len(lead)
    step = max(lead[longest] * BLOCK // largest, 1)
    for first in range(0, lead[longest], step):
        cut: _Place = (..., slice(first, first + step), *[slice(None)] * (-longest - 1))
        parts = {name: size[cut] if size.shape[longest] > 1 else size for name, size in sizes.items()}
        yield replace(op, **parts), cut, lead[1:]


def _stacked(ops: Sequence[Op], form: Form) -> Op:
    """Build one op whose sizes hold those of several along a new first leading axis."""
    inner = {name: int(name in form.inner) for name in form.sizes}
    leading = max(getattr(ops[0], name).ndim - inner[name] for name in form.sizes)
    columns: dict[str, Size] = {}
    for name in form.sizes:
        sizes = [getattr(op, name) for op in ops]
        axis = inner[name]
        stacked = np.stack(sizes, axis=axis) if len(sizes) > 1 else np.expand_dims(sizes[0], axis)
        missing = leading - (stacked.ndim - axis - 1)
        columns[name] = stacked.reshape(*stacked.shape[: axis + 1], *[1] * missing, *stacked.shape[axis + 1 :])
    return replace(ops[0], **columns)  # type: ignore[arg-type]  # the fields of this op's own class


def _link(name: str, schedule: Schedule, machine: Machine) -> Link:
    """Say which rank rows share a link of a tier.

    Ranks are numbered node-major, so neighbors share. Where rows are folded, which rows are neighbors is not known:
    every row is then taken to share with ranks like itself.
    """
    tier = machine.tier(name.removesuffix(OUTWARD))
    rows = np.arange(schedule.rows)
    folded = bool(np.any(schedule.count > 1))
    total = schedule.count.sum(axis=-1, keepdims=True)
    members = np.minimum(float(tier.sharers), total) if folded else np.ones(1)
    return Link(
        capacity=capacity(tier, machine),
        link_of_rank=rows if folded else rows // tier.sharers,
        members=np.broadcast_to(members, (*members.shape[:-1], schedule.rows)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """What the prices of a schedule rest on.

    Attributes
    ----------
    weakest : kind of the weakest source
    fits : the fits used, by key
    outside : inputs that left the range their fit was calibrated on, one line each
    """

    weakest: SourceKind
    fits: MappingProxyType[str, Fit]
    outside: tuple[str, ...]


def grounds(schedule: Schedule, node: Node, fabric: tuple[Tier, ...]) -> Grounds:
    """Tell which fits price a schedule, how well founded they are, and which inputs are outside their boxes."""
    machine = machine_of(node, fabric)
    fits: dict[str, Fit] = {}
    outside: dict[str, None] = {}
    for op in {id(task.op): task.op for task in schedule.tasks}.values():
        for key, fit in form_of(op).fits(op, machine).items():
            fits[key] = fit
            outside.update(dict.fromkeys(_strays(op, key, fit)))
    return Grounds(
        weakest=weakest(tuple(fit.source.kind for fit in fits.values())),
        fits=MappingProxyType(fits),
        outside=tuple(outside),
    )


def _strays(op: Op, key: str, fit: Fit) -> Iterator[str]:
    """Name the sizes of an op that leave the fit's box; a rank with nothing to do leaves no box."""
    for name, (low, high) in fit.box.items():
        size = getattr(op, name)
        some = size[size > 0]
        if some.size and (some.min() < low or some.max() > high):
            yield f"{key}: {name} {some.min():g} to {some.max():g}, calibrated on {low:g} to {high:g}"

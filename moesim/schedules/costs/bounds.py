"""What a pass takes at least: the floor of every op, without running anything."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Int, Shaped

from moesim.schedules.costs.fits import Machine, machine_of
from moesim.schedules.costs.forms import form_of
from moesim.schedules.costs.kernels import Time
from moesim.schedules.costs.pricing import priced_ops
from moesim.schedules.ops import Grouped, Op
from moesim.schedules.schedule import Priced, Schedule, Task, with_ops
from moesim.world.hardware import Node, Tier

Floor = Float[np.ndarray, "..."]


def of_plans(schedule: Schedule, plans: Int[np.ndarray, "plan"]) -> Schedule:
    """Keep some plans of a schedule whose sizes are shaped (plan, draw, rank); a size-1 plan axis serves all."""
    kept: dict[int, Op] = {}

    def part(size: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        return size if size.ndim < 3 or size.shape[-3] == 1 else size[..., plans, :, :]

    for op in {id(task.op): task.op for task in schedule.tasks}.values():
        sizes = {name: part(getattr(op, name)) for name in form_of(op).sizes}
        if isinstance(op, Grouped) and op.active is not None:
            sizes["active"] = part(op.active)
        kept[id(op)] = replace(op, **sizes)  # type: ignore[arg-type]  # the fields of this op's own class
    return replace(with_ops(schedule, kept), count=part(schedule.count))


def floors(schedule: Schedule, node: Node, fabric: tuple[Tier, ...]) -> tuple[Floor, ...]:
    """No task's time, averaged over draws and on the slowest rank, is below these.

    An op that is the same on all ranks and in all draws takes its price. Any other takes the time that its busiest
    resource needs at the fitted peak, max(work / peak, traffic / bandwidth), or what its form says of more such terms,
    averaged over ranks (by how many each row stands for; a rank without a part does nothing) and over draws *before*
    they are put together. That is convex, as the larger of two is, so at means it is at most the mean (Jensen's
    inequality), and the mean over ranks is at most the slowest rank. Rows must not be averaged instead: mean rows keep
    every expert active, and their floor would overshoot.

    Parameters
    ----------
    schedule : leading axes of its sizes are (plan, draw); a size with one leading axis has plans only
    node : the node type it runs on
    fabric : tiers between nodes

    Returns
    -------
    seconds by task, each shaped (plan), or () for sizes without leading axes
    """
    machine = machine_of(node, fabric)
    certain = [task.op for task in schedule.tasks if _certain(task.op)]
    prices = priced_ops(certain, machine)
    means: dict[tuple[int, str], Time] = {}
    for task in schedule.tasks:
        key = (id(task.op), task.on)
        if key not in means:
            means[key] = (
                _mean(prices[id(task.op)][0], schedule, task.on)
                if id(task.op) in prices
                else _least(task, schedule, machine)
            )
    return tuple(means[id(task.op), task.on] for task in schedule.tasks)


def _least(task: Task, schedule: Schedule, machine: Machine) -> Time:
    form = form_of(task.op)
    terms = (form.terms or form.loads)(task.op, machine)
    means = [_mean(term, schedule, task.on) for term in terms]
    return form.least(task.op, machine, np.broadcast_arrays(*means))


def _certain(op: Op) -> bool:
    """Whether an op is the same on all ranks and in all draws."""
    form = form_of(op)
    if isinstance(op, Grouped):
        return False
    sizes = [getattr(op, name) for name in form.sizes]
    return all(size.shape[-1] == 1 and (size.ndim < 2 or size.shape[-2] == 1) for size in sizes)


def floored(schedule: Schedule, node: Node, fabric: tuple[Tier, ...]) -> Priced:
    """Give every task its floor for a duration, on one rank that stands for all, and nothing shared.

    The end of a pass is the longest of many sums of durations, so it is convex and grows with each of them: at floors,
    which are means, it ends no later than in the mean of the draws.
    """
    return Priced(
        schedule=schedule,
        duration=tuple(floor[..., np.newaxis] for floor in floors(schedule, node, fabric)),
        demand=MappingProxyType({}),
        links=MappingProxyType({}),
        slowdown=MappingProxyType({}),
    )


def bound(schedule: Schedule, node: Node, fabric: tuple[Tier, ...]) -> Floor:
    """No plan's mean time over draws is below this: the largest sum of `floors` over any one stream.

    Ops of one tier on several streams are not added up: executors that stretch once come out below that sum (three
    staggered flows: 2.90 against 3.00), and a bound must not exceed what it bounds.

    Returns
    -------
    seconds, shaped (plan), or () for sizes without leading axes
    """
    streams: dict[str, Time] = {"": np.zeros(())}
    for task, floor in zip(schedule.tasks, floors(schedule, node, fabric), strict=True):
        streams[task.stream] = streams.get(task.stream, np.zeros(())) + floor
    return np.asarray(np.maximum.reduce(np.broadcast_arrays(*streams.values())))


def _mean(load: Time, schedule: Schedule, on: str) -> Time:
    """Average over ranks that have a part, the others counting as zero, and over draws."""
    share = schedule.count * schedule.parts[on] if on else schedule.count
    share = share / schedule.count.sum(axis=-1, keepdims=True)
    if load.shape[-1] == 1:
        mean = load[..., 0] * share.sum(axis=-1)
    else:
        mean = (load * share).sum(axis=-1)
    return np.asarray(mean.mean(axis=-1) if mean.ndim >= 2 else mean)

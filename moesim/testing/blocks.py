"""Schedules to try policies on, and what any rearrangement of one must keep."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from moesim.plans.layout import NO_LIMIT, Layout
from moesim.schedules.ops import AllToAll, Elementwise, Gemm, Grouped, Op
from moesim.schedules.schedule import Schedule, Task
from moesim.testing.drawing import seeded

_EXTENSIVE: Mapping[str, tuple[str, ...]] = {
    "Gemm": ("m",),
    "Grouped": ("rows",),
    "Hosted": ("rows",),
    "Attend": ("tokens", "prompts", "pairs", "keys"),
    "Elementwise": ("traffic",),
    "Copy": ("size",),
    "Exchange": ("rows", "tokens"),
    "AllToAll": ("sent", "received"),
    "Reduce": ("size",),
    "Send": ("size",),
    "Host": (),
    "Fixed": ("duration",),
}


def sizes_by_name(*schedules: Schedule) -> dict[str, float]:
    """Total every size that splitting must conserve over some schedules, keyed ``task op size``.

    Examples
    --------
    >>> task = Task(name="pack", stream="compute", op=Elementwise(traffic=np.array([3.0, 4.0])))
    >>> sizes_by_name(Schedule(tasks=(task,), out=(0,)))
    {'pack Elementwise traffic': 7.0}
    """
    totals: defaultdict[str, float] = defaultdict(float)
    for task in (task for schedule in schedules for task in schedule.tasks):
        kind = type(task.op).__name__
        for size in _EXTENSIVE[kind]:
            totals[f"{task.name} {kind} {size}"] += np.sum(getattr(task.op, size)).item()
    return dict(totals)


def check_rearranged(block: Schedule, alternative: Schedule) -> None:
    """Check that a block does its work on its streams, and that each part waits for what it needs."""
    check_order(alternative)
    check_conserved(sizes_by_name(block), sizes_by_name(alternative), "splitting gains or loses rows or bytes")
    assert alternative.groups == block.groups, "the ranks meet otherwise"
    streams = {task.name: task.stream for task in block.tasks}
    assert all(streams[task.name] == task.stream for task in alternative.tasks), "a task has changed its stream"
    before = [_ancestors(alternative, index) for index in range(len(alternative.tasks))]
    for index, task in enumerate(alternative.tasks):
        near = {"experts": "dispatch", "combine": "experts"}.get(task.name)
        if near is not None:
            met = {(alternative.tasks[i].name, alternative.tasks[i].chunk) for i in before[index]}
            assert (near, task.chunk) in met, f"a {task.name} waits for no {near} of its own chunk"
    ended = set(alternative.out).union(*(before[index] for index in alternative.out))
    assert ended == set(range(len(alternative.tasks))), "the result does not wait for all of the work"


def check_conserved(given: Mapping[str, float], found: Mapping[str, float], complaint: str) -> None:
    """Check that totals by name are the same."""
    assert given.keys() == found.keys(), complaint
    assert all(math.isclose(given[key], found[key], rel_tol=1e-12) for key in given), complaint


def check_order(schedule: Schedule) -> None:
    """Check that tasks wait for earlier ones alone."""
    assert schedule.out, "nothing is the result"
    for index, task in enumerate(schedule.tasks):
        assert all(0 <= earlier < index for earlier in task.after), f"{task.name} waits for a later task"


def _ancestors(schedule: Schedule, index: int) -> set[int]:
    found: set[int] = set()
    waiting = list(schedule.tasks[index].after)
    while waiting:
        earlier = waiting.pop()
        if earlier not in found:
            found.add(earlier)
            waiting.extend(schedule.tasks[earlier].after)
    return found


def moe_block(phases: int) -> Schedule:
    """A layer on 4 ranks: attention, pack, dispatch in so many phases, shared expert beside it, experts, combine."""
    exchange = AllToAll(
        tiers=("nvlink",), sent=np.full((1, 4), 4096.0), received=np.full((1, 4), 4096.0), messages=np.full((1, 1), 3.0)
    )
    grouped = Grouped(rows=seeded(5).integers(0, 9, size=(3, 4)), n=np.array([64]), k=np.array([32]), dtype="bf16")
    steps: list[tuple[str, str, Op]] = [
        ("attention", "compute", dense(24)),
        ("pack", "compute", Elementwise(traffic=np.full(4, 512.0))),
        *[("dispatch", "comm", exchange)] * phases,
        ("experts", "compute", grouped),
        ("experts", "compute", Elementwise(traffic=np.full(4, 2048.0))),
        ("experts", "compute", grouped),
        *[("combine", "comm", exchange)] * phases,
        ("unpack", "compute", Elementwise(traffic=np.full(4, 512.0))),
    ]
    tasks = [
        Task(name=name, stream=stream, op=op, after=(i - 1,) if i else (), group="ep" if stream == "comm" else "")
        for i, (name, stream, op) in enumerate(steps)
    ]
    tasks.append(Task(name="shared", stream="side", op=dense(24), after=(0,)))
    last = len(tasks)
    tasks.append(
        Task(name="unpack", stream="compute", op=Elementwise(traffic=np.full(4, 64.0)), after=(last - 2, last - 1))
    )
    return Schedule(tasks=tuple(tasks), out=(last,), groups={"ep": np.zeros(4, dtype=int)}, count=np.ones(4))


def dense_block() -> Schedule:
    """Return a layer with a dense network alone."""
    return Schedule(tasks=(Task(name="mlp", stream="compute", op=dense(24)),), out=(0,), count=np.ones(4))


def dense(rows: int) -> Gemm:
    """Return a small product."""
    return Gemm(m=np.array([rows]), n=np.array([64]), k=np.array([32]), dtype="bf16")


def plain_layout() -> Layout:
    """Lay 12 experts out on 4 ranks, without limits."""
    return Layout(
        expert_of_slot=np.arange(12)[None],
        rank_of_slot=np.arange(12) // 3,
        capacity=np.full((1, 12), NO_LIMIT),
        resident=np.ones((1, 12), dtype=bool),
        r=np.ones(1, dtype=int),
        degree=np.ones(1, dtype=int),
        alltoall=("linear",),
    )

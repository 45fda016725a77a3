"""Tasks and schedules: who does what in which order, how schedules compose, and what running one records.

A stream is one queue of one rank and runs its tasks in the order of the tuple. Ranks meet only in a `group`, a
partition of the ranks by label: ranks of one label start the task together and each ends after its own duration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from moesim.ground.units import BytesPerSecond
from moesim.schedules.ops import Op

_Labels = TypeVar("_Labels", bound=np.ndarray)

ALONE = -1
"""Label of a rank that takes part in a grouped task without waiting for others."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One op on one stream of every rank that has a part in it.

    `name` is one of the named parts of a pass (embed attention gate sizes pack dispatch fetch fetch_late experts
    combine unpack shared mlp norm reduce head send update). `after` holds indices of earlier tasks of the same rank.
    `group` is "" (alone) or a key of `Schedule.groups`; `on` is "" (all ranks) or a key of `Schedule.parts`.
    """

    name: str
    stream: str
    op: Op
    after: tuple[int, ...] = ()
    group: str = ""
    on: str = ""
    layer: int = -1
    chunk: int = 0
    microbatch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Schedule:
    """The tasks of one pass.

    Attributes
    ----------
    tasks : tuple order is issue order
    out : indices of the tasks whose finish is the result (a prefetch is not among them)
    groups : label per rank; `ALONE` for a rank that waits for nobody
    parts : which ranks have a part in a task. A rank without one skips it: its start = finish = the latest of its
        `after`; it neither waits for nor holds the stream, nor counts in the group. A rank with a part and no rows
        pays the launch
    count : real ranks that each row stands for; fold only rows on which every size of every op is equal, or drawn
        loads into rank classes with the heaviest rank kept apart
    """

    tasks: tuple[Task, ...]
    out: tuple[int, ...]
    groups: Mapping[str, Int[np.ndarray, "rank"]] = field(default_factory=lambda: MappingProxyType({}))
    parts: Mapping[str, Bool[np.ndarray, "rank"]] = field(default_factory=lambda: MappingProxyType({}))
    count: Float[np.ndarray, "... rank"] = field(default_factory=lambda: np.ones(1))

    @property
    def rows(self) -> int:
        """Rows of the rank axis."""
        return int(self.count.shape[-1])


def _merged(name: str, schedules: Iterable[Mapping[str, _Labels]]) -> Mapping[str, _Labels]:
    merged: dict[str, _Labels] = {}
    for mapping in schedules:
        for key, labels in mapping.items():
            if key in merged and not np.array_equal(merged[key], labels):
                raise ValueError(f"{name} `{key}` has different labels in the two schedules; rename one of them")
            merged[key] = labels
    return MappingProxyType(merged)


def _joined(schedules: Sequence[Schedule], tasks: Iterable[Task], out: Iterable[int]) -> Schedule:
    return Schedule(
        tasks=tuple(tasks),
        out=tuple(out),
        groups=_merged("group", (s.groups for s in schedules)),
        parts=_merged("part", (s.parts for s in schedules)),
        count=max((s.count for s in schedules), key=lambda count: count.size),
    )


def _at(task: Task, after: tuple[int, ...], shift: int = 0) -> Task:
    """Copy a task with another `after` and layer; written out because a schedule has thousands of them."""
    return Task(
        name=task.name,
        stream=task.stream,
        op=task.op,
        after=after,
        group=task.group,
        on=task.on,
        layer=task.layer + shift,
        chunk=task.chunk,
        microbatch=task.microbatch,
    )


def with_ops(schedule: Schedule, ops: Mapping[int, Op]) -> Schedule:
    """Replace ops, each by its identity; written out because a schedule has thousands of tasks."""
    tasks = tuple(
        Task(
            name=task.name,
            stream=task.stream,
            op=ops[id(task.op)],
            after=task.after,
            group=task.group,
            on=task.on,
            layer=task.layer,
            chunk=task.chunk,
            microbatch=task.microbatch,
        )
        for task in schedule.tasks
    )
    return replace(schedule, tasks=tasks)


def series(schedules: Sequence[Schedule]) -> Schedule:
    """Run schedules one after another: tasks of the next with no `after` wait for what is `out` of the one before.

    Other unfinished tasks of the one before keep only their stream's order, so a background copy is no barrier.

    Raises
    ------
    ValueError
        A group or part of one name has different labels in two of them.
    """
    tasks: list[Task] = []
    out: tuple[int, ...] = ()
    for schedule in schedules:
        offset = len(tasks)
        tasks.extend(_at(task, tuple(i + offset for i in task.after) or out) for task in schedule.tasks)
        out = tuple(i + offset for i in schedule.out) if schedule.tasks else out
    return _joined(schedules, tasks, out)


def then(first: Schedule, second: Schedule) -> Schedule:
    """Run one schedule after another; see `series`."""
    return series((first, second))


def repeat(block: Schedule, times: int) -> Schedule:
    """Run a block several times in a row; the copies share their op objects and are numbered as successive layers."""
    layers = sorted({task.layer for task in block.tasks})
    height = layers[-1] - layers[0] + 1 if layers else 0
    return series(tuple(relayered(block, turn * height) for turn in range(times)))


def relayered(block: Schedule, shift: int) -> Schedule:
    """Return the block with its layer numbers moved by `shift`; ops stay the same objects."""
    if shift == 0:
        return block
    return replace(block, tasks=tuple(_at(task, task.after, shift) for task in block.tasks))


def beside(first: Schedule, second: Schedule) -> Schedule:
    """Run two schedules at once: their tuples are merged in proportion, and both are the result.

    Task i of n stands at (i + 1/2) / n, the first schedule's first on ties.

    Raises
    ------
    ValueError
        A group or part of one name has different labels in the two.
    """
    pair = (first, second)
    order = sorted(
        ((i + 0.5) / len(schedule.tasks), side, i)
        for side, schedule in enumerate(pair)
        for i in range(len(schedule.tasks))
    )
    places: tuple[dict[int, int], dict[int, int]] = ({}, {})
    tasks: list[Task] = []
    for place, (_, side, i) in enumerate(order):
        places[side][i] = place
        task = pair[side].tasks[i]
        tasks.append(_at(task, tuple(places[side][j] for j in task.after)))
    out = [places[side][i] for side, schedule in enumerate(pair) for i in schedule.out]
    return _joined(pair, tasks, out)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Link:
    """A shared link: rank row r uses link `link_of_rank[r]`, on which `members[r]` of its real ranks meet."""

    capacity: BytesPerSecond
    link_of_rank: Int[np.ndarray, "rank"]
    members: Float[np.ndarray, "... rank"]


KIND_OF_OP: Mapping[str, str] = MappingProxyType(
    {
        "Gemm": "compute",
        "Grouped": "compute",
        "Attend": "compute",
        "Elementwise": "compute",
        "Copy": "copy",
        "AllToAll": "collective",
        "Reduce": "collective",
        "Send": "collective",
    }
)
"""Kinds of kernel between which interference is told apart; others neither slow nor are slowed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Priced:
    """A schedule with durations (seconds), demands on links (bytes) and interference; made by `price` alone.

    `duration` holds one array per task, ending in a rank axis of size 1 or `schedule.rows`. `demand[tier]` is laid
    out alike and positive only where the duration is. `slowdown[kind][other]` is how much a kernel of one kind slows
    beside one of the other on the same rank.
    """

    schedule: Schedule
    duration: tuple[Float[np.ndarray, "... #rank"], ...]
    demand: Mapping[str, tuple[Float[np.ndarray, "... #rank"], ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    links: Mapping[str, Link] = field(default_factory=lambda: MappingProxyType({}))
    slowdown: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Records:
    """When each task ran on each rank, in seconds from the start of the pass; made by an executor."""

    start: Float[np.ndarray, "task ... rank"]
    finish: Float[np.ndarray, "task ... rank"]

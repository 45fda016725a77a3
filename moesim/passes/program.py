"""What of a schedule depends on its structure alone, worked out once: who waits for whom, and who may run together.

Sets of tasks are whole numbers used as bitsets: bit i stands for task i.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import or_
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool, Int

from moesim.ground.errors import MoesimError, nearest
from moesim.schedules.schedule import ALONE, Schedule


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """A regular way to meet: rank = (block * size + place) * inner + lane; ranks that differ in place alone meet."""

    size: int
    inner: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crowd:
    """Any other way to meet. Ranks that wait for nobody are left out.

    Attributes
    ----------
    order : the ranks that meet, sorted by label
    begins : where in `order` each label begins
    cell : number of the label at each place of `order`
    """

    order: Int[np.ndarray, "met"]
    begins: Int[np.ndarray, "cell"]
    cell: Int[np.ndarray, "met"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """All of a schedule that decides its order and nothing of its sizes; schedules of one structure share a program.

    The first four have one entry per task; labels and parts are those in use, as bytes.
    """

    streams: tuple[str, ...]
    after: tuple[tuple[int, ...], ...]
    groups: tuple[str, ...]
    on: tuple[str, ...]
    labels: tuple[tuple[str, bytes], ...]
    parts: tuple[tuple[str, bytes], ...]
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Order:
    """What has ended when, on ranks that take part in the same tasks; a skipped task ends with what it comes after.

    Attributes
    ----------
    tasks : the tasks that these ranks have a part in
    ended : for each task, the ones among them that have ended on a rank when it ends there, itself included
    free : for each task with a part, the ones that have ended on a rank when its stream is free for it
    """

    tasks: int
    ended: tuple[int, ...]
    free: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """A compiled structure; a tuple has one entry per task unless it says otherwise.

    Attributes
    ----------
    rows : size of the rank axis
    stream : name of the task's stream
    queued : whether the task must be told to wait for its stream; often what it comes after implies that
    after : what else it must wait for, redundant predecessors dropped
    labels : who meets before it starts, as a label per rank (`ALONE` without a part); None if nobody waits for another
    meeting : the same, in the form that is quickest to evaluate
    part : the ranks that have a part in it; None for all
    ends : tasks that are the last of their streams and decide the end of the pass (one entry per such stream)
    orders : what has ended when (one entry per class of ranks with the same parts)
    """

    rows: int
    stream: tuple[str, ...]
    queued: tuple[bool, ...]
    after: tuple[tuple[int, ...], ...]
    labels: tuple[Int[np.ndarray, "rank"] | None, ...]
    meeting: tuple[Cells | Crowd | None, ...]
    part: tuple[Bool[np.ndarray, "rank"] | None, ...]
    ends: tuple[int, ...]
    orders: tuple[Order, ...]


Labels = Int[np.ndarray, "rank"]
Part = Bool[np.ndarray, "rank"]

_PROGRAMS: WeakKeyDictionary[Schedule, Program] = WeakKeyDictionary()


def compiled(schedule: Schedule) -> Program:
    """Compile a schedule's structure, or find the program of one that was compiled before.

    Raises
    ------
    MoesimError
        The schedule cannot be run; see `check`.
    """
    program = _PROGRAMS.get(schedule)
    if program is None:
        check(schedule)
        program = _PROGRAMS[schedule] = _of(structure(schedule))
    return program


def check(schedule: Schedule) -> None:
    """Refuse a schedule that no executor could run.

    Raises
    ------
    MoesimError
        A task comes after itself or a later one, or is in a group or part that the schedule lacks, or that is not of
        its ranks.
    """
    for name, ranks in (("group", schedule.groups), ("part", schedule.parts)):
        for key, of_rank in ranks.items():
            if of_rank.shape != (schedule.rows,):
                raise MoesimError(
                    f"{name} `{key}` has shape {of_rank.shape}; it must have one entry for each of {schedule.rows} rows"
                )
    for number, task in enumerate(schedule.tasks):
        if any(not 0 <= earlier < number for earlier in task.after):
            raise MoesimError(
                f"task {number} `{task.name}` comes after {task.after}; it can come only after tasks before it"
            )
        for name, key, known in (("group", task.group, schedule.groups), ("part", task.on, schedule.parts)):
            if key and key not in known:
                raise MoesimError(f"task {number} `{task.name}` has no {name} `{key}`; {nearest(key, known)}")


def structure(schedule: Schedule) -> Structure:
    """Take what decides a schedule's order."""
    tasks = schedule.tasks
    groups = sorted({task.group for task in tasks} - {""})
    parts = sorted({task.on for task in tasks} - {""})
    return Structure(
        streams=tuple(task.stream for task in tasks),
        after=tuple(task.after for task in tasks),
        groups=tuple(task.group for task in tasks),
        on=tuple(task.on for task in tasks),
        labels=tuple((key, schedule.groups[key].astype(np.int64).tobytes()) for key in groups),
        parts=tuple((key, schedule.parts[key].astype(np.bool_).tobytes()) for key in parts),
        rows=schedule.rows,
    )


@lru_cache(maxsize=256)
def _of(form: Structure) -> Program:
    groups = {key: np.frombuffer(labels, np.int64) for key, labels in form.labels}
    parts = {key: np.frombuffer(mask, np.bool_) for key, mask in form.parts}
    met = {place: _met(place, groups, parts) for place in set(zip(form.groups, form.on, strict=True))}
    meetings = {place: None if labels is None else _meeting(labels) for place, labels in met.items()}
    places = tuple(zip(form.groups, form.on, strict=True))
    orders = tuple(_order(form, tasks) for tasks in _classes(form, parts))
    waits = [_waits(task, after, orders) for task, after in enumerate(form.after)]
    return Program(
        rows=form.rows,
        stream=form.streams,
        queued=tuple(queued for queued, _ in waits),
        after=tuple(after for _, after in waits),
        labels=tuple(met[place] for place in places),
        meeting=tuple(meetings[place] for place in places),
        part=tuple(None if not on or parts[on].all() else parts[on] for on in form.on),
        ends=_ends(form, orders),
        orders=orders,
    )


def _met(place: tuple[str, str], groups: Mapping[str, Labels], parts: Mapping[str, Part]) -> Labels | None:
    """Labels of the ranks of a group that have a part, or None where no two of them share one."""
    group, on = place
    if not group:
        return None
    labels = np.where(parts[on], groups[group], ALONE) if on else groups[group]
    shared = labels[labels != ALONE]
    return labels if len(np.unique(shared)) < len(shared) else None


def _meeting(labels: Labels) -> Cells | Crowd:
    """Find the quickest form of a partition."""
    first, *rest = np.flatnonzero(labels == labels[0]).tolist()
    cells = Cells(size=1 + len(rest), inner=rest[0] - first if rest else 1)
    return cells if _regular(labels, cells) else _crowd(labels)


def _regular(labels: Labels, cells: Cells) -> bool:
    ranks, rank = len(labels), np.arange(len(labels))
    if labels.min() == ALONE or ranks % (cells.size * cells.inner) or len(np.unique(labels)) != ranks // cells.size:
        return False
    same_cell = rank - rank // cells.inner % cells.size * cells.inner
    return np.array_equal(labels[same_cell], labels)


def _crowd(labels: Labels) -> Crowd:
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] != ALONE]
    _, begins, cell = np.unique(labels[order], return_index=True, return_inverse=True)
    return Crowd(order=order, begins=begins, cell=cell)


def _classes(form: Structure, parts: Mapping[str, Part]) -> tuple[int, ...]:
    """For each way in which ranks take part, the tasks that they take part in."""
    every = (1 << len(form.on)) - 1
    if not parts:
        return (every,)
    tasks_of = {key: sum(1 << task for task, on in enumerate(form.on) if on == key) for key in parts}
    patterns = np.unique(np.stack(list(parts.values())), axis=1).T
    return tuple(
        every & ~sum(bits for bits, has in zip(tasks_of.values(), pattern, strict=True) if not has)
        for pattern in patterns
    )


def _order(form: Structure, tasks: int) -> Order:
    """Follow the tasks of one class through its streams."""
    ended: list[int] = []
    free: list[int] = []
    queue: dict[str, int] = {}
    for task, (stream, after) in enumerate(zip(form.streams, form.after, strict=True)):
        bits = 0
        for earlier in after:
            bits |= ended[earlier]
        takes_part = tasks >> task & 1
        free.append(queue.get(stream, 0) if takes_part else 0)
        if takes_part:
            bits = queue[stream] = bits | free[task] | 1 << task
        ended.append(bits)
    return Order(tasks=tasks, ended=tuple(ended), free=tuple(free))


def _waits(task: int, after: tuple[int, ...], orders: Sequence[Order]) -> tuple[bool, tuple[int, ...]]:
    """Whether a task must be told to wait for its stream, and which of `after` it must be told to wait for."""
    bits = {earlier: tuple(order.ended[earlier] for order in orders) for earlier in after}
    bits[task] = tuple(order.free[task] for order in orders)
    needed = _needed(bits)
    return task in needed, tuple(earlier for earlier in needed if earlier != task)


def _needed(bits: Mapping[int, tuple[int, ...]]) -> list[int]:
    """Drop whatever has ended by then because another has: its set is part of the other's in every class."""
    needed = [key for key, classes in bits.items() if any(classes)]
    for key in tuple(needed):
        others = (bits[other] for other in needed if other != key)
        if any(all(not mine & ~its for mine, its in zip(bits[key], other, strict=True)) for other in others):
            needed.remove(key)
    return needed


def _ends(form: Structure, orders: Sequence[Order]) -> tuple[int, ...]:
    """Find the last tasks of the streams whose ends no other stream's end implies."""
    on: dict[str, int] = {}
    for task, stream in enumerate(form.streams):
        on[stream] = on.get(stream, 0) | 1 << task
    return tuple(
        _needed({bits.bit_length() - 1: tuple(_last(order, bits) for order in orders) for bits in on.values()})
    )


def _last(order: Order, stream: int) -> int:
    """What has ended when the last task of a stream has."""
    tasks = order.tasks & stream
    return order.ended[tasks.bit_length() - 1] if tasks else 0


@lru_cache(maxsize=256)
def beside(program: Program) -> tuple[int, ...]:
    """For each task, the earlier ones that may run on a rank while it does."""
    return tuple(
        _union((order.tasks & ~order.ended[task] & below) for order in program.orders if order.tasks >> task & 1)
        for task, below in enumerate(_below(program))
    )


@lru_cache(maxsize=256)
def across(program: Program, link_of_rank: tuple[int, ...]) -> tuple[int, ...]:
    """For each task, the earlier ones that may run on another rank of the same link while it does.

    A task of ranks that all meet starts after whatever came before it on any of them.
    """
    over: list[int] = []
    queue: dict[str, int] = {}
    together = _together(program, np.array(link_of_rank))
    for task, stream in enumerate(program.stream):
        bits = _union(over[earlier] for earlier in program.after[task])
        if program.part[task] is None:
            bits |= queue.get(stream, 0)
            if program.labels[task] is not None and together[id(program.labels[task])]:
                bits |= _everywhere(program, task)
            queue[stream] = bits
        over.append(bits)
    return tuple(below & ~bits for below, bits in zip(_below(program), over, strict=True))


def _together(program: Program, link_of_rank: Labels) -> dict[int, bool]:
    """Whether, by the identity of their labels, all ranks of each link meet."""
    links = np.unique(link_of_rank)
    return {
        id(labels): all(len(np.unique(labels[link_of_rank == link])) == 1 for link in links) and ALONE not in labels
        for labels in program.labels
        if labels is not None
    }


def _everywhere(program: Program, task: int) -> int:
    """What has ended on every rank that had a part in it when all ranks are ready for a task."""
    every = _union(order.tasks for order in program.orders)
    for order in program.orders:
        every &= order.ended[task] | ~order.tasks
    return every & ~(1 << task)


def tasks_in(bits: int) -> Iterator[int]:
    """List the tasks of a bitset, first to last.

    Examples
    --------
    >>> list(tasks_in(0b1011))
    [0, 1, 3]
    """
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _below(program: Program) -> tuple[int, ...]:
    return tuple((1 << task) - 1 for task in range(len(program.stream)))


def _union(sets: Iterable[int]) -> int:
    return reduce(or_, sets, 0)

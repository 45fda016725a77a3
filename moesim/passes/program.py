"""What of a schedule depends on its structure alone, worked out once: who waits for whom, and who may run together.

Sets of tasks are whole numbers used as bitsets: bit i stands for task i.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool, Int

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
class Program:
    """A compiled structure; a tuple has one entry per task unless it says otherwise.

    Ranks with the same parts are a class. A skipped task counts as ended with what it comes after.

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
    classes : for each class, the tasks in which its ranks have a part
    ended : for each class and task, the tasks with a part that have ended on a rank when the task ends there, itself
        included
    """

    rows: int
    stream: tuple[str, ...]
    queued: tuple[bool, ...]
    after: tuple[tuple[int, ...], ...]
    labels: tuple[Int[np.ndarray, "rank"] | None, ...]
    meeting: tuple[Cells | Crowd | None, ...]
    part: tuple[Bool[np.ndarray, "rank"] | None, ...]
    ends: tuple[int, ...]
    classes: tuple[int, ...]
    ended: tuple[tuple[int, ...], ...]


_PROGRAMS: WeakKeyDictionary[Schedule, Program] = WeakKeyDictionary()


def compile(schedule: Schedule) -> Program:  # noqa: A001 - the design's word; Python's own compiles no schedules
    """Compile a schedule's structure, or find the program of one that was compiled before."""
    program = _PROGRAMS.get(schedule)
    if program is None:
        program = _PROGRAMS[schedule] = _compiled(structure(schedule))
    return program


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
def _compiled(form: Structure) -> Program:
    groups = {key: np.frombuffer(labels, np.int64) for key, labels in form.labels}
    parts = {key: np.frombuffer(mask, np.bool_) for key, mask in form.parts}
    met = {place: _met(place, groups, parts) for place in set(zip(form.groups, form.on, strict=True))}
    meetings = {place: None if labels is None else _meeting(labels) for place, labels in met.items()}
    places = tuple(zip(form.groups, form.on, strict=True))
    classes = _classes(form, parts)
    ended = tuple(_ended(form, real) for real in classes)
    waits = [_waits(form, task, classes, ended) for task in range(len(form.streams))]
    return Program(
        rows=form.rows,
        stream=form.streams,
        queued=tuple(queued for queued, _ in waits),
        after=tuple(after for _, after in waits),
        labels=tuple(met[place] for place in places),
        meeting=tuple(meetings[place] for place in places),
        part=tuple(parts.get(on) for on in form.on),
        ends=_ends(form, classes, ended),
        classes=classes,
        ended=ended,
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
    if ALONE not in labels:
        together = np.flatnonzero(labels == labels[0])
        size, rank = len(together), np.arange(len(labels))
        inner = int(together[1] - together[0]) if size > 1 else 1
        if len(labels) % (size * inner) == 0:
            regular = rank // (size * inner) * inner + rank % inner
            if np.array_equal(np.unique(regular[np.argsort(labels, kind="stable")].reshape(-1, size), axis=1).shape, (len(labels) // size, 1)):
                return Cells(size=size, inner=inner)
    return _crowd(labels)


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


def _ended(form: Structure, real: int) -> tuple[int, ...]:
    """For ranks with a part in `real`: what has ended on a rank when a task ends there."""
    ended: list[int] = []
    queue: dict[str, int] = {}
    for task, (stream, after) in enumerate(zip(form.streams, form.after, strict=True)):
        bits = 0
        for earlier in after:
            bits |= ended[earlier]
        if real >> task & 1:
            bits = queue[stream] = bits | queue.get(stream, 0) | 1 << task
        ended.append(bits)
    return tuple(ended)

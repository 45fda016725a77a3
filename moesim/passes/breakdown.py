"""Where the time of a pass went: for each named part how long it was busy, and how long it was what all waited for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from moesim.ground.units import Seconds
from moesim.schedules.schedule import ALONE, Priced, Records, Schedule

Times = Float[np.ndarray, "task rank"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A stretch of time of a pass's critical path, and the task of which rank it belongs to."""

    task: int
    rank: int
    begin: Seconds
    end: Seconds


def breakdown(priced: Priced, records: Records) -> Mapping[str, tuple[Seconds, Seconds]]:
    """Split the time of a pass over its named parts.

    Returns
    -------
    By name, in order of first use: the busy time of the rank on which it is longest, and the exposed time, for which
    it stood on the critical path. Exposed times add up to the end of the pass. Leading axes are averaged over.
    """
    schedule = priced.schedule
    shape = (len(schedule.tasks), -1, schedule.rows)
    start, finish = records.start.reshape(shape), records.finish.reshape(shape)
    names = dict.fromkeys(task.name for task in schedule.tasks)
    busy = {name: _busy(schedule, name, finish - start) for name in names}
    exposed = dict.fromkeys(names, 0.0)
    for run in range(start.shape[1]):
        for step in critical_path(schedule, finish[:, run]):
            exposed[schedule.tasks[step.task].name] += (step.end - step.begin) / start.shape[1]
    return {name: (busy[name], exposed[name]) for name in names}


def critical_path(schedule: Schedule, finish: Times) -> Iterator[Step]:
    """Walk back from what ended last, through what each task waited for longest, to the beginning.

    A wait belongs to what was waited for, so that the steps join up.
    """
    ahead = _ahead(schedule)
    task, rank = (int(i) for i in np.unravel_index(finish.argmax(), finish.shape))
    end = float(finish[task, rank])
    while end > 0.0:
        before, its_rank, begin = _latest(schedule, ahead, finish, task, rank)
        yield Step(task=task, rank=rank, begin=begin, end=end)
        task, rank, end = before, its_rank, begin


def _busy(schedule: Schedule, name: str, length: Float[np.ndarray, "task run rank"]) -> Seconds:
    """Longest busy time of any rank, averaged over runs."""
    named = [number for number, task in enumerate(schedule.tasks) if task.name == name]
    return float(length[named].sum(axis=0).max(axis=-1).mean())


def _ahead(schedule: Schedule) -> tuple[int, ...]:
    """For each task, the one before it on its stream, or -1."""
    last: dict[str, int] = {}
    ahead = []
    for number, task in enumerate(schedule.tasks):
        ahead.append(last.get(task.stream, -1))
        last[task.stream] = number
    return tuple(ahead)


def _latest(
    schedule: Schedule, ahead: Sequence[int], finish: Times, number: int, rank: int
) -> tuple[int, int, Seconds]:
    """Find what a task on a rank waited for longest: which task, on which rank, until when; at 0, nothing."""
    ranks = _met(schedule, number, rank)
    latest = (number, rank, 0.0)
    for before, its_ranks in _waited_for(schedule, ahead, number, ranks):
        times = finish[before, its_ranks]
        at = int(times.argmax())
        if times[at] > latest[2]:
            latest = (before, int(its_ranks[at]), float(times[at]))
    return latest


def _met(schedule: Schedule, number: int, rank: int) -> Int[np.ndarray, "met"]:
    """Ranks that a task on a rank starts together with, that one first."""
    task, alone = schedule.tasks[number], np.array([rank])
    if not task.group or not _part(schedule, number)[rank]:
        return alone
    labels = schedule.groups[task.group]
    if labels[rank] == ALONE:
        return alone
    others = (labels == labels[rank]) & _part(schedule, number)
    others[rank] = False
    return np.concatenate((alone, np.flatnonzero(others)))


def _part(schedule: Schedule, number: int) -> Bool[np.ndarray, "rank"]:
    on = schedule.tasks[number].on
    return schedule.parts[on] if on else np.ones(schedule.rows, bool)


def _waited_for(
    schedule: Schedule, ahead: Sequence[int], number: int, ranks: Int[np.ndarray, "met"]
) -> Iterator[tuple[int, Int[np.ndarray, "met"]]]:
    """List earlier tasks with the ranks on which they were waited for; on each stream the last one with a part."""
    for before in schedule.tasks[number].after:
        yield before, ranks
    if not _part(schedule, number)[ranks[0]]:
        return
    before = ahead[number]
    while before >= 0 and len(ranks):
        has = _part(schedule, before)[ranks]
        if has.any():
            yield before, ranks[has]
        ranks, before = ranks[~has], ahead[before]

"""The quick executor: one pass in program order over arrays of plans and ranks, and one stretch for what is shared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

import numpy as np
from jaxtyping import Float

from moesim.passes.program import Program, compiled
from moesim.passes.stretch import contention, stretch
from moesim.passes.tape import Times, play, tape
from moesim.schedules.schedule import Priced, Records

CHUNK = 1 << 14
"""Numbers in an array of times beyond which plans are run in several blocks, so that the arrays stay in the cache."""


def timeline(priced: Priced, *, keep: Sequence[int] | None = None, sharing: bool = True) -> Records:
    """Run a priced schedule and record its tasks.

    Leading axes (plans, steps, draws) are independent runs and broadcast.

    Parameters
    ----------
    keep : the tasks to record, in this order; None records all, which costs memory and time where ranks are many
    sharing : False leaves out the stretch for shared links and kernels beside each other: what would happen if every
        task had everything to itself
    """
    program = compiled(priced.schedule)
    durations = _stretched(program, priced) if sharing else priced.duration
    start, finish = _times(program, durations, range(len(durations)) if keep is None else keep)
    return Records(start=start, finish=finish)


def makespan(priced: Priced, *, sharing: bool = True) -> Float[np.ndarray, "..."]:
    """Return the end of the pass in seconds, over the leading axes; nothing else is kept, so it is quicker."""
    program = compiled(priced.schedule)
    lead = leading(priced.duration)
    end = np.empty(lead)
    for block, part in _blocks(priced, lead):
        end[block] = _end(program, _stretched(program, part) if sharing else part.duration)
    return end


def leading(arrays: Sequence[Times]) -> tuple[int, ...]:
    """Shape of the leading axes that arrays ending in a rank axis broadcast to."""
    return np.broadcast_shapes(*{array.shape[:-1] for array in arrays})


def _alike(durations: Sequence[Times]) -> bytes:
    return bytes([duration.shape[-1] == 1 for duration in durations])


def _end(program: Program, durations: Sequence[Times]) -> Times:
    plan = tape(program, _alike(durations), frozenset())
    return play(plan, durations, leading(durations))[plan.end][..., 0]


def _times(program: Program, durations: Sequence[Times], tasks: Sequence[int]) -> tuple[Times, Times]:
    """Start and finish of some tasks, by [task, ..., rank]."""
    plan, lead = tape(program, _alike(durations), frozenset(tasks)), leading(durations)
    registers = play(plan, durations, lead)
    start, finish = (np.empty((len(tasks), *lead, program.rows)) for _ in range(2))
    for at, task in enumerate(tasks):
        for times, register in zip((start, finish), plan.kept[task], strict=True):
            entries = registers[register]
            times[at].reshape(*lead, entries.shape[-1], -1)[...] = entries[..., np.newaxis]
    return start, finish


def _stretched(program: Program, priced: Priced) -> Sequence[Times]:
    """Durations after the stretch: run once as if nothing were shared, and see who met whom."""
    met = contention(priced)
    if not met.tasks:
        return priced.duration
    factor = stretch(priced, met, *_times(program, priced.duration, met.tasks))
    durations = list(priced.duration)
    for at in np.flatnonzero((factor > 1.0).reshape(len(factor), -1).any(axis=1)):
        durations[met.tasks[at]] = durations[met.tasks[at]] * factor[at]
    return durations


def _blocks(priced: Priced, lead: tuple[int, ...]) -> Iterator[tuple[tuple[slice, ...], Priced]]:
    """Cut the longest leading axis so that an array of times stays small; yield each block's place and its runs."""
    size = prod(lead) * priced.schedule.rows
    if size <= CHUNK or max(lead, default=1) == 1:
        yield (), priced
        return
    axis = max(range(len(lead)), key=lead.__getitem__)
    step = max(1, lead[axis] * CHUNK // size)
    for at in range(0, lead[axis], step):
        yield (slice(None),) * axis + (slice(at, at + step),), _block(priced, axis - len(lead), slice(at, at + step))


def _block(priced: Priced, axis: int, block: slice) -> Priced:
    """Take some plans; `axis` counts leading axes from the last, as they broadcast."""
    return replace(
        priced,
        duration=tuple(_cut(duration, axis, block) for duration in priced.duration),
        demand={tier: tuple(_cut(demand, axis, block) for demand in its) for tier, its in priced.demand.items()},
        links={tier: replace(link, members=_cut(link.members, axis, block)) for tier, link in priced.links.items()},
    )


def _cut(array: Times, axis: int, block: slice) -> Times:
    """Cut one leading axis, where the array has it."""
    at = array.ndim - 1 + axis
    if at < 0 or array.shape[at] == 1:
        return array
    return array[(slice(None),) * at + (block,)]

"""A program written out as array operations on few recycled registers, for one choice of what to keep.

A register holds times in seconds over [..., ranks / grain]: `grain` consecutive ranks that always have one time share
an entry, so what is alike on all ranks costs a single number, and what is alike in a tensor-parallel group one number
per group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from itertools import chain
from typing import final

import numpy as np
from jaxtyping import Bool, Float

from moesim.passes.program import Cells, Crowd, Program

Times = Float[np.ndarray, "..."]
Part = Bool[np.ndarray, "rank"]
Operation = Callable[..., object]
"""Reads two registers and writes a third, named `out`."""

NARROW = 32
"""Up to this many ranks a maximum is taken by halving, as NumPy reduces a tiny last axis slowly."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tape:
    """Operations in order, on registers by number: first the tasks' durations, then a zero, then the buffers.

    Attributes
    ----------
    operations : what to do, with two registers to read and one to write
    buffers : entries on the rank axis (one entry per buffer)
    end : register of the end of the pass, of one entry
    kept : registers of start and finish, by task
    """

    operations: tuple[tuple[Operation, int, int, int], ...]
    buffers: tuple[int, ...]
    end: int
    kept: Mapping[int, tuple[int, int]]


def play(tape: Tape, duration: Sequence[Times], lead: tuple[int, ...]) -> list[Times]:
    """Run a tape on the durations of its tasks, broadcast over leading axes; return the registers."""
    registers = [*duration, np.zeros(1), *(np.empty((*lead, entries)) for entries in tape.buffers)]
    for operation, one, other, out in tape.operations:
        operation(registers[one], registers[other], out=registers[out])
    return registers


@lru_cache(maxsize=256)
def tape(program: Program, alike: bytes, kept: frozenset[int]) -> Tape:
    """Write a program out.

    Parameters
    ----------
    alike : for each task, 1 where its duration has one entry for all ranks
    kept : the tasks whose start and finish are wanted besides the end of the pass
    """
    writer = _Writer(program, alike)
    times = {task: writer.run(task, task in kept) for task in range(len(program.stream))}
    end = writer.end()
    return _recycled(writer, end, {task: times[task] for task in kept})


@dataclass(slots=True, eq=False)
class _Value:
    """Times that are worked out when somebody needs them: `source` plus one entry, or the latest of those who meet.

    What is put off is what commutes with a maximum over ranks, so that the maximum is taken first, on fewer entries.
    """

    grain: int
    register: int = -1
    source: _Value | None = None
    plus: int = -1
    cells: Cells | None = None


@final
class _Writer:
    """Writes operations on ever new registers, task by task."""

    def __init__(self, program: Program, alike: bytes) -> None:
        self.program = program
        self.ranks = program.rows
        self.operations: list[tuple[Operation, int, int, int]] = []
        self.grains = [self.ranks if one else 1 for one in alike]
        self.zero = self._new(self.ranks)
        self.free: dict[str, _Value] = {}
        self.finish: list[_Value] = []

    def run(self, task: int, keep: bool) -> tuple[int, int]:
        """Write a task's start and finish; their registers are settled only if it is to be kept."""
        program = self.program
        ready = self._ready(task)
        meeting = program.meeting[task]
        start = ready if meeting is None else self._meet(ready, meeting)
        finish = self._later(start, task)
        queue = finish
        part = program.part[task]
        if part is not None:
            skipped = self._latest([self.finish[earlier] for earlier in program.after[task]])
            before = self.free.get(program.stream[task], self._start())
            start, finish, queue = (
                self._choose(part, start, skipped),
                self._choose(part, finish, skipped),
                self._choose(part, finish, before),
            )
        self.finish.append(finish)
        self.free[program.stream[task]] = queue
        return (self._settled(start), self._settled(finish)) if keep else (-1, -1)

    def end(self) -> int:
        """Write the end of the pass: the latest end of any stream on any rank."""
        everybody = Cells(size=self.ranks, inner=1)
        queues = [self.free[self.program.stream[task]] for task in self.program.ends]
        return self._settled(self._latest([self._meet(queue, everybody) for queue in queues]))

    def _new(self, grain: int) -> int:
        self.grains.append(grain)
        return len(self.grains) - 1

    def _write(self, operation: Operation, one: int, other: int, grain: int) -> int:
        out = self._new(grain)
        self.operations.append((operation, one, other, out))
        return out

    def _start(self) -> _Value:
        return _Value(self.ranks, self.zero)

    def _ready(self, task: int) -> _Value:
        waits = [self.finish[earlier] for earlier in self.program.after[task]]
        if self.program.queued[task]:
            waits.append(self.free[self.program.stream[task]])
        return self._latest(waits)

    def _later(self, start: _Value, task: int) -> _Value:
        """`start` plus the task's duration."""
        if start.register == self.zero:
            return _Value(self.grains[task], task)
        if self.grains[task] == self.ranks:
            return _Value(start.grain, source=start, plus=task)
        return _Value(1, self._write(np.add, self._spread(start, 1), task, 1))

    def _latest(self, values: Iterable[_Value]) -> _Value:
        """Take the latest of several, those of fewest entries first."""
        several = sorted((value for value in values if value.register != self.zero), key=_grain, reverse=True)
        return reduce(self._maximum, several) if several else self._start()

    def _maximum(self, coarse: _Value, fine: _Value) -> _Value:
        if coarse is fine:
            return fine
        grain = fine.grain if coarse.grain % fine.grain == 0 else 1
        one, other = self._spread(coarse, grain), self._spread(fine, grain)
        operation = np.maximum if self.grains[one] == grain else _raised
        return _Value(grain, self._write(operation, one, other, grain))

    def _spread(self, value: _Value, grain: int) -> int:
        """Give every `grain` ranks an entry, unless one entry does for all ranks."""
        register = self._settled(value)
        if value.grain in (grain, self.ranks):
            return register
        return self._write(partial(_repeated, value.grain // grain), register, register, grain)

    def _choose(self, part: Part, those: _Value, others: _Value) -> _Value:
        """Take one value on the ranks with a part and another on the rest."""
        return _Value(1, self._write(partial(_chosen, part), self._spread(those, 1), self._spread(others, 1), 1))

    def _meet(self, ready: _Value, meeting: Cells | Crowd) -> _Value:
        """Take the latest over the ranks that meet, before adding whatever all of them add alike."""
        if isinstance(meeting, Crowd):
            register = self._spread(ready, 1)
            return _Value(1, self._write(partial(_latest_in_crowd, meeting), register, register, 1))
        whole = meeting.size * meeting.inner
        if ready.grain % whole == 0:
            return ready
        added: list[int] = []
        while ready.source is not None and ready.register < 0:
            if ready.cells is None:
                added.append(ready.plus)
            elif not self._covers(meeting, ready.cells):
                break
            ready = ready.source
        if ready.grain % whole:
            ready = _Value(meeting.size if meeting.inner == 1 else 1, source=ready, cells=meeting)
        for plus in reversed(added):
            ready = _Value(ready.grain, source=ready, plus=plus)
        return ready

    def _covers(self, cells: Cells, finer: Cells) -> bool:
        """Whether the latest over `cells` of the latest over `finer` is simply the latest over `cells`."""
        return cells.size == self.ranks or (cells.inner == finer.inner == 1 and cells.size % finer.size == 0)

    def _settled(self, value: _Value) -> int:
        """Write what a value was put off to, and return its register."""
        put_off: list[_Value] = []
        while value.source is not None and value.register < 0:
            put_off.append(value)
            value = value.source
        register = value.register
        for later in reversed(put_off):
            register = later.register = self._write_put_off(later)
        return register

    def _write_put_off(self, value: _Value) -> int:
        source = value.source
        assert source is not None
        if value.cells is None:
            return self._write(np.add, source.register, value.plus, value.grain)
        size, inner = value.cells.size, value.cells.inner
        grain = source.grain if inner == 1 and size % source.grain == 0 else 1
        register = self._spread(source, grain)
        operation: Operation = partial(_latest_in_blocks, size // grain)
        if inner > 1:
            operation = partial(_latest_in_lanes, size, inner)
        elif size == self.ranks and size // grain > NARROW and register > self.zero:
            operation = _latest_of_all
        return self._write(operation, register, register, value.grain)


def _grain(value: _Value) -> int:
    return value.grain


def _raised(one: Times, other: Times, out: Times) -> None:
    """The later of one time and many; NumPy's own maximum is three times slower where a side is broadcast."""
    np.copyto(out, one)
    np.maximum(out, other, out=out)


def _repeated(times: int, one: Times, _: Times, out: Times) -> None:
    out.reshape(*out.shape[:-1], -1, times)[...] = one[..., np.newaxis]


def _chosen(part: Part, those: Times, others: Times, out: Times) -> None:
    np.copyto(out, others)
    np.copyto(out, those, where=part)


def _latest_of_all(one: Times, _: Times, out: Times) -> None:
    """The latest over many ranks."""
    np.maximum.reduce(one, axis=-1, keepdims=True, out=out)


def _latest_in_blocks(size: int, one: Times, _: Times, out: Times) -> None:
    """The latest over every `size` neighbors."""
    times = np.broadcast_to(one, (*out.shape[:-1], one.shape[-1])).reshape(-1)
    while size <= NARROW and size % 2 == 0:
        times, size = np.maximum(times[0::2], times[1::2]), size // 2
    if size == 1:
        out.reshape(-1)[...] = times
    else:
        np.maximum.reduce(times.reshape(-1, size), axis=1, out=out.reshape(-1))


def _latest_in_lanes(size: int, inner: int, one: Times, _: Times, out: Times) -> None:
    """The latest over ranks `inner` apart, `size` of them, given to each."""
    times = np.broadcast_to(one, out.shape).reshape(-1, size, inner)
    out.reshape(times.shape)[...] = np.maximum.reduce(times, axis=1, keepdims=True)


def _latest_in_crowd(crowd: Crowd, one: Times, _: Times, out: Times) -> None:
    """The latest over the ranks of each label; the rest keep their own."""
    np.copyto(out, one)
    out[..., crowd.order] = np.maximum.reduceat(out[..., crowd.order], crowd.begins, axis=-1)[..., crowd.cell]


def _recycled(writer: _Writer, end: int, kept: Mapping[int, tuple[int, int]]) -> Tape:
    """Map ever new registers to few buffers: what is read for the last time leaves its buffer to the next."""
    first = writer.zero + 1
    last_read = {register: at for at, (_, *read, _) in enumerate(writer.operations) for register in read}
    last_read |= dict.fromkeys((end, *chain.from_iterable(kept.values())), len(writer.operations))
    place = dict(enumerate(range(first)))
    idle: dict[int, list[int]] = {}
    buffers: list[int] = []
    operations: list[tuple[Operation, int, int, int]] = []
    for at, (operation, one, other, out) in enumerate(writer.operations):
        entries = writer.ranks // writer.grains[out]
        over = [r for r in dict.fromkeys((one, other)) if r >= first and last_read[r] == at]
        # NumPy's own functions may write where they read; the others read on after the first write.
        if isinstance(operation, np.ufunc):
            _lay_down(writer, over, place, idle)
        if not idle.get(entries):
            idle.setdefault(entries, []).append(first + len(buffers))
            buffers.append(entries)
        place[out] = idle[entries].pop()
        if not isinstance(operation, np.ufunc):
            _lay_down(writer, over, place, idle)
        operations.append((operation, place[one], place[other], place[out]))
    settled = {task: (place[start], place[finish]) for task, (start, finish) in kept.items()}
    return Tape(operations=tuple(operations), buffers=tuple(buffers), end=place[end], kept=settled)


def _lay_down(writer: _Writer, over: Iterable[int], place: Mapping[int, int], idle: dict[int, list[int]]) -> None:
    for register in over:
        idle.setdefault(writer.ranks // writer.grains[register], []).append(place[register])

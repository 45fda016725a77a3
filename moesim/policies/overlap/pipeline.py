"""Pipelined overlap: the experts' work is cut into chunks, and one chunk communicates while another computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from moesim.ground.errors import PolicyError
from moesim.plans.layout import NO_LIMIT, Layout
from moesim.schedules.schedule import Schedule, Task

_ADAPTIVE = (1, 2, 4, 8)

Unit = int | tuple[int, int, str]
"""What is issued together: one task that stays whole (its index), or one link (layer, microbatch, name) of a chain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Cut dispatch, what lies between, and combine into `degree` chunks; nothing else is cut.

    All dispatches are issued first, then chunk by chunk what is between, then all combines: so no dispatch waits
    behind a combine that isn't ready (Hwang et al., "Tutel", MLSys 2023, adaptive pipelining).

    Attributes
    ----------
    degree : chunks; several are alternatives, and ``adaptive`` stands for Tutel's 1, 2, 4 and 8
    """

    halves: ClassVar[int] = 1

    degree: int | tuple[int, ...] | Literal["adaptive"] = 2

    def __post_init__(self) -> None:
        """Check the range."""
        if not self.degrees or min(self.degrees) < 1:
            raise ValueError(f"degree = {self.degree}; give 1 or more chunks")

    @property
    def degrees(self) -> tuple[int, ...]:
        """The alternatives."""
        if isinstance(self.degree, int):
            return (self.degree,)
        return _ADAPTIVE if self.degree == "adaptive" else self.degree

    def block(self, block: Schedule, layout: Layout) -> tuple[Schedule, ...]:
        """Return one schedule per degree; a block without an exchange is the same in each.

        Raises
        ------
        PolicyError
            Every degree is above the capacity, so that chunks would be empty.
        """
        fault = self.fault(int(layout.capacity.max(initial=0)) or NO_LIMIT)
        if fault:
            raise PolicyError(f"pipeline {fault}")
        return tuple(chunked(block, degree) for degree in self.degrees)

    def fault(self, rows: int) -> str:
        """Say why a capacity of so many rows cannot be cut, and a remedy; nothing where it can."""
        degree = min(self.degrees)
        if degree <= rows:
            return ""
        return f"cuts a capacity of {rows} rows into {degree} chunks; give a degree of at most {rows}"

    def whole(self, halves: tuple[Schedule, ...]) -> Schedule:
        """Return the only sub-batch."""
        (only,) = halves
        return only


policy = Pipeline


def chunked(block: Schedule, degree: int) -> Schedule:
    """Cut every chain of dispatch, between and combine into `degree` chunks and issue them as `Pipeline` says."""
    link_of_task = _links(block.tasks)
    if degree == 1 or not link_of_task:
        return block
    order = _order(block.tasks, link_of_task, degree)
    place = {piece: position for position, piece in enumerate(order)}
    ops = {index: block.tasks[index].op.split(degree) for index in link_of_task}

    def pieces(earlier: int, index: int, chunk: int) -> tuple[int, ...]:
        """Find what a piece of task `index` waits for: the same chunk of its own chain, else all of it."""
        link = link_of_task.get(earlier)
        if link is None:
            return (place[earlier, 0],)
        if link[:2] == link_of_task.get(index, ())[:2]:
            return (place[earlier, chunk],)
        return tuple(place[earlier, each] for each in range(degree))

    def cut(index: int, chunk: int) -> Task:
        task = block.tasks[index]
        after = tuple(piece for earlier in task.after for piece in pieces(earlier, index, chunk))
        if index not in link_of_task:
            return replace(task, after=after)
        return replace(task, after=after, op=ops[index][chunk], chunk=chunk)

    chunks = range(degree)
    out = [place[i, c] for i in block.out for c in (chunks if i in link_of_task else (0,))]
    return replace(block, tasks=tuple(cut(index, chunk) for index, chunk in order), out=tuple(out))


def _links(tasks: Sequence[Task]) -> dict[int, tuple[int, int, str]]:
    """Find each chain's tasks: its dispatches, its combines, and all that leads from the one to the other."""
    ends = {"dispatch": set[tuple[int, int]](), "combine": set[tuple[int, int]]()}
    for task in tasks:
        if task.name in ends:
            ends[task.name].add((task.layer, task.microbatch))
    links: dict[int, tuple[int, int, str]] = {}
    for layer, microbatch in sorted(ends["dispatch"] & ends["combine"]):
        for i in _between(tasks, layer, microbatch):
            name = tasks[i].name if tasks[i].name in ends else "between"
            links[i] = (layer, microbatch, name)
    return links


def _between(tasks: Sequence[Task], layer: int, microbatch: int) -> list[int]:
    """List the tasks that follow from a chain's dispatches and lead to its combines, both ends included."""

    def named(index: int, name: str) -> bool:
        task = tasks[index]
        return (task.name, task.layer, task.microbatch) == (name, layer, microbatch)

    follows: set[int] = set()
    for i, task in enumerate(tasks):
        if named(i, "dispatch") or not follows.isdisjoint(task.after):
            follows.add(i)
    leads: set[int] = set()
    for i in reversed(range(len(tasks))):
        if named(i, "combine") or i in leads:
            leads.update((i, *tasks[i].after))
    return sorted(follows & leads)


def _order(tasks: Sequence[Task], link_of_task: dict[int, tuple[int, int, str]], degree: int) -> list[tuple[int, int]]:
    """List (task, chunk) in the order of issue: a link at its first task's turn, all of its chunks one by one."""
    members: dict[Unit, list[int]] = {}
    for i in range(len(tasks)):
        members.setdefault(link_of_task.get(i, i), []).append(i)
    order: list[tuple[int, int]] = []
    issued: set[Unit] = set()

    def issue(unit: Unit) -> None:
        if unit in issued:
            return
        issued.add(unit)
        for needed in (earlier for i in members[unit] for earlier in tasks[i].after):
            issue(link_of_task.get(needed, needed))
        chunks = range(1 if isinstance(unit, int) else degree)
        order.extend((i, chunk) for chunk in chunks for i in members[unit])

    for unit in list(members):
        issue(unit)
    return order

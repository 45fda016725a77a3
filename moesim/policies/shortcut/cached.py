"""Cached assignments: experts start on last epoch's assignments, and the gate runs beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from moesim.plans.layout import Layout
from moesim.schedules.schedule import Schedule, Task
from moesim.world.model import Moe


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """Let nothing but the last step of a layer wait for its gate (DynaMoE, assignment caching).

    The gate moves to a stream of its own, as if it ran on ranks of its own: pack, exchange and experts do without it,
    and its weights are needed when results are unpacked. Tokens whose cached experts are not those the gate would have
    chosen are computed by the cached ones, so the model is changed.
    """

    changes_model: ClassVar[bool] = True
    joins: ClassVar[bool] = False

    def mixture(self, moe: Moe) -> Moe:
        """Return the mixture."""
        return moe

    def __call__(self, block: Schedule, layout: Layout) -> tuple[Schedule, ...]:
        """Return the block with its gate aside."""
        gates = [i for i, task in enumerate(block.tasks) if task.name == "gate"]
        ends = [i for i, task in enumerate(block.tasks) if task.name == "unpack"]
        if not gates or not ends:
            return (block,)
        return (replace(block, tasks=tuple(_aside(block.tasks, gates, ends[-1]))),)


policy = Cached


def _aside(tasks: tuple[Task, ...], gates: list[int], end: int) -> list[Task]:
    """Give the gate its own stream; what waited for it waits for what it waited for, and the end for it as well."""
    source = tasks[gates[0]].after
    moved = []
    for index, task in enumerate(tasks):
        if index in gates:
            moved.append(replace(task, stream="side"))
            continue
        after = {i for earlier in task.after for i in (source if earlier in gates else (earlier,))}
        moved.append(replace(task, after=tuple(sorted(after | ({gates[-1]} if index == end else set())))))
    return moved

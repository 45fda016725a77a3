"""Writing a block of tasks in order: each task waits for the one before unless told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from moesim.schedules.ops import Op
from moesim.schedules.schedule import Schedule, Task


@dataclass(slots=True, kw_only=True)
class Chain:
    """A block being written; `tail` is what the next task waits for."""

    layer: int
    groups: Mapping[str, Int[np.ndarray, "rank"]]
    count: Float[np.ndarray, "... rank"]
    tasks: list[Task] = field(default_factory=list)
    tail: tuple[int, ...] = ()

    def add(self, name: str, op: Op, *, stream: str = "compute", group: str = "") -> int:
        """Append a task that waits for the tail, make it the tail, and return its index."""
        self.tasks.append(Task(name=name, stream=stream, op=op, after=self.tail, group=group, layer=self.layer))
        index = len(self.tasks) - 1
        self.tail = (index,)
        return index

    def schedule(self) -> Schedule:
        """Return what was written; the tail is its result. Only groups that some task meets in are kept."""
        used = {task.group for task in self.tasks} - {""}
        return Schedule(
            tasks=tuple(self.tasks),
            out=self.tail,
            groups={key: self.groups[key] for key in sorted(used)},
            count=self.count,
        )

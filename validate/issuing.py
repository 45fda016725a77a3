"""Eager launches: a host issues one operator after the other, and a device idles until it has one.

Operators are counted as plain PyTorch modules have them; what a host takes for one, Python included, is a case's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from moesim.ground.units import Seconds
from moesim.schedules.ops import Attend, Gemm, Grouped, fixed
from moesim.schedules.schedule import Schedule, Task

ATTENTION = 11
"""Operators of attention between its projections: scale, three layouts by head, two products, a mask, the softmax in
fp32 and back, the layout by token."""

PROJECTIONS = 3
"""Products that make queries, keys and values, which schedules have as one."""

PARTS: Mapping[str, int] = MappingProxyType({"norm": 2, "gate": 36})
"""Operators of other parts, where not 1: residual and norm; a gate for two experts (microsoft/DeepSpeed,
deepspeed/moe/sharded_moe.py, `top2gating`)."""


def issued(schedule: Schedule, launch: Seconds) -> Schedule:
    """Put a host beside a schedule that takes `launch` for every operator of every task, in order.

    A task begins once its first operator is issued; the next one's first comes after all of its own. The host waits for
    the device only where it reads the sizes of an uneven exchange back.
    """
    slots = {task.layer: int(task.op.rows.shape[0]) for task in schedule.tasks if isinstance(task.op, Grouped)}
    tasks: list[Task] = []
    place: list[int] = []
    before: tuple[int, ...] = ()
    left = 0
    for task in schedule.tasks:
        call = Task(name="launch", stream="launch", op=fixed(launch * (left + 1)), after=before, layer=task.layer)
        here = len(tasks)
        tasks += [call, replace(task, after=(*(place[each] for each in task.after), here))]
        place.append(here + 1)
        before = (here, here + 1) if task.name == "sizes" else (here,)
        left = operators(task, slots.get(task.layer, 1)) - 1
    return replace(schedule, tasks=tuple(tasks), out=tuple(place[each] for each in schedule.out))


def operators(task: Task, slots: int) -> int:
    """Count the operators of a task; experts of a gpu, `slots` of them, are run one after the other.

    Examples
    --------
    >>> operators(Task(name="norm", stream="compute", op=fixed(0.0)), 4)
    2
    >>> operators(Task(name="experts", stream="compute", op=fixed(0.0)), 4)
    4
    """
    if task.name == "experts":
        return slots
    if isinstance(task.op, Attend):
        return ATTENTION
    if task.name == "attention" and isinstance(task.op, Gemm) and _widens(task.op):
        return PROJECTIONS
    return 1 if isinstance(task.op, Gemm) else PARTS.get(task.name, 1)


def _widens(op: Gemm) -> bool:
    """Tell a product that makes queries, keys and values at once."""
    return float(op.n.max()) > float(op.k.max())

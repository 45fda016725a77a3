"""The backward pass of a schedule: its mirror image, with the ops that gradients take.

A product y = x w becomes two: the gradient of x, on the critical path, and that of w, which nothing waits for. A
collective becomes its adjoint (reduce-scatter and all-gather swap), an exchange runs the other way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from moesim.schedules.ops import AllToAll, Attend, Elementwise, Gemm, Grouped, Op, Reduce
from moesim.schedules.schedule import Schedule, Task, series

_ADJOINT = {
    "all_reduce": "all_reduce",
    "reduce_scatter": "all_gather",
    "all_gather": "reduce_scatter",
    "all_to_all": "all_to_all",
    "dispatch": "combine",
    "combine": "dispatch",
    "hierarchical": "hierarchical",
}


def with_backward(forward: Schedule, again: Callable[[Task], bool] | None = None) -> Schedule:
    """Append the backward pass to a forward pass; its result is all gradients.

    `again` says which tasks of the forward are run once more before it, as they were not kept.
    """
    return series((forward, backward_of(forward, again)))


def backward_of(forward: Schedule, again: Callable[[Task], bool] | None = None) -> Schedule:
    """Write the backward pass of a forward pass alone, what it has to run again first."""
    tasks: list[Task] = []
    followers = _followers(forward)
    input_gradient: dict[int, int] = {}
    out: list[int] = []
    ops: dict[int, tuple[Op, ...]] = {}
    for index in reversed(range(len(forward.tasks))):
        task = forward.tasks[index]
        after = tuple(input_gradient[follower] for follower in followers[index])
        for place, op in enumerate(ops.setdefault(id(task.op), gradients(task.op))):
            tasks.append(replace(task, op=op, after=after))
            if place == 0:
                input_gradient[index] = len(tasks) - 1
            else:
                out.append(len(tasks) - 1)
        if not task.after:
            out.append(input_gradient[index])
    mirrored = replace(forward, tasks=tuple(tasks), out=tuple(out))
    return mirrored if again is None else series((subset(forward, again), mirrored))


def weight_gradients(forward: Schedule) -> Schedule:
    """Write the part of a backward pass that nothing waits for but the optimizer, by itself."""
    ops: dict[int, tuple[Op, ...]] = {}
    tasks = [
        replace(task, op=op, after=())
        for task in forward.tasks
        for op in ops.setdefault(id(task.op), gradients(task.op))[1:]
    ]
    return replace(forward, tasks=tuple(tasks), out=tuple(range(len(tasks))))


def subset(schedule: Schedule, wanted: Callable[[Task], bool]) -> Schedule:
    """Keep some tasks; each waits for the nearest ones kept before it."""
    tasks: list[Task] = []
    stands_for: list[tuple[int, ...]] = []
    for task in schedule.tasks:
        before = tuple(dict.fromkeys(index for each in task.after for index in stands_for[each]))
        if wanted(task):
            tasks.append(replace(task, after=before))
            before = (len(tasks) - 1,)
        stands_for.append(before)
    out = tuple(dict.fromkeys(index for each in schedule.out for index in stands_for[each]))
    return replace(schedule, tasks=tuple(tasks), out=out)


def _followers(schedule: Schedule) -> list[list[int]]:
    """For each task, the tasks that wait for it."""
    followers: list[list[int]] = [[] for _ in schedule.tasks]
    for index, task in enumerate(schedule.tasks):
        for before in task.after:
            followers[before].append(index)
    return followers


def gradients(op: Op) -> tuple[Op, ...]:
    """Return the ops of an op's backward: the gradient of its input first, then that of its weights if it has any.

    A norm or an activation reads its input and the incoming gradient and writes one: half as much traffic again.
    """
    match op:
        case Gemm():
            return replace(op, n=op.k, k=op.n), replace(op, m=op.k, k=op.m)
        case Grouped():
            return replace(op, n=op.k, k=op.n), op
        case Attend():
            return (replace(op, phase="backward"),)
        case Elementwise():
            return (replace(op, traffic=op.traffic * 1.5),)
        case AllToAll():
            return (replace(op, sent=op.received, received=op.sent, way=_ADJOINT[op.way]),)
        case Reduce():
            return (replace(op, form=_ADJOINT[op.form]),)
        case _:
            return (op,)

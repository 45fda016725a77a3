"""Taking a block apart into its routed stream and its backbone, and running the one beside the other.

The routed stream of a MoE layer is gate, pack, exchange, experts, the exchange back and unpack; the backbone is all
that goes on without it: attention, dense networks, shared experts. Compute kernels never run beside each other, so the
experts stand at one place among the backbone's operators; only communication and copies hide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from moesim.schedules.schedule import Schedule, Task

EARLY = ("gate", "sizes", "pack", "dispatch", "prefetch", "fetch", "rows_out", "host_experts", "rows_in")
LAST = ("experts", "combine", "unpack")
"""Those that compute once rows have arrived, and what follows: the others are issued as early as may be."""
ROUTED = EARLY + LAST
"""Names of the tasks of a routed stream."""
OPERATORS = ("attention", "mlp", "shared")
"""Names of the backbone's operators; norms go with the operator after them, collectives with the one before."""

COPY = -1
"""A copy of task i is numbered `COPY` - i."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parted:
    """A block taken apart; tasks by their index.

    Attributes
    ----------
    operators : the backbone in order, each operator the tasks that make it up
    names : (layer, name) of each operator
    norm : the norm before the gate, which the routed stream needs a copy of; empty where there is none
    routed : the routed stream, in order
    tail : what follows both, such as the collective that gathers the layer's output
    """

    operators: tuple[tuple[int, ...], ...]
    names: tuple[tuple[int, str], ...]
    norm: tuple[int, ...]
    routed: tuple[int, ...]
    tail: tuple[int, ...]


def parted(block: Schedule) -> Parted | None:
    """Take a block apart; None where it has no routed stream, or nothing besides it."""
    tasks = block.tasks
    home = next((task.layer for task in tasks if task.name == "experts"), None)
    routed = [i for i, task in enumerate(tasks) if task.layer == home and task.name in ROUTED]
    if not routed:
        return None
    own = set(routed)
    last = max(i for i in routed if tasks[i].name == "unpack") if "unpack" in _names(tasks, routed) else routed[-1]
    tail = tuple(i for i in range(last + 1, len(tasks)) if i not in own and tasks[i].name not in OPERATORS)
    norm = tuple(i for i in tasks[routed[0]].after if tasks[i].name == "norm")
    backbone = [i for i in range(len(tasks)) if i not in own and i not in tail]
    runs = list(_runs(tasks, backbone))
    if not runs:
        return None
    return Parted(
        operators=tuple(run for _, run in runs),
        names=tuple(name for name, _ in runs),
        norm=norm,
        routed=tuple(routed),
        tail=tail,
    )


def _names(tasks: Sequence[Task], some: Sequence[int]) -> set[str]:
    return {tasks[i].name for i in some}


def _runs(tasks: Sequence[Task], backbone: Sequence[int]) -> Iterator[tuple[tuple[int, str], tuple[int, ...]]]:
    """Group the backbone's tasks into operators; a norm that no operator follows is left out."""
    run: list[int] = []
    waiting: list[int] = []
    name: tuple[int, str] | None = None
    for i in backbone:
        here = (tasks[i].layer, tasks[i].name)
        if tasks[i].name == "norm":
            waiting.append(i)
        elif tasks[i].name in OPERATORS and (here != name or waiting):
            if name is not None:
                yield name, tuple(run)
            run, name, waiting = [*waiting, i], here, []
        else:
            run.append(i)
    if name is not None:
        yield name, tuple(run)


def beside_backbone(block: Schedule, parts: Parted, tap: int, slot: int) -> Schedule:
    """Start the routed stream after `tap` of the backbone's operators, and its experts after `slot` of them.

    The stream reads what the backbone has computed by the tap. Gate, pack and exchange are issued there, the experts
    and the exchange back at their slot, unpack after the whole backbone.
    """
    names = {i: block.tasks[i].name for i in parts.routed}
    early = tuple(i for i in parts.routed if names[i] not in LAST)
    late = tuple(i for i in parts.routed if names[i] in LAST and names[i] != "unpack")
    ends = tuple(i for i in parts.routed if names[i] == "unpack")
    again = tap < _home(parts)
    before = () if again else parts.norm
    operators = [tuple(i for i in operator if i not in before) for operator in parts.operators]
    head = (*sum(operators[:tap], ()), *(COPY - i for i in parts.norm if again), *before, *early)
    order = (*head, *sum(operators[tap:slot], ()), *late, *sum(operators[slot:], ()), *ends, *parts.tail)
    source = operators[tap - 1][-1:] if tap else ()
    return _reordered(block, parts, order, source)


def _home(parts: Parted) -> int:
    """Operators that come before the routed stream in the block as it was lowered."""
    return sum(operator[-1] < parts.routed[0] for operator in parts.operators)


def _reordered(block: Schedule, parts: Parted, order: Sequence[int], source: tuple[int, ...]) -> Schedule:
    """Issue tasks in a new order; each stream waits for itself alone, the tail for both.

    A negative number is a copy of the task `COPY` minus it; `source` is what the routed stream reads.
    """
    place = {task: position for position, task in enumerate(order)}
    routed, tail = set(parts.routed), set(parts.tail)
    backbone = {i for i in order if i >= 0} - routed - tail
    end = max(place[i] for i in backbone)
    copied = tuple(i for i in order if i < 0)
    first = copied or tuple(i for i in parts.norm if i in place) or source

    def near(index: int, kind: set[int]) -> set[int]:
        """Find the nearest tasks of one stream that a task waits for, through those of the other."""
        found: set[int] = set()
        for earlier in block.tasks[index].after:
            found |= {earlier} if earlier in kind else near(earlier, kind)
        return found

    def after(index: int) -> set[int]:
        if index in copied:
            return {place[i] for i in source}
        if index in routed:
            return {place[i] for i in near(index, routed) or first}
        if index in tail:
            return {place[i] for i in near(index, tail)} or {end, place[parts.routed[-1]]}
        return {place[i] for i in near(index, backbone)}

    tasks = tuple(
        replace(block.tasks[index if index >= 0 else COPY - index], after=tuple(sorted(after(index))))
        for index in order
    )
    out = (place[parts.tail[-1]],) if parts.tail else tuple(sorted({end, place[parts.routed[-1]]}))
    return replace(block, tasks=tasks, out=out)

"""One run over the points of a group: visit by visit, each line written before the next point is touched."""

from __future__ import annotations

import gc
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed as dist

from moesim.ground.errors import MoesimError

from .machine import Clocks, Speed
from .operation import Operation
from .pieces.bench import Bench, Inputs
from .progress import Progress
from .raw import Line, all_times, key_of, quantile, spread
from .timing import Timing, timed
from .writer import Unfinished, Writer

VISITS = 3
"""Times that a point is measured afresh, minutes apart, where the budget allows: drift must show as spread."""
EARLY = 8
"""Points of an operation that are visited again when half of all have been: their spread is known on any budget."""
OVERRUN = 1.5
"""Times its budget that a group may take to visit every operation's first point."""


class DeviceLost(Unfinished):
    """The device answers nothing any more in this process; a new process can go on."""


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """Measures points and appends them to a raw file; ranks that measure together agree on each step.

    Attributes
    ----------
    bench : where cases are set up
    speed : how fast the device is, roughly
    writer : of the raw file; None on ranks other than the first
    done : visits in the file by point; a point that failed counts as done
    spent : seconds that each point in the file took to measure
    """

    bench: Bench
    speed: Speed
    writer: Writer | None
    done: Counter[tuple[object, ...]]
    spent: dict[tuple[object, ...], float]
    clocks: Clocks
    failures: list[str] = field(default_factory=list)

    @classmethod
    def resumed(cls, bench: Bench, speed: Speed, writer: Writer | None) -> Session:
        """Begin where the raw file ends."""
        lines = _agreed_lines(writer, bench)
        done: Counter[tuple[object, ...]] = Counter()
        spent: dict[tuple[object, ...], float] = {}
        for line in lines:
            done[key_of(line)] += 1 if "seconds" in line else VISITS
            spent[key_of(line)] = spent.get(key_of(line), 0.0) + line.get("took", 0.0)
        return cls(bench=bench, speed=speed, writer=writer, done=done, spent=spent, clocks=Clocks(bench.device))

    def run(self, operations: Sequence[Operation], budget: float, points: int) -> float:
        """Measure points until all visits are done or the budget is spent, and return the seconds spent.

        For every operation's first point the budget may be overrun somewhat.

        Parameters
        ----------
        operations : of one group
        budget : s, for all runs on this file together
        points : per operation, where it asks for 64; in proportion where it asks for other numbers
        """
        steps = list(_steps(operations, self.speed, self.bench, points / 64))
        keys = {self._key(operation, point) for operation, point, visit in steps}
        before = sum(seconds for key, seconds in self.spent.items() if key in keys)
        progress = Progress(
            total=len(steps),
            budget=budget,
            before=before,
            shown=self.writer is not None,
            relayed=self.bench.ranks > 1,
        )
        for number, (operation, point, visit) in enumerate(steps):
            first = number < len(operations)
            if not self._go_on(progress.spent < (OVERRUN if first else 1) * budget):
                break
            if self.done[self._key(operation, point)] <= visit:
                self._visit(operation, point, visit)
            progress.show(operation, number + 1)
        progress.end()
        return progress.spent

    def _key(self, operation: Operation, point: Inputs) -> tuple[object, ...]:
        return key_of(self._named(operation, point))

    def _named(self, operation: Operation, point: Inputs) -> dict[str, Any]:
        return {
            "operation": operation.name,
            "dtype": operation.dtype,
            "kernel": operation.kernel,
            "inputs": {name: float(value) for name, value in point.items()},
            "ranks": self.bench.ranks,
        }

    def _go_on(self, wanted: bool) -> bool:
        """Ask rank 0 whether to go on."""
        return _all_agree(wanted or self.bench.rank > 0, self.bench)

    def _visit(self, operation: Operation, point: Inputs, visit: int) -> None:
        """Measure one point and write its line, or why it could not be."""
        begun = time.perf_counter()
        line = self._named(operation, point) | {"visit": visit}
        try:
            line |= self._measured(operation, point)
        except Unfinished:
            raise
        except Exception as fault:  # whatever torch or a kernel says: one point is lost, not the run
            line["error"] = _reason(fault)
            lost = _lost(fault)
        else:
            lost = False
        if "error" in line and not lost:
            self.free()
        line["took"] = round(time.perf_counter() - begun, 4)
        self._keep(line)
        if lost:
            raise DeviceLost(f"{operation.name}: {line['error']}; finished samples are kept")

    def _measured(self, operation: Operation, point: Inputs) -> dict[str, Any]:
        """Make a point ready on all ranks, then time it."""
        fault: Exception | None = None
        try:
            case = operation.case(point, operation.dtype, self.bench)
            if self.bench.ranks > 1 and operation.group != "collectives":
                case.call(*case.args())  # a kernel that fails must do so before ranks wait for each other in it
        except Exception as caught:  # told to the other ranks first, which would wait for this one
            fault = caught
        if not _all_agree(fault is None, self.bench):
            raise fault or MoesimError("another rank could not make the point ready")
        try:
            with torch.no_grad():
                timing = timed(case, self.bench)
        except Exception as caught:
            if self.bench.ranks == 1:
                raise
            raise Unfinished(f"{operation.name}: {_reason(caught)}") from caught  # the other ranks wait for this one
        return _fields(timing) | {"device": self.bench.device.type, "clocks": self.clocks.now()}

    def free(self) -> None:
        """Give back all memory: the next point, or another process, may need it."""
        self.bench.pool.clear()
        gc.collect()
        if self.bench.device.type == "cuda":
            torch.cuda.empty_cache()

    def _keep(self, line: dict[str, Any]) -> None:
        key = key_of(line)
        self.done[key] += 1 if "seconds" in line else VISITS
        if "error" in line:
            self.failures.append(f"{line['operation']} {line['dtype']} {line['kernel']}: {line['error']}")
        if self.writer is not None:
            self.writer.append(line)


def _steps(
    operations: Sequence[Operation], speed: Speed, bench: Bench, scale: float
) -> Iterator[tuple[Operation, Inputs, int]]:
    """Yield every visit, operations by turns: a budget that runs out cuts all of them alike."""
    chosen = [(operation, operation.points(speed, bench, scale)) for operation in operations]
    for index, visit in _rounds(max((len(points) for _, points in chosen), default=0)):
        for operation, points in chosen:
            if index < len(points):
                yield operation, points[index], visit


def _rounds(number: int) -> Iterator[tuple[int, int]]:
    """Yield point and visit: half of the points, the early ones again, the other half, and all that is left."""
    half, early = number // 2, min(EARLY, number // 2)
    yield from ((index, 0) for index in range(half))
    yield from ((index, 1) for index in range(early))
    yield from ((index, 0) for index in range(half, number))
    yield from ((index, 1) for index in range(early, number))
    yield from ((index, visit) for visit in range(2, VISITS) for index in range(number))


def _fields(timing: Timing) -> dict[str, Any]:
    """Return a timing as it is written; five digits are more than any clock's worth.

    Raises
    ------
    MoesimError
        A time is not a positive number.
    """
    seconds, alone = ([float(f"{one:.5g}") for one in times] for times in (timing.seconds, timing.alone))
    if not all_times(seconds) or (alone and not all_times(alone)):
        raise MoesimError("a time is not a positive number")
    fields: dict[str, Any] = {
        "seconds": seconds,
        "median": float(f"{quantile(seconds, 0.5):.5g}"),
        "spread": float(f"{spread(seconds):.3g}"),
    }
    if alone:
        fields["alone"] = alone
    if timing.issue is not None and math.isfinite(timing.issue):
        fields["issue"] = float(f"{timing.issue:.5g}")
    return fields


def _reason(fault: Exception) -> str:
    """Say in one line what went wrong."""
    if isinstance(fault, (torch.cuda.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(fault):
        return "out of memory"
    first = str(fault).strip().splitlines()
    return f"{type(fault).__name__}: {first[0] if first else ''}"[:200]


def _lost(fault: Exception) -> bool:
    """Tell whether a fault has made the device useless for this process."""
    return "CUDA error" in str(fault) and not isinstance(fault, torch.cuda.OutOfMemoryError)


def _all_agree(wanted: bool, bench: Bench) -> bool:
    """Tell whether every rank wants it."""
    if bench.ranks == 1:
        return wanted
    votes = torch.tensor([int(wanted)])
    dist.all_reduce(votes, op=dist.ReduceOp.MIN, group=bench.talk)
    return bool(votes[0])


def _agreed_lines(writer: Writer | None, bench: Bench) -> Sequence[Line]:
    """Return what the file holds, as rank 0 reads it."""
    if bench.ranks == 1:
        return writer.lines if writer is not None else []
    said: list[Any] = [writer.lines if writer is not None else None]
    dist.broadcast_object_list(said, 0, group=bench.talk)
    lines: Sequence[Mapping[str, Any]] = said[0]
    return lines

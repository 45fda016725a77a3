"""What an operation is: the ranges of its inputs, its anchors, its rough price and the piece that does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .machine import Speed
from .pieces.bench import DTYPES, Bench, Case
from .points import Axis, Inputs, design

LARGEST = {"cpu": 1 << 28, "cuda": 1 << 33}
"""Bytes that a point may take or touch: a machine has other uses for its memory."""

Prepare = Callable[[Inputs, str, Bench], Case]


def _as_is(point: Inputs) -> Inputs:
    return point


def _nothing(point: Inputs) -> float:
    return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation in one dtype and one way of doing it.

    Attributes
    ----------
    name, dtype, kernel : as in the raw samples
    group : of `GROUPS`
    axes : inputs that are drawn
    cost : FLOP and bytes touched by a point, roughly
    held : bytes that it takes without touching them, roughly
    case : makes a point ready
    anchors : points taken first
    number : of points
    complete : adds the inputs that follow from the drawn ones
    slow : times longer than its cost at the probed speed, at a guess: a kernel that is not tuned for the device
    """

    name: str
    dtype: str
    group: str
    axes: tuple[Axis, ...]
    cost: Callable[[Inputs], tuple[float, float]]
    case: Prepare
    kernel: str = ""
    anchors: tuple[Inputs, ...] = ()
    number: int = 64
    complete: Callable[[Inputs], Inputs] = field(default=_as_is)
    slow: float = 1.0
    held: Callable[[Inputs], float] = field(default=_nothing)

    def points(self, speed: Speed, bench: Bench, scale: float = 1.0) -> tuple[Inputs, ...]:
        """Choose the points that a machine can afford."""

        def affordable(point: Inputs) -> bool:
            point = self.complete(point)
            flop, size = self.cost(point)
            took = self.slow * (flop / speed.flop_rate + size / speed.bandwidth)
            return took < 1.2 * speed.longest and size + self.held(point) < LARGEST[bench.device.type]

        number = max(round(self.number * scale), 1)
        seed = f"{self.name}/{self.dtype}/{self.kernel}"
        chosen = design(self.axes, self.anchors, number, allowed=affordable, seed=seed)
        return tuple(self.complete(point) for point in chosen)


def bytes_of(dtype: str) -> int:
    """Return the bytes of an element."""
    return int(DTYPES[dtype].itemsize)


def multiple(value: float, step: int) -> int:
    """Round down to a multiple, at least one of it.

    Examples
    --------
    >>> multiple(200.0, 64), multiple(3.0, 64)
    (192, 64)
    """
    return max(int(value / step), 1) * step

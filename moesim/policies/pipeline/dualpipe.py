"""Microbatches enter at both ends, and a forward of one way runs beside a backward of the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from moesim.policies.protocols import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class DualPipe:
    """DeepSeek-V3's pipeline (arXiv 2412.19437, section 3.2.1 and fig. 5).

    Every rank holds two stages, one of each way, so weights are kept twice. What computes of the one microbatch runs
    beside what communicates of the other; gradients of weights wait until the pipeline drains.
    """

    chunks: ClassVar[int] = 1
    lanes: ClassVar[int] = 2

    def fault(self, stages: int, microbatches: int, layers: int) -> str:
        """Both halves of the stages mirror each other, and both ways take half of the microbatches."""
        if stages % 2:
            return f"{stages} stages have no two equal halves; give an even pp"
        if microbatches % 2 or microbatches < 2 * stages:
            return f"{microbatches} microbatches for {stages} stages; give an even number, at least {2 * stages}"
        return ""

    def position(self, stage: int, chunk: int, stages: int) -> int:
        """Count from the end where the way begins."""
        return stage if chunk == 0 else stages - 1 - stage

    def order(self, stage: int, stages: int, microbatches: int) -> Sequence[Unit]:
        """Fill from both ends, pair, and drain; `near` is the way that begins at this stage's end of the pipeline."""
        edge = min(stage, stages - 1 - stage)
        near = int(stage >= stages // 2)
        inner, paired = stages // 2 - edge - 1, microbatches // 2 - stages + edge + 1
        forward, backward = (_Numbers(near), _Numbers(near))
        late: list[tuple[int, int]] = []
        found: list[Unit] = []

        def inputs(side: int) -> Unit:
            late.append(backward(side))
            return Unit(inputs=late[-1])

        found += [Unit(forward=forward(0)) for _ in range(2 * inner)]
        for _ in range(edge + 1):
            found += [Unit(forward=forward(0)), Unit(forward=forward(1))]
        for _ in range(inner):
            found += [inputs(1), Unit(weights=late.pop(0)), Unit(forward=forward(1))]
        for _ in range(paired):
            found += [Unit(forward=forward(0), backward=backward(1)), Unit(forward=forward(1), backward=backward(0))]
        for _ in range(inner):
            found += [Unit(backward=backward(1)), Unit(forward=forward(1), backward=backward(0))]
        for number in range(2 * (edge + 1)):
            found.append(inputs(1 - number % 2) if number > edge else Unit(backward=backward(1 - number % 2)))
        for _ in range(inner):
            found += [Unit(weights=late.pop(0)), inputs(0)]
        return [*found, *(Unit(weights=turn) for turn in late)]


class _Numbers:
    """Counts the microbatches of both ways; side 0 is the near one."""

    def __init__(self, near: int) -> None:
        self._near = near
        self._next: list[Iterator[int]] = [iter(range(10**9)), iter(range(10**9))]

    def __call__(self, side: int) -> tuple[int, int]:
        way = side ^ self._near
        return way, next(self._next[way])


policy = DualPipe

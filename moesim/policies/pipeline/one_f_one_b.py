"""One forward, one backward, by turns: each stage holds no more microbatches than there are stages after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moesim.policies.protocols import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class OneForwardOneBackward:
    """PipeDream-Flush: fill, then forward and backward by turns, then drain (arXiv 2104.04473, fig. 4).

    Of m microbatches' time on p stages, (p - 1) / m is lost: the bubble.
    """

    chunks: ClassVar[int] = 1
    lanes: ClassVar[int] = 1

    def fault(self, stages: int, microbatches: int, layers: int) -> str:
        """Any numbers suit."""
        return ""

    def position(self, stage: int, chunk: int, stages: int) -> int:
        """Return the stage itself."""
        return stage

    def order(self, stage: int, stages: int, microbatches: int) -> Sequence[Unit]:
        """Fill with a forward for every stage behind this one."""
        ahead = min(stages - 1 - stage, microbatches)
        found = [Unit(forward=(0, number)) for number in range(ahead)]
        for number in range(microbatches - ahead):
            found += [Unit(forward=(0, number + ahead)), Unit(backward=(0, number))]
        return [*found, *(Unit(backward=(0, number)) for number in range(microbatches - ahead, microbatches))]


policy = OneForwardOneBackward

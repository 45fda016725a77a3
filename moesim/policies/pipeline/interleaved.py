"""One forward, one backward, over stages cut into chunks of layers that are dealt around: a smaller bubble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moesim.policies.protocols import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Interleaved:
    """Every stage holds several chunks of layers, and a microbatch passes all stages once a chunk (arXiv 2104.04473).

    The bubble shrinks by the number of chunks; hidden states are handed on as many times more often.

    Attributes
    ----------
    chunks : chunks of layers a stage holds
    """

    lanes: ClassVar[int] = 1

    chunks: int = 2

    def __post_init__(self) -> None:
        """Check the range."""
        if self.chunks < 2:
            raise ValueError(f"chunks = {self.chunks}; give at least 2, or use one_f_one_b")

    def fault(self, stages: int, microbatches: int, layers: int) -> str:
        """Microbatches come in rounds of as many as there are stages; every chunk needs a layer."""
        if stages < 2:
            return "one stage has nothing to interleave; use `one_f_one_b`"
        if layers < stages * self.chunks:
            return f"{stages} stages of {self.chunks} chunks for {layers} layers; use fewer chunks"
        if microbatches % stages:
            return f"{microbatches} microbatches aren't a multiple of {stages} stages; choose another microbatch"
        return ""

    def position(self, stage: int, chunk: int, stages: int) -> int:
        """Count the chunks before it on a microbatch's way."""
        return chunk * stages + stage

    def order(self, stage: int, stages: int, microbatches: int) -> Sequence[Unit]:
        """Fill with the forwards of the stages behind, there and back, and of all chunks but the last."""
        units = microbatches * self.chunks
        ahead = min(2 * (stages - 1 - stage) + (self.chunks - 1) * stages, units)
        forward = [self._turn(number, stages) for number in range(units)]
        backward = [(self.chunks - 1 - chunk, microbatch) for chunk, microbatch in forward]
        found = [Unit(forward=turn) for turn in forward[:ahead]]
        for there, back in zip(forward[ahead:], backward, strict=False):
            found += [Unit(forward=there), Unit(backward=back)]
        return [*found, *(Unit(backward=turn) for turn in backward[units - ahead :])]

    def _turn(self, number: int, stages: int) -> tuple[int, int]:
        """Return chunk and microbatch of a stage's n-th forward: a round of microbatches, chunk after chunk."""
        rounds, within = divmod(number, stages * self.chunks)
        chunk, place = divmod(within, stages)
        return chunk, rounds * stages + place


policy = Interleaved

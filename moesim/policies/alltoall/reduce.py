"""No all-to-all: tokens stay replicated, each rank computes its own experts' rows, and a reduction adds them up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.policies.protocols import Phase
from moesim.schedules.ops import Exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicated:
    """Send nothing: what vLLM does under tensor parallelism, with or without expert parallelism. Needs dp = 1."""

    replicated: ClassVar[bool] = True
    everywhere: ClassVar[bool] = False

    def __call__(self, op: Exchange, reach: tuple[tuple[str, int], ...]) -> tuple[Phase, ...]:
        """Return no phase."""
        return ()


policy = Replicated

"""Every data-parallel rank keeps all of weights, gradients and optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Gradients are all-reduced, and every rank updates all weights.

    Attributes
    ----------
    behind : whether gradients are reduced behind the last backward, a quarter at a time
    """

    stage: ClassVar[int] = 0

    behind: bool = True


policy = Whole

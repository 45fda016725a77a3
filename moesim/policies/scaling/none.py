"""None: all replicas are on, always."""

from dataclasses import dataclass
from typing import ClassVar

from moesim.policies.protocols import Demand


@dataclass(frozen=True, slots=True, kw_only=True)
class AllOn:
    """Never look."""

    every: ClassVar[float] = 0.0
    lag: ClassVar[float] = 0.0
    hold: ClassVar[float] = 0.0

    def __call__(self, seen: Demand) -> int:
        """Return all replicas there are."""
        return seen.replicas


policy = AllOn

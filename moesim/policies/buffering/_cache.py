"""What all expert caches have in common: how many slots are on the gpu, and where the other experts live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from moesim.ground.errors import PolicyError

FIRST = -(2**60)
"""Added to a key of whole numbers: leaves before everything without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Settings of an expert cache (Huang et al., arXiv 2303.06182, expert buffering).

    Attributes
    ----------
    resident : expert slots on the gpu per MoE layer and rank; what else its experts are is copied in when used
    tier : where the other experts live
    """

    hosted: ClassVar[int] = 0

    resident: int = 1
    tier: Literal["host", "disk"] = "host"

    def __post_init__(self) -> None:
        """Check the range."""
        if self.resident < 1:
            raise ValueError(f"resident = {self.resident}; give at least 1 slot")

    def resident_of(self, slots: int) -> int:
        """Return the resident slots, which cannot be more than the rank's experts."""
        if self.resident > slots:
            raise PolicyError(
                f"buffering keeps resident = {self.resident} slots of the {slots} experts a rank has in a layer;"
                f" give 1 to {slots}, or `resident` as the policy"
            )
        return self.resident

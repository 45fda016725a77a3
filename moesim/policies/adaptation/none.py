"""No adaptation: the layout stays as it was, whatever the routing does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.plans.layout import Layout
from moesim.policies.protocols import Change, Seen, Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanging:
    """Stand still while the routing changes: what a policy that reacts is set beside."""

    profiles: ClassVar[bool] = False

    def start(self, layout: Layout, sizes: Sizes) -> None:
        """Remember nothing."""

    def __call__(self, state: None, seen: Seen, rng: np.random.Generator) -> tuple[None, Change | None]:
        """Change nothing."""
        return None, None


policy = Unchanging

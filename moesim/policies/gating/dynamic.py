"""Dynamic gating: rows are gathered by expert, so that nothing is padded and nothing dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Shaped

from moesim.plans.layout import NO_LIMIT
from moesim.policies.protocols import Counts, Gated


@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamic:
    """Compute exactly the rows that were routed; their counts travel first, in a small all-to-all.

    Huang et al., "Towards MoE deployment" (2023), dynamic gating: argsort, bincount and gather replace the dispatch
    mask.
    """

    changes_model: ClassVar[bool] = False

    def capacity(self, tokens: int, experts: int, topk: int) -> int:
        """Set no limit."""
        return NO_LIMIT

    def __call__(
        self,
        counts: Counts,
        capacity: Shaped[np.ndarray, "*#lead #rank expert"],
        tokens: Shaped[np.ndarray, "*#lead #rank"],
    ) -> Gated:
        """Keep every count as it is."""
        return Gated(rows=counts, kept=counts, mask=np.zeros(counts.shape[:-1]), sizes=True)


policy = Dynamic

"""Predicted prefetch: a predictor of given precision and recall names experts a layer ahead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from moesim.policies.protocols import Prefetched


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """Start copies when the layer's block begins; what the predictor missed follows once the gate has chosen.

    Attributes
    ----------
    precision : share of the predicted experts that are used; the others' copies are wasted, and hold the link
    recall : share of the used experts that were predicted
    """

    precision: float = 0.9
    recall: float = 0.9

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.precision <= 1:
            raise ValueError(f"precision = {self.precision}; give a share above 0, up to 1")
        if not 0 <= self.recall <= 1:
            raise ValueError(f"recall = {self.recall}; give a share from 0 to 1")

    def __call__(self, missing: Shaped[np.ndarray, "..."]) -> Prefetched:
        """Send the predicted part early, with wrong ones beside it."""
        early = missing * self.recall
        return Prefetched(early=early, wasted=early * (1 / self.precision - 1), late=missing - early)


policy = Predicted

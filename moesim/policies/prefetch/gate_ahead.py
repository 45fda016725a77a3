"""Gate-ahead prefetch: the next layer's gate is asked early, with the hidden state the layer before it had."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from moesim.policies.prefetch.predicted import Predicted
from moesim.policies.protocols import Prefetched


@dataclass(frozen=True, slots=True, kw_only=True)
class GateAhead:
    """Predict with the gate itself, one layer early: as many experts as will be used, of which some are wrong.

    Attributes
    ----------
    agreement : share of the experts chosen early that are chosen again; Fate (arXiv 2502.12224) reports 0.97. A gate
        that was trained to decide early (Pre-gated MoE, ISCA 2024; ScMoE, arXiv 2404.05019) has 1
    """

    agreement: float = 0.97

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 < self.agreement <= 1:
            raise ValueError(f"agreement = {self.agreement}; give a share above 0, up to 1")

    def __call__(self, missing: Shaped[np.ndarray, "..."]) -> Prefetched:
        """Name as many experts as will be used, so that precision and recall are one number."""
        return Predicted(precision=self.agreement, recall=self.agreement)(missing)


policy = GateAhead

"""Data-parallel ranks keep a share each of the optimizer, the gradients, the weights (ZeRO)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Zero:
    """The three stages of ZeRO (Rajbhandari et al., arXiv 1910.02054, section 5).

    Experts are shared out among the copies of their block alone, everything else among all data-parallel ranks.

    Attributes
    ----------
    stage : 1, the optimizer's state; 2, gradients too, reduced after every microbatch; 3, weights too, gathered for
        every pass
    behind : whether collectives run behind computing, a quarter at a time
    """

    stage: int = 1
    behind: bool = True

    def __post_init__(self) -> None:
        """Check the range."""
        if self.stage not in (1, 2, 3):
            raise ValueError(f"stage = {self.stage}; give 1, 2 or 3, or use `none`")


policy = Zero

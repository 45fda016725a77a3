"""Routing distributions made from few numbers: balanced, skewed, and recorded from a run."""

from moesim.world.generators.balanced import Balanced
from moesim.world.generators.recorded import Recorded
from moesim.world.generators.skewed import Recipe, Skewed, skewed, with_shares

__all__ = ["Balanced", "Recipe", "Recorded", "Skewed", "skewed", "with_shares"]

"""Routing distributions: even, skewed, about topics, drifting, in phases, and recorded from a run."""

from moesim.world.generators.balanced import Balanced
from moesim.world.generators.changing import Drifting, Phased
from moesim.world.generators.choosing import Limits
from moesim.world.generators.making import made
from moesim.world.generators.recipe import Drift, Fade, Recipe
from moesim.world.generators.recorded import Recorded
from moesim.world.generators.skewed import Skewed, skewed, with_shares
from moesim.world.generators.topical import Topical

__all__ = [
    "Balanced",
    "Drift",
    "Drifting",
    "Fade",
    "Limits",
    "Phased",
    "Recipe",
    "Recorded",
    "Skewed",
    "Topical",
    "made",
    "skewed",
    "with_shares",
]

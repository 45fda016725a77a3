"""The conformance suite: what every policy of a kind must satisfy, yours as well as moesim's.

Write ``<folder>/placement/mine.py`` and, in a test, call ``moesim.testing.check("placement", "mine", [folder])``. A
policy that breaks its kind's promise raises `AssertionError`, which says what was promised.
"""

from moesim.testing.blindness import check_blindness
from moesim.testing.blocks import sizes_by_name
from moesim.testing.caches import check_buffering, check_prefetch
from moesim.testing.exchanges import check_alltoall
from moesim.testing.gatings import check_gating
from moesim.testing.orders import check_overlap, check_recompute, check_shortcut
from moesim.testing.placements import check_placement, rank_loads
from moesim.testing.reactions import check_adaptation
from moesim.testing.services import check_batching, check_router, check_scaling
from moesim.testing.suites import CHECKS, check
from moesim.testing.trainings import check_pipeline, check_sharding

__all__ = [
    "CHECKS",
    "check",
    "check_adaptation",
    "check_alltoall",
    "check_batching",
    "check_blindness",
    "check_buffering",
    "check_gating",
    "check_overlap",
    "check_pipeline",
    "check_placement",
    "check_prefetch",
    "check_recompute",
    "check_router",
    "check_scaling",
    "check_sharding",
    "check_shortcut",
    "rank_loads",
    "sizes_by_name",
]

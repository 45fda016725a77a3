"""The suite of each kind of policy, and one call that finds it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moesim.plans.plan import Policy, Setting
from moesim.policies.finding import find, make
from moesim.testing.blindness import check_blindness
from moesim.testing.caches import check_buffering, check_prefetch
from moesim.testing.exchanges import check_alltoall
from moesim.testing.gatings import check_gating
from moesim.testing.orders import check_overlap, check_recompute, check_shortcut
from moesim.testing.placements import check_placement
from moesim.testing.reactions import check_adaptation
from moesim.testing.services import check_batching, check_router, check_scaling
from moesim.testing.trainings import check_pipeline, check_sharding

_NO_SETTINGS: Mapping[str, Setting] = MappingProxyType({})


def check(kind: str, name: str, folders: Sequence[Path] = (), settings: Mapping[str, Setting] = _NO_SETTINGS) -> None:
    """Put one policy through the suite of its kind.

    Parameters
    ----------
    kind, name : str
        The policy's folder and file.
    folders : sequence of Path
        Folders of yours, each holding ``<kind>/<name>.py``.
    settings : mapping
        What to set; the rest as by default.

    Raises
    ------
    AssertionError
        The policy breaks a promise.
    PolicyError
        There is no such policy or setting.

    Examples
    --------
    >>> check("placement", "eplb", settings={"redundant": 4})
    """
    check_blindness(Path(inspect.getfile(find(kind, name, folders))))
    CHECKS[kind](make(kind, Policy(name=name, settings=settings), folders))


CHECKS: Mapping[str, Callable[[Any], None]] = MappingProxyType(
    {
        "adaptation": check_adaptation,
        "alltoall": check_alltoall,
        "batching": check_batching,
        "buffering": check_buffering,
        "gating": check_gating,
        "overlap": check_overlap,
        "pipeline": check_pipeline,
        "placement": check_placement,
        "prefetch": check_prefetch,
        "recompute": check_recompute,
        "router": check_router,
        "scaling": check_scaling,
        "sharding": check_sharding,
        "shortcut": check_shortcut,
    }
)
"""The suite of each kind."""

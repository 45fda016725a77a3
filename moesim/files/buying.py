"""The ``buy`` section of a scenario file: what a purchase must stand, and what owning costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moesim.files.checked import Rules, check, refuse, shown
from moesim.files.sources import split
from moesim.files.trees import Tree
from moesim.ground.errors import nearest
from moesim.ground.units import Source
from moesim.policies.finding import names
from moesim.search.buying import Buying, Owning

CHOICES = ("growth", "peak", "confidence", "horizon", "availability")
"""Fields whose numbers are what the buyer wants, and need no source."""


def read_buying(tree: Tree, file: str) -> tuple[Buying, Mapping[str, Source]]:
    """Read a ``buy`` section and the sources of what owning costs.

    Raises
    ------
    InputError
        With every fault; paths are relative to the section.
    """
    if not isinstance(tree, Mapping):
        raise refuse(file, f"{shown(tree)} is not a section", "give its `peak`, `growth`, `confidence` and `own`")
    parts = split(tree, file, bare=CHOICES)
    rules: Rules = {Buying: _buying_faults, Owning: _owning_faults}
    return check(Buying, parts.plain, file, rules=rules, also=parts.faults), parts.sources


def _buying_faults(buying: Buying) -> Iterator[tuple[str, str, str]]:
    for name in ("growth", "peak", "horizon"):
        if getattr(buying, name) <= 0:
            yield name, f"{getattr(buying, name):g} is not positive", "give more than 0"
    if not 0 < buying.confidence < 1:
        yield "confidence", f"{buying.confidence:g} is no probability to reach", "give a share such as 0.9, below 1"
    if not 0 <= buying.availability < 1:
        yield "availability", f"{buying.availability:g} is out of reach", "give a share such as 0.999, below 1"
    if buying.router not in names("router"):
        yield "router", f"no router is called `{buying.router}`", nearest(buying.router, names("router"))


def _owning_faults(owning: Owning) -> Iterator[tuple[str, str, str]]:
    if owning.pue < 1:
        yield "pue", f"{owning.pue:g} is below 1", "give the power drawn from the grid over that of the nodes"
    if not 0 <= owning.residual <= 1:
        yield "residual", f"{owning.residual:g} is no share", "give what is got back, from 0 to 1"
    for name in ("energy", "hosting", "staff"):
        if getattr(owning, name) < 0:
            yield name, "is negative", "give 0 or more"

"""The ``power`` section of a scenario file, and the shares that ship."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import lru_cache

from moesim.files.checked import Rules, check, refuse, shown
from moesim.files.sources import split
from moesim.files.trees import Tree, packaged, read
from moesim.ground.errors import ProfileError
from moesim.ground.units import Source
from moesim.world.power import Power

POWER = "moesim/data/power.yaml"

Sourced = tuple[Power, Mapping[str, Source]]


@lru_cache(maxsize=1)
def built_in_power() -> Sourced:
    """Load the shares that ship, with the source of each."""
    return read_power(read(packaged(POWER), POWER, ProfileError), POWER)


def read_power(tree: Tree, file: str) -> Sourced:
    """Read shares of rated power, with the source of each.

    Raises
    ------
    InputError
        With every fault; paths are relative to the section.
    """
    if not isinstance(tree, Mapping):
        raise refuse(file, f"{shown(tree)} is not a section", "give `idle`, `decode`, `prompts` and `box` as shares")
    parts = split(tree, file)
    rules: Rules = {Power: _faults}
    return check(Power, parts.plain, file, rules=rules, also=parts.faults), parts.sources


def _faults(power: Power) -> Iterator[tuple[str, str, str]]:
    for field in fields(power):
        share = getattr(power, field.name)
        if not 0 <= share <= 1:
            yield field.name, f"{share:g} is no share of rated power", "give 0 to 1, such as 0.7"

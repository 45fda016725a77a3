"""What was fitted for a device: a section ``fits`` of its file, or a file of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable

from moesim.files.checked import Readers, Rules, check, refuse
from moesim.files.residuals import read_residual
from moesim.files.sources import Split, split
from moesim.files.trees import Tree, read
from moesim.ground.errors import ProfileError, nearest
from moesim.ground.units import Source
from moesim.world.hardware import Fit, Residual

FITS = "fits"
"""The part of a device that names its sources in its own way, and the folder of what was fitted for built-in ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fits:
    fits: Mapping[str, Fit]


def load_fits(file: Traversable, label: str) -> Mapping[str, Fit]:
    """Load a file of fits: ``fits`` by key "operation/dtype/kernel", each naming an entry of the file's ``sources``.

    Raises
    ------
    ProfileError
        No such file, or one with faults.
    """
    parts = split(read(file, label, ProfileError), label, bare=(FITS,))
    rules: Rules = {Fit: fit_faults}
    return check(
        _Fits, parts.plain, label, error=ProfileError, readers=by_key(parts, label), rules=rules, also=parts.faults
    ).fits


def by_key(parts: Split, file: str) -> Readers:
    """Read the source of a fit by the name it has in the file, and its residual, if it has one."""
    return {Source: lambda key: _source(key, parts.table, file), Residual: lambda tree: read_residual(tree, file)}


def _source(key: Tree, table: Mapping[str, Source], file: str) -> Source:
    if str(key) not in table:
        raise refuse(file, f"no source is called `{key}`", nearest(str(key), table))
    return table[str(key)]


def fit_faults(fit: Fit) -> Iterator[tuple[str, str, str]]:
    """Find calibrated ranges that are empty."""
    for name, (low, high) in fit.box.items():
        if low > high:
            yield f"box.{name}", f"{low} is above {high}", "give the smallest value first"

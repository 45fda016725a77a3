"""How far measurements lie from predictions: ranges that were found on groups left out of the fit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from moesim.files.checked import check
from moesim.files.trees import read
from moesim.ground.errors import InputError

FILE = Path(__file__).parents[1] / "cases" / "serving" / "spread.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Tenth and ninetieth percentile of measured over predicted, by metric; `note` says where they were found."""

    ttft: tuple[float, float]
    tpot: tuple[float, float]
    throughput: tuple[float, float]
    note: str

    def factors(self, metric: str) -> tuple[float, float]:
        """Return what to multiply a prediction by."""
        low, high = getattr(self, metric)
        return low, high


@cache
def shipped_spread() -> Spread:
    """Read the spread that is shipped.

    Raises
    ------
    InputError
        The file was damaged.
    """
    return check(Spread, read(FILE, str(FILE), InputError), str(FILE))

"""How good predictions are: errors by group, and whether layouts are put in the right order."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float

from .measured import Measured, Setup
from .prediction import Predicted

METRICS = ("ttft", "tpot", "throughput")
"""Attributes of both a measurement and a prediction."""

CLEAR = 0.05
"""Relative difference of two measurements above which their order counts."""

RESAMPLES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Relative errors of one metric in one group of rows, with standard errors of both figures.

    Standard errors are a bootstrap's over groups of one model, system and backend, whose rows err together; NaN where
    there is one such group.
    """

    rows: int
    median: float
    mean: float
    median_error: float
    mean_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordering:
    """Pairs of layouts that clearly differ, and the share of them that is put in order; binomial standard error."""

    pairs: int
    right: float

    @property
    def share(self) -> float:
        """Share ordered right."""
        return self.right / self.pairs if self.pairs else math.nan

    @property
    def error(self) -> float:
        """Standard error of the share, as if pairs were independent."""
        return math.sqrt(self.share * (1 - self.share) / self.pairs) if self.pairs else math.nan


Pair = tuple[Measured, Predicted]


def scored(rows: Sequence[Measured], predicted: Sequence[Predicted]) -> list[Pair]:
    """Keep the rows that were both measured and predicted."""
    pairs = zip(rows, predicted, strict=True)
    return [(row, found) for row, found in pairs if not found.reason and math.isfinite(row.ttft + row.tpot)]


def group_of(setup: Setup) -> tuple[str, str, str]:
    """Name the group whose rows err together."""
    return setup.model, setup.system, setup.backend


def errors(pairs: Sequence[Pair], metric: str) -> Errors:
    """Sum up the relative errors of a metric."""
    error = np.array([abs(getattr(found, metric) / getattr(row, metric) - 1) for row, found in pairs])
    parts = [error[rows] for rows in _grouped(pairs)]
    spread = _bootstrap(parts)
    return Errors(
        rows=len(error),
        median=float(np.median(error)),
        mean=float(error.mean()),
        median_error=spread[0],
        mean_error=spread[1],
    )


def _grouped(pairs: Sequence[Pair]) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for place, (row, _) in enumerate(pairs):
        assert row.setup is not None
        groups.setdefault(group_of(row.setup), []).append(place)
    return list(groups.values())


def _bootstrap(parts: Sequence[Float[np.ndarray, "row"]]) -> tuple[float, float]:
    """Standard errors of median and mean when groups are drawn again."""
    if len(parts) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(0)
    drawn = [
        np.concatenate([parts[part] for part in rng.integers(len(parts), size=len(parts))]) for _ in range(RESAMPLES)
    ]
    medians, means = [np.median(each) for each in drawn], [each.mean() for each in drawn]
    return float(np.std(medians)), float(np.std(means))


def by_group(pairs: Sequence[Pair], key: Callable[[Setup], str]) -> dict[str, list[Pair]]:
    """Split rows by a name, in order of the names."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        assert pair[0].setup is not None
        groups.setdefault(key(pair[0].setup), []).append(pair)
    return dict(sorted(groups.items()))


def ordering(pairs: Sequence[Pair], metric: str) -> Ordering:
    """Count pairs of layouts in the right order.

    They share model, system, backend and its version, precision, lengths, concurrency and gpus, and their measurements
    differ clearly. Repeated measurements count once, with their mean; a predicted tie is half right.
    """
    alike: dict[Hashable, dict[tuple[int, ...], list[Pair]]] = {}
    for row, found in pairs:
        s = row.setup
        assert s is not None
        load = (s.model, s.system, s.backend, row.text.get("backend_version"), s.gemm, s.moe)
        place = alike.setdefault((*load, s.isl, s.osl, s.concurrency, s.gpus), {})
        place.setdefault(s.layout, []).append((row, found))
    signs = [sign for layouts in alike.values() for sign in _signs(layouts.values(), metric)]
    return Ordering(pairs=len(signs), right=sum(signs))


def _signs(layouts: Iterable[Sequence[Pair]], metric: str) -> Iterable[float]:
    """Tell of each pair of layouts that clearly differ whether it is in order."""
    means = [[float(np.mean([getattr(pair[side], metric) for pair in same])) for side in (0, 1)] for same in layouts]
    for (measured, predicted), (other, also) in combinations(means, 2):
        if abs(measured - other) > CLEAR * min(measured, other):
            yield 0.5 if predicted == also else float((measured < other) == (predicted < also))

"""Which points of a table are fitted and which are held out, fixed by a seed before anything is fitted."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from .cases import Cases, Floats

CANDIDATES = 4000
"""Points, drawn at random, among which the calibration points are chosen."""
AFFORDABLE = 20e-3
"""Time of the longest point, s, that a calibration of minutes would measure."""

Numbers = Int[np.ndarray, " some"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """Numbers of the points that are fitted, of those that set the intervals, and of those that are scored."""

    fitted: Numbers
    spread: Numbers
    scored: Numbers


def split(cases: Cases, number: int, *, seed: str, families: int = 0, most: int = 4000) -> Split:
    """Split points in three.

    Parameters
    ----------
    cases : all points of one table
    number : how many are fitted
    seed : a name; the same name gives the same split
    families : families of shapes the fitted points come from, the others held out whole where there are
        at least two; 0 for all, none held out
    most : points that are scored at most, and as many for the intervals

    Examples
    --------
    >>> inputs = {"m": np.arange(1.0, 101.0)}
    >>> cases = Cases(operation="gemm", dtype="bf16", kind="", kernel="", inputs=inputs, seconds=np.ones(100) * 1e-3,
    ...               family=np.arange(100) % 4)
    >>> parts = split(cases, 8, seed="one", families=2)
    >>> len(parts.fitted), len(np.unique(cases.family[parts.fitted])), len(parts.spread), len(parts.scored)
    (8, 2, 25, 25)
    """
    rng = np.random.default_rng(zlib.crc32(f"{seed}/{cases.key}/{cases.kernel}".encode()))
    order = rng.permutation(len(cases))
    if families and len(np.unique(cases.family)) > families + 1:
        return _by_family(cases, number, families, order, rng, most)
    fitted = chosen(cases, order, number, rng)
    rest = order[~np.isin(order, fitted)]
    half = len(rest) // 2
    return Split(fitted=fitted, spread=rest[:half][:most], scored=rest[half:][:most])


def _by_family(cases: Cases, number: int, families: int, order: Numbers, rng: np.random.Generator, most: int) -> Split:
    """Fit some families, set the intervals by half of the others and score the rest."""
    names = rng.permutation(np.unique(cases.family))
    others = names[families:]
    fitted, spread, scored = (
        order[np.isin(cases.family[order], some)]
        for some in (names[:families], others[: len(others) // 2], others[len(others) // 2 :])
    )
    return Split(fitted=chosen(cases, fitted, number, rng), spread=spread[:most], scored=scored[:most])


def chosen(cases: Cases, order: Numbers, number: int, rng: np.random.Generator) -> Numbers:
    """Choose points to fit: the quickest and the slowest affordable, then by turns the farthest one and a random one.

    Half maximin and half random predicted unseen products best among the choices tried (docs/background/evidence.md).
    """
    some = order[cases.seconds[order] < AFFORDABLE][:CANDIDATES]
    if len(some) <= number:
        return np.asarray(some)
    places = _places(cases.take(some))
    times = cases.seconds[some]
    taken = [int(times.argmin()), int(times.argmax())]
    away = np.minimum(*(np.square(places - places[one]).sum(axis=1) for one in taken))
    while len(taken) < number and away.any():
        one = int(away.argmax()) if len(taken) % 2 else int(rng.choice(np.flatnonzero(away)))
        taken.append(one)
        away = np.minimum(away, np.square(places - places[one]).sum(axis=1))
        away[one] = 0.0
    return np.asarray(some[taken])


def _places(cases: Cases) -> Float[np.ndarray, "case input"]:
    """Return where each input lies between its ends, 0 to 1 on a log scale."""
    return np.asarray(np.stack([_place(values) for values in cases.inputs.values()], axis=1))


def _place(values: Floats) -> Floats:
    logs = np.log(values + (values.min() <= 0))
    width = float(np.ptp(logs))
    return np.asarray((logs - logs.min()) / (width if width > 0 else 1.0))

"""Which of several kernels a plan is priced by: the fastest. The others stay in the profile under their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from moesim.world.hardware import Fit

from .cases import Cases
from .fit import Bench, predict

COMPARED = 200
"""Points of each kernel's table on which kernels are compared."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    """One kernel's points and the fit to them."""

    cases: Cases
    bench: Bench
    fit: Fit


def by_key(kernels: Iterable[Fitted]) -> Mapping[str, Fit]:
    """Key fits as a profile does: the fastest kernel's where plans look, and each of several under its own name too.

    The fastest has the smallest mean log time over shapes of all of their tables.
    """
    groups: dict[str, list[Fitted]] = {}
    for one in kernels:
        groups.setdefault(one.cases.key, []).append(one)
    named = {f"{key}/{one.cases.kernel}": one.fit for key, ones in groups.items() if len(ones) > 1 for one in ones}
    return {**{key: fastest(ones).fit for key, ones in groups.items()}, **named}


def fastest(ones: list[Fitted]) -> Fitted:
    """Choose the fastest of kernels of one key."""
    if len(ones) == 1:
        return ones[0]
    samples = [_sample(one.cases) for one in ones]

    def score(one: Fitted) -> float:
        return float(np.mean([np.log(predict(cases, one.bench, one.fit)).mean() for cases in samples]))

    return min(ones, key=score)


def _sample(cases: Cases) -> Cases:
    rng = np.random.default_rng(0)
    return cases.take(rng.permutation(len(cases))[:COMPARED])

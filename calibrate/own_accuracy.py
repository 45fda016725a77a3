"""How wrong fits to a machine's own samples are on points they have not seen, beside how well it repeats itself."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.world.hardware import Node

from .cases import Cases
from .fit import predict
from .fitting import bench_of, certainty_of, prior_of
from .measured import LINK, bare_of, of_ranks, profile_of
from .own import as_cases, placed
from .raw import Raw, Sample, key_of_sample, quantile
from .scores import Score, score
from .spread import TENTH, fit_with_spread
from .sums import predicted

REACH = 0.12
"""Mean error to reach, unless the machine repeats itself worse than half as well."""
SEED = "moesim 1"
"""Names the split."""
HELD_OUT = 3
"""Every so many-th point is never fitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One operation, as it came out.

    Attributes
    ----------
    name : key in a profile and kernel, or which layers
    ranks : how many took part
    points : that were fitted
    score : on the others
    repeat : how far two runs of the same points lie apart, median
    """

    name: str
    ranks: int
    points: int
    score: Score
    repeat: float

    @property
    def bound(self) -> float:
        """Mean error that counts as reached."""
        return max(REACH, 2 * self.repeat)


def rows(raw: Raw, again: Raw, ranks: int) -> Iterator[Row]:
    """Fit two thirds of the points of each operation and score the others; then score whole layers.

    Parameters
    ----------
    raw : what is fitted and scored
    again : a run of the same points at another time
    ranks : of the machine
    """
    samples = of_ranks(raw, ranks)
    node = bare_of(raw, samples, ranks)
    other = {key_of_sample(sample): sample for sample in of_ranks(again, ranks)}
    for place, group in placed(samples, LINK).items():
        cases = as_cases(place, group)
        if len(cases) >= FEWEST:
            yield _row(cases, node, ranks, _repeat(group, other))
    yield from _layers(raw, ranks, other)


FEWEST = 18
"""Points below which nothing is said."""


def _row(cases: Cases, node: Node, ranks: int, repeat: float) -> Row:
    bench = bench_of(cases, node)
    order = np.random.default_rng(zlib.crc32(f"{SEED}/{cases.key}/{cases.kernel}".encode())).permutation(len(cases))
    held, fitted = order[: len(cases) // HELD_OUT], order[len(cases) // HELD_OUT :]
    seen = cases.take(fitted)
    fit = fit_with_spread(
        seen, bench, prior=prior_of(seen, bench), certainty=certainty_of(seen, node), title="accuracy"
    )
    unseen = cases.take(held)
    found = _scored(unseen.seconds, predict(unseen, bench, fit), math.hypot(fit.shared, fit.point))
    name = "/".join(filter(None, (cases.key, cases.kernel)))
    return Row(name=name, ranks=ranks, points=len(fitted), score=found, repeat=repeat)


def _scored(measured: Sequence[float], guessed: Sequence[float], deviation: float) -> Score:
    factor = math.exp(TENTH * deviation)
    times, middle = np.asarray(measured), np.asarray(guessed)
    return score(times, middle, middle / factor, middle * factor)


def _repeat(samples: Iterable[Sample], other: dict[tuple[object, ...], Sample]) -> float:
    """Return how far two runs lie apart."""
    pairs = [(sample, other[key]) for sample in samples if (key := key_of_sample(sample)) in other]
    if not pairs:
        return 0.0
    return math.expm1(quantile((abs(math.log(one.median / two.median)) for one, two in pairs), 0.5))


def _layers(raw: Raw, ranks: int, other: dict[tuple[object, ...], Sample]) -> Iterator[Row]:
    """Score whole layers, which nothing is fitted to, by fits to all points of their parts."""
    node = profile_of(raw, ranks=ranks).node
    for kernel in ("local", "exchanged"):
        run = [one for one in raw.samples if (one.operation, one.kernel, one.ranks) == ("moe_layer", kernel, ranks)]
        if run:
            found = _scored([one.median for one in run], [predicted(one, node) for one in run], 0.0)
            yield Row(name=f"MoE layer, {kernel}", ranks=ranks, points=0, score=found, repeat=_repeat(run, other))

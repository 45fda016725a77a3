"""How wrong fits to a machine's own samples are on points they have not seen, beside how well it repeats itself."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from moesim.world.hardware import Node

from .cases import Cases, Floats
from .fit import predict
from .fitting import bench_of
from .manners import best_fit
from .measured import bare_of, of_ranks, profile_of
from .own import LINK, as_cases, placed
from .raw import Raw, Sample, key_of_sample, quantile
from .spread import TENTH
from .sums import predicted

REACH = 0.12
"""Mean error to reach, or twice what the machine differs from itself."""
SEED = "moesim 1"
"""Names the split."""
HELD_OUT = 3
"""One point of so many is never fitted."""
FEWEST = 18
"""Points below which nothing is said."""
Again = Mapping[tuple[object, ...], Sample]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One operation, as it came out.

    Attributes
    ----------
    name : key in a profile and kernel, or which layers
    fitted, scored : points
    mean, median : absolute errors over the measurement on the points that were not fitted
    inside : share of those between P10 and P90; None where no interval is claimed
    repeat : how far two runs of the same points lie apart, median
    """

    name: str
    fitted: int
    scored: int
    mean: float
    median: float
    inside: float | None
    repeat: float

    @property
    def reached(self) -> bool:
        """Whether the mean error is as small as asked for."""
        return self.mean <= max(REACH, 2 * self.repeat)


def rows(raw: Raw, again: Raw, ranks: int = 2) -> Iterator[Row]:
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
        if len(group) >= FEWEST:
            yield _row(as_cases(place, group), node, _repeat(group, other))
    yield from _layers(raw, ranks, other)


def _row(cases: Cases, node: Node, repeat: float) -> Row:
    bench = bench_of(cases, node)
    name = "/".join(filter(None, (cases.key, cases.kernel)))
    order = np.random.default_rng(zlib.crc32(f"{SEED}/{name}".encode())).permutation(len(cases))
    seen, unseen = (cases.take(part) for part in np.split(order, [len(cases) - len(cases) // HELD_OUT]))
    fit = best_fit(seen, bench, node, title="two thirds")
    ratio = predict(unseen, bench, fit) / unseen.seconds
    inside = np.abs(np.log(ratio)) <= TENTH * math.hypot(fit.shared, fit.point)
    return _told(name, len(seen), ratio, repeat, float(inside.mean()))


def _told(name: str, fitted: int, ratio: Floats, repeat: float, inside: float | None) -> Row:
    off = np.abs(ratio - 1)
    return Row(
        name=name,
        fitted=fitted,
        scored=len(ratio),
        mean=float(off.mean()),
        median=float(np.median(off)),
        inside=inside,
        repeat=repeat,
    )


def _repeat(samples: Iterable[Sample], other: Again) -> float:
    """Return how far two runs lie apart; zero where nothing was run twice."""
    pairs = [(sample, other[key]) for sample in samples if (key := key_of_sample(sample)) in other]
    return math.expm1(quantile((abs(math.log(a.median / b.median)) for a, b in pairs), 0.5)) if pairs else 0.0


def _layers(raw: Raw, ranks: int, other: Again) -> Iterator[Row]:
    """Score whole layers by fits to all points of their parts, and to half of those whose experts are exchanged."""
    layers = [sample for sample in raw.samples if sample.operation == "moe_layer" and sample.ranks == ranks]
    exchanged = [sample for sample in layers if sample.kernel == "exchanged"]
    order = np.random.default_rng(zlib.crc32(f"{SEED}/layers".encode())).permutation(len(exchanged))
    held = [exchanged[place] for place in order[: -(-len(order) // 2)]]
    away = {key_of_sample(sample) for sample in held}
    kept = tuple(sample for sample in raw.samples if key_of_sample(sample) not in away)
    node = profile_of(replace(raw, samples=kept), ranks=ranks).node
    local = [sample for sample in layers if sample.kernel == "local"]
    for kernel, run, seen in (("local", local, 0), ("exchanged", held, len(exchanged) - len(held))):
        if run:
            ratio = np.array([predicted(sample, node) / sample.median for sample in run])
            yield _told(f"MoE layer, {kernel}", seen, ratio, _repeat(run, other), None)


def page(found: Iterable[Row]) -> str:
    """Write rows as a table of Markdown."""
    head = "| operation | fitted | scored | mean error | median | inside P10-P90 | repeat spread | reached |\n"
    lines = [head, "|---|--:|--:|--:|--:|--:|--:|---|\n"]
    for row in found:
        inside = "" if row.inside is None else f"{row.inside:.0%}"
        lines.append(
            f"| {row.name} | {row.fitted} | {row.scored} | {row.mean:.1%} | {row.median:.1%} | {inside} | "
            f"{row.repeat:.1%} | {'yes' if row.reached else 'no'} |\n"
        )
    return "".join(lines)

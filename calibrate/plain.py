"""How well the points of a machine tell of each other, with no more than NumPy: a first look, on a bare machine.

Time is taken as so much at the start, so much a FLOP and so much a byte. moesim's own forms know more (tiles, caches,
padding), and `moesim calibrate fit` fits them wherever moesim is installed; what this table misses by, they may not.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .operation import Operation
from .raw import Raw, Sample, quantile

FEWEST = 9
"""Points below which nothing is said."""
HELD_OUT = 3
"""One point of so many is never fitted."""
HEAD = """# Points held out

{device}, {started}. Of each operation two thirds of the points are fitted by time = start + FLOP / rate + bytes / rate,
and the others scored. This is a first look that a bare machine can take by itself; moesim's own cost forms are fitted
where it is installed, by `moesim calibrate fit {raw}`.

| operation | fitted | scored | mean error | median | visits differ by |
|---|--:|--:|--:|--:|--:|
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One operation: points fitted and scored, absolute errors over the measurement, and how far visits lie apart."""

    name: str
    fitted: int
    scored: int
    mean: float
    median: float
    repeat: float


def rows(raw: Raw, operations: Iterable[Operation]) -> Iterator[Row]:
    """Score every operation that does work or moves bytes, by points that were not fitted.

    Parameters
    ----------
    operations : all that can be measured on the device, which know what a point takes
    """
    known = {(one.name, one.dtype, one.kernel): one for one in operations}
    held: dict[tuple[str, str, str, int], list[Sample]] = {}
    for sample in raw.samples:
        held.setdefault((sample.operation, sample.dtype, sample.kernel, sample.ranks), []).append(sample)
    for (*key, ranks), samples in held.items():
        operation = known.get((key[0], key[1], key[2]))
        if operation is None or len(samples) < FEWEST:
            continue
        terms = np.array([[1.0, *operation.cost(sample.inputs)] for sample in samples])
        if terms[:, 1:].any():
            yield _row("/".join(filter(None, (*key, f"{ranks} ranks" if ranks > 1 else ""))), terms, samples)


def _row(name: str, terms: np.ndarray, samples: Sequence[Sample]) -> Row:
    seconds = np.array([sample.median for sample in samples])
    order = np.random.default_rng(zlib.crc32(name.encode())).permutation(len(samples))
    seen, unseen = np.split(order, [len(order) - len(order) // HELD_OUT])
    off = np.abs(terms[unseen] @ nearest(terms[seen], seconds[seen]) / seconds[unseen] - 1)
    return Row(
        name=name,
        fitted=len(seen),
        scored=len(unseen),
        mean=float(off.mean()),
        median=float(np.median(off)),
        repeat=_apart(samples),
    )


def nearest(terms: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Return the price of each term, none below zero, that misses times by least, relative to them.

    Parameters
    ----------
    terms : [point, term]
    seconds : [point]

    Examples
    --------
    >>> nearest(np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), np.array([2.0, 5.0, 8.0])).round(6).tolist()
    [2.0, 3.0]
    """
    relative = terms / seconds[:, None]
    used = np.flatnonzero(relative.any(axis=0))
    prices = np.zeros(terms.shape[1])
    while len(used):
        scale = np.linalg.norm(relative[:, used], axis=0)  # FLOP are many and starts are one
        found = np.linalg.lstsq(relative[:, used] / scale, np.ones(len(seconds)), rcond=None)[0] / scale
        if (found >= 0).all():
            prices[used] = found
            break
        used = np.delete(used, int(np.argmin(found * scale)))
    return prices


def _apart(samples: Sequence[Sample]) -> float:
    """Return how far the medians of a point's first two visits lie apart, the median over points; 0: none has two."""
    apart = [abs(one.visits[1] / one.visits[0] - 1) for one in samples if len(one.visits) > 1]
    return quantile(apart, 0.5) if apart else 0.0


def page(raw: Raw, operations: Iterable[Operation], name: str) -> str:
    """Write the rows as a page of Markdown.

    Parameters
    ----------
    name : of the raw file
    """
    header: Mapping[str, object] = raw.header
    lines = [HEAD.format(device=header["device"], started=header.get("started", ""), raw=name)]
    lines += [
        f"| {row.name} | {row.fitted} | {row.scored} | {row.mean:.1%} | {row.median:.1%} | {row.repeat:.1%} |\n"
        for row in rows(raw, operations)
    ]
    return "".join(lines)

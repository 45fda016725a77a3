"""The page of results: what was fitted, how far predictions are from measurements, what is missed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from .fitting import NAMES
from .page import ORDER, TITLES, groups, ordered, shown
from .scores import Pair, errors, ordering
from .written import quantity

HEAD = """# Serving measurements

Written by `moesim calibrate frameworks`; do not edit. Rows are closed-loop measurements of mixture-of-experts models
under vLLM, SGLang and TensorRT-LLM (from NVIDIA AIConfigurator 0.12.0, Apache-2.0; much of it from SemiAnalysis
InferenceX, Apache-2.0). Errors are absolute, relative to what was measured, median / mean in percent; standard errors
are a bootstrap's over groups of model, system and framework. All rows that can be predicted count, suspect ones too.
"""
REACH = {"tpot": (11, 16), "ttft": (22, 30), "throughput": (11, 17)}
"""Median and mean errors asked for on groups not used for any fit, percent."""

PEER = {"tpot": "15.2 / 29.8", "ttft": "49.9 / 52.8", "throughput": "17.1 / 23.8"}
"""aiconfigurator on the 857 rows that it predicts: the project's own comparison, quoted, not measured here."""


def page(scores: Mapping[str, Sequence[Pair]], numbers: Mapping[str, Float[np.ndarray, "number"]], origin: str) -> str:
    """Write the page as Markdown."""
    return "\n".join([HEAD, *_all(scores), *_reached(scores), *_by_group(scores), *_fitted(numbers, origin)]) + "\n"


def _all(scores: Mapping[str, Sequence[Pair]]) -> Iterator[str]:
    yield "## Errors\n"
    yield "| | rows | TPOT | TTFT | tokens/s/GPU | layouts in order, TPOT | TTFT |\n|---|--:|--:|--:|--:|--:|--:|"
    for name, pairs in scores.items():
        cells = [shown(errors(pairs, metric)) for metric in ORDER]
        cells += [ordered(ordering(pairs, metric)) for metric in ("tpot", "ttft")]
        yield f"| {name} | {len(pairs)} | {' | '.join(cells)} |"
    yield f"| aiconfigurator, quoted | 857 | {' | '.join(PEER[metric] for metric in ORDER)} | about half | |"
    yield (
        "\nFolds solve again from the whole fit's slopes. aiconfigurator's figures are those of its own 857 rows, "
        "not of the rows scored here; its successor was not measured. A roofline with four fitted constants was "
        "not rebuilt as a rival."
    )


def _reached(scores: Mapping[str, Sequence[Pair]]) -> Iterator[str]:
    yield "\n## Asked for, on models left out\n\n| metric | asked | found | |\n|---|--:|--:|---|"
    for metric, (median, mean) in REACH.items():
        found = errors(scores["leave one model out"], metric)
        met = 100 * found.median <= median and 100 * found.mean <= mean
        yield f"| {TITLES[metric]} | {median} / {mean} | {shown(found)} | {'reached' if met else '**missed**'} |"


def _by_group(scores: Mapping[str, Sequence[Pair]]) -> Iterator[str]:
    yield "\n## By group, models left out\n\n| group | rows | TPOT | TTFT | tokens/s/GPU |\n|---|--:|--:|--:|--:|"
    for name, pairs in groups(scores["leave one model out"]).items():
        yield f"| {name} | {len(pairs)} | {' | '.join(shown(errors(pairs, metric)) for metric in ORDER)} |"


def _fitted(numbers: Mapping[str, Float[np.ndarray, "number"]], origin: str) -> Iterator[str]:
    yield f"\n## What was fitted\n\nSix numbers a framework, on `{origin}`; kernels' times are untouched.\n"
    yield f"| number | {' | '.join(numbers)} |\n|---|{'--:|' * len(numbers)}"
    for place, name in enumerate(NAMES):
        yield f"| `{name}` | {' | '.join(quantity(name, float(row[place])) for row in numbers.values())} |"

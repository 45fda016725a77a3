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

ORDERED = {"tpot": 75, "ttft": 65}
"""Shares of layout pairs asked to be in order, percent."""

ONE_ROW = {"tpot": (5, 8), "ttft": (13, 18)}
"""Errors asked for where one row of the group is given, percent."""

WHY = """
What is behind the misses, as far as it is known:

- Kernels rest on datasheet priors; no calibrated profile of these gpus was at hand.
- Layouts are ordered by TPOT no better than by a coin. Why is not known: collectives take their prior's time, and time
  per layer is one number for all layouts of a framework.
- Nine rows of gpt-oss-120b on H100 under vLLM at concurrency 512 report the TPOT of a batch of some ten, as if it
  were capped; they make most of the mean TPOT error there, and of that with one row given. They are kept.
- DeepSeek-V3 on B300 under SGLang prefills several times slower than its kernels; a fallback is suspected, not known.
- MiniMax-M2.5 on H100 is near the limit of its cache, where TTFT hangs on how much memory is left.
- One row shifts the numbers of a framework, not the kernels' times, which are what a group often has in common.
"""

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

    for metric, share in ORDERED.items():
        order = ordering(scores["leave one model out"], metric)
        verdict = "reached" if 100 * order.share >= share else "**missed**"
        yield f"| layouts in order, {TITLES[metric]} | {share} % | {ordered(order)} | {verdict} |"
    for metric, (median, mean) in ONE_ROW.items():
        found = errors(scores["with one row of each group"], metric)
        met = 100 * found.median <= median and 100 * found.mean <= mean
        verdict = "reached" if met else "**missed**"
        yield f"| {TITLES[metric]}, one row given | {median} / {mean} | {shown(found)} | {verdict} |"
    yield WHY


def _by_group(scores: Mapping[str, Sequence[Pair]]) -> Iterator[str]:
    yield "\n## By group, models left out\n\n| group | rows | TPOT | TTFT | tokens/s/GPU |\n|---|--:|--:|--:|--:|"
    for name, pairs in groups(scores["leave one model out"]).items():
        yield f"| {name} | {len(pairs)} | {' | '.join(shown(errors(pairs, metric)) for metric in ORDER)} |"


def _fitted(numbers: Mapping[str, Float[np.ndarray, "number"]], origin: str) -> Iterator[str]:
    yield f"\n## What was fitted\n\nSix numbers a framework, on `{origin}`, and by hand vLLM's share of memory"
    yield "and how rarely SGLang polls on Blackwell; kernels' times are untouched.\n"
    yield f"| number | {' | '.join(numbers)} |\n|---|{'--:|' * len(numbers)}"
    for place, name in enumerate(NAMES):
        yield f"| `{name}` | {' | '.join(quantity(name, float(row[place])) for row in numbers.values())} |"

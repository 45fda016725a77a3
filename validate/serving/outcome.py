"""The page of results: what was fitted, how far predictions are from measurements, what is missed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from .fitting import NAMES
from .page import ORDER, TITLES, groups, ordered, shown
from .rivals import same_rows
from .scores import Pair, errors, ordering
from .written import quantity

HEAD = """# Serving measurements

Written by `moesim calibrate frameworks`; do not edit. Rows are closed-loop measurements of mixture-of-experts models
under vLLM, SGLang and TensorRT-LLM (from NVIDIA AIConfigurator 0.12.0, Apache-2.0; much of it from SemiAnalysis
InferenceX, Apache-2.0). Errors are absolute, relative to what was measured, median / mean in percent; standard errors
are a bootstrap's over groups of model, system and framework. All rows that can be predicted count, suspect ones too.
"""
LEFT_OUT, ONE_ROW = "leave one model out", "one row of each group given, its model left out"
"""Two of the ways to score, which the page comes back to."""

REACH = {"tpot": (11, 16), "ttft": (22, 30), "throughput": (11, 17)}
"""Median and mean errors asked for on groups not used for any fit, percent."""

ORDERED = {"tpot": 75, "ttft": 65}
"""Shares of layout pairs asked to be in order, percent."""

GIVEN = {"tpot": (5, 8), "ttft": (13, 18)}
"""Errors asked for where one row of the group is given, percent."""

WHY = """
What is behind the misses, as far as it is known:

- Kernels are fitted to published tables, for each framework its own fastest.
- Nine rows of gpt-oss-120b on H100 under vLLM at concurrency 512 report the TPOT of a batch of some ten, as if it
  were capped; they make most of the mean TPOT error there, and of that with one row given. They are kept.
- DeepSeek-V3 on B300 under SGLang prefills several times slower than its kernels; a fallback is suspected, not known.
- MiniMax-M2.5 on H100 is near the limit of its cache, where TTFT hangs on how much memory is left.
- Of the pairs of layouts out of order by TPOT, 14 of 18 are those of Qwen3.5-397B-A17B on B200 under SGLang, all that
  there are: sliced experts took 0.55 to 0.9 of the time of whole ones, and much the same is predicted. Its rows without
  expert parallelism are even faster than the same on twice the gpus. Another kernel for the one or the other, or
  speculative decoding, is suspected, not known. Of all other pairs 18 of 22 are in order. Datasheet kernels had 78 % of
  pairs in order, as they made slices faster everywhere, which is what that one group shows.
- Sliced experts of DeepSeek-V3 on B200 under TensorRT-LLM, too, are predicted 35 to 56 % too slow at concurrency 8 to
  128: kernels of narrow slices on B200 are the first place to look. vLLM on Blackwell gains a tenth more from data
  parallel attention with whole experts than is predicted, which is what most of the other wrong pairs are.
- With one row given: even one factor a group, chosen with all its rows seen, leaves 7.4 / 14.5 % of TPOT and 12.5 /
  20.1 % of TTFT (in sample). What is left goes with concurrency, up in most groups, so a slope would have to move.
- gpt-oss-120b on H200 under TensorRT-LLM answers first after 80 to 140 ms at light load, while that framework's
  fitted latency alone is 110 ms; the release is suspected.
"""

PEER = {"tpot": "15.2 / 29.8", "ttft": "49.9 / 52.8", "throughput": "17.1 / 23.8"}
"""aiconfigurator 0.12.0 on the 857 rows that it predicts: quoted, not measured here."""


def page(
    scores: Mapping[str, Sequence[Pair]],
    rivals: Mapping[str, Sequence[Pair]],
    numbers: Mapping[str, Float[np.ndarray, "number"]],
    origin: str,
) -> str:
    """Write the page as Markdown."""
    parts = (_all(scores), _beside(scores, rivals), _reached(scores), _by_group(scores), _fitted(numbers, origin))
    return "\n".join([HEAD, *(line for part in parts for line in part)]) + "\n"


def _all(scores: Mapping[str, Sequence[Pair]]) -> Iterator[str]:
    yield "## Errors\n"
    yield "| | rows | TPOT | TTFT | tokens/s/GPU | layouts in order, TPOT | TTFT |\n|---|--:|--:|--:|--:|--:|--:|"
    for name, pairs in scores.items():
        cells = [shown(errors(pairs, metric)) for metric in ORDER]
        cells += [ordered(ordering(pairs, metric)) for metric in ("tpot", "ttft")]
        yield f"| {name} | {len(pairs)} | {' | '.join(cells)} |"
    yield f"| aiconfigurator, quoted | 857 | {' | '.join(PEER[metric] for metric in ORDER)} | about half | |"
    yield (
        "\nFolds solve again from the whole fit's slopes. The roofline has four constants for all frameworks together: "
        "the shares that are achieved of the arithmetic peak and of the bandwidth, a time per layer, and a wait per "
        "request in flight. aiconfigurator's line is quoted and on its own 857 rows."
    )


def _beside(scores: Mapping[str, Sequence[Pair]], rivals: Mapping[str, Sequence[Pair]]) -> Iterator[str]:
    """Compare with other tools on exactly the rows that each of them predicts."""
    yield "\n## Rivals, on exactly the rows that they predict\n"
    yield "Every tenth setup of the file was given to each tool; moesim's line has the model left out of its fit.\n"
    yield "| | rows | TPOT | TTFT | tokens/s/GPU |\n|---|--:|--:|--:|--:|"
    for tool, pairs in rivals.items():
        yield f"| {tool} | {_cells(pairs)} |"
        yield f"| moesim, on these | {_cells(same_rows(scores[LEFT_OUT], pairs))} |"


def _cells(pairs: Sequence[Pair]) -> str:
    return " | ".join([str(len(pairs)), *(shown(errors(pairs, metric)) for metric in ORDER)]) if pairs else "none | | |"


def _reached(scores: Mapping[str, Sequence[Pair]]) -> Iterator[str]:
    yield "\n## Asked for, on models left out\n\n| metric | asked | found | |\n|---|--:|--:|---|"
    for metric, (median, mean) in REACH.items():
        found = errors(scores[LEFT_OUT], metric)
        met = 100 * found.median <= median and 100 * found.mean <= mean
        yield f"| {TITLES[metric]} | {median} / {mean} | {shown(found)} | {'reached' if met else '**missed**'} |"

    for metric, share in ORDERED.items():
        order = ordering(scores[LEFT_OUT], metric)
        verdict = "reached" if 100 * order.share >= share else "**missed**"
        yield f"| layouts in order, {TITLES[metric]} | {share} % | {ordered(order)} | {verdict} |"
    for metric, (median, mean) in GIVEN.items():
        found = errors(scores[ONE_ROW], metric)
        met = 100 * found.median <= median and 100 * found.mean <= mean
        verdict = "reached" if met else "**missed**"
        yield f"| {TITLES[metric]}, one row given | {median} / {mean} | {shown(found)} | {verdict} |"
    yield WHY


def _by_group(scores: Mapping[str, Sequence[Pair]]) -> Iterator[str]:
    yield "\n## By group, models left out\n\n| group | rows | TPOT | TTFT | tokens/s/GPU |\n|---|--:|--:|--:|--:|"
    for name, pairs in groups(scores[LEFT_OUT]).items():
        yield f"| {name} | {len(pairs)} | {' | '.join(shown(errors(pairs, metric)) for metric in ORDER)} |"


def _fitted(numbers: Mapping[str, Float[np.ndarray, "number"]], origin: str) -> Iterator[str]:
    yield f"\n## What was fitted\n\nSix numbers a framework, on `{origin}`, and by hand vLLM's share of memory"
    yield "and how rarely SGLang polls on Blackwell; kernels' times are untouched.\n"
    yield f"| number | {' | '.join(numbers)} |\n|---|{'--:|' * len(numbers)}"
    for place, name in enumerate(NAMES):
        yield f"| `{name}` | {' | '.join(quantity(name, float(row[place])) for row in numbers.values())} |"

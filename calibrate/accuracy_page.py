"""The table of held-out errors, as the page `docs/accuracy/operations.md` and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .accuracy import Line
from .goals import FORMED, KEPT
from .tables import NOTICE

BEGIN, END = "<!-- this cpu: begin -->", "<!-- this cpu: end -->"
"""What stands between is not of the tables and stays when the page is written anew."""

_HEAD = f"""# Operations on shapes never measured

Written by `moesim calibrate accuracy`; do not edit outside the section on the CPU. Errors are absolute, relative to
what was measured, in percent: the mean (MAPE, which *reach* and *record* are about), the median and the 90th
percentile, on rows of published tables that neither the fit nor its interval has seen. Splits are fixed by a seed
before anything is fitted; models never seen are held out whole. Forms were chosen on {", ".join(FORMED)} and others;
{" and ".join(KEPT)} were kept for this table:
it is made anew when forms change, which were tried on other systems alone
([what was tried](../background/evidence.md#10-forms-tried)). One split is scored; others differ by some tenths, of
NCCL's few rows by one or two percent.

*Inside* is the share of rows between P10 and P90, in bold where it is not within 76 to 84 % (of fewer than 400 rows,
two standard errors of 80 %); *width* is the median of P90 - P10 over the prediction, *score* the mean interval score
over the measurement (Gneiting and Raftery, JASA 102, 2007, equation 43). Intervals are set by rows of the same table
that are neither fitted nor scored.

"""
_MISSING = """
## What is behind the misses, as far as it is known

- Experts of models never seen: divided over 16 gpus and more, they are predicted 5 to 20 % too fast from some 100
  tokens on (6 to 25 us): passes over rows that are not theirs are missing. How their rows were spread is known but for
  the draw, which a mean of four stands for.
- Latent decode on B200 rises and falls by 20 to 40 % between neighboring contexts.
- Sums over a layer on the kept system are a little overconfident.
- NCCL: tables hold isolated times of 16 to 18 us between neighbors of 7 us, scored like all others: 4 of 129 rows of
  H100's all-to-all. From up to 4 gpus to 8 nearly half of its error is theirs. All-reduces inside the switch
  (NVLS) have no form.
- DeepEP's combine inside one node bends from its start to its bytes, by layouts; there the form is a straight line.
- Devices carried over go by forms alone. How much a device's own points count against its sibling follows from how well
  the sibling tells them; four of them, which lie at the ends of their ranges, can still make a device worse. Of
  B200 only 16 points are asked; ratios cannot tell its latencies.

## What is not scored

- DeepEP's kernels for many tokens (normal): nothing is fitted to them, though SGLang's tables hold usable times
  ([what they hold](../background/evidence.md#deepeps-kernels-for-many-tokens)). What vLLM and TensorRT-LLM timed of its
  kernels starts at 47 to 71 us where SGLang's start at 10: presumably the host was timed.
- B200 is scored only as carried over from H100, and was looked at while forms were chosen; others are not scored.
"""
_COLUMNS = (
    "| operation | system | kernel | points | rows | MAPE | median | 90th | reach | record | | inside | width | score |"
)
_RULE = "|---|---|---|--:|--:|--:|--:|--:|--:|--:|---|--:|--:|--:|"


def written(path: Path, lines: Iterable[Line]) -> None:
    """Write the page, whole or not at all; of the one that is there the section on the CPU stays."""
    text = page(lines, path.read_text(encoding="utf-8") if path.exists() else "")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def page(lines: Iterable[Line], old: str = "") -> str:
    """Write the page.

    Parameters
    ----------
    lines : the table
    old : the page as it was, whose section on the CPU is kept
    """
    rows = "\n".join([_COLUMNS, _RULE, *(_row(line) for line in lines)])
    return f"{_HEAD}{rows}\n\n{_MISSING.strip()}\n\n{_kept(old)}\n\n## Source\n\n{NOTICE}\n"


def as_json(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Return the table as plain records."""
    return [{**asdict(line), "verdict": line.verdict, "honest": line.score.honest} for line in lines]


def _row(line: Line) -> str:
    found = line.score
    inside = f"{100 * found.inside:.0f} %"
    cells = [
        line.name,
        line.system,
        line.kernel,
        str(line.points or ""),
        str(found.points),
        *(f"{100 * value:.1f}" for value in (found.mean, found.median, found.ninth)),
        f"{100 * line.reach:g}",
        f"{100 * line.record:g}",
        "**missed**" if line.verdict == "missed" else line.verdict,
        inside if found.honest else f"**{inside}**",
        f"{found.width:.2f}",
        f"{found.interval:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _kept(old: str) -> str:
    _, mark, rest = old.partition(BEGIN)
    section = rest.partition(END)[0].strip() if mark else "## This CPU\n\nNot measured yet."
    return f"{BEGIN}\n{section}\n{END}"

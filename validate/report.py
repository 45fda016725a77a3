"""The page of published results: every row beside its prediction, misses included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .papers import Checked, Outcome

TITLES = {
    "dynamoe": "DynaMoE (arXiv 2205.01848)",
    "huang": "Huang et al., Towards MoE deployment (arXiv 2303.06182)",
    "scmoe": "ScMoE (ICML 2025, arXiv 2404.05019)",
    "tutel": "Tutel (MLSys 2023, arXiv 2206.03382)",
    "deepseek": "DeepSeek-V3/R1 serving (deepseek-ai/open-infra-index, day 6; profile-data)",
    "mlperf": "MLPerf Inference v4.1, Mixtral 8x7B (mlcommons/inference_results_v4.1)",
    "sglang": "SGLang on 96 H100 (lmsys blog, 2025-05-05)",
}
HEAD = """# Published results, reproduced

Written by `moesim validate papers`; do not edit. Every check is a file in `validate/cases/papers/`: its set-up, the
paper's numbers, and an expression over moesim's own rules, policies and priced passes. *Strong* checks must pass;
*medium* and *weak* ones are reported as they come out, misses as misses; *open* rows are predictions for numbers we do
not have (`no paper value`).
"""


def report(checked: Sequence[Checked], head: str = HEAD) -> str:
    """Write the page as Markdown."""
    return "\n".join((head, _summary(checked), *(line for each in checked for line in _section(each, checked)))) + "\n"


def _summary(checked: Sequence[Checked]) -> str:
    rows = [outcome for each in checked for outcome in each.outcomes]
    lines = ["| grade | rows | within tolerance |", "|---|--:|--:|"]
    for grade in ("strong", "medium", "weak", "open"):
        chosen = [row for row in rows if row.grade == grade]
        passed = sum(row.passed is True for row in chosen)
        lines.append(f"| {grade} | {len(chosen)} | {'' if grade == 'open' else passed} |")
    return "\n".join(lines)


def _section(each: Checked, checked: Sequence[Checked]) -> Iterator[str]:
    case = each.case
    if each == next(other for other in checked if other.paper == each.paper):
        yield f"\n## {TITLES.get(each.paper, each.paper)}"
    yield f"\n### {each.check}: {case.title}\n"
    yield f"{case.source}. Grade: {case.grade}.\n"
    yield "| row | published | moesim | error | tolerance | |\n|---|--:|--:|--:|--:|---|"
    yield from map(_line, each.outcomes)
    if case.fitted:
        yield f"\nFitted: {case.fitted}"
    if case.note:
        yield f"\n{case.note}"


def _line(row: Outcome) -> str:
    error = "" if row.error is None else f"{row.error:.1%}"
    tolerance = "" if row.passed is None else "exact" if row.tolerance == 0 else f"{row.tolerance:.1%}"
    result = {True: "passes", False: "**misses**", None: "no paper value"}[row.passed]
    grade = "" if row.grade in ("strong", "open") else f" ({row.grade})"
    expected = "" if row.expected is None else shown(row.expected)
    return f"| {row.row} | {expected} | {shown(row.predicted)} | {error} | {tolerance} | {result}{grade} |"


def shown(value: Any) -> str:
    """Write a value in four digits.

    Examples
    --------
    >>> shown(12.3456), shown(True), shown([1, 2.0]), shown(8.59e9)
    ('12.35', 'yes', '1, 2', '8.59e+09')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)

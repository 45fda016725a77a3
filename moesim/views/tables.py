"""Tables for a terminal, JSON for a pipe: every number at a human scale with its unit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from moesim.deployments.metrics import METRICS
from moesim.deployments.result import Result
from moesim.ground.units import show
from moesim.search.optimization import Counts, Ranking

MILLION = 1e6


def _cell(value: Any, unit: str) -> str:
    """Write one value: quantities at a human scale, counts with thousands, ratios as percentages."""
    if not isinstance(value, float):
        return str(value)
    if unit == "USD/tokens":
        return f"{value * MILLION:,.3f}"
    if unit == "tokens/s":
        return f"{value:,.0f}"
    if unit:
        return show(value, unit)
    return f"{value:.1%}"


_HEADINGS: Mapping[str, str] = {
    "throughput": "tokens/s",
    "throughput_per_gpu": "tokens/s/GPU",
    "price_per_token": "USD/M tokens",
    "memory_headroom": "headroom",
    "replicas": "repl.",
}


def show_table(out: Console, frame: pd.DataFrame, title: str) -> None:
    """Print a tidy table under its title; units come from the frame's attributes."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    units = frame.attrs.get("units", {})
    for name in frame.columns:
        number = pd.api.types.is_numeric_dtype(frame[name])
        drawn.add_column(_HEADINGS.get(name, str(name)), justify="right" if number else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        drawn.add_row(*(_cell(value, units.get(name, "")) for name, value in zip(frame.columns, row, strict=True)))
    out.print(title)
    out.print(drawn)
    out.print()


def console() -> Console:
    """Open the terminal; a pipe gets lines long enough for a table."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=180)


def show_ranking(name: str, ranking: Ranking, *, rows: int = 10) -> None:
    """Print the ranked plans, the best plan's step and memory, and what did not fit."""
    out = console()
    out.print(f"[bold]{name}[/bold]: {counts_in_words(ranking.counts)}\n")
    if ranking.best is None:
        out.print("No plan fits.\n")
    else:
        frame = ranking.table.head(rows).drop(columns="miss")
        frame.attrs = ranking.table.attrs
        frame.insert(0, "rank", range(1, len(frame) + 1))
        show_table(out, frame, _title(ranking))
        show_details(out, ranking.best, "The first plan")
    if len(ranking.unfit):
        show_table(out, ranking.unfit, "What does not fit (per node type: how many layouts, and the nearest one)")


def _title(ranking: Ranking) -> str:
    if ranking.meets:
        return f"{ranking.meets:,} plans carry the load and meet every target; the best of each layout"
    return "No plan carries the load and meets every target; the nearest misses"


def counts_in_words(counts: Counts) -> str:
    """Say what became of every plan.

    Examples
    --------
    >>> counts_in_words(Counts(layouts=10, plans=40, invalid={"odd": 3}, unfit=4, refused=0, estimated=6))
    '10 layouts (40 plans with replicas): 6 estimated, 4 do not fit, 0 refused; 3 combinations left out as senseless'
    """
    return (
        f"{counts.layouts:,} layouts ({counts.plans:,} plans with replicas): {counts.estimated:,} estimated, "
        f"{counts.unfit:,} do not fit, {counts.refused:,} refused; "
        f"{sum(counts.invalid.values()):,} combinations left out as senseless"
    )


def show_result(result: Result) -> None:
    """Print one plan's headline numbers, step, memory and verdict."""
    show_details(console(), result, "The plan")


def show_details(out: Console, result: Result, title: str) -> None:
    """Print a result's verdict, headline numbers, breakdown and memory."""
    out.print(f"[bold]{title}[/bold]: {result.verdict.why}; bound by {result.verdict.binding}")
    for name, value in result.summary.items():
        metric = METRICS[name]
        out.print(f"  {name:18} {summary_cell(value, metric.unit):>16}   {metric.meaning}")
    out.print(f"  {'source':18} {result.source:>16}   the weakest kind of source these numbers rest on")
    out.print(
        "  Means, by formula: targets at a percentile are held against them until a simulation gives percentiles."
    )
    if result.outside:
        out.print(f"  outside the calibrated range: {', '.join(result.outside)}")
    out.print()
    if "breakdown" in result.tables:
        show_table(out, result.tables["breakdown"], "One pass of the slowest stage, by named part")
    show_table(out, result.tables["memory"], "Memory of the fullest rank")


def summary_cell(value: float, unit: str) -> str:
    """Write a headline number with its unit."""
    if unit == "USD/tokens":
        return f"{value * MILLION:,.3f} USD/M"
    if unit == "tokens/s":
        return f"{value:,.0f} tokens/s"
    if unit == "":
        return f"{value:,.3g}"
    return show(value, unit)


def ranking_json(ranking: Ranking) -> str:
    """Write a ranking as JSON: plans, counts, the best plan's tables, what did not fit."""
    return json.dumps(
        {
            "plans": ranking.table.to_dict(orient="records"),
            "units": ranking.table.attrs.get("units", {}),
            "meets": ranking.meets,
            "counts": {
                "layouts": ranking.counts.layouts,
                "plans": ranking.counts.plans,
                "invalid": dict(ranking.counts.invalid),
                "unfit": ranking.counts.unfit,
                "refused": ranking.counts.refused,
                "estimated": ranking.counts.estimated,
            },
            "best": result_dict(ranking.best) if ranking.best else None,
            "unfit": ranking.unfit.to_dict(orient="records"),
        },
        indent=2,
        allow_nan=False,
    )


def result_json(result: Result) -> str:
    """Write one plan's result as JSON, SI units."""
    return json.dumps(result_dict(result), indent=2, allow_nan=False)


def result_dict(result: Result) -> dict[str, Any]:
    """Collect a result for JSON; numbers that do not exist are null."""
    finite = {name: value if value == value else None for name, value in result.summary.items()}
    verdict = result.verdict
    return {
        "verdict": {"fits": verdict.fits, "meets": dict(verdict.meets), "binding": verdict.binding, "why": verdict.why},
        "summary": finite,
        "breakdown": result.tables["breakdown"].to_dict(orient="records") if "breakdown" in result.tables else [],
        "memory": result.tables["memory"].to_dict(orient="records"),
        "source": result.source,
        "outside": list(result.outside),
        "seed": result.seed,
    }

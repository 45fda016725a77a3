"""Tables for a terminal, JSON for a pipe: every number at a human scale with its unit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from moesim.deployments.metrics import METRICS
from moesim.deployments.result import Interval, Result
from moesim.ground.units import show

MILLION = 1e6


def _cell(value: Any, unit: str) -> str:
    """Write one value: quantities at a human scale, counts with thousands, ratios as percentages."""
    if not isinstance(value, float):
        return str(value)
    if unit == "USD/tokens":
        return f"{value * MILLION:,.3f}"
    if unit == "tokens/s":
        return f"{value:,.0f}"
    if unit == "J/tokens":
        return f"{value:,.3g}"
    if unit:
        return show(value, unit)
    return f"{value:.1%}"


_HEADINGS: Mapping[str, str] = {
    "throughput": "tokens/s",
    "throughput_per_gpu": "per GPU",
    "price_per_token": "USD/M",
    "energy_per_token": "J/token",
    "memory_headroom": "headroom",
    "replicas": "repl.",
    "simulated": "sim.",
    "price_low": "P10",
    "price_high": "P90",
}


WIDTH = 160
"""Characters of a line in a pipe."""

SHORT = 20
"""Words of up to so many characters are kept on one line."""


def show_table(out: Console, frame: pd.DataFrame, title: str) -> None:
    """Print a tidy table under its title; units come from the frame's attributes."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    units = frame.attrs.get("units", {})
    for name in frame.columns:
        number = pd.api.types.is_numeric_dtype(frame[name])
        heading = _HEADINGS.get(name, str(name))
        whole = number or frame[name].astype(str).str.len().max() <= SHORT
        drawn.add_column(heading, justify="right" if number else "left", overflow="fold", no_wrap=bool(whole))
    for row in frame.itertuples(index=False):
        drawn.add_row(*(_cell(value, units.get(name, "")) for name, value in zip(frame.columns, row, strict=True)))
    out.print(title)
    out.print(drawn)
    out.print()


def console() -> Console:
    """Open the terminal; a pipe gets lines long enough for a table."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=WIDTH)


def show_result(result: Result) -> None:
    """Print one plan's headline numbers, step, memory and verdict."""
    show_details(console(), result, "The plan")


def show_details(out: Console, result: Result, title: str) -> None:
    """Print a result's verdict, headline numbers, breakdown and memory."""
    out.print(f"[bold]{title}[/bold]: {result.verdict.why}; bound by {result.verdict.binding}")
    for name, value in result.summary.items():
        if math.isnan(value.mid):
            continue  # of a plan that cannot run
        metric = METRICS[name]
        out.print(f"  {name:18} {summary_cell(value.mid, metric.unit):>16}  {band(value):24}  {metric.meaning}")
    out.print(f"  {'source':18} {result.source:>16}   the weakest kind of source these numbers rest on")
    out.print(
        "  Means, by formula, and from P10 to P90 of what the costs may be wrong by; targets at a percentile are held"
        " against them."
    )
    if result.outside:
        out.print(f"  outside the calibrated range: {', '.join(result.outside)}")
    out.print()
    if "step" in result.tables:
        show_table(out, result.tables["step"], "One training step of the stage that works longest, by part")
    if "breakdown" in result.tables:
        show_table(out, result.tables["breakdown"], "One pass of the slowest stage, by named part")
        _show_kernels(out, result.tables["kernels"])
    show_reaction(out, result)
    sizes = result.tables["memory"]["size"]
    total = "" if "pool" in result.tables["memory"] else f": {show(float(sizes.sum()), 'B')}, item by item"
    show_table(out, result.tables["memory"], f"Memory of the fullest rank{total}")


def show_reaction(out: Console, result: Result) -> None:
    """Print what reacting came to, in pools that did."""
    if "reaction" in result.tables:
        show_table(out, result.tables["reaction"], "Reacting to the routing: a mean step with it, without, at best")


def _show_kernels(out: Console, kernels: pd.DataFrame) -> None:
    """Say which kernel of which framework each operation's time is taken from."""
    out.print("[bold]Whose times: what prices each operation, and how far 8 of 10 predictions are off at most[/bold]")
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify)
    for operation, within, kernel in kernels.itertuples(index=False):
        table.add_row(escape(operation), f"{within:.0%}", escape(kernel))
    out.print(Padding(table, (0, 0, 0, 2), expand=False))
    out.print()


def summary_cell(value: float, unit: str) -> str:
    """Write a headline number with its unit."""
    if unit == "USD/tokens":
        return f"{value * MILLION:,.3f} USD/M"
    if unit == "tokens/s":
        return f"{value:,.0f} tokens/s"
    if unit == "J/tokens":
        return f"{show(value, 'J')}/token"
    if unit == "":
        return f"{value:,.3g}"
    return show(value, unit)


def band(value: Interval) -> str:
    """Write a number's range; nothing where it has none."""
    if value.low == value.high:
        return ""
    return f"{summary_cell(value.low, value.unit)} to {summary_cell(value.high, value.unit)}"


def finite(value: float) -> float | None:
    """Return a number for JSON: null where there is none."""
    return value if math.isfinite(value) else None


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """List a table's rows for JSON; numbers that do not exist are null."""
    return [
        {str(name): finite(value) if isinstance(value, float) else value for name, value in row.items()}
        for row in table.to_dict(orient="records")
    ]


def interval_dict(value: Interval) -> dict[str, Any]:
    """Collect a number with its range for JSON."""
    return {"low": finite(value.low), "mid": finite(value.mid), "high": finite(value.high), "unit": value.unit}


def result_json(result: Result) -> str:
    """Write one plan's result as JSON, SI units."""
    return json.dumps(result_dict(result), indent=2, allow_nan=False)


def result_dict(result: Result) -> dict[str, Any]:
    """Collect a result for JSON; numbers that do not exist are null."""
    verdict = result.verdict
    return {
        "verdict": {"fits": verdict.fits, "meets": dict(verdict.meets), "binding": verdict.binding, "why": verdict.why},
        "summary": {name: interval_dict(value) for name, value in result.summary.items()},
        "breakdown": result.tables["breakdown"].to_dict(orient="records") if "breakdown" in result.tables else [],
        "kernels": records(result.tables["kernels"]) if "kernels" in result.tables else [],
        "memory": result.tables["memory"].to_dict(orient="records"),
        **{name: records(result.tables[name]) for name in ("step", "reaction", "changes") if name in result.tables},
        "source": result.source,
        "outside": list(result.outside),
        "seed": result.seed,
    }

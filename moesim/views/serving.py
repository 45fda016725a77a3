"""A simulated deployment for a terminal and for a pipe."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd
from rich.console import Console

from moesim.deployments.metrics import METRICS, PERCENTILES, base_metric
from moesim.deployments.result import Result
from moesim.ground.units import show
from moesim.views.ranking import records
from moesim.views.tables import band, console, interval_dict, show_reaction, show_table, summary_cell


def show_simulation(result: Result) -> None:
    """Print a simulated plan's verdict, latencies, rates and memory."""
    out = console()
    out.print(f"[bold]The plan[/bold]: {result.verdict.why}; bound by {result.verdict.binding}")
    if result.summary:
        _show_numbers(out, result)
    out.print(f"  {'source':18} {result.source:>16}   the weakest kind of source these numbers rest on")
    if result.outside:
        out.print(f"  outside the calibrated range: {', '.join(result.outside)}")
    out.print()
    if result.summary:
        show_table(out, latency_table(result), "Latencies of the measured requests")
        show_table(out, upkeep_words(result.tables["upkeep"]), "Replicas: cold start, and mean times between events")
        if len(result.tables["events"]):
            show_table(out, event_counts(result.tables["events"]), "What happened to replicas, in the first run")
        show_reaction(out, result)
        if len(result.tables["graphs"]):
            show_table(out, result.tables["graphs"], "Compiled graphs: the share of the decoding steps that each runs")
    show_table(out, result.tables["memory"], "Memory of the fullest rank")


def _show_numbers(out: Console, result: Result) -> None:
    """Print the metrics that are one number each."""
    requests = result.tables["requests"]
    measured = requests["measured"]
    cut = int(measured.to_numpy().argmax())
    out.print(
        f"  {len(requests):,} requests, {int(measured.sum()):,} of them measured: the first {cut:,} warm up. Rates are"
        " those of the window from the first measured request's arrival to the last one's."
    )
    for name, value in result.summary.items():
        if name == base_metric(name):
            metric = METRICS[name]
            mid = summary_cell(value.mid, metric.unit)
            out.print(f"  {name:18} {mid:>16}  {band(value):32}  {metric.simulated or metric.meaning}")
    out.print(
        "  Ranges are P10 to P90 of one such run: what replications scatter by, and what the costs may be wrong by."
    )


def latency_table(result: Result) -> pd.DataFrame:
    """One row per latency: its mean and percentiles, and what it is."""
    names = dict.fromkeys(base_metric(name) for name in result.summary if name != base_metric(name))
    rows = [
        {"metric": name}
        | {statistic: result.summary[f"{name}.{statistic}"].mid for statistic in PERCENTILES}
        | {"P10 to P90 of p99": band(result.summary[f"{name}.p99"])}
        | {"meaning": METRICS[name].simulated or METRICS[name].meaning}
        for name in names
    ]
    table = pd.DataFrame(rows)
    table.attrs["units"] = dict.fromkeys(PERCENTILES, "s")
    return table


def upkeep_words(upkeep: pd.DataFrame) -> pd.DataFrame:
    """Write times, and `never` for what does not happen."""
    times = {name: [_time(value) for value in upkeep[name].tolist()] for name in upkeep.attrs["units"]}
    return upkeep.assign(**times)


def _time(value: float) -> str:
    return show(value, "s") if math.isfinite(value) else "never"


def event_counts(events: pd.DataFrame) -> pd.DataFrame:
    """Count each kind of event, with the first time, the mean duration and the bytes that each gpu copied in all."""
    kinds = events.groupby("event", sort=False)
    table = pd.DataFrame(
        {
            "event": list(kinds.groups),
            "times": kinds.size().to_numpy(),
            "first": kinds["time"].min().to_numpy(),
            "duration": kinds["duration"].mean().to_numpy(),
            "moved": kinds["moved"].sum().to_numpy(),
        }
    )
    table.attrs["units"] = {"first": "s", "duration": "s", "moved": "B"}
    return table


def simulation_json(result: Result) -> str:
    """Write a simulated plan as JSON, SI units; numbers that do not exist are null."""
    verdict = result.verdict
    tree: dict[str, Any] = {
        "verdict": {"fits": verdict.fits, "meets": dict(verdict.meets), "binding": verdict.binding, "why": verdict.why},
        "summary": {name: interval_dict(value) for name, value in result.summary.items()},
        "upkeep": _records(result, "upkeep"),
        "events": _records(result, "events"),
        "graphs": _records(result, "graphs"),
        "reaction": _records(result, "reaction"),
        "memory": result.tables["memory"].to_dict(orient="records"),
        "source": result.source,
        "outside": list(result.outside),
        "seed": result.seed,
    }
    return json.dumps(tree, indent=2, allow_nan=False)


def _records(result: Result, table: str) -> list[dict[str, Any]]:
    """Write a table's rows, nothing where there is no such table; what never happens is null."""
    return records(result.tables[table]) if table in result.tables else []

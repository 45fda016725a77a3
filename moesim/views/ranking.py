"""A search's answer for a terminal and for a pipe."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import Any

import pandas as pd
from rich.console import Console

from moesim.deployments.metrics import METRICS
from moesim.deployments.result import Result
from moesim.search.answer import Answer, headline, simulated_table
from moesim.search.ranking import Certificate, Comparison, Ranking
from moesim.views.tables import console, finite, result_dict, show_details, show_table, summary_cell


def show_ranking(name: str, ranking: Ranking, *, rows: int = 10) -> None:
    """Print the ranked plans, the frontier, the first plan's step and memory, the proof, and what did not fit."""
    out = console()
    out.print(f"[bold]{name}[/bold]")
    for sentence in headline(ranking):
        out.print(sentence)
    out.print()
    if ranking.best is not None:
        show_table(out, _brief(ranked(ranking.plans.head(rows))), _title(ranking))
        _show_simulated(out, ranking)
        if len(ranking.frontier) > 1:
            traded = ranking.frontier.drop(columns=["miss", "mfu"], errors="ignore")
            show_table(out, _brief(traded), "Frontier, by estimates: no other plan beats these in all it trades off")
        show_details(out, ranking.best, "The first plan")
        if ranking.comparison:
            second = ranking.plans.iloc[1]
            out.print(
                f"[bold]Runner-up[/bold]: {second['cluster']}, {second['layout']}: {in_words(ranking.comparison)}\n"
            )
    if len(ranking.unfit):
        show_table(out, ranking.unfit, "What does not fit (per node type: how many layouts, and the nearest one)")
    out.print(f"[bold]Certificate[/bold]: {certificate_in_words(ranking.certificate)}")


def _brief(plans: pd.DataFrame) -> pd.DataFrame:
    """Leave the vendor out of clusters' names: a line is short."""
    frame = plans.assign(cluster=plans["cluster"].str.replace(r"\S+/", "", regex=True))
    frame.attrs = plans.attrs
    return frame


def ranked(plans: pd.DataFrame) -> pd.DataFrame:
    """Number the plans and put the price's band beside it; columns of misses and simulations where there are any."""
    hidden = {"mfu"} | ({"miss"} if (plans["miss"] <= 0).all() else set())
    hidden |= set() if any_simulated(plans) else {"simulated"}
    band = [name for name in ("price_low", "price_high") if name in plans]
    names = [name for name in plans.columns if name not in hidden and name not in band]
    after = names.index("price_per_token") + 1 if "price_per_token" in names else len(names)
    frame = plans[[*names[:after], *band, *names[after:]]].copy()
    frame.attrs = plans.attrs
    frame.insert(0, "rank", range(1, len(frame) + 1))
    return frame


def any_simulated(plans: pd.DataFrame) -> bool:
    """Whether any plan of a table was simulated; tables of older runs do not tell."""
    return "simulated" in plans and bool((plans["simulated"] != "no").any())


SIMULATED_NOTE = "whether the plan meets every target when simulated; no: estimated alone"
"""What the column of simulations says."""


def _title(ranking: Ranking) -> str:
    note = f"\nsim.: {SIMULATED_NOTE}" if any_simulated(ranking.plans) else ""
    if ranking.meets:
        found = (
            f"{ranking.meets:,} of the estimated plans carry the load and meet every target; the best of each layout"
        )
        return found + note
    return f"No plan carries the load and meets every target; the nearest misses{note}"


def _show_simulated(out: Console, ranking: Ranking) -> None:
    """Print the first few plans under requests."""
    table = simulated_table(ranking.simulated)
    if len(table):
        known = table.dropna(axis="columns", how="all")
        show_table(out, known, "The first plans, simulated under the same requests: waiting included")


def in_words(comparison: Comparison) -> str:
    """Say by which number the runner-up lost, and how sure that is.

    Examples
    --------
    >>> in_words(Comparison(metric="throughput", first=6500.0, second=6400.0, probability=0.75))
    'it lost by throughput, 6,400 tokens/s against 6,500 tokens/s; the first beats it in 75% of the draws'
    """
    if comparison.missed:
        return f"estimated better, but simulated {comparison.missed}"
    unit = METRICS[comparison.metric].unit if comparison.metric in METRICS else ""
    first, second = (
        f"{value:.1%}" if comparison.metric == "miss" else summary_cell(value, unit)
        for value in (comparison.first, comparison.second)
    )
    name = "its largest miss of a target" if comparison.metric == "miss" else comparison.metric
    return (
        f"it lost by {name}, {second} against {first}; the first beats it in {comparison.probability:.0%} of the draws"
    )


def certificate_in_words(certificate: Certificate) -> str:
    """Say what became of every plan, and what is proven.

    Examples
    --------
    >>> found = Certificate(layouts=10, considered=40, invalid={"odd": 3}, unfit=4, refused=0, bounded=30, estimated=6,
    ...                     simulated=2, gap=0.0)
    >>> certificate_in_words(found).split("; ")[0]
    '40 plans of 10 layouts: 4 do not fit, 0 refused, 30 bounded, 6 estimated, 2 simulated'
    """
    c = certificate
    but = f" but {c.overtaken:,} that miss a target when simulated, or have no more of a pool" if c.overtaken else ""
    proof = (
        f"No plan of the space is {c.of}d better than the first{but}, nor beats the frontier."
        if c.gap == 0
        else f"A plan that was not estimated may be better by up to {c.gap:.1%}."
    )
    counts = (
        f"{c.considered:,} plans of {c.layouts:,} layouts: {c.unfit:,} do not fit, {c.refused:,} refused, "
        f"{c.bounded:,} bounded, {c.estimated:,} estimated, {c.simulated:,} simulated; "
        f"{sum(c.invalid.values()):,} combinations left out as senseless."
    )
    return f"{counts} {proof}" + (f" Pools were not split: {c.unsplit}." if c.unsplit else "")


def ranking_json(ranking: Ranking, also: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Write a ranking as JSON, SI units: plans, frontier, certificate, the first plan's tables, what did not fit.

    `also` are further parts of the answer.
    """
    tree: dict[str, Any] = {
        "plans": records(ranking.plans),
        "frontier": records(ranking.frontier),
        "certificate": _certificate(ranking.certificate),
        "comparison": asdict(ranking.comparison) if ranking.comparison else None,
        "units": ranking.plans.attrs.get("units", {}),
        "meets": ranking.meets,
        "best": result_dict(ranking.best) if ranking.best else None,
        "simulated": [_simulated(result) for result in ranking.simulated],
        "unfit": records(ranking.unfit),
        **also,
    }
    return json.dumps(tree, indent=2, allow_nan=False)


def answer_json(answer: Answer) -> str:
    """Write a kept answer as JSON, SI units: verdict, plans, frontier, certificate, and how the first plans fared."""
    tree: dict[str, Any] = {
        "headline": list(answer.headline),
        "certificate": _certificate(answer.certificate),
        "comparison": asdict(answer.comparison) if answer.comparison else None,
        "units": answer.tables["plans"].attrs.get("units", {}),
    }
    tables = {name: records(answer.tables[name]) for name in ("plans", "frontier", "summary", "simulated", "unfit")}
    return json.dumps(tree | tables, indent=2, allow_nan=False)


def _certificate(certificate: Certificate) -> dict[str, Any]:
    names = [each.name for each in fields(certificate)]
    return {name: getattr(certificate, name) for name in names} | {"invalid": dict(certificate.invalid)}


def _simulated(result: Result) -> dict[str, Any]:
    return {"why": result.verdict.why, "meets": dict(result.verdict.meets)} | {
        name: finite(value.mid) for name, value in result.summary.items()
    }


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """List a table's rows; numbers that do not exist are null."""
    return [
        {
            str(name): None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        for row in table.to_dict(orient="records")
    ]

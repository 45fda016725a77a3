"""What a search answered, as text and tidy tables only: what a run folder keeps and a report shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from moesim.deployments.metrics import METRICS, base_metric
from moesim.deployments.result import Interval, Result, Verdict
from moesim.deployments.tables import with_units
from moesim.plans.plan import Plan
from moesim.search.purchasing import Purchase
from moesim.search.ranking import Certificate, Comparison, Ranking
from moesim.search.study import Study
from moesim.world.scenario import Scenario

SOME = ("step", "reaction", "changes")
"""Tables that only some plans have: those that train, and those that react."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """A study's answer.

    Attributes
    ----------
    name : what the study is called
    seed : of its random streams
    goal : the metric that plans are ranked by
    frontier : the metrics they are traded off by; the first along, the second up
    headline : the verdict in sentences, the first alone enough
    certificate : what became of every plan of the space
    comparison : the first plan against the runner-up; None where there is no second
    tables : tidy, units by column in ``.attrs["units"]``. ``plans`` (in order), ``frontier``, ``estimated`` (every plan
        in short), ``summary`` (metric by metric, low, mid and high), ``breakdown``, ``memory``, ``tasks`` and
        ``simulated`` by `plan` (its rank), ``unfit``, ``sources``; of a purchase ``options``, ``money``, ``what_if``
    plans : the plans behind the first rows of the table ``plans``
    bought : the plan of the purchase, spares too; None where nothing is bought
    """

    name: str
    seed: int
    goal: str
    frontier: tuple[str, str]
    headline: tuple[str, ...]
    certificate: Certificate
    comparison: Comparison | None
    tables: Mapping[str, pd.DataFrame]
    plans: tuple[Plan, ...]
    bought: Plan | None = None


def answer(study: Study, ranking: Ranking, *, seed: int, purchase: Purchase | None = None) -> Answer:
    """Tabulate all there is to keep and to show of a ranking, and of a purchase where one was asked for."""
    results = ranking.results
    tables = {
        "plans": ranking.plans,
        "frontier": ranking.frontier,
        "estimated": ranking.estimated,
        "summary": _summary(results),
        "breakdown": _by_plan(results, "breakdown"),
        "memory": _memory(study.scenario, results),
        "tasks": _by_plan(results[:1], "tasks"),
        **{name: _by_plan(results, name) for name in SOME if any(name in result.tables for result in results)},
        "simulated": simulated_table(ranking.simulated),
        "unfit": ranking.unfit,
        "sources": source_table(study.scenario),
    }
    if purchase is not None and purchase.chosen is not None:
        tables |= {"options": purchase.options, "money": purchase.money, "what_if": purchase.what_if}
    return Answer(
        name=study.scenario.name,
        seed=seed,
        goal=study.goal,
        frontier=_axes(study, ranking.plans),
        headline=(*(purchase.sentences() if purchase else ()), *headline(ranking)),
        certificate=ranking.certificate,
        comparison=ranking.comparison,
        tables=tables,
        plans=ranking.chosen,
        bought=purchase.chosen if purchase is not None else None,
    )


def _axes(study: Study, plans: pd.DataFrame) -> tuple[str, str]:
    """Choose what plans are drawn by: the study's own trade-off, or its goal against a latency."""
    wanted = [metric.partition(".")[0] for metric in (*study.frontier, study.goal, "tpot", "step", "throughput")]
    known = list(dict.fromkeys(metric for metric in wanted if metric in plans))
    first, second, *_ = [*known, "", ""]
    return first, second


def headline(ranking: Ranking) -> Iterator[str]:
    """Say the verdict of a search in sentences, the first alone enough."""
    if ranking.best is None:
        yield "No plan fits."
        return
    best = ranking.plans.iloc[0]
    yield f"{best['cluster']}, {best['layout']}: {ranking.best.verdict.why}; bound by {ranking.best.verdict.binding}."
    if not ranking.meets:
        yield "No plan carries the load and meets every target; this one misses by least."
    elif not ranking.good:
        yield f"{ranking.meets:,} plans meet every target by estimates, which know no queues; simulated, none does."
    else:
        behind = ranking.certificate.overtaken
        but = f" of those that also do when simulated; {behind:,} estimated better do not" if behind else ""
        yield f"{ranking.meets:,} plans carry the load and meet every target; this one is first by the goal{but}."
    if ranking.simulated:
        yield _under_requests([result.verdict for result in ranking.simulated])


def _under_requests(verdicts: Sequence[Verdict]) -> str:
    """Say how the first plans fared when they were simulated: queues are in no formula."""
    good, first = sum(verdict.good for verdict in verdicts), verdicts[0]
    return f"Simulated request by request: {first.why}; {good} of the {len(verdicts)} simulated meet every target."


SIMULATED = ("ttft.p50", "ttft.p99", "tpot.p50", "tpot.p99", "throughput", "goodput", "queue", "energy_per_token")
"""Metrics that only a simulation gives, or gives better."""


def simulated_table(results: Sequence[Result]) -> pd.DataFrame:
    """Set the simulated plans beside each other: percentiles, rates, queue, verdict."""
    rows = [
        {"plan": number}
        | {name: result.summary[name].mid for name in SIMULATED if name in result.summary}
        | {"verdict": result.verdict.why}
        for number, result in enumerate(results, 1)
    ]
    table = pd.DataFrame(rows, columns=["plan", *SIMULATED, "verdict"])
    return with_units(table, {name: METRICS[base_metric(name)].unit for name in SIMULATED})


def _summary(results: Sequence[Result]) -> pd.DataFrame:
    rows = [
        {"plan": number, "metric": name, **_band(value), "unit": value.unit, "source": value.source}
        for number, result in enumerate(results, 1)
        for name, value in result.summary.items()
    ]
    return pd.DataFrame(rows, columns=["plan", "metric", "low", "mid", "high", "unit", "source"])


def _band(value: Interval) -> dict[str, float]:
    return {"low": value.low, "mid": value.mid, "high": value.high}


def _by_plan(results: Sequence[Result], table: str) -> pd.DataFrame:
    """Join one table of several results, each row with the rank of its plan."""
    found = [(number, result.tables[table]) for number, result in enumerate(results, 1) if table in result.tables]
    if not found:
        return pd.DataFrame({"plan": []})
    joined = pd.concat([frame.assign(plan=number) for number, frame in found], ignore_index=True)
    joined = joined[["plan", *(name for name in joined if name != "plan")]]
    return with_units(joined, found[0][1].attrs.get("units", {}))


def _memory(scenario: Scenario, results: Sequence[Result]) -> pd.DataFrame:
    """Itemize the fullest rank of every plan, beside what its framework is willing to fill."""
    joined = _by_plan(results, "memory")
    if not len(joined):
        return joined
    pools = [result.plan.pools[0] for result in results]
    capacity = [
        scenario.hardware.offer(pool.node).node.device.memory * scenario.frameworks[pool.framework].utilization
        for pool in pools
    ]
    joined["capacity"] = [capacity[number - 1] for number in joined["plan"]]
    joined["pool"] = joined["pool"].fillna("all") if "pool" in joined else "all"
    return with_units(joined, {"size": "B", "capacity": "B"})


def source_table(scenario: Scenario) -> pd.DataFrame:
    """List where every number of a scenario came from, whatever order its file told them in."""
    rows = [
        {"number": path, "kind": source.kind, "title": source.title, "read": source.read, "raw": source.raw}
        for path, source in sorted(scenario.sources.items())
    ]
    return pd.DataFrame(rows, columns=["number", "kind", "title", "read", "raw"])

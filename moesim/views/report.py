"""An answer as one page: verdict, certificate, ranking, trade-off, step, memory, timeline, and what it all rests on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from moesim.deployments.metrics import METRICS
from moesim.ground.units import show
from moesim.search.answer import Answer
from moesim.views.charts import Dots, Quantity, Span, gantt, main_kinds, scatter, stacked_bars
from moesim.views.page import (
    HEADINGS,
    document,
    facts,
    figure,
    heading,
    metric_value,
    number,
    paragraph,
    section,
    table,
)

MEANINGS: Mapping[str, str] = {
    "considered": "plans of the space: layouts times numbers of replicas",
    "invalid": "combinations of choices that make no sense together",
    "unfit": "plans whose memory does not fit",
    "bounded": "left out, as even a lower bound of their time is beaten",
    "refused": "a policy refuses them",
    "estimated": "timed by formula",
    "simulated": "run event by event",
    "gap": "by which a plan that was left out could at most beat the winner's estimate",
}
"""What the counts of a certificate mean."""

BYTES = Quantity(title="memory of the fullest rank", show=lambda size: show(size, "B"))
TIME = Quantity(title="time", show=lambda time: show(time, "s"))


def report(answer: Answer) -> str:
    """Write an answer as one self-contained HTML page; nothing in it comes from elsewhere.

    The same answer gives the same bytes.
    """
    plans = answer.tables["plans"]
    shown = _frontier, _breakdown, _memory, _timeline, _unfit, _sources
    parts = [_head(answer)]
    if len(plans):
        ranked = plans.copy()
        ranked.insert(0, "rank", range(1, len(plans) + 1))
        ranked.attrs = plans.attrs
        parts.append(section("Plans, best first", table(ranked, leave_out=("miss",)), _ranking_note(answer)))
    parts += [part for section_of in shown for part in section_of(answer)]
    return document(answer.name, *parts, _definitions(answer))


def _head(answer: Answer) -> str:
    first, *others = answer.headline
    found = answer.tables["summary"]
    winner = found[found["plan"] == 1]
    columns = ("metric", "low", "mid", "high", "unit")
    headline = [
        (HEADINGS.get(metric, metric), _interval(metric, low, mid, high, unit))
        for metric, low, mid, high, unit in zip(*(winner[name].tolist() for name in columns), strict=True)
        if metric in _FIRST
    ]
    counts = [
        (name, f"{count:,.0f}" if name != "gap" else f"{count:.1%}") for name, count in answer.certificate.items()
    ]
    certificate = paragraph(
        "The certificate: what became of every plan. It certifies the estimate, not the machine.", soft=True
    )
    words = [heading(answer.name), paragraph(first), *map(paragraph, others)]
    return "".join([*words, facts(headline), certificate, facts(counts)])


_FIRST = ("throughput", "throughput_per_gpu", "ttft", "tpot", "step", "price_per_token", "memory_headroom", "gpus")
"""Metrics that a reader looks for first."""


def _interval(metric: str, low: float, mid: float, high: float, unit: str) -> str:
    """Write a metric's middle, and its band where there is one."""
    least, middle, most = (metric_value(value, metric, unit) for value in (low, mid, high))
    return f"{middle} ({least} to {most})" if low < high else middle


def _ranking_note(answer: Answer) -> str:
    goal = METRICS[answer.goal.partition(".")[0]]
    return paragraph(f"Ranked by {HEADINGS.get(answer.goal, answer.goal)}: {goal.meaning}.", soft=True)


def _quantity(metric: str) -> Quantity:
    unit = METRICS[metric].unit
    title = HEADINGS.get(metric, metric) + (f" ({METRICS[metric].meaning})" if metric not in HEADINGS else "")
    return Quantity(title=title, show=lambda value: number(value, unit))


def _frontier(answer: Answer) -> Iterator[str]:
    """Draw every plan by two metrics, those that no other beats in both joined by a line."""
    x, y = answer.frontier
    plans, front = answer.tables["plans"], answer.tables.get("frontier", pd.DataFrame())
    if not y or len(plans) < 2:
        return
    kinds = [
        Dots(name=str(cluster), x=rows[x].tolist(), y=rows[y].tolist(), tips=_tips(rows, x, y))
        for cluster, rows in plans.groupby("cluster", sort=False)
    ]
    if len(front):
        tips = _tips(front, x, y)
        kinds.append(Dots(name="Pareto front", x=front[x].tolist(), y=front[y].tolist(), tips=tips, joined=True))
    yield section("What is traded for what", figure(scatter(kinds, _quantity(x), _quantity(y))))


def _tips(rows: pd.DataFrame, x: str, y: str) -> list[str]:
    units = METRICS[x].unit, METRICS[y].unit
    columns = (rows[name].tolist() for name in ("cluster", "layout", x, y))
    return [f"{a}, {b}: {number(p, units[0])}, {number(q, units[1])}" for a, b, p, q in zip(*columns, strict=True)]


def _breakdown(answer: Answer) -> Iterator[str]:
    """Draw where a pass's time goes: what everything waited for, and how long each part was busy."""
    found = answer.tables["breakdown"]
    rows = found[found["plan"] == 1]
    if len(rows):
        parts = rows["part"].tolist()
        bars = {
            "exposed, adds up to the pass": dict(zip(parts, rows["exposed"].tolist(), strict=True)),
            "busy, hidden time included": dict(zip(parts, rows["busy"].tolist(), strict=True)),
        }
        numbers = rows.drop(columns="plan")
        numbers.attrs = found.attrs
        yield section("One pass of the first plan's slowest stage", figure(stacked_bars(bars, TIME)), table(numbers))


def _memory(answer: Answer) -> Iterator[str]:
    """Draw the memory of each detailed plan's fullest rank against what may be filled."""
    found = answer.tables["memory"]
    if not len(found):
        return
    bars, limits = {}, {}
    for plan, rows in found.groupby("plan", sort=True):
        name = f"plan {plan}"
        bars[name] = dict(zip(rows["item"].tolist(), rows["size"].tolist(), strict=True))
        limits[name] = float(rows["capacity"].iloc[0])
    note = paragraph("The mark is what the framework is willing to fill of the device.", soft=True)
    yield section("Memory of the fullest rank", figure(stacked_bars(bars, BYTES, limits=limits)), note)


def _timeline(answer: Answer) -> Iterator[str]:
    """Draw the tasks of one pass on the streams that run them."""
    tasks = answer.tables["tasks"]
    if not len(tasks):
        return
    names = ("stream", "name", "layer", "start", "finish")
    spans = [
        Span(row=stream, kind=name, begin=start, end=finish, words=f"{name} {layer}: {show(finish - start, 's')}")
        for stream, name, layer, start, finish in zip(*(tasks[column].tolist() for column in names), strict=True)
    ]
    layers, kinds = tasks["layer"].tolist(), main_kinds(spans)
    middle = layers[len(layers) // 2]
    close = [span for span, layer in zip(spans, layers, strict=True) if layer in (middle, middle + 1)]
    yield section(
        "Timeline of one pass of the slowest stage",
        paragraph("A pass that carries prompt tokens; from the first start to the last finish over ranks.", soft=True),
        figure(gantt(spans, TIME, kinds)),
        paragraph(f"Two layers of it, {middle} and {middle + 1}:", soft=True),
        figure(gantt(close, TIME, kinds)),
    )


def _unfit(answer: Answer) -> Iterator[str]:
    if len(answer.tables["unfit"]):
        note = paragraph(
            "For every node type, how many layouts do not fit, and the one that misses by least.", soft=True
        )
        yield section("What does not fit", note, table(answer.tables["unfit"]))


def _sources(answer: Answer) -> Iterator[str]:
    """List what the numbers rest on, numbers of one source together."""
    found = answer.tables["sources"]
    if len(found):
        found = found.assign(where=[raw or read for raw, read in zip(found["raw"], found["read"], strict=True)])
        keys = ["kind", "title", "where"]
        grouped = found.groupby(keys, sort=False)["number"].agg(_short_list).reset_index()
        yield section("What the numbers rest on", table(grouped[["number", *keys]]))


def _short_list(numbers: pd.Series[str]) -> str:
    """Name the numbers of one source, the sections they share said once."""
    first, *others = numbers.tolist()
    return first if not others else f"{first} and {len(others)} more"


def _definitions(answer: Answer) -> str:
    """Explain every word of the page that is not plain."""
    named = dict.fromkeys([*answer.tables["summary"]["metric"].tolist(), answer.goal.partition(".")[0]])
    rows = [{"word": name, "meaning": METRICS[name].meaning} for name in named]
    rows += [{"word": name, "meaning": MEANINGS[name]} for name in answer.certificate if name in MEANINGS]
    kinds = {
        "measured": "timed on the machine itself",
        "fitted": "parameters fitted to measurements",
        "published": "from a datasheet, a paper or a price list",
        "derived": "follows from published numbers by a stated rule",
        "assumed": "somebody's assumption; replace it first",
    }
    rows += [{"word": kind, "meaning": f"a source: {meaning}"} for kind, meaning in kinds.items()]
    return section("Definitions", table(pd.DataFrame(rows)))

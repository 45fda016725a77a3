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
    lead,
    metric_value,
    number,
    paragraph,
    section,
    table,
)
from moesim.views.purchase import purchase_sections
from moesim.views.ranking import SIMULATED_NOTE, any_simulated, certificate_in_words, in_words, ranked

MEANINGS: Mapping[str, str] = {
    "plan": "a layout and a number of replicas, or two pools with theirs",
    "senseless": "combinations of choices that make no sense together",
    "bounded": "left out, as even a lower bound of their time is beaten",
    "refused": "a policy refuses them",
    "estimated": "timed by formula",
    "simulated": "run request by request, with queues",
    "P10, P90": "one draw in ten of all that is uncertain (costs, prices) is below, one in ten above",
}
"""What the words of the page mean."""

BYTES = Quantity(title="memory of the fullest rank", show=lambda size: show(size, "B"))
TIME = Quantity(title="time", show=lambda time: show(time, "s"))


def report(answer: Answer) -> str:
    """Write an answer as one self-contained HTML page; nothing in it comes from elsewhere.

    The same answer gives the same bytes.
    """
    plans = answer.tables["plans"]
    shown = _frontier, _step, _breakdown, _memory, _timeline, _simulated, _unfit, _sources
    parts = [_head(answer)]
    if len(plans):
        parts.append(section("Plans, best first", table(ranked(plans)), _ranking_note(answer)))
    parts[1:1] = purchase_sections(answer.tables)
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
        if metric in _FIRST and not (metric == "step" and "tpot" in winner["metric"].tolist())
    ]
    words = [heading(answer.name), lead(first), *map(paragraph, others), facts(headline)]
    certificate = f"Certificate: {certificate_in_words(answer.certificate)} It certifies the estimate, not the machine."
    return "".join([*words, *_runner_up(answer), paragraph(certificate, soft=True)])


def _runner_up(answer: Answer) -> Iterator[str]:
    """Say which plan came second, and why not first."""
    plans = answer.tables["plans"]
    if answer.comparison and len(plans) > 1:
        second = plans.iloc[1]
        yield paragraph(f"Runner-up: {second['cluster']}, {second['layout']}: {in_words(answer.comparison)}.")


_FIRST = (
    *("throughput", "throughput_per_gpu", "ttft", "tpot", "step", "price_per_token", "memory_headroom", "gpus"),
    *("time_to_train", "price_to_train"),
)
"""Metrics that a reader looks for first."""


def _interval(metric: str, low: float, mid: float, high: float, unit: str) -> str:
    """Write a metric's middle, and its band where there is one."""
    least, middle, most = (metric_value(value, metric, unit) for value in (low, mid, high))
    return f"{middle} ({least} to {most})" if low < high else middle


def _ranking_note(answer: Answer) -> str:
    goal = METRICS[answer.goal.partition(".")[0]]
    note = f" Column simulated: {SIMULATED_NOTE}." if any_simulated(answer.tables["plans"]) else ""
    return paragraph(f"Ranked by {HEADINGS.get(answer.goal, answer.goal)}: {goal.meaning}.{note}", soft=True)


def _quantity(metric: str) -> Quantity:
    unit = METRICS[metric].unit
    title = HEADINGS.get(metric, metric) + (f" ({METRICS[metric].meaning})" if metric not in HEADINGS else "")
    return Quantity(title=title, show=lambda value: number(value, unit))


def _frontier(answer: Answer) -> Iterator[str]:
    """Draw every estimated plan by two metrics, those that no other beats in both joined by a line."""
    x, y = answer.frontier
    plans, front, estimated = (answer.tables[name] for name in ("plans", "frontier", "estimated"))
    if not y or len(plans) < 2:
        return
    good = estimated["meets"].astype(bool)
    kinds = [
        _dots("estimated, misses a target", estimated[~good], x, y, color="dim", size=1.5),
        _dots("estimated, meets all", estimated[good], x, y, color="c0 some", size=2.0),
        _dots("in the table above", plans, x, y, color="c2", size=4.0),
        _dots("Pareto front", front, x, y, color="c1", joined=True, size=4.5),
        _dots("the first", plans.head(1), x, y, color="c3", size=6.0),
    ]
    note = "Down and to the left is better; a plan that misses a target cannot be on the front."
    better = all(METRICS[name].less_is_better for name in (x, y))
    drawn = figure(scatter(kinds, _quantity(x), _quantity(y)))
    yield section("What is traded for what", *([paragraph(note, soft=True)] if better else []), drawn)


def _dots(name: str, rows: pd.DataFrame, x: str, y: str, *, color: str, size: float, joined: bool = False) -> Dots:
    """Make plans dots of two metrics, each of which says what it is."""
    if not len(rows):
        return Dots(name=name, x=(), y=())
    rows = rows[rows[x].notna() & rows[y].notna()]
    names = [column for column in ("cluster", "layout") if column in rows]
    said = [", ".join(words) for words in zip(*(rows[column].tolist() for column in names), strict=True)]
    along, up = rows[x].tolist(), rows[y].tolist()
    units = METRICS[x].unit, METRICS[y].unit
    tips = [
        f"{words}: {number(a, units[0])}, {number(b, units[1])}" for words, a, b in zip(said, along, up, strict=True)
    ]
    return Dots(name=name, x=along, y=up, tips=tips, joined=joined, color=color, size=size)


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


def _step(answer: Answer) -> Iterator[str]:
    """Draw what a training step consists of."""
    if "step" not in answer.tables:
        return
    found = answer.tables["step"]
    rows = found[found["plan"] == 1]
    numbers = rows.drop(columns="plan")
    numbers.attrs = found.attrs
    bars = {"a step": dict(zip(rows["part"].tolist(), rows["time"].tolist(), strict=True))}
    yield section("One training step of the first plan", figure(stacked_bars(bars, TIME)), table(numbers))


def _memory(answer: Answer) -> Iterator[str]:
    """Draw the memory of each detailed plan's fullest rank against what may be filled."""
    found = answer.tables["memory"]
    if not len(found):
        return
    bars, limits = {}, {}
    names = {1: "the first plan", 2: "the runner-up"}
    for (plan, pool), rows in found.groupby(["plan", "pool"], sort=True):
        name = names.get(int(str(plan)), f"plan {plan}") + ("" if pool == "all" else f", {pool}")
        bars[name] = dict(zip(rows["item"].tolist(), rows["size"].tolist(), strict=True))
        limits[name] = float(rows["capacity"].iloc[0])
    note = paragraph("The mark is what the framework is willing to fill of the device.", soft=True)
    yield section("Memory of the fullest rank", figure(stacked_bars(bars, BYTES, limits=limits)), note)


def _timeline(answer: Answer) -> Iterator[str]:
    """Draw the tasks of one pass on the streams that run them."""
    tasks = answer.tables["tasks"]
    if not len(tasks):
        return
    tasks = tasks.groupby("task", sort=True).agg(
        {"stream": "first", "name": "first", "layer": "first", "start": "min", "finish": "max"}
    )
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
        paragraph(
            "A pass that carries prompt tokens, cut to a few layers; from first start to last finish over ranks.",
            soft=True,
        ),
        figure(gantt(spans, TIME, kinds)),
        paragraph(f"Two layers of it, {middle} and {middle + 1}:", soft=True),
        figure(gantt(close, TIME, kinds)),
    )


def _simulated(answer: Answer) -> Iterator[str]:
    found = answer.tables["simulated"]
    if len(found):
        note = "The first plans under the same requests: waiting is in these numbers, and in no estimate."
        yield section("Simulated", paragraph(note, soft=True), table(found.dropna(axis="columns", how="all")))


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
    rows += [{"word": word, "meaning": meaning} for word, meaning in MEANINGS.items()]
    kinds = {
        "measured": "timed on the machine itself",
        "fitted": "parameters fitted to measurements",
        "published": "from a datasheet, a paper or a price list",
        "derived": "follows from published numbers by a stated rule",
        "assumed": "somebody's assumption; replace it first",
    }
    rows += [{"word": kind, "meaning": f"a source: {meaning}"} for kind, meaning in kinds.items()]
    return section("Definitions", table(pd.DataFrame(rows)))

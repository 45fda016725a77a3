"""Drawings and reports as text: round ticks, everything inside its frame, nothing from elsewhere, any name harmless."""

from __future__ import annotations

import math
import re
from io import StringIO
from itertools import pairwise
from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.deployments.tables import with_units
from moesim.search.answer import Answer
from moesim.search.ranking import Certificate, Comparison
from moesim.views.charts import OTHERS, WIDTH, Dots, Quantity, Span, gantt, lines, main_kinds, scatter, stacked_bars
from moesim.views.page import cell, fragment, number, table
from moesim.views.report import report
from moesim.views.svg import Scale, element, log_ticks, nice_ticks, text, tip
from moesim.views.trace import task_trace

PLAIN = Quantity(title="size", show=lambda value: f"{value:g}")
FINITE = st.floats(-1e9, 1e9, allow_nan=False)


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def all_of(svg: str, tag: str) -> list[ElementTree.Element]:
    return list(parsed(svg).iter(f"{{http://www.w3.org/2000/svg}}{tag}"))


def colored(svg: str, tag: str = "rect") -> list[ElementTree.Element]:
    return [mark for mark in all_of(svg, tag) if mark.get("class", "").startswith("c")]


@given(FINITE, st.floats(1e-6, 1e9), st.integers(2, 12))
def test_ticks_are_few_even_and_inside(low: float, wide: float, most: int) -> None:
    ticks = nice_ticks(low, low + wide, most)
    assert 0 <= len(ticks) <= most
    room = 1e-6 * wide + 1e-9 * abs(low)
    assert all(low - room <= tick <= low + wide + room for tick in ticks)
    gaps = {round((b - a) / wide, 6) for a, b in pairwise(ticks)}
    assert len(gaps) <= 1 or wide < 1e-4 * abs(low)


@given(st.floats(1e-9, 1e9), st.floats(1.01, 1e6))
def test_ticks_of_ratios_are_round_and_inside(low: float, ratio: float) -> None:
    ticks = log_ticks(low, low * ratio)
    assert ticks == sorted(set(ticks))
    assert all(low * 0.999 <= tick <= low * ratio * 1.001 for tick in ticks)


@given(FINITE, FINITE, FINITE, st.booleans())
def test_a_scale_never_leaves_its_pixels(low: float, high: float, value: float, log: bool) -> None:
    low, high = sorted((low, high))
    if log:
        low, high = abs(low) + 1e-3, abs(low) + 1e-3 + abs(high)
    place = Scale(low=low, high=high, begin=200.0, end=20.0, log=log)(value)
    assert 20.0 <= place <= 200.0


def test_words_cannot_break_out() -> None:
    nasty = "<script>\"'&"
    for drawn in (text(nasty, 0, 0), element("g", tip(nasty), id=nasty), table(pd.DataFrame({"a": [nasty]}))):
        assert "<script>" not in drawn
        assert ElementTree.fromstring(drawn).tag


def test_a_bar_is_as_long_as_its_parts() -> None:
    svg = stacked_bars({"one": {"a": 1.0, "b": 3.0}, "two": {"b": 2.0}}, PLAIN, limits={"two": 4.0})
    key, marks = colored(svg)[:2], colored(svg)[2:]
    assert [mark.get("class") for mark in key] == ["c0", "c1"]
    widths = [float(mark.get("width", 0)) + 0.6 for mark in marks]
    assert widths[1] / widths[0] == pytest.approx(3, rel=1e-3)
    assert widths[2] / widths[0] == pytest.approx(2, rel=1e-3)
    (limit,) = [line for line in all_of(svg, "line") if line.get("class") == "limit"]
    assert float(limit.get("x1", 0)) == pytest.approx(widths[0] * 4, rel=1e-3)
    assert "two: 2" in svg


def test_more_parts_than_colors_are_joined() -> None:
    svg = stacked_bars({"bar": {f"part {number}": 1.0 + number for number in range(14)}}, PLAIN)
    assert len({mark.get("class") for mark in colored(svg)}) == 10
    assert f"{OTHERS}: {sum(1.0 + number for number in range(5)):g}" in svg


def test_a_dot_lies_where_its_numbers_say() -> None:
    kinds = [
        Dots(name="all", x=[1.0, 10.0, 100.0], y=[1.0, 2.0, 4.0], tips=["first", "second", "third"]),
        Dots(name="front", x=[100.0, 1.0], y=[4.0, 1.0], joined=True),
    ]
    svg = scatter(kinds, PLAIN, PLAIN)
    dots = [(float(dot.get("cx", 0)), float(dot.get("cy", 0))) for dot in all_of(svg, "circle")]
    small, large = dots[:3], dots[3:]
    assert small[1][0] - small[0][0] == pytest.approx(small[2][0] - small[1][0])  # equal ratios, equal steps
    assert small[0][1] > small[1][1] > small[2][1]  # up is more
    assert set(large) == {small[0], small[2]}
    (front,) = all_of(svg, "polyline")
    across = [float(point.split(",")[0]) for point in front.get("points", "").split()]
    assert across == sorted(across)
    assert "<title>second</title>" in svg


@given(st.lists(st.tuples(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3)), min_size=1, max_size=30))
def test_no_dot_leaves_the_drawing(points: list[tuple[float, float]]) -> None:
    svg = scatter([Dots(name="all", x=[a for a, _ in points], y=[b for _, b in points])], PLAIN, PLAIN)
    for dot in all_of(svg, "circle"):
        assert 70 <= float(dot.get("cx", 0)) <= WIDTH
        assert 0 <= float(dot.get("cy", 0)) <= 400


def test_thousands_of_dots_stay_a_small_drawing() -> None:
    many = [1.0 + (i % 100) / 1e4 for i in range(20000)]
    assert len(scatter([Dots(name="all", x=many, y=many)], PLAIN, PLAIN)) < 60_000


def test_a_gantt_puts_spans_on_their_rows() -> None:
    spans = [
        Span(row="compute", kind="experts", begin=0.0, end=2.0, words="experts 3: 2 s"),
        Span(row="comm", kind="combine", begin=2.0, end=3.0, words="combine"),
        Span(row="compute", kind="experts", begin=3.0, end=4.0, words="more"),
    ]
    marks = colored(gantt(spans, PLAIN, main_kinds(spans)))[2:]
    tops = [mark.get("y") for mark in marks]
    assert tops[0] == tops[2] != tops[1]
    begins = [float(mark.get("x", 0)) for mark in marks]
    ends = [begin + float(mark.get("width", 0)) for begin, mark in zip(begins, marks, strict=True)]
    assert ends[0] == pytest.approx(begins[1], abs=0.02)
    assert ends[1] == pytest.approx(begins[2], abs=0.02)


def test_a_part_of_a_gantt_keeps_the_colors_of_the_whole() -> None:
    spans = [Span(row="r", kind=f"k{n}", begin=float(n), end=n + 1.5 + n, words=f"k{n}") for n in range(12)]
    kept = main_kinds(spans)
    assert kept == tuple(f"k{n}" for n in range(3, 12))
    whole, part = (colored(gantt(some, PLAIN, kept)) for some in (spans, spans[5:6]))
    assert len({mark.get("class") for mark in whole}) == 10
    assert part[-1].get("class") == whole[len(kept) + 1 + 5].get("class")


def test_lines_begin_at_zero() -> None:
    svg = lines([Dots(name="", x=[1.0, 2.0], y=[5.0, 10.0], joined=True)], PLAIN, PLAIN)
    heights = [float(dot.get("cy", 0)) for dot in all_of(svg, "circle")]
    assert heights[0] > heights[1]
    assert ">0<" in svg


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (True, "", "True"),
        (1200, None, "1,200"),
        (0.5, "", "50.0%"),
        (0.5, None, "0.5"),
        (math.nan, "s", "-"),
        (2e9, "B", "2.00 GB"),
    ],
)
def test_cells_are_written_for_people(value: object, unit: str | None, said: str) -> None:
    assert cell(value, "any", unit) == said
    assert cell(16.0, "gpus", "") == "16"


CERTIFICATE = Certificate(
    layouts=9,
    considered=1234,
    invalid={"odd": 3},
    unfit=4,
    refused=0,
    bounded=1200,
    estimated=30,
    simulated=1,
    gap=0.012,
)


def answer(name: str = "A study", plans: int = 3) -> Answer:
    rows = range(1, plans + 1)
    ranked = pd.DataFrame(
        {
            "cluster": [f"{n} x node" for n in rows],
            "layout": [f"dp{n}" for n in rows],
            "price_per_token": [1e-6 * n for n in rows],
            "tpot": [0.05 / n for n in rows],
            "miss": [0.0 for _ in rows],
        }
    )
    units = {"price_per_token": "USD/tokens", "tpot": "s"}
    tasks = pd.DataFrame(
        {
            "name": ["attention", "dispatch"],
            "task": [0, 1],
            "layer": [0, 0],
            "chunk": [0, 0],
            "microbatch": [0, 0],
            "op": ["Gemm", "Send"],
            "rank": [0, 1],
            "alike": [1.0, 7.0],
            "stream": ["compute", "comm"],
            "start": [0.0, 1e-3],
            "finish": [1e-3, 2e-3],
        }
    )
    summary = [(1, "tpot", 0.03, 0.05, 0.08, "s", "derived"), (1, "gpus", 8.0, 8.0, 8.0, "", "derived")]
    return Answer(
        name=name,
        seed=0,
        goal="price_per_token",
        frontier=("price_per_token", "tpot"),
        headline=("1 x node wins.", "By far."),
        certificate=CERTIFICATE,
        comparison=Comparison(metric="tpot", first=0.05, second=0.06, probability=0.75),
        tables={
            "plans": with_units(ranked, units),
            "frontier": with_units(ranked.head(2), units),
            "estimated": with_units(ranked.drop(columns=["layout", "miss"]).assign(meets=True), units),
            "simulated": pd.DataFrame({"plan": [1], "ttft.p99": [0.7], "verdict": ["waits too long"]}),
            "summary": pd.DataFrame(summary, columns=["plan", "metric", "low", "mid", "high", "unit", "source"]),
            "breakdown": pd.DataFrame(
                {"plan": [1, 1], "part": ["a", "b"], "busy": [2e-3, 1e-3], "exposed": [2e-3, 0.0]}
            ),
            "memory": pd.DataFrame(
                {"plan": [1, 2], "pool": "all", "item": ["kv", "kv"], "size": [5e9, 6e9], "capacity": [7e9, 8e9]}
            ),
            "tasks": tasks,
            "unfit": pd.DataFrame({"node": ["small"], "unfit": [3], "why": ["too small"]}),
            "sources": pd.DataFrame(
                [("rent", "published", "a list", "2026-01-01", ""), ("gpus", "published", "a list", "2026-01-01", "")],
                columns=["number", "kind", "title", "read", "raw"],
            ),
        },
        plans=(),
    )


def test_a_report_says_all_of_it() -> None:
    page = report(answer())
    for words in (
        "1 x node wins.",
        "50.0 ms (30.0 ms to 80.0 ms)",  # a metric with its band
        "1,234 plans of 9 layouts",
        "better by up to 1.2%",
        "Runner-up: 2 x node, dp2: it lost by tpot, 60.0 ms against 50.0 ms; the first beats it in 75% of the draws.",
        "waits too long",
        "What is traded for what",
        "Pareto front",
        "Memory of the fullest rank",
        "limit 8.00 GB",
        "Timeline of one pass",
        "dispatch 0: 1.00 ms",
        "too small",
        "rent and 1 more",
        "Definitions",
    ):
        assert words in page
    assert page.count("<svg") == 5


def test_a_report_needs_nothing_from_elsewhere() -> None:
    page = report(answer())
    without_names = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|<script|<link|@import|url\(|src=", without_names)
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_a_report_of_a_nasty_name_is_harmless() -> None:
    assert "<b>bold" not in report(answer(name="<b>bold & loud"))


def test_a_report_of_no_plan_still_says_why() -> None:
    empty = answer(plans=0)
    tables = {name: frame.iloc[:0] for name, frame in empty.tables.items()} | {"unfit": empty.tables["unfit"]}
    nothing = Answer(
        name="none",
        seed=0,
        goal="price_per_token",
        frontier=("", ""),
        headline=("No plan fits.",),
        certificate=CERTIFICATE,
        comparison=None,
        tables=tables,
        plans=(),
    )
    page = report(nothing)
    assert "No plan fits." in page
    assert "too small" in page
    assert "<svg" not in page


def test_a_fragment_brings_its_style() -> None:
    assert fragment("x").startswith('<div class="moesim"><style>')
    assert number(12.5, "s") == "12.5 s"


def test_a_trace_of_tasks_is_as_long_as_they_are() -> None:
    found = pd.read_json(StringIO(task_trace(answer().tables["tasks"])), typ="series")
    spans = [event for event in found["traceEvents"] if event["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"]) for event in spans] == [
        ("attention 0", 0.0, pytest.approx(1000.0)),
        ("dispatch 0", pytest.approx(1000.0), pytest.approx(1000.0)),
    ]
    assert len({event["tid"] for event in spans}) == 2
    assert [event["pid"] for event in spans] == [0, 1]
    assert found["traceEvents"][6]["args"]["name"] == "rank 1 of 7 alike"

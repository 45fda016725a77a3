"""Pieces of HTML that reports and notebooks share: one style for light and dark, tables, figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from moesim.ground.units import show

MILLION = 1e6

STYLE = """
.moesim { --ink: #1c2128; --soft: #5d6670; --edge: #d9dee4; --back: #ffffff; --card: #f6f8fa;
  --c0: #3b6fb6; --c1: #d97b29; --c2: #3f9b6b; --c3: #b5495b; --c4: #8163b0; --c5: #8a6a50; --c6: #c774a8;
  --c7: #7d8590; --c8: #a8a12b; --c9: #2f9fb3;
  color: var(--ink); background: var(--back); font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
@media (prefers-color-scheme: dark) { .moesim { --ink: #e3e8ee; --soft: #9aa5b1; --edge: #363d46; --back: #14181d;
  --card: #1c2229; --c0: #6ea0e0; --c1: #eda15c; --c2: #6cc295; --c3: #e07f8e; --c4: #ab92d8; --c5: #b99a80;
  --c6: #e3a0cb; --c7: #9fa8b3; --c8: #cfc85c; --c9: #62c6d8; } }
.moesim h1 { font-size: 1.7em; margin: 0 0 .2em; line-height: 1.2; }
.moesim h2 { font-size: 1.2em; margin: 2.2em 0 .4em; }
.moesim p { margin: .4em 0; max-width: 76ch; }
.moesim .soft { color: var(--soft); }
.moesim .wide { overflow-x: auto; margin: .6em 0; }
.moesim table { border-collapse: collapse; font-size: 12.5px; font-variant-numeric: tabular-nums; }
.moesim th, .moesim td { padding: 4px 7px 4px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--edge); }
.moesim th { color: var(--soft); font-weight: 600; white-space: nowrap; }
.moesim td.n, .moesim th.n { text-align: right; white-space: nowrap; } .moesim td.s { white-space: nowrap; }
.moesim .facts { display: flex; flex-wrap: wrap; gap: 10px; margin: 1em 0; padding: 0; list-style: none; }
.moesim .facts li { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: 8px 14px; }
.moesim .facts b { display: block; font-size: 1.15em; font-variant-numeric: tabular-nums; }
.moesim .facts span { color: var(--soft); font-size: .85em; }
.moesim svg { width: 100%; min-width: 560px; max-width: 860px; height: auto; display: block; font-size: 12px; }
.moesim svg text { fill: var(--ink); } .moesim svg text.title, .moesim svg text.faint { fill: var(--soft); }
.moesim svg .grid { stroke: var(--edge); stroke-width: 1; } .moesim svg .limit { stroke: var(--ink); stroke-width: 2; }
.moesim svg .dim { fill: var(--soft); fill-opacity: .4; } .moesim svg .some { fill-opacity: .45; }
.moesim .lead { font-size: 1.12em; font-weight: 600; }
.moesim svg .line { fill: none; stroke-width: 2; }
""" + "".join(
    f".moesim svg .c{number} {{ fill: var(--c{number}); }} "
    f".moesim svg .line.c{number} {{ fill: none; stroke: var(--c{number}); }}\n"
    for number in range(10)
)
"""Everything is scoped to the class ``moesim``, so that it leaves a notebook alone."""

HEADINGS: Mapping[str, str] = {
    "throughput": "tokens/s",
    "throughput_per_gpu": "tokens/s/GPU",
    "price_per_token": "USD/M tokens",
    "memory_headroom": "headroom",
    "replicas": "repl.",
    "price_low": "P10",
    "price_high": "P90",
}
"""Names of columns as people read them, where they differ from the metric's."""


def number(value: float, unit: str) -> str:
    """Write a number at a human scale: prices per million tokens, rates whole, shares as percentages.

    Examples
    --------
    >>> number(3.642e-6, "USD/tokens"), number(6553.2, "tokens/s"), number(0.0391, "s"), number(0.116, "")
    ('3.642', '6,553', '39.1 ms', '11.6%')
    """
    if not math.isfinite(value):
        return "-"
    if unit == "USD/tokens":
        return f"{value * MILLION:,.3f}"
    if unit == "tokens/s":
        return f"{value:,.0f}"
    return show(value, unit) if unit else f"{value:.1%}"


def metric_value(value: float, metric: str, unit: str) -> str:
    """Write a value of a metric; gpus are the one that is counted."""
    return f"{value:,.0f}" if metric == "gpus" and math.isfinite(value) else number(value, unit)


def cell(value: Any, metric: str, unit: str | None) -> str:
    """Write one value of a table: quantities by their unit, words and numbers without one as they are."""
    if isinstance(value, float):
        return f"{value:g}" if unit is None else metric_value(value, metric, unit)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def table(frame: pd.DataFrame, *, leave_out: Sequence[str] = ()) -> str:
    """Write a tidy table as HTML; units come from the frame's attributes, and numbers stand to the right."""
    units = frame.attrs.get("units", {})
    names = [name for name in frame.columns if name not in leave_out]
    sides = [_side(frame[name]) for name in names]
    head = "".join(
        f"<th{side}>{escape(HEADINGS.get(name, str(name)))}</th>" for name, side in zip(names, sides, strict=True)
    )
    columns = [[escape(cell(value, name, units.get(name))) for value in frame[name].tolist()] for name in names]
    rows = "".join(
        "<tr>" + "".join(f"<td{side}>{words}</td>" for words, side in zip(row, sides, strict=True)) + "</tr>"
        for row in zip(*columns, strict=True)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


LONGEST = 60
"""Characters up to which a column of words is kept on one line."""


def _side(column: pd.Series[Any]) -> str:
    if pd.api.types.is_numeric_dtype(column):
        return ' class="n"'
    return ' class="s"' if column.astype(str).str.len().max() <= LONGEST else ""


def figure(svg: str) -> str:
    """Hold a drawing; on a narrow screen it is scrolled instead of shrunk beyond reading."""
    return f'<div class="wide">{svg}</div>'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Show a few headline numbers, each above its name."""
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>" for name, value in pairs)
    return f'<ul class="facts">{items}</ul>'


def section(title: str, *parts: str) -> str:
    """Join parts under a heading."""
    return f"<h2>{escape(title)}</h2>" + "".join(parts)


def heading(words: str) -> str:
    """Write the title of a page."""
    return f"<h1>{escape(words)}</h1>"


def lead(words: str) -> str:
    """Write the sentence that matters most."""
    return f'<p class="lead">{escape(words)}</p>'


def paragraph(words: str, *, soft: bool = False) -> str:
    """Write a sentence or two."""
    return f'<p class="soft">{escape(words)}</p>' if soft else f"<p>{escape(words)}</p>"


def fragment(*parts: str) -> str:
    """Wrap parts with their style, to stand alone in a notebook's cell."""
    return f'<div class="moesim"><style>{STYLE}</style>{"".join(parts)}</div>'


def document(title: str, *parts: str) -> str:
    """Write a whole page that needs nothing from elsewhere, at any width."""
    frame = "body { margin: 0; } main.moesim { min-height: 100vh; box-sizing: border-box; "
    frame += "padding: 28px max(16px, 50vw - 590px); }"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{frame}{STYLE}</style></head>"
        f'<body><main class="moesim">{"".join(parts)}</main></body></html>\n'
    )

"""The figure of a comparison: predicted ratios against measured ones, a mark for every pair of plans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moesim.views.svg import Axis, Scale, drawing, element, frame, legend, text, tip

from .scores import LARGE, Scored

WIDTH, HEIGHT = 720.0, 560.0
LEFT, RIGHT, TOP, BOTTOM = 70.0, 20.0, 76.0, 56.0
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #333 } .title { font-weight: 600 } .grid { stroke: #ddd }
.even { stroke: #777; stroke-width: 1.5; stroke-dasharray: 5 4 } .sheet { fill: #fff }
.band { fill: #777; fill-opacity: 0.12 } circle { fill-opacity: 0.8 }
.c0 { fill: #0072b2 } .c1 { fill: #e69f00 } .c2 { fill: #009e73 } .c3 { fill: #cc79a7 } .c4 { fill: #56b4e9 }
.c5 { fill: #d55e00 } .c6 { fill: #999 } .c7 { fill: #b8a800 }
"""
"""Colors of Okabe and Ito, told apart by all eyes (jfly.uni-koeln.de/color)."""
NEAR = 1.1
"""Ratio up to which a prediction is drawn inside the band: a tenth."""


def figure(pairs: Sequence[Scored]) -> str:
    """Draw measured ratios to the right and predicted ones upwards; on the dashed line they are equal."""
    values = [value for pair in pairs for value in (pair.measured, pair.predicted)]
    low, high = min([0.9, *values]) / 1.05, max([2.0, *values]) * 1.05
    x = Scale(low=low, high=high, begin=LEFT, end=WIDTH - RIGHT, log=True)
    y = Scale(low=low, high=high, begin=HEIGHT - BOTTOM, end=TOP, log=True)
    axes = (
        Axis(scale=x, title="measured: slower over faster plan", show=_times),
        Axis(scale=y, title="predicted for the same two", show=_times),
    )
    kinds = list(dict.fromkeys(pair.axis for pair in pairs))
    key, _ = legend([(f"c{number % 8}", kind) for number, kind in enumerate(kinds)], LEFT, 10, WIDTH - LEFT - RIGHT)
    parts = [
        element("style", STYLE),
        element("rect", width=WIDTH, height=HEIGHT, class_="sheet"),
        *key,
        *_guides(x, y),
        *frame(*axes),
        *(_mark(pair, kinds, x, y) for pair in pairs),
    ]
    return drawing(WIDTH, HEIGHT, "Predicted against measured ratios of plans", parts)


def _times(value: float) -> str:
    return f"{value:g}x"


def _guides(x: Scale, y: Scale) -> Iterator[str]:
    """Draw where a prediction is right to a tenth, and where it has the wrong order."""
    ends = ((x.low, x.high), (x.high, x.low))
    corners = [
        (a, a * factor) for (a, _), factor in zip((*ends, *ends[::-1]), (1 / NEAR,) * 2 + (NEAR,) * 2, strict=True)
    ]
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in corners)
    yield element("polygon", points=points, class_="band")
    yield element("line", x1=x(x.low), y1=y(y.low), x2=x(x.high), y2=y(y.high), class_="even")
    yield element("line", x1=x(x.low), y1=y(1.0), x2=x(x.high), y2=y(1.0), class_="even")
    yield text("below: ordered wrong", x.end - 4, y(1.0) + 16, text_anchor="end")


def _mark(pair: Scored, kinds: Sequence[str], x: Scale, y: Scale) -> str:
    """Draw one pair, larger where it differs much."""
    words = tip(f"{pair.slow} over {pair.fast}: measured {pair.measured:.2f}, predicted {pair.predicted:.2f}")
    size = 5.5 if pair.measured >= LARGE else 4.0
    shade = f"c{kinds.index(pair.axis) % 8}"
    return element("circle", words, cx=x(pair.measured), cy=y(pair.predicted), r=size, class_=shade)

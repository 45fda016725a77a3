"""The charts of reports and notebooks: scatter, stacked bars, gantt and lines; numbers in, one drawing out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from moesim.views.svg import Axis, Scale, Show, drawing, element, frame, legend, text, tip

WIDTH = 760.0
COLORS = 10
OTHERS = "others"
"""What kinds beyond the number of colors are called together."""
CELL = 3.0
"""Pixels within which dots of a scatter are drawn once: beyond some thousands they only cover each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What is measured along an axis: its title, and how a value is written."""

    title: str
    show: Show


@dataclass(frozen=True, slots=True, kw_only=True)
class Dots:
    """Points of one kind: where they are, what each says when pointed at, and whether a line joins them.

    `size` is their radius; 0: small, or larger where a line joins them.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    tips: Sequence[str] = ()
    joined: bool = False
    color: str = ""
    size: float = 0.0


def color(number: int) -> str:
    """Name the class of the color of the n-th kind of thing."""
    return f"c{number % COLORS}"


def scatter(kinds: Sequence[Dots], x: Quantity, y: Quantity, *, height: float = 400.0) -> str:
    """Draw points on two axes of ratios; those joined are drawn as a front, on top of all others."""
    colored = [(kind, kind.color or color(number)) for number, kind in enumerate(kinds) if len(kind.x)]
    key, used = legend([(shade, kind.name) for kind, shade in colored], 70, 0, WIDTH - 90)
    axes = (
        Axis(
            scale=_ratios([value for kind, _ in colored for value in kind.x], 70, WIDTH - 20),
            title=x.title,
            show=x.show,
        ),
        Axis(
            scale=_ratios([value for kind, _ in colored for value in kind.y], height - 46, used + 30),
            title=y.title,
            show=y.show,
        ),
    )
    marks = [
        mark for kind, shade in sorted(colored, key=lambda pair: pair[0].joined) for mark in _dots(kind, shade, *axes)
    ]
    return drawing(WIDTH, height, f"{y.title} against {x.title}", [*key, *frame(*axes), *marks])


def _ratios(values: Sequence[float], begin: float, end: float) -> Scale:
    """Span values with a little room on both sides."""
    low, high = min(values), max(values)
    return Scale(low=low / 1.05, high=high * 1.05, begin=begin, end=end, log=low > 0)


def _dots(kind: Dots, shade: str, x: Axis, y: Axis) -> list[str]:
    places = [(x.scale(a), y.scale(b)) for a, b in zip(kind.x, kind.y, strict=True)]
    said = kind.tips or [""] * len(places)
    seen: dict[tuple[int, int], tuple[tuple[float, float], str]] = {}
    for place, words in zip(places, said, strict=True):
        seen.setdefault((int(place[0] / CELL), int(place[1] / CELL)), (place, words))
    drawn = [_joined(sorted(places), shade)] if kind.joined and places else []
    size = kind.size or (4.5 if kind.joined else 2.0)
    for (across, up), words in seen.values():
        said_here = (tip(words),) if words else ()
        drawn.append(element("circle", *said_here, cx=across, cy=up, r=size, class_=shade))
    return drawn


def _joined(places: Sequence[tuple[float, float]], shade: str) -> str:
    points = " ".join(f"{across:.1f},{up:.1f}" for across, up in places)
    return element("polyline", points=points, class_=f"line {shade}")


def stacked_bars(
    bars: Mapping[str, Mapping[str, float]], unit: Quantity, *, limits: Mapping[str, float] | None = None
) -> str:
    """Draw a row for each bar, its parts end to end in the order of the first bar that has them.

    Parameters
    ----------
    bars : by name, the size of each part
    unit : what the sizes are
    limits : by bar, a mark at what may not be exceeded
    """
    limits = limits or {}
    bars = {name: _fewer(bar, _largest(bars.values())) for name, bar in bars.items()}
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    longest = max([*(sum(bar.values()) for bar in bars.values()), *limits.values(), 1e-300])
    key, used = legend([(color(number), part) for number, part in enumerate(parts)], 0, 0, WIDTH)
    scale = Scale(low=0.0, high=longest * 1.02, begin=0.0, end=WIDTH - 40)
    rows = []
    for number, (name, bar) in enumerate(bars.items()):
        top = used + 26 + 46 * number
        rows.append(text(f"{name}: {unit.show(sum(bar.values()))}", 0, top - 5))
        rows += _parts(bar, parts, scale, top, unit)
        if name in limits:
            place = scale(limits[name])
            limit = tip(f"limit {unit.show(limits[name])}")
            rows.append(element("line", limit, x1=place, x2=place, y1=top - 4, y2=top + 26, class_="limit"))
            rows.append(text(unit.show(limits[name]), place - 4, top - 5, text_anchor="end", class_="faint"))
    bottom = used + 26 + 46 * len(bars)
    ticks = [text(unit.show(tick), scale(tick), bottom, text_anchor="middle") for tick in scale.ticks()[1:]]
    return drawing(WIDTH, bottom + 10, unit.title, [*key, *rows, *ticks])


def _largest(bars: Iterable[Mapping[str, float]]) -> set[str]:
    """Choose the parts that get a color of their own: all where there are enough, else the largest."""
    sizes: Counter[str] = Counter()
    for bar in bars:
        sizes.update(bar)
    return set(sizes) if len(sizes) <= COLORS else {part for part, _ in sizes.most_common(COLORS - 1)}


def _fewer(bar: Mapping[str, float], kept: Collection[str]) -> dict[str, float]:
    """Join the parts of a bar that are not kept, at its end."""
    others = sum(size for part, size in bar.items() if part not in kept)
    return {part: size for part, size in bar.items() if part in kept} | ({OTHERS: others} if others else {})


def _parts(bar: Mapping[str, float], parts: Sequence[str], scale: Scale, top: float, unit: Quantity) -> list[str]:
    drawn, done = [], 0.0
    for number, part in enumerate(parts):
        size = bar.get(part, 0.0)
        if size > 0:
            begin, end = scale(done), scale(done + size)
            words = tip(f"{part}: {unit.show(size)}")
            wide = max(end - begin - 0.6, 0.4)
            drawn.append(element("rect", words, x=begin, y=top, width=wide, height=22, class_=color(number)))
            done += size
    return drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of time on one row of a gantt chart."""

    row: str
    kind: str
    begin: float
    end: float
    words: str


def main_kinds(spans: Sequence[Span]) -> tuple[str, ...]:
    """List the kinds that get a color of their own, in order of first use: so that two charts can use the same."""
    kept = _largest({span.kind: span.end - span.begin} for span in spans)
    return tuple(dict.fromkeys(span.kind for span in spans if span.kind in kept))


def gantt(spans: Sequence[Span], time: Quantity, kept: Sequence[str]) -> str:
    """Draw spans on the rows they belong to, colored by kind, those not kept alike; time runs to the right."""
    rows = list(dict.fromkeys(span.row for span in spans))
    spans = [span if span.kind in kept else replace(span, kind=OTHERS) for span in spans]
    kinds = [*kept, *([OTHERS] if any(span.kind == OTHERS for span in spans) else [])]
    key, used = legend([(color(number), kind) for number, kind in enumerate(kinds)], 0, 0, WIDTH)
    bottom = used + 14 + 34 * len(rows)
    end = max((span.end for span in spans), default=1.0)
    scale = Scale(low=min((span.begin for span in spans), default=0.0), high=end, begin=78, end=WIDTH - 30)
    drawn = [text(row, 70, used + 14 + 34 * number + 17, text_anchor="end") for number, row in enumerate(rows)]
    for tick in scale.ticks(8):
        drawn.append(element("line", x1=scale(tick), x2=scale(tick), y1=used + 6, y2=bottom, class_="grid"))
        drawn.append(text(time.show(tick), scale(tick), bottom + 16, text_anchor="middle"))
    for span in spans:
        begin, wide = scale(span.begin), max(scale(span.end) - scale(span.begin), 0.3)
        top, shade = used + 14 + 34 * rows.index(span.row), color(kinds.index(span.kind))
        drawn.append(element("rect", tip(span.words), x=begin, y=top, width=wide, height=26, class_=shade))
    drawn.append(text(time.title, (78 + WIDTH - 30) / 2, bottom + 34, text_anchor="middle", class_="title"))
    return drawing(WIDTH, bottom + 42, time.title, [*key, *drawn])


def lines(kinds: Sequence[Dots], x: Quantity, y: Quantity, *, height: float = 320.0) -> str:
    """Draw one line for each kind, with dots; both axes are even and y begins at zero."""
    key, used = legend(
        [(color(number), kind.name) for number, kind in enumerate(kinds) if kind.name], 70, 0, WIDTH - 90
    )
    across = [value for kind in kinds for value in kind.x]
    highest = max((value for kind in kinds for value in kind.y), default=1.0)
    axes = (
        Axis(scale=Scale(low=min(across), high=max(across), begin=70, end=WIDTH - 30), title=x.title, show=x.show),
        Axis(scale=Scale(low=0.0, high=highest * 1.05, begin=height - 46, end=used + 30), title=y.title, show=y.show),
    )
    marks = [mark for number, kind in enumerate(kinds) for mark in _dots(kind, color(number), *axes)]
    return drawing(WIDTH, height, f"{y.title} against {x.title}", [*key, *frame(*axes), *marks])


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One circumstance of a tornado chart: the value now, and by name what it becomes where it changes."""

    name: str
    base: float
    ends: tuple[tuple[str, float], ...]

    @property
    def reach(self) -> float:
        """How far the value moves in all."""
        values = [self.base, *(value for _, value in self.ends)]
        return max(values) - min(values)


def tornado(bars: Sequence[Bar], unit: Quantity) -> str:
    """Draw how far each circumstance moves a value to either side of what it is now, the farthest on top."""
    ordered = sorted(bars, key=lambda bar: -bar.reach)
    values = [value for bar in ordered for value in (bar.base, *(end for _, end in bar.ends))]
    room = (max(values) - min(values)) * 0.05 or abs(values[0]) * 0.05 or 1.0
    scale = Scale(low=min(values) - room, high=max(values) + room, begin=190, end=WIDTH - 30)
    bottom = 14 + 40 * len(ordered)
    drawn = []
    for tick in scale.ticks():
        drawn.append(element("line", x1=scale(tick), x2=scale(tick), y1=6, y2=bottom, class_="grid"))
        drawn.append(text(unit.show(tick), scale(tick), bottom + 16, text_anchor="middle"))
    for number, bar in enumerate(ordered):
        top = 14 + 40 * number
        drawn.append(text(bar.name, 180, top + 16, text_anchor="end"))
        drawn += _sides(bar, scale, top, unit)
    middle = scale(ordered[0].base)
    drawn.append(element("line", x1=middle, x2=middle, y1=6, y2=bottom, class_="limit"))
    drawn.append(text(unit.title, (190 + WIDTH - 30) / 2, bottom + 34, text_anchor="middle", class_="title"))
    return drawing(WIDTH, bottom + 42, f"tornado: {unit.title}", drawn)


def _sides(bar: Bar, scale: Scale, top: float, unit: Quantity) -> list[str]:
    """Draw each end of a bar from the value now."""
    drawn = []
    for number, (name, value) in enumerate(bar.ends):
        begin, end = sorted((scale(bar.base), scale(value)))
        words = tip(f"{bar.name} {name}: {unit.show(value)}")
        wide = max(end - begin, 1.0)
        drawn.append(element("rect", words, x=begin, y=top, width=wide, height=24, class_=color(number)))
    return drawn

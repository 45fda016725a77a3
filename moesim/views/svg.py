"""Drawing as text: elements, scales with ticks at round numbers, and the frame of axes that charts share.

Colors are classes (`c0` to `c9`, `faint`, `line`), which `page.STYLE` gives a light and a dark look; nothing here knows
of either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import escape

Show = Callable[[float], str]


def element(tag: str, *inside: str, **attributes: object) -> str:
    """Write one element; an attribute's trailing underscore is dropped and inner ones become dashes.

    Examples
    --------
    >>> element("rect", x=1.0, y=2.25, class_="c0")
    '<rect x="1" y="2.25" class="c0"/>'
    >>> element("text", "a &lt; b", text_anchor="end")
    '<text text-anchor="end">a &lt; b</text>'
    """
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_attribute(value)}"' for name, value in attributes.items()
    )
    return f"<{tag}{named}>{''.join(inside)}</{tag}>" if inside else f"<{tag}{named}/>"


def _attribute(value: object) -> str:
    """Write a coordinate to a hundredth of a pixel, and text so that it cannot end the attribute."""
    return f"{round(value, 2):g}" if isinstance(value, float) else escape(str(value))


def text(words: str, x: float, y: float, **attributes: object) -> str:
    """Write words at a place, whatever characters they hold."""
    return element("text", escape(words), x=float(x), y=float(y), **attributes)


def tip(words: str) -> str:
    """Say something when the pointer rests on the element that holds this."""
    return element("title", escape(words))


def drawing(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    """Put parts on a canvas, with a label for who cannot see it."""
    box = f"0 0 {width:g} {height:g}"
    return element("svg", *parts, viewBox=box, role="img", aria_label=label, xmlns="http://www.w3.org/2000/svg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps values from `low` to `high` onto pixels from `begin` to `end`, evenly or by ratios (`log`)."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Place a value; values outside are placed at the edge."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, max(value, self.low)))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.begin + min(max(share, 0.0), 1.0) * (self.end - self.begin)

    def ticks(self, most: int = 6) -> list[float]:
        """Choose round values within the scale."""
        return log_ticks(self.low, self.high, most) if self.log else nice_ticks(self.low, self.high, most)


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Choose at most so many multiples of 1, 2 or 5 times a power of ten between two values.

    Examples
    --------
    >>> nice_ticks(0, 23), nice_ticks(0.11, 0.29, 4)
    ([0.0, 5.0, 10.0, 15.0, 20.0], [0.15, 0.2, 0.25])
    """
    if not high > low:
        return [low]
    size = math.floor(math.log10((high - low) / most))
    for step in (factor * 10.0**exponent for exponent in (size, size + 1, size + 2) for factor in (1, 2, 5)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            break
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Choose at most so many round values between two positive ones, at about equal ratios.

    Examples
    --------
    >>> log_ticks(0.8, 300), log_ticks(3, 9)
    ([1.0, 3.0, 10.0, 30.0, 100.0, 300.0], [3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in (range(1, 10), (1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**decade for decade in decades for factor in factors]
        inside = [float(f"{tick:.12g}") for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(inside) <= most + 3 * (high / low < 10):
            break
    return inside if len(inside) > 1 else nice_ticks(low, high, most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A scale with its title and how its ticks are written."""

    scale: Scale
    title: str
    show: Show


LETTER, APART = 6.4, 8.0
"""Pixels of a letter, and between two labels on one line; a tick whose label has no room goes without."""


def frame(x: Axis, y: Axis) -> Iterator[str]:
    """Draw two axes with faint lines at their ticks; the y scale runs upwards, from a larger pixel to a smaller."""
    left, right, bottom, top = x.scale.begin, x.scale.end, y.scale.begin, y.scale.end
    for tick in y.scale.ticks():
        height = y.scale(tick)
        yield element("line", x1=left, x2=right, y1=height, y2=height, class_="grid")
        yield text(y.show(tick), left - 6, height + 4, text_anchor="end")
    free = -math.inf
    for tick in x.scale.ticks():
        place = x.scale(tick)
        yield element("line", x1=place, x2=place, y1=bottom, y2=top, class_="grid")
        label = x.show(tick)
        half = LETTER * len(label) / 2
        if place - half >= free:
            yield text(label, place, bottom + 16, text_anchor="middle")
            free = place + half + APART
    yield text(x.title, (left + right) / 2, bottom + 36, text_anchor="middle", class_="title")
    yield text(y.title, left, top - 10, text_anchor="start", class_="title")


def legend(names: Iterable[tuple[str, str]], x: float, y: float, width: float) -> tuple[list[str], float]:
    """Draw colored squares with names, wrapped to a width; returns them and the height they take.

    Parameters
    ----------
    names : of (class, words)
    x, y : of the first line's top left
    width : at which a new line begins
    """
    parts, place, line = [], x, 0
    for color, words in names:
        wide = 24 + 6.8 * len(words)
        if place + wide > x + width and place > x:
            place, line = x, line + 1
        parts.append(element("rect", x=place, y=y + 20 * line, width=11, height=11, rx=2, class_=color))
        parts.append(text(words, place + 16, y + 20 * line + 10))
        place += wide
    return parts, 20.0 * (line + 1)

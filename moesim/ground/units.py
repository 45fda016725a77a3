"""Units: written once, in the annotation; parsed from files, shown at a human scale.

Inside moesim every quantity is a plain SI float (seconds, bytes, FLOP, watts, joules, US dollars, tokens).
`bandwidth: BytesPerSecond` says the unit; the loader parses ``450 GB/s`` by it and tables are headed by it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from moesim.ground.errors import UnitError


@dataclass(frozen=True, slots=True)
class Unit:
    """What an annotated float is measured in; `symbol` is the SI symbol ("B/s"), "" for a bare ratio."""

    symbol: str


Seconds = Annotated[float, Unit("s")]
Bytes = Annotated[float, Unit("B")]
BytesPerSecond = Annotated[float, Unit("B/s")]
Flop = Annotated[float, Unit("FLOP")]
FlopPerSecond = Annotated[float, Unit("FLOP/s")]
Watts = Annotated[float, Unit("W")]
Joules = Annotated[float, Unit("J")]
Dollars = Annotated[float, Unit("USD")]
DollarsPerSecond = Annotated[float, Unit("USD/s")]
DollarsPerJoule = Annotated[float, Unit("USD/J")]
Tokens = Annotated[float, Unit("tokens")]
PerSecond = Annotated[float, Unit("/s")]

_DECIMAL = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_SMALL = {"m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9, "p": 1e-12}
_TIMES = {
    "s": 1.0,
    "sec": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "day": 86400.0,
    "days": 86400.0,
    "year": 31536000.0,
}


def _scaled(symbol: str, *prefixes: Mapping[str, float]) -> dict[str, float]:
    return {symbol: 1.0} | {prefix + symbol: scale for group in prefixes for prefix, scale in group.items()}


def _with_times(symbol: str, table: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}/{time}": scale / _TIMES[time] for name, scale in table.items() for time in ("s", "h")}


_SECONDS = _TIMES | _scaled("s", _SMALL)
_BYTES = _scaled("B", _DECIMAL, _BINARY)
_FLOP = _scaled("FLOP", _DECIMAL)
_TOKENS = _scaled("tokens", _DECIMAL) | {"token": 1.0}
_DOLLARS = _scaled("USD", _DECIMAL)

SPELLINGS: Mapping[str, Mapping[str, float]] = {
    "s": _SECONDS,
    "B": _BYTES,
    "B/s": _with_times("B", _BYTES) | {f"{p}bit/s": s / 8 for p, s in ({"": 1.0} | _DECIMAL).items()},
    "FLOP": _FLOP,
    "FLOP/s": _with_times("FLOP", _FLOP),
    "W": _scaled("W", _DECIMAL),
    "J": _scaled("J", _DECIMAL) | {"Wh": 3600.0, "kWh": 3.6e6},
    "USD": _DOLLARS,
    "USD/s": _with_times("USD", _DOLLARS),
    "USD/J": {"USD/J": 1.0, "USD/kWh": 1 / 3.6e6, "USD/MWh": 1 / 3.6e9},
    "tokens": _TOKENS,
    "/s": {"/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600},
}
"""Every accepted spelling of each unit, with what one of it is in SI."""

EXAMPLES = {
    "s": "2 us",
    "B": "141 GB",
    "B/s": "450 GB/s",
    "FLOP": "1 TFLOP",
    "FLOP/s": "989 TFLOP/s",
    "W": "700 W",
    "J": "3 kWh",
    "USD": "30000 USD",
    "USD/s": "3.50 USD/h",
    "USD/J": "0.08 USD/kWh",
    "tokens": "2000 tokens",
    "/s": "12 /s",
}
"""A well-formed quantity of each unit, for messages."""

_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(.*?)\s*\Z")


def parse(text: object, symbol: str) -> float:
    """Read a number with its unit, such as ``450 GB/s``, as an SI float.

    Raises
    ------
    UnitError
        A bare number, an unknown spelling, or a spelling of another quantity; the message carries an example.

    Examples
    --------
    >>> parse("450 GB/s", "B/s")
    450000000000.0
    >>> parse("2 GiB", "B")
    2147483648.0
    >>> parse("3.60 USD/h", "USD/s")
    0.001
    """
    example = EXAMPLES[symbol]
    match = _NUMBER.match(text) if isinstance(text, str) else None
    if match is None:
        raise UnitError(f"{text!r} is not a number with a unit; write it as `{example}`")
    number, spelling = match.groups()
    if not spelling:
        raise UnitError(f"{text!r} has no unit; write it as `{example}`")
    scale = SPELLINGS[symbol].get(spelling)
    if scale is None:
        meant = next((unit for unit, table in SPELLINGS.items() if spelling in table), None)
        what = f"is in {meant}, not in {symbol}" if meant else f"has an unknown unit `{spelling}`"
        raise UnitError(f"{text!r} {what}; write it as `{example}`")
    return float(number) * scale


_SHOWN: Mapping[str, tuple[tuple[str, float], ...]] = {
    "s": (("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("h", 3600.0), ("days", 86400.0)),
    "B": tuple((p + "B", s) for p, s in ({"": 1.0, "k": 1e3} | {k: _DECIMAL[k] for k in "MGTP"}).items()),
    "FLOP": tuple((p + "FLOP", s) for p, s in ({"": 1.0} | {k: _DECIMAL[k] for k in "kMGTPE"}).items()),
    "USD": (("USD", 1.0),),
    "W": (("W", 1.0), ("kW", 1e3), ("MW", 1e6)),
    "J": (("mJ", 1e-3), ("J", 1.0), ("kJ", 1e3), ("MJ", 1e6)),
    "tokens": (("tokens", 1.0), ("ktokens", 1e3), ("Mtokens", 1e6), ("Gtokens", 1e9)),
    "/s": (("/s", 1.0),),
    "USD/s": (("USD/h", 1 / 3600),),
}


def show(value: float, symbol: str, digits: int = 3) -> str:
    """Write an SI float at a human scale with its unit.

    Examples
    --------
    >>> show(0.0123, "s")
    '12.3 ms'
    >>> show(1.41e11, "B")
    '141 GB'
    >>> show(4.5e11, "B/s")
    '450 GB/s'
    """
    scales = _scales(symbol)
    if not math.isfinite(value):
        return f"{value} {symbol}".strip()
    name, scale = next(((n, s) for n, s in reversed(scales) if abs(value) >= s), scales[0])
    if value == 0:
        name, scale = next(((n, s) for n, s in scales if s == 1.0), scales[0])
    return f"{_rounded(value / scale, digits)} {name}".strip()


def spell(value: float, symbol: str) -> str:
    """Write an SI float as the shortest text at a human scale that `parse` reads back to the very same float.

    Examples
    --------
    >>> spell(4.5e11, "B/s"), spell(3.5 * (1 / 3600), "USD/s"), spell(1 / 3, "s")
    ('450 GB/s', '3.5 USD/h', '0.3333333333333333 s')
    """
    names = (symbol, *(name for name, _ in _scales(symbol) if name in SPELLINGS[symbol]))
    written = (f"{value / SPELLINGS[symbol][name]:.15g} {name}" for name in names)
    exact = (text for text in written if parse(text, symbol) == value)
    return min(exact, key=len, default=f"{value!r} {symbol}")


def _scales(symbol: str) -> tuple[tuple[str, float], ...]:
    """List the scales at which a unit is shown, rates of a unit at its own."""
    if symbol in _SHOWN:
        return _SHOWN[symbol]
    per = "/s" if symbol.endswith("/s") else ""
    scales = _SHOWN.get(symbol.removesuffix("/s") if per else symbol, ((symbol, 1.0),))
    return tuple((name + per, scale) for name, scale in scales)


def _rounded(value: float, digits: int) -> str:
    """`digits` significant digits, never in scientific form and never fewer than the whole number has."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


SourceKind = Literal["measured", "fitted", "published", "derived", "assumed"]
SOURCE_KINDS: tuple[SourceKind, ...] = ("measured", "fitted", "published", "derived", "assumed")
"""From the strongest to the weakest ground for a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a number comes from.

    `published` and `measured` name something to look at (`title`, `read` or `raw`); `derived` and `assumed` say
    by what rule or why in `title`.
    """

    kind: SourceKind
    title: str
    read: str = ""
    raw: str = ""


def weakest(kinds: tuple[SourceKind, ...]) -> SourceKind:
    """Return the weakest of some source kinds: what a prediction that rests on all of them can claim.

    Examples
    --------
    >>> weakest(("measured", "derived", "published"))
    'derived'
    """
    return max(kinds, key=SOURCE_KINDS.index, default="measured")

"""Fitted numbers written into the files of the frameworks, line by line, so that comments stay."""

from __future__ import annotations

import re
from collections.abc import Mapping

UNITS = {"step": "us", "layer": "us", "sequence": "us", "latency": "ms", "crowd": "us"}
PER_SECOND = {"us": 1e6, "ms": 1e3}


def rewritten(text: str, numbers: Mapping[str, float], source: str, note: str) -> str:
    r"""Put numbers into a framework's file, under a source of kind fitted.

    Examples
    --------
    >>> print(rewritten("step: {value: 1 us, from: old}\nsources:", {"step": 2e-6}, "fit", "by hand"), end="")
    step: {value: 2 us, from: fit}
    sources:
      fit: {kind: fitted, title: "by hand"}
    """
    lines = [line for line in text.rstrip().splitlines() if not re.match(rf"  {source}: ", line)]
    for name, value in numbers.items():
        line = f"{name}: {{value: {quantity(name, value)}, from: {source}}}"
        places = [place for place, old in enumerate(lines) if old.startswith(f"{name}: ")]
        if places:
            lines[places[0]] = line
        else:
            lines.insert(lines.index("sources:"), line)
    lines.insert(lines.index("sources:") + 1, f'  {source}: {{kind: fitted, title: "{note}"}}')
    return "\n".join(lines) + "\n"


def quantity(name: str, value: float) -> str:
    """Write a number with its unit, in three digits."""
    unit = UNITS.get(name)
    return f"{value:.3g}" if unit is None else f"{float(f'{value * PER_SECOND[unit]:.3g}'):g} {unit}"

"""Layers that repeat: a few of them stand for all when a pass is timed.

In a run of equal layers each adds the same time once the first has passed, because every layer's exchange makes all
ranks meet. A pass with n of them takes T(k) + (n - k) (T(k) - T(k - 1)), exactly so without link sharing and to well
under a thousandth with it (tested).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moesim.world.model import Model

KEPT = 3
"""Turns of a pattern that are run: the first, one that follows another, and one to take the difference from."""

LONGEST = 8
"""Longest pattern looked for; the hybrid models in use repeat every 2 to 8 layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortened:
    """A stage cut down to some of its layers, and how to get the whole stage's time back.

    `base` lists the layers of the shortened stage; each of `without` leaves one more turn of a pattern out, and
    `missing` says how many turns of that pattern the base lacks.
    """

    base: tuple[int, ...]
    without: tuple[tuple[int, ...], ...]
    missing: tuple[int, ...]


def shortened(model: Model, layers: Sequence[int]) -> Shortened:
    """Cut runs of equal patterns of layers to `KEPT` turns.

    Examples
    --------
    >>> from moesim.world.model import Dense, Layer
    >>> plain = Layer(part="decoder", dim=8, tokens=1.0, attention=None, ffn=None)
    >>> other = Layer(part="decoder", dim=8, tokens=1.0, attention=None, ffn=Dense(width=8))
    >>> shortened(Model(name="m", layers=(plain,) + (other,) * 9, vocab=0, dtype_of={}), range(10))
    Shortened(base=(0, 1, 2, 3), without=((0, 1, 2),), missing=(6,))
    """
    base: list[int] = []
    cuts: list[tuple[int, int, int]] = []
    place = 0
    while place < len(layers):
        period, turns = pattern([model.layers[layer] for layer in layers[place:]])
        kept = min(turns, KEPT)
        if turns > kept:
            cuts.append((len(base) + (kept - 1) * period, period, turns - kept))
        base.extend(layers[place : place + kept * period])
        place += turns * period
    return Shortened(
        base=tuple(base),
        without=tuple(tuple(base[:start] + base[start + period :]) for start, period, _ in cuts),
        missing=tuple(missing for _, _, missing in cuts),
    )


def pattern(items: Sequence[object]) -> tuple[int, int]:
    """Find the pattern that covers most items from the first on: its length and its turns; the shortest on ties.

    Examples
    --------
    >>> pattern("ababc"), pattern("aaab"), pattern("abc")
    ((2, 2), (1, 3), (1, 1))
    """
    best = (1, 1)
    for period in range(1, min(LONGEST, len(items)) + 1):
        turns = 1
        while items[turns * period : (turns + 1) * period] == items[:period]:
            turns += 1
        if turns > 1 and period * turns > best[0] * best[1]:
            best = (period, turns)
    return best

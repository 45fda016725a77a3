"""A layer's operations added up: how wrong the sum is, where errors of parts partly cancel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from .cases import Cases, Floats
from .goals import LAYER, LAYERS
from .scores import Score, score
from .spread import TENTH

DRAWN = 1000
"""Layers that are drawn."""
WIDTH = 7168 * 2.0
"""Bytes of one token that an all-reduce adds up: DeepSeek-V3's width in bf16 (arXiv 2412.19437, section 4.2)."""
REDUCE = "NCCL all-reduce"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """Held-out points of one operation with predictions, and the standard deviations that go with them."""

    cases: Cases
    predicted: Floats
    shared: float
    point: float

    @property
    def tokens(self) -> Floats:
        """Tokens that each point works on; of a message as many as fill it, to the nearest power of two."""
        inputs = self.cases.inputs
        if "size" in inputs:
            return np.asarray(2 ** np.round(np.log2(inputs["size"] / WIDTH)))
        return inputs["tokens"] if "tokens" in inputs else inputs["m"]


Found = Mapping[tuple[str, str], Scored]


def layers(found: Found, *systems: str) -> Iterator[tuple[str, str, Score, tuple[float, float]]]:
    """Score sums over layers whose every part was scored, by phase and system."""
    for phase, counts in LAYERS.items():
        for system in systems:
            names = {**counts, REDUCE: 2}
            if all((name, system) in found for name in names):
                parts = [(found[name, system], number) for name, number in names.items()]
                yield f"sum over a layer, {phase}", system, summed(parts), LAYER


def summed(parts: list[tuple[Scored, int]]) -> Score:
    """Draw layers of one number of tokens and score their sums.

    What all shapes of an operation share goes one way in the whole sum; what each shape has of its own adds up by
    squares.
    """
    rng = np.random.default_rng(0)
    common = sorted(set.intersection(*({float(tokens) for tokens in part.tokens} for part, _ in parts)))
    drawn = [_layer(parts, tokens, rng) for tokens in rng.choice(common, DRAWN)]
    measured, predicted, deviation = np.array(drawn).T
    factor = np.exp(TENTH * deviation)
    return score(measured, predicted, predicted / factor, predicted * factor)


def _layer(parts: list[tuple[Scored, int]], tokens: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return what one layer took, what was predicted, and the standard deviation of the prediction's logarithm."""
    measured = predicted = variance = 0.0
    for part, number in parts:
        here: Int[np.ndarray, " one"] = rng.choice(np.flatnonzero(part.tokens == tokens), number)
        times = part.predicted[here]
        measured += float(part.cases.seconds[here].sum())
        predicted += float(times.sum())
        variance += float((part.shared * times.sum()) ** 2 + ((part.point * times) ** 2).sum())
    return measured, predicted, variance**0.5 / predicted

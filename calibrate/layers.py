"""Whole MoE layers to measure, which nothing is fitted to: they show what the parts' predictions add up to."""

from __future__ import annotations

from functools import partial

from .operation import Operation, bytes_of
from .pieces import layers
from .points import Axis, Inputs

DTYPE = "bf16"
AXES = (
    Axis(name="tokens", low=16, high=4096),
    Axis(name="dim", low=128, high=2048, step=64),
    Axis(name="width", low=128, high=2048, step=64),
    Axis(name="experts", among=(4, 8, 16)),
    Axis(name="topk", among=(1, 2)),
)
NUMBER = 16


def local_layer() -> Operation:
    """A layer on one rank: gate, pack, experts one by one, unpack."""
    return Operation(
        name="moe_layer",
        dtype=DTYPE,
        kernel="local",
        group="kernels",
        axes=AXES,
        cost=partial(_cost, 1),
        case=layers.local_case,
        number=NUMBER,
    )


def exchanged_layer(ranks: int) -> Operation:
    """The same with the experts divided over ranks: sizes are told, rows sent there and back."""
    return Operation(
        name="moe_layer",
        dtype=DTYPE,
        kernel="exchanged",
        group="collectives",
        axes=AXES,
        cost=partial(_cost, ranks),
        case=layers.exchanged_case,
        number=NUMBER,
        complete=lambda point: {**point, "ranks": ranks},
    )


def _cost(ranks: int, point: Inputs) -> tuple[float, float]:
    """Count work and traffic of the products; small passes and exchanges take about half as long again."""
    size, rows = bytes_of(DTYPE), point["tokens"] * point["topk"]
    weights = 3 * point["dim"] * point["width"]
    moved = 20 * rows * point["dim"] + point["experts"] / ranks * weights
    return 3 * rows * weights, size * moved

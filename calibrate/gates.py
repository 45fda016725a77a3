"""The gate to measure, and what moves rows inside a rank."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from .operation import Operation, bytes_of
from .pieces import routing
from .points import Axis, Inputs


def gates(dtype: str) -> list[Operation]:
    """The gate, sorting, moving rows, and their dense counterparts."""
    size = bytes_of(dtype)
    shape = (
        Axis(name="tokens", low=1, high=16384),
        Axis(name="dim", low=128, high=8192, step=64),
        Axis(name="experts", among=(8, 16, 64, 128, 256)),
        Axis(name="topk", among=(1, 2, 4, 8)),
    )
    capacity = Axis(name="capacity", low=1, high=1024)

    def rows(point: Inputs) -> Inputs:
        moved = point["tokens"] * point["topk"] * point["dim"] * size
        return {**point, "traffic": 2 * moved}

    def dense_work(point: Inputs) -> tuple[float, float]:
        cells = point["tokens"] * point["experts"] * point["capacity"]
        buffers = point["experts"] * point["capacity"] * point["dim"]
        return 6 * cells * point["dim"], size * (cells + buffers)  # an einsum transposes, too

    def choices(point: Inputs) -> float:
        return 24 * point["tokens"] * point["topk"] * point["experts"]

    def gate_work(point: Inputs) -> tuple[float, float]:
        scores = point["tokens"] * point["experts"]
        return 2 * scores * point["dim"], 40 * scores + size * point["tokens"] * point["dim"]

    def sort_work(point: Inputs) -> tuple[float, float]:
        return 0.0, 800 * point["tokens"] * point["topk"] + 8 * point["tokens"] * point["experts"]

    def traffic(point: Inputs) -> tuple[float, float]:
        return 0.0, 4 * point["traffic"] + 8 * point["tokens"] * point["experts"]

    make = partial(Operation, dtype=dtype, group="kernels")
    moving = {"permute": routing.permute_case, "unpermute": routing.unpermute_case}
    masks = {
        "dispatch_mask": routing.mask_case,
        "dispatch_dense": routing.dispatch_case,
        "combine_dense": routing.combine_case,
    }
    return [
        make(name="gate", axes=shape, cost=gate_work, case=routing.gate_case, number=32),
        make(name="sort", axes=_without(shape, "dim"), cost=sort_work, case=routing.sort_case, number=16),
        *(
            make(name=name, axes=shape, cost=traffic, case=case, number=24, complete=rows)
            for name, case in moving.items()
        ),
        *(
            make(name=name, axes=(*shape, capacity), cost=dense_work, case=case, number=16, held=choices)
            for name, case in masks.items()
        ),
    ]


def _without(axes: Sequence[Axis], name: str) -> tuple[Axis, ...]:
    return tuple(axis for axis in axes if axis.name != name)

"""The gate to measure, and what moves rows inside a rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil

from .operation import Operation, Prepare, bytes_of
from .pieces import routing
from .points import Axis, Inputs

SHAPE = (
    Axis(name="tokens", low=1, high=16384),
    Axis(name="dim", low=128, high=8192, step=64),
    Axis(name="experts", among=(8, 16, 64, 128, 256)),
    Axis(name="topk", among=(1, 2, 4, 8)),
)
FACTOR = Axis(name="factor", among=(0.5, 1.0, 1.25, 2.0, 4.0))
"""Rows that an expert has room for, over those that it gets when all get as many."""
MASK = 4
"""Bytes of an element of a dense mask, fp32."""
SCORE, CHOICE = 4, 12
"""Bytes read per score, fp32, and written per choice, an int64 number and an fp32 share."""
SORTED = 800
"""Bytes that could be copied while one choice is sorted, at a guess."""

Cost = Callable[[Inputs], tuple[float, float]]


def gates(dtypes: Sequence[str]) -> list[Operation]:
    """The gate, sorting, moving rows, and their dense counterparts; what works on whole numbers is measured once."""
    return [_sort(), _mask(), *(one for dtype in dtypes for one in _of(dtype))]


def _of(dtype: str) -> list[Operation]:
    size = bytes_of(dtype)
    moved = partial(_moved, size)
    dense = partial(_dense_work, size)
    return [
        _operation("gate", dtype, routing.gate_case, partial(_gate_work, size), number=16),
        _operation("choose", dtype, routing.choose_case, _choice_work, number=24, complete=_chosen, without="dim"),
        _operation("pack", dtype, routing.pack_case, _sort_and_move, number=32, complete=moved),
        _operation("permute", dtype, routing.permute_case, _move, number=8, complete=moved),
        _operation("unpermute", dtype, routing.unpermute_case, _move, number=32, complete=moved),
        _operation("dispatch_dense", dtype, routing.dispatch_case, dense, number=16, complete=_roomy, dense=True),
        _operation("combine_dense", dtype, routing.combine_case, dense, number=16, complete=_roomy, dense=True),
    ]


def _sort() -> Operation:
    return _operation("sort", "int64", routing.sort_case, _sort_work, number=8, without="dim")


def _mask() -> Operation:
    return _operation("dispatch_mask", "fp32", routing.mask_case, _mask_work, number=20, complete=_masked, dense=True)


def _operation(
    name: str,
    dtype: str,
    case: Prepare,
    cost: Cost,
    *,
    number: int,
    complete: Callable[[Inputs], Inputs] = lambda point: point,
    without: str = "",
    dense: bool = False,
) -> Operation:
    return Operation(
        name=name,
        dtype=dtype,
        group="kernels",
        axes=tuple(axis for axis in (*SHAPE, *([FACTOR] if dense else [])) if axis.name != without),
        cost=cost,
        case=case,
        number=number,
        complete=complete,
        held=_choices if dense else lambda point: 0.0,
    )


def _moved(size: int, point: Inputs) -> Inputs:
    """Add what moving rows reads and writes: each token once, each row once."""
    return {**point, "traffic": point["tokens"] * (1 + point["topk"]) * point["dim"] * size}


def _chosen(point: Inputs) -> Inputs:
    return {**point, "traffic": point["tokens"] * (SCORE * point["experts"] + CHOICE * point["topk"])}


def _roomy(point: Inputs) -> Inputs:
    """Add an expert's capacity."""
    return {**point, "capacity": ceil(point["factor"] * point["tokens"] * point["topk"] / point["experts"])}


def _masked(point: Inputs) -> Inputs:
    roomy = _roomy(point)
    return {**roomy, "traffic": MASK * _cells(roomy)}


def _cells(point: Inputs) -> float:
    return point["tokens"] * point["experts"] * point["capacity"]


def _choices(point: Inputs) -> float:
    return 24 * point["tokens"] * point["topk"] * point["experts"]


def _gate_work(size: int, point: Inputs) -> tuple[float, float]:
    scores = point["tokens"] * point["experts"]
    return 2 * scores * point["dim"], 40 * scores + size * point["tokens"] * point["dim"]


def _choice_work(point: Inputs) -> tuple[float, float]:
    return 0.0, 40 * point["tokens"] * point["experts"]


def _sort_work(point: Inputs) -> tuple[float, float]:
    return 0.0, SORTED * point["tokens"] * point["topk"] + 8 * point["tokens"] * point["experts"]


def _move(point: Inputs) -> tuple[float, float]:
    return 0.0, 8 * point["traffic"] + 8 * point["tokens"] * point["experts"]


def _sort_and_move(point: Inputs) -> tuple[float, float]:
    return 0.0, _move(point)[1] + _sort_work(point)[1]


def _mask_work(point: Inputs) -> tuple[float, float]:
    return 0.0, 8 * _cells(point) + _sort_work(point)[1]


def _dense_work(size: int, point: Inputs) -> tuple[float, float]:
    buffers = point["experts"] * point["capacity"] * point["dim"]
    return 6 * _cells(point) * point["dim"], size * (_cells(point) + buffers)  # an einsum transposes, too

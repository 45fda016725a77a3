"""Matrix products to measure: dense ones, and one per expert."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from .machine import Speed
from .operation import LARGEST, Operation, bytes_of, multiple
from .pieces import products
from .pieces.bench import Bench, Case
from .points import Axis, Inputs, rows_of

WIDEST = {"cpu": 4096, "cuda": 16384}
"""Columns of the widest product: models that run on a CPU are narrower."""
FEWEST = {"cpu": 2, "cuda": 1}
"""Rows of the lowest product: on a CPU one row takes a way of its own, and is what no plan for a CPU is about."""
FEW = {"cpu": 16, "cuda": 1}
"""Rows of all experts together, at least."""
SLOTS = {"cpu": (1, 2, 4, 8, 16, 32), "cuda": (1, 2, 4, 8, 16, 32, 64, 128)}
"""Experts of a rank."""


def dense(bench: Bench, speed: Speed) -> list[Operation]:
    """Dense products in every dtype that the device multiplies."""
    side = multiple((speed.longest * speed.flop_rate / 2) ** (1 / 3), 64)
    tall = multiple(min(speed.longest * speed.bandwidth / 8, LARGEST[bench.device.type] / 5) ** 0.5, 64)
    widest, fewest = WIDEST[bench.device.type], FEWEST[bench.device.type]
    axes = (
        Axis(name="m", low=fewest, high=2 * widest),
        Axis(name="n", low=64, high=widest, step=16),
        Axis(name="k", low=64, high=widest, step=16),
    )
    anchors = (
        {"m": side, "n": side, "k": side},  # peak
        {"m": fewest, "n": tall, "k": tall},  # bandwidth
        {"m": fewest, "n": 64, "k": 64},  # launch
        {"m": 64, "n": 64, "k": widest},  # few tiles, each long
    )
    return [
        Operation(
            name="gemm",
            dtype=dtype,
            group="kernels",
            axes=axes,
            anchors=anchors,
            cost=partial(_gemm_cost, size=bytes_of(dtype)),
            case=products.gemm_case,
            number=number,
            slow=6.0 if dtype == "fp16" and bench.device.type == "cpu" else 1.0,
        )
        for dtype, number in _dense_dtypes(bench).items()
    ]


def _dense_dtypes(bench: Bench) -> dict[str, int]:
    """Return the dtypes of dense products with their numbers of points; fp8 where the device has it."""
    if bench.device.type == "cpu":
        return {"fp32": 64, "bf16": 64, "fp16": 16}
    return {"bf16": 64, "fp32": 24, "fp16": 24} | ({"fp8": 64} if _has_fp8(bench) else {})


def _has_fp8(bench: Bench) -> bool:
    """Tell whether the device multiplies fp8: compute capability 8.9 and up."""
    return bench.device.type == "cuda" and bool(torch.cuda.get_device_capability(bench.device) >= (8, 9))


def _gemm_cost(point: Inputs, size: int) -> tuple[float, float]:
    m, n, k = point["m"], point["n"], point["k"]
    return 2 * m * n * k, size * (m * k + n * k + m * n)


def experts(bench: Bench, dtypes: Sequence[str], speed: Speed) -> list[Operation]:
    """One product per expert: in a loop, batched to the fullest, and in one kernel; fp8 in one kernel only."""
    ways = {"looped": products.looped_case, "batched": products.batched_case, "grouped": products.grouped_case}
    made = [_experts(dtype, kernel, case, bench, speed) for dtype in dtypes for kernel, case in ways.items()]
    return made + ([_experts("fp8", "grouped", products.grouped_case, bench, speed)] if _has_fp8(bench) else [])


def compiled_experts(dtype: str, bench: Bench, speed: Speed) -> Operation:
    """Experts of equal capacity through torch.compile, among what is compiled: the first call takes that long."""
    one = _experts(dtype, "compiled", products.compiled_case, bench, speed)
    return replace(one, group="compilation", number=12)


def _experts(dtype: str, kernel: str, prepare: Callable[..., Case], bench: Bench, speed: Speed) -> Operation:
    kind = bench.device.type
    few, widest = FEW[kind], WIDEST[kind] // 2
    side = multiple((speed.longest * speed.flop_rate / 4 / 1024) ** 0.5, 64)
    axes = (
        Axis(name="slots", among=SLOTS[kind]),
        Axis(name="rows", low=few, high=16384),
        Axis(name="n", low=64, high=widest, step=16),
        Axis(name="k", low=64, high=widest, step=16),
        Axis(name="skew", among=(0.0, 0.5, 1.0, 1.5)),
    )
    anchors = (
        {"slots": 8, "rows": few, "n": 512, "k": 512, "skew": 0.0},
        {"slots": 8, "rows": 8 * few, "n": 512, "k": 512, "skew": 0.0},
        {"slots": 8, "rows": 1024, "n": side, "k": side, "skew": 0.0},
        {"slots": 8, "rows": 1024, "n": 512, "k": 512, "skew": 1.5},
    )
    return Operation(
        name="grouped_gemm",
        dtype=dtype,
        kernel=kernel,
        group="kernels",
        axes=axes,
        anchors=anchors,
        cost=partial(_grouped_cost, size=bytes_of(dtype), padded=kernel in ("batched", "compiled")),
        case=partial(_of_counts, prepare),
        complete=_grouped_inputs,
        held=partial(_weights, bytes_of(dtype)),
    )


def _grouped_inputs(point: Inputs) -> Inputs:
    """Add how many slots have rows, and how many the fullest has."""
    counts = counts_of(point)
    return {**point, "active": float(sum(count > 0 for count in counts)), "fullest": float(max(counts))}


def counts_of(point: Inputs) -> list[int]:
    """Return the rows of every slot of a grouped product that was measured."""
    return rows_of(int(point["slots"]), int(point["rows"]), point["skew"])


def _weights(size: int, point: Inputs) -> float:
    return size * point["slots"] * point["n"] * point["k"]


def _of_counts(prepare: Callable[..., Case], point: Inputs, dtype: str, bench: Bench) -> Case:
    return prepare(point, dtype, bench, counts_of(point))


def _grouped_cost(point: Inputs, size: int, padded: bool) -> tuple[float, float]:
    rows = point["slots"] * point["fullest"] if padded else point["rows"]
    read = point["slots"] if padded else point["active"]
    work = 2 * rows * point["n"] * point["k"]
    return work, size * (read * point["n"] * point["k"] + rows * (point["n"] + point["k"]))

"""Matrix products: dense ones, and one per expert in the ways torch offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .bench import Args, Bench, Case, Inputs


def gemm(rows: Tensor, weights: Tensor) -> Tensor:
    """Multiply rows [m, k] by weights [n, k]."""
    return functional.linear(rows, weights)


def gemm_fp8(rows: Tensor, weights: Tensor, scale: Tensor) -> Tensor:
    """Multiply fp8 rows [m, k] by fp8 weights [n, k], each with one scale, fp32 on the device; gives bf16."""
    return torch._scaled_mm(rows, weights.t(), scale, scale, out_dtype=torch.bfloat16)


def looped(rows: Tensor, weights: Tensor, counts: Sequence[int]) -> Tensor:
    """Multiply the rows of each expert in turn: rows [sum of counts, k] sorted by expert, weights [expert, k, n].

    An expert without rows costs nothing. The gradients take a product per expert each.
    """
    if torch.is_grad_enabled() and (rows.requires_grad or weights.requires_grad):
        made: Tensor = _Looped.apply(rows, weights, counts)
        return made
    return _looped(rows, weights, counts)


def _looped(rows: Tensor, weights: Tensor, counts: Sequence[int]) -> Tensor:
    out = rows.new_empty(rows.shape[0], weights.shape[2])
    start = 0
    for expert, count in enumerate(counts):
        if count:
            torch.mm(rows[start : start + count], weights[expert], out=out[start : start + count])
        start += count
    return out


class _Looped(torch.autograd.Function):  # type: ignore[misc]  # torch's types are not seen here
    """The product with its gradients: products into slices of one tensor are nothing that torch differentiates."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.counts = counts
        return _looped(rows, weights, counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weights = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_weights, start = torch.empty_like(weights), 0
        for expert, count in enumerate(ctx.counts):
            part = slice(start, start + count)
            if count:
                torch.mm(rows[part].t(), gradient[part], out=of_weights[expert])
            else:
                of_weights[expert].zero_()
            start += count
        return _looped(gradient, weights.transpose(1, 2), ctx.counts), of_weights, None


def batched(rows: Tensor, weights: Tensor) -> Tensor:
    """Multiply experts of equal capacity: rows [expert, capacity, k], weights [expert, k, n]."""
    return torch.bmm(rows, weights)


def grouped_fp8(rows: Tensor, weights: Tensor, ends: Tensor, scales: Tensor, columns: Tensor) -> Tensor:
    """Multiply all experts in one kernel in fp8: weights [expert, n, k], scales per row and per expert and column."""
    return torch._scaled_grouped_mm(
        rows, weights.transpose(1, 2), scales, columns, offs=ends, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def grouped(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Multiply all experts in one kernel: rows [sum, k] sorted by expert, weights [expert, k, n], ends [expert], int32.

    `ends` are the row numbers at which experts end, on the device, so that the host need not know them.
    """
    return _grouped_mm()(rows, weights, offs=ends)


@cache
def _grouped_mm() -> Callable[..., Tensor]:
    """Return torch's grouped product: public from 2.10, private before.

    Raises
    ------
    NotImplementedError
        This torch has neither.
    """
    found: Callable[..., Tensor] | None = getattr(functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    if found is None:
        raise NotImplementedError(f"torch {torch.__version__} has no grouped product; 2.8 has one")
    return found


def rows_padded(counts: Sequence[int]) -> int:
    """Return the rows that equal capacities take: experts times the fullest."""
    return len(counts) * max(counts)


def gemm_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make a dense product ready: rows stay where they are, weights are cold."""
    m, n, k = inputs["m"], inputs["n"], inputs["k"]
    rows = bench.pool.cut(dtype, m, k)
    if dtype == "fp8":
        one = torch.ones((), device=bench.device)
        return Case(call=gemm_fp8, args=lambda: (rows, bench.pool.cut(dtype, n, k), one))
    return Case(call=gemm, args=lambda: (rows, bench.pool.cut(dtype, n, k)))


def looped_case(inputs: Inputs, dtype: str, bench: Bench, counts: Sequence[int]) -> Case:
    """Make one product per expert ready."""
    rows = bench.pool.cut(dtype, sum(counts), inputs["k"])
    return Case(call=looped, args=lambda: (rows, _weights(inputs, dtype, bench), counts))


def batched_case(inputs: Inputs, dtype: str, bench: Bench, counts: Sequence[int]) -> Case:
    """Make experts of equal capacity ready, which is that of the fullest."""
    return Case(call=batched, args=_batched_args(inputs, dtype, bench, counts))


def compiled_case(inputs: Inputs, dtype: str, bench: Bench, counts: Sequence[int]) -> Case:
    """Make the same ready through torch.compile, one graph for all shapes."""
    return Case(call=_compiled(), args=_batched_args(inputs, dtype, bench, counts), warm=3)


@cache
def _compiled() -> Callable[..., Tensor]:
    made: Callable[..., Tensor] = torch.compile(batched, dynamic=True)
    return made


def grouped_case(inputs: Inputs, dtype: str, bench: Bench, counts: Sequence[int]) -> Case:
    """Make one kernel for all experts ready."""
    rows = bench.pool.cut(dtype, sum(counts), inputs["k"])
    ends = torch.tensor(counts).cumsum(0).to(device=bench.device, dtype=torch.int32)
    if dtype == "fp8":
        scales = torch.ones(sum(counts), device=bench.device)
        columns = torch.ones(len(counts), int(inputs["n"]), device=bench.device)
        shape = (inputs["slots"], inputs["n"], inputs["k"])
        return Case(call=grouped_fp8, args=lambda: (rows, bench.pool.cut(dtype, *shape), ends, scales, columns))
    return Case(call=grouped, args=lambda: (rows, _weights(inputs, dtype, bench), ends))


def _weights(inputs: Inputs, dtype: str, bench: Bench) -> Tensor:
    return bench.pool.cut(dtype, inputs["slots"], inputs["k"], inputs["n"])


def _batched_args(inputs: Inputs, dtype: str, bench: Bench, counts: Sequence[int]) -> Callable[[], Args]:
    rows = bench.pool.cut(dtype, len(counts), max(counts), inputs["k"])
    return lambda: (rows, _weights(inputs, dtype, bench))

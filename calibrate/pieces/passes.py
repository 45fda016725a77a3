"""Passes over memory, launches, and what the host waits for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .bench import Bench, Case, Inputs


def norm(rows: Tensor, weight: Tensor) -> Tensor:
    """Root-mean-square norm over the last axis."""
    return functional.rms_norm(rows, (rows.shape[-1],), weight)


def residual(rows: Tensor, other: Tensor) -> Tensor:
    """Add two tensors."""
    return rows + other


def add_norm(rows: Tensor, other: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Add a part's result to what goes around it, and norm the sum for the next part: gives sum and norm."""
    total = residual(rows, other)
    return total, norm(total, weight)


def swiglu(rows: Tensor) -> Tensor:
    """Multiply one half of each row by the SiLU of the other: [rows, 2 x width] gives [rows, width]."""
    gate, up = rows.chunk(2, dim=-1)
    return functional.silu(gate) * up


def gelu(rows: Tensor) -> Tensor:
    """Apply the activation of networks without a gate."""
    return functional.gelu(rows)


def move(target: Tensor, source: Tensor) -> Tensor:
    """Copy a tensor within the device: the plainest pass over memory."""
    return target.copy_(source)


def touch(cell: Tensor) -> Tensor:
    """Launch a kernel that does next to nothing."""
    return cell.add_(1)


def read_back(cell: Tensor) -> object:
    """Read numbers back to the host, which waits for them."""
    return cell.tolist()


def add_norm_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make a sum with its norm ready."""
    weight = bench.pool.cut(dtype, inputs["width"])
    shape = (inputs["rows"], inputs["width"])
    return Case(call=add_norm, args=lambda: (bench.pool.cut(dtype, *shape), bench.pool.cut(dtype, *shape), weight))


def residual_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make a sum ready."""
    shape = (inputs["rows"], inputs["width"])
    return Case(call=residual, args=lambda: (bench.pool.cut(dtype, *shape), bench.pool.cut(dtype, *shape)))


def swiglu_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make an activation ready."""
    return Case(call=swiglu, args=lambda: (bench.pool.cut(dtype, inputs["rows"], 2 * inputs["width"]),))


def move_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make a copy within the device ready."""
    target = torch.empty(int(inputs["size"]), dtype=torch.uint8, device=bench.device)
    return Case(call=move, args=lambda: (target, bench.pool.cut(dtype, inputs["size"])))


def touch_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make an empty kernel ready."""
    cell = torch.zeros(1, device=bench.device)
    return Case(call=touch, args=lambda: (cell,), most=200)


def read_back_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make numbers ready that the host asks for."""
    cell = torch.zeros(int(inputs["numbers"]), dtype=torch.int64, device=bench.device)
    return Case(call=read_back, args=lambda: (cell,), on_host=True)

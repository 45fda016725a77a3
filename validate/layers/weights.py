"""A layer's weights: drawn for each expert by itself, so that every rank, copy and slice has the same numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .experts import Matrices
from .pieces import bench
from .spec import LayerSpec

GATE, SHARED, BLOCK, EXPERTS = 1, 2, 3, 1000
"""Streams of random numbers; expert e has `EXPERTS` + e."""


def drawn(shape: tuple[int, ...], spec: LayerSpec, seed: int, stream: int, device: torch.device) -> Tensor:
    """Draw a matrix that keeps the size of what it multiplies: normal, over the root of its second last axis."""
    generator = torch.Generator(device=device).manual_seed(seed * 1_000_003 + stream)
    numbers = torch.randn(shape, generator=generator, device=device) / shape[-2] ** 0.5
    return numbers.to(bench.DTYPES[spec.dtype])


def gate_weights(spec: LayerSpec, seed: int, device: torch.device) -> Tensor:
    """Weights of the gate, [expert, hidden]."""
    return drawn((spec.hidden, spec.experts), spec, seed, GATE, device).t().contiguous()


def network_weights(
    spec: LayerSpec, width: int, seed: int, stream: int, device: torch.device, *, gated: bool
) -> tuple[Tensor, Tensor]:
    """Weights of one network: [hidden, width], twice as wide where gated, and [width, hidden]."""
    inner = drawn((spec.hidden, width * (2 if gated else 1)), spec, seed, 2 * stream, device)
    return inner, drawn((width, spec.hidden), spec, seed, 2 * stream + 1, device)


def expert_weights(spec: LayerSpec, expert: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weights of one expert."""
    return network_weights(spec, spec.intermediate, seed, EXPERTS + expert, device, gated=spec.gated)


def held(spec: LayerSpec, experts: Iterable[int], seed: int, device: torch.device) -> Matrices:
    """Weights of some experts, slot by slot."""
    inner, outer = zip(*(expert_weights(spec, expert, seed, device) for expert in experts), strict=True)
    return Matrices(inner=torch.stack(inner), outer=torch.stack(outer), gated=spec.gated)


def sliced(spec: LayerSpec, experts: Iterable[int], slice_: int, seed: int, device: torch.device) -> Matrices:
    """One of `shards` slices of some experts: that part of the inner width, gate and other half alike."""
    whole = held(spec, experts, seed, device)
    width = spec.intermediate // spec.shards
    part = slice(slice_ * width, (slice_ + 1) * width)
    halves = 2 if spec.gated else 1
    inner = whole.inner.unflatten(2, (halves, -1))[..., part].flatten(2)
    return Matrices(inner=inner.contiguous(), outer=whole.outer[:, part].contiguous(), gated=spec.gated)


def joined(slices: Matrices, shards: int) -> Matrices:
    """Put slices of experts together again: [expert x shards, ...] in order of expert and slice."""
    if shards == 1:
        return slices
    halves = 2 if slices.gated else 1
    inner = slices.inner.unflatten(2, (halves, -1)).unflatten(0, (-1, shards))
    return Matrices(
        inner=inner.permute(0, 2, 3, 1, 4).flatten(2),
        outer=slices.outer.unflatten(0, (-1, shards)).flatten(1, 2),
        gated=slices.gated,
    )

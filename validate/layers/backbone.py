"""What goes on without the routed experts: attention, a dense network, the shared expert. Each reads a normed state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .clock import Clock, timed
from .pieces import attention, passes, products
from .spec import LayerSpec
from .weights import BLOCK, SHARED, drawn, network_weights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Network:
    """A dense network: two products, the activation between them.

    Attributes
    ----------
    name : the part it is
    inner, outer : [width, hidden], twice as many rows where gated, and [hidden, width]
    """

    name: str
    inner: Tensor
    outer: Tensor
    gated: bool

    def __call__(self, rows: Tensor, clock: Clock) -> Tensor:
        """Compute it."""
        return timed(clock, self.name, self._computed, rows)

    def _computed(self, rows: Tensor) -> Tensor:
        activation = passes.swiglu if self.gated else passes.gelu
        return products.gemm(activation(products.gemm(rows, self.inner)), self.outer)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attention:
    """Causal attention over sequences of equal length, its projections with it.

    Attributes
    ----------
    inner, outer : [3 x hidden, hidden], for query, key and value; [hidden, hidden]
    """

    heads: int
    sequence: int
    inner: Tensor
    outer: Tensor

    def __call__(self, rows: Tensor, clock: Clock) -> Tensor:
        """Compute it."""
        return timed(clock, "attention", self._computed, rows)

    def _computed(self, rows: Tensor) -> Tensor:
        mixed = products.gemm(rows, self.inner).view(-1, self.sequence, 3, self.heads, rows.shape[1] // self.heads)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        seen = attention.prefill(query, key, value)
        return products.gemm(seen.transpose(1, 2).reshape(rows.shape), self.outer)


def norm(rows: Tensor, weight: Tensor, clock: Clock) -> Tensor:
    """Norm a state."""
    return timed(clock, "norm", lambda each: passes.norm(each, weight), rows)


def added(rows: Tensor, other: Tensor, clock: Clock) -> Tensor:
    """Add to a state; moesim counts that with the norm that follows."""
    return timed(clock, "norm", passes.residual, rows, other)


def shared_expert(spec: LayerSpec, seed: int, device: torch.device) -> Network:
    """Make the shared experts, as one network."""
    return _network("shared", spec, spec.shared, seed, SHARED, device)


def dense_network(spec: LayerSpec, width: int, seed: int, device: torch.device) -> Network:
    """Make the network of the dense layer."""
    return _network("mlp", spec, width, seed, BLOCK, device)


def _network(name: str, spec: LayerSpec, width: int, seed: int, stream: int, device: torch.device) -> Network:
    inner, outer = network_weights(spec, width, seed, 10 * stream, device, gated=spec.gated)
    return Network(name=name, inner=inner.t().contiguous(), outer=outer.t().contiguous(), gated=spec.gated)


def attention_of(spec: LayerSpec, number: int, seed: int, device: torch.device) -> Attention:
    """Make the attention of one of the block's two layers."""
    assert spec.block is not None
    stream = 100 * BLOCK + 2 * number
    return Attention(
        heads=spec.block.heads,
        sequence=spec.block.sequence,
        inner=drawn((spec.hidden, 3 * spec.hidden), spec, seed, stream, device).t().contiguous(),
        outer=drawn((spec.hidden, spec.hidden), spec, seed, stream + 1, device).t().contiguous(),
    )

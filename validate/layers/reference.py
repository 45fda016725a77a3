"""The function a layer computes, in the plainest way: expert by expert, in double precision, on one process.

What every variant is held to. It shares with them how weights are drawn, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional

from moesim.policies.capacities import kept_in_order

from .backbone import attention_of, dense_network, shared_expert
from .experts import Matrices
from .spec import LayerSpec
from .weights import gate_weights, held

DEVICE = torch.device("cpu")


def weights_of(spec: LayerSpec, seed: int) -> dict[str, Tensor]:
    """Draw all weights, in double precision and ready for gradients; those of experts are [expert, ...]."""
    experts: Matrices = held(spec, range(spec.experts), seed, DEVICE)
    found = {"gate": gate_weights(spec, seed, DEVICE), "experts.inner": experts.inner, "experts.outer": experts.outer}
    found["norm"] = torch.ones(spec.hidden)
    parts: list[tuple[str, object]] = []
    if spec.shared:
        parts.append(("shared", shared_expert(spec, seed, DEVICE)))
    if spec.block is not None:
        parts += [(f"attention.{number}", attention_of(spec, number, seed, DEVICE)) for number in range(2)]
        parts.append(("mlp", dense_network(spec, spec.block.dense, seed, DEVICE)))
    for name, part in parts:
        found |= {f"{name}.{matrix}": getattr(part, matrix) for matrix in ("inner", "outer")}
    return {name: weight.double().requires_grad_() for name, weight in found.items()}


def kept(spec: LayerSpec, routings: Iterable[Tensor], room: int | None) -> list[Bool[np.ndarray, "token topk"]]:
    """Say which choices of each rank find room: the first `room` of every expert, in order of arrival; None: all."""
    rooms = np.full(spec.experts, np.iinfo(np.int64).max if room is None else room)
    return [kept_in_order(routing.numpy(), rooms) for routing in routings]


def layer(
    spec: LayerSpec,
    weights: Mapping[str, Tensor],
    tokens: Tensor,
    routing: Tensor,
    room: Bool[np.ndarray, "token topk"],
) -> Tensor:
    """Compute one rank's tokens."""
    if spec.block is None:
        normed = _norm(tokens, weights)
        out = tokens + _routed(spec, weights, normed, routing, room)
        return out + _network(spec, weights, "shared", normed) if spec.shared else out
    states = [tokens]
    for part in ("attention.0", "mlp", "attention.1"):
        normed = _norm(states[-1], weights)
        made = _network(spec, weights, part, normed) if part == "mlp" else _attention(spec, weights, part, normed)
        states.append(states[-1] + made)
    tapped = states[{0: 3, 1: 2, 2: 1, 3: 0}[spec.block.position]]
    aside = _network(spec, weights, "shared", _norm(states[3], weights))
    return states[3] + aside + _routed(spec, weights, _norm(tapped, weights), routing, room)


def _norm(rows: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    return functional.rms_norm(rows, (rows.shape[-1],), weights["norm"], eps=torch.finfo(torch.float32).eps)


def _routed(
    spec: LayerSpec, weights: Mapping[str, Tensor], rows: Tensor, routing: Tensor, room: Bool[np.ndarray, "token topk"]
) -> Tensor:
    scores = torch.softmax(rows @ weights["gate"].t(), dim=-1).gather(1, routing)
    shares = scores / scores.sum(dim=1, keepdim=True) * torch.from_numpy(room)
    out = torch.zeros_like(rows)
    for expert in range(spec.experts):
        share = (shares * (routing == expert)).sum(dim=1, keepdim=True)
        inner = rows @ weights["experts.inner"][expert]
        out = out + share * (_activated(spec, inner) @ weights["experts.outer"][expert])
    return out


def _network(spec: LayerSpec, weights: Mapping[str, Tensor], name: str, rows: Tensor) -> Tensor:
    return _activated(spec, rows @ weights[f"{name}.inner"].t()) @ weights[f"{name}.outer"].t()


def _activated(spec: LayerSpec, rows: Tensor) -> Tensor:
    if not spec.gated:
        return functional.gelu(rows)
    gate, up = rows.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def _attention(spec: LayerSpec, weights: Mapping[str, Tensor], name: str, rows: Tensor) -> Tensor:
    assert spec.block is not None
    length, heads = spec.block.sequence, spec.block.heads
    mixed = (rows @ weights[f"{name}.inner"].t()).view(-1, length, 3, heads, spec.hidden // heads)
    query, key, value = mixed.permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    unseen = torch.ones(length, length, dtype=torch.bool).triu(1)
    seen = torch.softmax(scores.masked_fill(unseen, float("-inf")), dim=-1) @ value
    return seen.transpose(1, 2).reshape(rows.shape) @ weights[f"{name}.outer"].t()

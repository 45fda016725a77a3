"""Parameters per rank, by what decides how they are divided: experts by slot, the rest by tensor slice."""

from __future__ import annotations

from collections import Counter

import numpy as np

from moesim.passes.columns import Column, Columns, stage_layers
from moesim.passes.shortcut import changed_model
from moesim.plans.plan import Pool
from moesim.policies.finding import make
from moesim.policies.protocols import AllToAllPolicy, Buffering, Placement
from moesim.world.attention import attention_parameters, copied_parameters
from moesim.world.model import Dense, Layer, Model, Moe, embedding_parameters, expert_parameters, matrices
from moesim.world.scenario import Scenario


def vocabularies(model: Model, cols: Columns, *, ends: int) -> Column:
    """Parameters of the embedding and the head per rank, as many of the two as this stage has."""
    matrices_here = min(ends, 1 if model.tied and cols.first.parallel.pp == 1 else 2)
    return np.asarray(embedding_parameters(model) * matrices_here / cols.tp)


def parameters(model: Model, layers: list[Layer], cols: Columns) -> tuple[Column, Column, Column]:
    """Parameters per rank: dense (with gate and shared experts), attention, routed experts in their slots."""
    policy: AllToAllPolicy = make("alltoall", cols.first.policy("alltoall"))
    shared_slices = cols.tp if policy.replicated else np.ones_like(cols.tp)
    dense, attention, experts = (np.zeros_like(cols.tp) for _ in range(3))
    for layer, times in Counter(layers).items():
        attention = attention + times * _attention_parameters(layer, cols)
        match layer.ffn:
            case Dense():
                dense = dense + times * matrices(gated=layer.ffn.gated) * layer.dim * layer.ffn.width / cols.tp
            case Moe():
                moe = layer.ffn
                shared = matrices(gated=moe.gated) * layer.dim * moe.shared_width / shared_slices
                latent = 2.0 * layer.dim * moe.input_dim if moe.input_dim != layer.dim else 0.0
                dense = dense + times * (layer.dim * moe.experts + shared + latent)
                experts = experts + times * _slots(moe, cols) * expert_parameters(moe) / cols.etp
            case None:
                pass
    return dense, attention, experts


def _attention_parameters(layer: Layer, cols: Columns) -> Column:
    """Weights of an attention part per rank; some parts of latent attention are copied on all tensor-parallel ranks."""
    kind = layer.attention
    if kind is None:
        return np.zeros_like(cols.tp)
    whole = float(attention_parameters(kind, layer.dim))
    copied = float(copied_parameters(kind, layer.dim))
    return copied + (whole - copied) / cols.tp


def _slots(moe: Moe, cols: Columns) -> Column:
    """Resident expert slots per rank and MoE layer."""

    def resident(like: Pool, ep: int) -> float:
        placement: Placement = make("placement", like.policy("placement"))
        buffering: Buffering = make("buffering", like.policy("buffering"))
        return buffering.resident_of(placement.slots(moe.experts, ep) // ep)

    return cols.table.each(resident, "ep").reshape(-1, 1, 1)


def stage_parameters(model: Model, cols: Columns, stage: int) -> tuple[Column, Column]:
    """Parameters of one stage on a rank: those outside the experts, and the experts in its slots."""
    pp = cols.first.parallel.pp
    layers = [model.layers[number] for number in stage_layers(model, pp, stage)]
    dense, attention, experts = parameters(model, layers, cols)
    ends = vocabularies(model, cols, ends=(stage == 0) + (stage == pp - 1))
    return np.asarray(dense + attention + ends + model.others / pp), experts


def model_of(scenario: Scenario, pool: Pool) -> Model:
    """Return the model as a pool's shortcut policy changes it."""
    return changed_model(scenario.model, make("shortcut", pool.policy("shortcut")))

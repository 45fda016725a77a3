"""Memory of training: weights, gradients and optimizer, whole or a rank's share, and what backward needs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moesim.passes.attention import ACTIVATION
from moesim.passes.columns import Column, Columns
from moesim.passes.parameters import stage_parameters
from moesim.passes.pipelining import held
from moesim.plans.plan import Pool
from moesim.policies.finding import make
from moesim.policies.protocols import Kept, Pipeline, Recompute, Sharding
from moesim.world.model import Dense, Layer, Model, Moe, matrices
from moesim.world.workload import Training

GRADIENT = 4.0
"""Bytes of a gradient, summed over microbatches in fp32."""

OPTIMIZERS: Mapping[str, float] = {"adam": 12.0, "sgd": 4.0}
"""Bytes of an optimizer's state per trained parameter: an fp32 master copy, and Adam's two fp32 moments."""

TRAINED_LOGIT = 6.0
"""Bytes of a logit in training: fp32, and its gradient in bf16."""

KEPT_ATTENTION, KEPT_INPUT = 15.0, 3.0
"""Activation bytes kept for backward per token and unit of width: by attention and both norms, and by what enters the
feed-forward part; its inner states come on top. Terms of Korthikanti et al. (arXiv 2205.05198, section 4.1) without
attention scores, which fused kernels do not keep; with a plain feed-forward part of four widths they add up to 34."""

KEPT_NORMS = 4.0
"""Of these, results of norms, which may be computed again."""


def state(workload: Training, model: Model, cols: Columns, stage: int) -> dict[str, Column]:
    """Bytes of gradients and optimizer state, whole or a rank's share; weights held twice have both twice."""
    sharding: Sharding = make("sharding", cols.first.policy("sharding"))
    lanes = _pipeline(cols.first).lanes
    others, experts = stage_parameters(model, cols, stage)
    whole = lanes * (others + experts)
    shared = others / (cols.dp * cols.cp) + experts * cols.ep * cols.etp / cols.ranks
    return {
        "gradients": (shared if sharding.stage > 1 else whole) * GRADIENT,
        "optimizer": (shared if sharding.stage else whole) * OPTIMIZERS[workload.optimizer],
    }


def state_of_experts(workload: Training, pool: Pool) -> tuple[float, int]:
    """Bytes an optimizer keeps of each parameter of an expert, and how many gpus with a copy share them out.

    Gradients are used up between steps, where experts move.
    """
    sharding: Sharding = make("sharding", pool.policy("sharding"))
    return OPTIMIZERS[workload.optimizer], pool.parallel.edp if sharding.stage else 1


def _pipeline(pool: Pool) -> Pipeline:
    policy: Pipeline = make("pipeline", pool.policy("pipeline"))
    return policy


def kept_activations(
    model: Model, layers: list[Layer], cols: Columns, tokens: Column, workload: Training, stage: int
) -> Column:
    """Activation bytes in training: what backward needs of all microbatches a stage holds at once, and the logits.

    Where microbatches do not suit the pipeline, which is refused later, one for each stage is assumed.
    """
    recompute: Recompute = make("recompute", cols.first.policy("recompute"))
    a_token = sum(layer.tokens * _kept_bytes(layer, recompute.keeps) for layer in layers)
    pipeline, pp = _pipeline(cols.first), cols.first.parallel.pp

    def microbatches(like: Pool, dp: int, microbatch: int) -> float:
        number = workload.sequences // (dp * microbatch)
        return pp if pipeline.fault(pp, number, len(model.layers)) else held(pipeline, stage, pp, number)

    at_once = cols.table.each(microbatches, "dp", "microbatch").reshape(-1, 1, 1)
    logits = tokens * model.vocab * TRAINED_LOGIT if stage == pp - 1 else 0.0
    return np.asarray(tokens * a_token * at_once + logits)


def _kept_bytes(layer: Layer, keeps: Kept) -> float:
    """Activation bytes a layer keeps per token."""
    if keeps == "inputs":
        return layer.dim * ACTIVATION
    kept = layer.dim * (KEPT_ATTENTION + KEPT_INPUT - (KEPT_NORMS if keeps == "products" else 0.0))
    spared = 1 if keeps == "products" else 0
    match layer.ffn:
        case Dense():
            return kept + (matrices(gated=layer.ffn.gated) - spared) * layer.ffn.width * ACTIVATION
        case Moe():
            moe, inner = layer.ffn, matrices(gated=layer.ffn.gated) - spared
            return (
                kept + (inner * (moe.shared_width + moe.topk * moe.width) + 2 * moe.topk * moe.input_dim) * ACTIVATION
            )
    return kept


def kept_weights(cols: Columns) -> tuple[Column, ...]:
    """Share of its weights that a rank keeps in training, by the items of `_weights`: its part of those shared out.

    Two ways through the pipeline take two stages' weights; gathered layers are not counted, as a few are at a time.
    """
    sharding: Sharding = make("sharding", cols.first.policy("sharding"))
    lanes = float(_pipeline(cols.first).lanes)
    if sharding.stage < 3:
        return (np.full_like(cols.tp, lanes),) * 4
    others = 1.0 / (cols.dp * cols.cp)
    return (cols.ep * cols.etp / cols.ranks, others, others, others)

"""Lowered schedules: what they hold, and what they must conserve."""

from __future__ import annotations

import numpy as np
import pytest
import worlds

from moesim.passes.columns import stage_layers
from moesim.passes.presence import home_tokens
from moesim.plans.plan import Parallel
from moesim.schedules.ops import AllToAll, Grouped
from moesim.schedules.schedule import Schedule
from moesim.world.model import Moe
from moesim.world.workload import Batch, decoding, mixed, prompts

TOKENS = 128

PARALLELISMS = {
    "tp": (Parallel(tp=8, ep=8), "reduce"),
    "tp etp": (Parallel(tp=8, ep=2, etp=4), "reduce"),
    "dp attention, ep": (Parallel(dp=8, ep=8), "linear"),
    "dp attention, tp, ep": (Parallel(dp=4, tp=2, ep=8), "linear"),
    "ep over nodes": (Parallel(dp=16, ep=16), "deduplicated"),
    "two-level": (Parallel(dp=8, tp=2, ep=16), "two_dh"),
    "etp": (Parallel(dp=8, ep=4, etp=2), "linear"),
    "edp": (Parallel(dp=8, ep=4), "linear"),
    "cp": (Parallel(dp=4, cp=2, ep=8), "linear"),
    "pp": (Parallel(pp=2, dp=8, ep=8), "linear"),
}
BATCHES = {
    "prefill": prompts(np.array([1.0]), np.array([float(TOKENS)])),
    "decode": decoding(np.array([float(TOKENS)]), np.array([1000.0])),
    "mixed": mixed(
        prompts(np.array([1.0]), np.array([TOKENS / 2])), decoding(np.array([TOKENS / 2]), np.array([1000.0]))
    ),
    "training": prompts(np.array([1.0]), np.array([float(TOKENS)]), backward=True),
}


def divides(name: str, parallel: Parallel) -> bool:
    """Whether a model's heads and experts take these degrees."""
    model = worlds.model(name)
    heads = all(layer.attention is None or layer.attention.heads % parallel.tp == 0 for layer in model.layers)
    return heads and (not model.moe_layers or parallel.ep <= model.moe(model.moe_layers[0]).experts)


def lowered(name: str, kind: str, batch: Batch, cv: float = 0.5) -> list[Schedule]:
    """Lower every stage of a model under a parallelism, all ranks kept apart."""
    parallel, alltoall = PARALLELISMS[kind]
    world = worlds.scenario(name, cv=cv if worlds.model(name).moe_layers else 0.0)
    chosen = worlds.pool(parallel, alltoall=alltoall)
    return [worlds.unfolded(world, chosen, batch, stage=stage)[0] for stage in range(parallel.pp)]


CASES = [
    pytest.param(name, kind, id=f"{name.split('/')[1]}-{kind}")
    for name in worlds.MODELS
    for kind in PARALLELISMS
    if divides(name, PARALLELISMS[kind][0])
]


@pytest.mark.parametrize("phase", ["mixed", "training"])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_bytes_and_tokens_are_conserved(name: str, kind: str, phase: str) -> None:
    parallel, _ = PARALLELISMS[kind]
    model = worlds.model(name)
    for stage, schedule in enumerate(lowered(name, kind, BATCHES[phase])):
        for task in schedule.tasks:
            if isinstance(task.op, AllToAll):
                np.testing.assert_allclose(task.op.sent.sum(axis=-1), task.op.received.sum(axis=-1), rtol=1e-12)
        for number in stage_layers(model, parallel.pp, stage):
            layer = model.layers[number]
            if not isinstance(layer.ffn, Moe):
                continue
            grouped = [t.op for t in schedule.tasks if t.layer == number and isinstance(t.op, Grouped)]
            home = home_tokens(layer, model, BATCHES[phase]).max() * parallel.ranks
            assert len(grouped) == (6 if BATCHES[phase].backward else 2)
            for op in grouped:
                assert op.rows.sum() == home * layer.ffn.topk * parallel.etp

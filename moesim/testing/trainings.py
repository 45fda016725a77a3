"""The suites of training: pipelines, and how states are shared."""

from __future__ import annotations

from moesim.passes.pipelining import drafts
from moesim.policies.protocols import (
    Pipeline,
    Sharding,
    Turn,
)

_PIPELINES = ((1, 1, 12), (2, 4, 12), (4, 8, 24), (4, 3, 24), (6, 18, 24), (8, 16, 64))
"""Stages, microbatches, layers."""


def check_pipeline(pipeline: Pipeline) -> None:
    """Check that every stage passes every microbatch there and back once, and that no two wait for each other."""
    for stages, microbatches, layers in _PIPELINES:
        problem = pipeline.fault(stages, microbatches, layers)
        if problem:
            assert "; " in problem, f"`{problem}` names no remedy; end it with `; ` and one"
            continue
        for stage in range(stages):
            order = pipeline.order(stage, stages, microbatches)
            there = [unit.forward for unit in order if unit.forward]
            back = [unit.backward or unit.inputs for unit in order if unit.backward or unit.inputs]
            passed = microbatches * (pipeline.chunks if pipeline.lanes == 1 else 1)
            assert len(set(there)) == len(there) == passed, f"stage {stage} of {stages} makes {len(there)} forwards"
            assert sorted(there) == sorted(map(_turn, back)), f"stage {stage} of {stages} takes others back than there"
            late = [unit.inputs for unit in order if unit.inputs]
            weights = [unit.weights for unit in order if unit.weights]
            assert sorted(map(_turn, late)) == sorted(map(_turn, weights)), f"stage {stage} forgets weights' gradients"
        drafts(pipeline, stages, microbatches)


def _turn(turn: Turn | None) -> Turn:
    assert turn is not None
    return turn


def check_sharding(sharding: Sharding) -> None:
    """Check that it names a stage of sharing there is."""
    assert sharding.stage in range(4), f"stage {sharding.stage}; 0 to 3 are known"
    assert isinstance(sharding.behind, bool), "`behind` is true or false"

import pkgutil
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import moesim.policies
from moesim.plans.plan import DEFAULT_POLICIES, TRAINING_POLICIES
from moesim.policies.finding import kinds, names
from moesim.policies.gating.static import Static
from moesim.policies.overlap.pipeline import Pipeline
from moesim.policies.placement.contiguous import Contiguous
from moesim.testing import CHECKS, check, check_blindness, check_gating, check_overlap, check_placement

FOUND = [(kind, name) for kind in kinds() for name in names(kind)]
SET = [
    ("alltoall", "deduplicated", {}),
    ("batching", "chunked", {"max_batch": 64, "speculated": 1, "acceptance": 0.8, "buckets": (1, 8, 64)}),
    ("batching", "continuous", {"speculated": 3, "acceptance": 0.6}),
    ("adaptation", "dynamoe", {"local": True, "memory": 0.2}),
    ("adaptation", "rebalance", {"every": 1, "gain": 0.0, "placement": "greedy", "background": True}),
    ("adaptation", "tutel", {"r": False, "step": 1}),
    ("buffering", "lifo", {"resident": 10, "tier": "disk"}),
    ("gating", "static", {"factor": 0.0}),
    ("gating", "static", {"factor": -1.25, "sparse": True}),
    ("gating", "static", {"fraction": 0.05}),
    ("gating", "static", {"fraction": 1.0}),
    ("gating", "static", {"factor": 2.0, "sparse": True}),
    ("overlap", "pipeline", {"degree": 1}),
    ("overlap", "pipeline", {"degree": (2, 4, 8)}),
    ("overlap", "pipeline", {"degree": "adaptive"}),
    ("placement", "anti_correlation", {"redundant": 8}),
    ("placement", "contiguous", {"redundant": 20}),
    ("placement", "greedy", {"redundant": 8}),
    ("placement", "eplb", {"redundant": 8, "groups": 4}),
    ("pipeline", "interleaved", {"chunks": 4}),
    ("router", "prefix_aware", {"bound": 2.0}),
    ("scaling", "queue", {"waiting": 1.0, "fill": 0.8}),
    ("sharding", "none", {"behind": False}),
    ("sharding", "zero", {"stage": 3, "behind": False}),
    ("scaling", "utilization", {"target": 0.8, "slack": 0.0}),
    ("prefetch", "predicted", {"precision": 0.5, "recall": 0.8}),
]


@pytest.mark.parametrize(("kind", "name"), FOUND)
def test_every_policy_conforms(kind, name):
    check(kind, name)


@pytest.mark.parametrize(("kind", "name", "settings"), SET)
def test_policies_conform_with_settings(kind, name, settings):
    check(kind, name, settings=settings)


def test_every_kind_has_a_suite_and_a_default():
    usual = {**DEFAULT_POLICIES, **TRAINING_POLICIES}
    assert set(CHECKS) == set(kinds()) == {*usual, "router", "scaling", "adaptation"}
    for kind, policy in usual.items():
        assert policy.name in names(kind)


def test_every_file_of_the_floor_is_blind():
    for file in sorted(Path(moesim.policies.__path__[0]).rglob("*.py")):
        check_blindness(file)


@pytest.mark.parametrize(
    "module", [m.name for m in pkgutil.walk_packages(moesim.policies.__path__, "moesim.policies.")]
)
def test_every_file_says_what_it_is(module):
    assert import_module(module).__doc__


class TestTheSuiteCatches:
    @pytest.mark.parametrize(
        "code",
        [
            "def policy(op, bandwidth): ...",
            "policy = lambda op: op.latency",
            "def policy(op): return Fixed(duration=1)",
            "def policy(op): link_latency = 1",
            "from moesim.ground.units import Seconds",
            "from moesim.schedules import costs",
            "from moesim.schedules.costs.pricing import price",
            "import time",
        ],
    )
    def test_a_policy_that_times(self, tmp_path, code):
        file = tmp_path / "clever.py"
        file.write_text(code)
        with pytest.raises(AssertionError, match=r"clever\.py"):
            check_blindness(file)

    def test_a_placement_that_forgets_an_expert(self):
        with pytest.raises(AssertionError, match="an expert has no slot"):
            check_placement(Forgetful())

    def test_a_placement_that_breaks_its_promise(self):
        with pytest.raises(AssertionError, match="numbered backwards"):
            check_placement(Boastful())

    def test_a_gating_that_drops_in_silence(self):
        with pytest.raises(AssertionError, match="drops assignments"):
            check_gating(Silent())

    def test_an_overlap_that_loses_rows(self):
        with pytest.raises(AssertionError, match="gains or loses"):
            check_overlap(Lossy())


class Forgetful(Contiguous):
    def __call__(self, load, slots, ranks, nodes, rng):
        return np.zeros((load.shape[1], slots), dtype=int)


class Boastful(Contiguous):
    balances = True


@dataclass(frozen=True)
class Silent:
    changes_model = False

    def capacity(self, tokens, experts, topk):
        return 1

    def __call__(self, counts, capacity, tokens):
        return Static()(counts, capacity, tokens)


@dataclass(frozen=True)
class Lossy:
    halves = 1

    def block(self, block, layout):
        return Pipeline(degree=2).block(replace(block, tasks=tuple(map(self.halved, block.tasks))), layout)

    def halved(self, task):
        return replace(task, op=task.op.split(2)[0]) if task.name == "experts" else task

    def whole(self, halves):
        return halves[0]

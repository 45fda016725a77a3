"""How fast caches and reacting policies run; `make bench` reports CPU time. Reach: 1 M accesses in 1 s per policy."""

import numpy as np
import pytest

from moesim.deployments.adaptation import Switched, Trace, clairvoyant, walk
from moesim.plans.layout import NO_LIMIT, Layout
from moesim.plans.plan import Policy
from moesim.policies.caches import run_caches
from moesim.policies.finding import make
from moesim.policies.placement.greedy import packed
from moesim.policies.protocols import Sizes

CACHES, EXPERTS, STEPS = 32 * 64, 16, 79


@pytest.mark.parametrize("name", ["lru", "lfu", "fifo", "lifo", "lfru", "pinned", "belady"])
def test_a_million_accesses(benchmark, name):
    """32 MoE layers on 64 ranks of 16 experts each, 10 of them in slots."""
    rng = np.random.default_rng(0)
    popularity = np.minimum(rng.lognormal(sigma=0.8, size=(CACHES, EXPERTS)) * 0.33, 1)
    accessed = rng.random((STEPS, CACHES, EXPERTS)) < popularity
    assert accessed.sum() > 1e6
    policy = make("buffering", Policy(name=name, settings={"resident": 10}))
    run = benchmark.pedantic(run_caches, args=(policy, accessed, 10), rounds=1)
    assert 0.5 < run.hit_rate < 1


CONFIGURATIONS = tuple((r, d, a) for r in range(5) for d in (1, 2, 4, 8) for a in ("linear", "two_dh"))


def test_experts_are_packed(benchmark):
    """288 copies on 32 ranks in 8 layers. Target: 1.5 ms of CPU."""
    load = np.random.default_rng(0).random((8, 288))
    places = benchmark(packed, load, 32)
    on_rank = np.take_along_axis(load, places, axis=1).reshape(8, 32, 9).sum(axis=2)
    assert on_rank.max() < 1.15 * on_rank.mean()  # 1.51 in order
    assert np.array_equal(np.sort(places, axis=1), np.tile(np.arange(288), (8, 1)))


def test_a_study_of_ten_thousand_steps(benchmark):
    """64 gpus, 32 MoE layers, 40 configurations, 32 capacities. Reach: 10 s of CPU."""
    rng = np.random.default_rng(0)
    most = 100 + np.cumsum(rng.integers(-6, 7, (10_000, 32)), axis=0) % 4000
    bucket = most // 128
    prices = Switched(
        configurations=CONFIGURATIONS, seconds=rng.random((len(CONFIGURATIONS), bucket.max() + 1)), bucket=bucket
    )
    record = Trace(counts=np.ones((10_000, 32, 1), np.int8), most=most, agreement=np.zeros(10_000))
    start = Layout(
        expert_of_slot=np.tile(np.arange(16), (32, 1)),
        rank_of_slot=np.arange(16),
        capacity=np.full((32, 16), NO_LIMIT),
        resident=np.ones((32, 16), bool),
        r=np.ones(32, int),
        degree=np.ones(32, int),
        alltoall=("linear",) * 32,
    )
    sizes = Sizes(tokens=4096, topk=1, gpus=64, nodes=8, expert=1e6)
    policy = make("adaptation", Policy(name="tutel"))
    found = benchmark.pedantic(walk, args=([policy], start, sizes, record, prices), rounds=1)
    assert len(found.changes) > 1000
    assert found.state[0].trials == len(np.unique(bucket[:-1])) * 4 * 8  # r = 0 and three of 1 to 4


def test_the_clairvoyant_path(benchmark):
    """10,000 steps and 64 configurations. Reach: 1 s."""
    rng = np.random.default_rng(0)
    seconds, switch = rng.random((10_000, 64)), rng.random((64, 64)) * (1 - np.eye(64))
    total, path = benchmark.pedantic(clairvoyant, args=(seconds, switch), rounds=1)
    assert seconds[np.arange(10_000), path].sum() + switch[path[:-1], path[1:]].sum() == pytest.approx(total)

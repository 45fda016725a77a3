"""How fast expert caches run; `make bench` reports CPU time. Reach: 1 M accesses in 1 s under each policy."""

import numpy as np
import pytest

from moesim.plans.plan import Policy
from moesim.policies.caches import run_caches
from moesim.policies.finding import make

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

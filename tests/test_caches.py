from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moesim.ground.errors import PolicyError
from moesim.plans.plan import Policy
from moesim.policies.caches import run_caches
from moesim.policies.finding import make

NAMES = ("lru", "lfu", "fifo", "lifo", "lfru", "pinned", "belady")


def run(name, accessed, slots):
    return run_caches(make("buffering", Policy(name=name, settings={"resident": slots})), accessed, slots)


def batches(*used, experts=4):
    """One cache; each batch a list of the experts it uses."""
    accessed = np.zeros((len(used), 1, experts), bool)
    for step, each in enumerate(used):
        accessed[step, 0, list(each)] = True
    return accessed


def resident(name, slots, *used):
    """Which experts are resident at the end: those a further batch of one would hit."""
    ends = []
    for expert in range(4):
        cache_run = run(name, batches(*used, [expert]), slots)
        if not cache_run.missed[-1, 0, expert]:
            ends.append(expert)
    return ends


def test_the_example_of_huang_et_al():
    """Two slots, experts 1, 2 and 3 needed: 2 leaves, and 1 stays for the next scan."""
    assert resident("lifo", 2, [1, 2, 3]) == [1, 3]


def test_inactive_experts_leave_first():
    assert resident("lifo", 2, [0, 3], [0, 1]) == [0, 1]
    assert resident("lifo", 2, [0, 3], [2, 3]) == [2, 3]


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("lru", [2, 3]),  # 2 was used last
        ("fifo", [0, 3]),  # 2 came in before 0 came back
        ("lfu", [0, 3]),  # 0 was used three times, 2 twice
    ],
)
def test_who_is_left(name, ends):
    assert resident(name, 2, [0], [1], [0], [2], [0], [2], [3]) == ends


def test_the_popular_are_pinned():
    """0 is used in every batch; of two slots the other one serves all the rest."""
    run_pinned = run("pinned", batches(*[[0, other] for other in (1, 2, 3, 1, 2, 3)]), 2)
    assert run_pinned.missed[:, 0, 0].sum() == 1
    assert run_pinned.misses == 1 + 6


def test_lru_never_hits_in_a_scan_of_more_than_fit():
    scans = batches(*[[0, 1, 2, 3]] * 10)
    assert run("lru", scans, 3).misses == 40
    assert run("fifo", scans, 3).misses == 40
    assert run("lifo", scans, 3).misses == 4 + 9 * 2  # two experts stay, the other two take turns in one slot
    assert run("belady", scans, 3).misses < run("lifo", scans, 3).misses


def test_all_slots_miss_only_once():
    scans = batches(*[[0, 1, 2, 3]] * 10)
    for name in NAMES:
        assert run(name, scans, 4).misses == 4


@pytest.mark.parametrize("slots", [0, 5])
def test_slots_must_fit(slots):
    with pytest.raises(PolicyError, match=r"give 1 to 4"):
        run_caches(make("buffering", Policy(name="lru")), batches([0]), slots)


def test_more_resident_than_slots_is_refused():
    with pytest.raises(PolicyError, match=r"resident = 9 slots of the 8 experts.*give 1 to 8"):
        make("buffering", Policy(name="lifo", settings={"resident": 9})).resident_of(8)


@settings(max_examples=60)
@given(arrays(bool, (12, 3, 6)), st.integers(1, 6))
def test_nothing_beats_belady(accessed, slots):
    least = run("belady", accessed, slots).missed.sum(axis=(0, 2))
    for name in NAMES:
        assert np.all(run(name, accessed, slots).missed.sum(axis=(0, 2)) >= least)


@settings(max_examples=15)
@given(arrays(bool, (4, 1, 4)), st.integers(1, 3))
def test_belady_is_optimal(accessed, slots):
    assert run("belady", accessed, slots).misses == fewest(tuple(np.argwhere(accessed[:, 0])[:, 1]), slots)


def fewest(uses, slots):
    """Misses of the best of all ways to run one cache: every set that may be resident, use after use."""
    states = {frozenset(): 0}
    for use in uses:
        following = {}
        for held, misses in states.items():
            ends = [(held, misses)]
            if use not in held:
                kept = [held] if len(held) < slots else [frozenset(some) for some in combinations(held, slots - 1)]
                ends = [(some | {use}, misses + 1) for some in kept]
            for end, count in ends:
                following[end] = min(following.get(end, count), count)
        states = following
    return min(states.values())


def test_caches_do_not_see_each_other():
    accessed = np.random.default_rng(0).random((20, 5, 8)) < 0.4
    for name in NAMES:
        together = run(name, accessed, 3).missed
        alone = [run(name, accessed[:, [i]], 3).missed[:, 0] for i in range(5)]
        assert np.array_equal(together, np.stack(alone, axis=1))

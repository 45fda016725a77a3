import time
from itertools import permutations

import numpy as np
import pytest

from moesim.policies.placement.contiguous import Contiguous
from moesim.policies.placement.eplb import Eplb
from moesim.policies.placement.greedy import Greedy, copies, packed
from moesim.testing import rank_loads
from moesim.world.generators import skewed

README = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
README_ANSWER = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def rng():
    return np.random.default_rng(0)


def test_eplb_answers_its_readme():
    load = np.array([README], dtype=float)
    assert Eplb(groups=4)(load, 16, 8, 2, rng()).tolist() == README_ANSWER


def test_eplb_averages_its_window():
    load = np.array([README], dtype=float)
    window = np.concatenate([load * 0.5, load * 1.5])
    assert Eplb(groups=4)(window, 16, 8, 2, rng()).tolist() == README_ANSWER


def test_eplb_keeps_groups_on_one_node():
    load = rng().lognormal(size=(1, 5, 64))
    placed = Eplb(groups=8)(load, 80, 16, 4, rng())
    node_of_slot = np.arange(80) // 20
    for row in placed:
        for group in range(8):
            assert len(set(node_of_slot[row // 8 == group])) == 1


def test_eplb_balances_all_ranks_where_nodes_do_not_divide_the_groups():
    load = rng().lognormal(size=(3, 2, 60))
    assert np.array_equal(Eplb(groups=6)(load, 64, 16, 4, rng()), Greedy()(load, 64, 16, 4, rng()))
    assert np.array_equal(Eplb(groups=1)(load, 64, 16, 4, rng()), Greedy()(load, 64, 16, 4, rng()))


def test_eplb_with_one_node_packs_its_ranks():
    load = rng().lognormal(size=(3, 2, 64))
    ours = rank_loads(Eplb(groups=8)(load, 72, 8, 1, rng()), load.mean(axis=0), 8)
    assert np.allclose(np.sort(ours), np.sort(rank_loads(Greedy()(load, 72, 8, 1, rng()), load.mean(axis=0), 8)))


def test_contiguous_slots_are_numbered_as_experts():
    load = np.ones((1, 2, 8))
    assert Contiguous()(load, 8, 4, 1, rng()).tolist() == [list(range(8))] * 2
    assert Contiguous()(load, 12, 4, 1, rng())[0, 8:].tolist() == [0, 2, 4, 6]
    assert Contiguous()(load, 28, 4, 1, rng())[0, 8:].tolist() == [i * 8 // 20 for i in range(20)]
    assert Contiguous(redundant=2).slots(8, 4) == 12
    assert Contiguous().slots(8, 4) == 8


@pytest.mark.parametrize("extra", [0, 1, 5, 8, 13, 40])
def test_contiguous_copies_are_even(extra):
    placed = Contiguous()(np.ones((1, 1, 8)), 8 + extra, 1, 1, rng())[0]
    number = np.bincount(placed, minlength=8)
    assert number.max() - number.min() <= 1


def test_redundant_slots_copy_the_largest_load_per_copy():
    assert copies(np.array([[10.0, 6.0, 1.0]]), 6).tolist() == [[0, 1, 2, 0, 1, 0]]


def test_packing_by_hand():
    # Heaviest first: 9 to pack 0, 7 to 1, 6 to 1 (7 + 6 = 13: full), 2 to 0.
    assert packed(np.array([[2.0, 9.0, 6.0, 7.0]]), 2).tolist() == [[1, 0, 3, 2]]


def test_copying_is_the_best_there_is():
    # Giving the next copy to the largest load per copy minimizes the largest one: by brute force.
    for seed in range(20):
        load = np.random.default_rng(seed).lognormal(size=4)
        ours = np.bincount(copies(load[None], 7)[0], minlength=4)
        best = min(np.max(load / (1 + np.array(extra))) for extra in np.ndindex(4, 4, 4, 4) if sum(extra) == 3)
        assert np.max(load / ours) == pytest.approx(best, rel=1e-12)


def test_greedy_is_near_the_optimum_on_small_cases():
    ratios = []
    for seed in range(30):
        load = np.random.default_rng(seed).lognormal(sigma=0.7, size=6)
        best = min(max(load[list(order)].reshape(3, 2).sum(axis=1)) for order in permutations(range(6)))
        placed = Greedy()(load[None, None], 6, 3, 1, rng())
        ratios.append(rank_loads(placed, load[None], 3).max() / best)
    print(f"greedy over the optimum, with slot limits: mean {np.mean(ratios):.3f}, worst {max(ratios):.3f}")
    assert min(ratios) >= 1 - 1e-12
    assert np.mean(np.isclose(ratios, 1)) >= 0.8
    assert max(ratios) <= 1.25


def test_greedy_beats_contiguous_at_cv_0_35_on_64_ranks():
    routing = skewed(58, 256, 8, cv=0.35, seed=1)
    load = routing.shares(0)
    history = load[None]
    even = rank_loads(Contiguous()(history, 256, 64, 8, rng()), load, 64).max(axis=1) * 64
    greedy = rank_loads(Greedy()(history, 256, 64, 8, rng()), load, 64).max(axis=1) * 64
    copied = rank_loads(Greedy(redundant=64)(history, 320, 64, 8, rng()), load, 64).max(axis=1) * 64
    print(
        f"max over mean rank load: contiguous {even.mean():.3f}, greedy {greedy.mean():.3f},"
        f" with 64 copies {copied.mean():.3f}"
    )
    assert np.all(greedy < even)
    assert np.all(copied <= greedy)
    assert greedy.mean() < 1.1 < 1.3 < even.mean()


def test_greedy_beats_contiguous_on_drawn_counts_too():
    routing = skewed(4, 256, 8, cv=0.35, seed=1)
    placed = [place(routing.shares(0)[None], 256, 64, 8, rng()) for place in (Contiguous(), Greedy())]
    drawn = routing.draw(np.full(64, 128), 0, np.random.default_rng(5)).sum(axis=1).astype(float)
    even, greedy = (rank_loads(slots, drawn, 64).max(axis=1) for slots in placed)
    assert np.all(greedy < even)


def test_uniform_load_is_placed_perfectly():
    load = np.ones((1, 3, 64))
    for place in (Greedy(), Eplb(groups=8)):
        assert np.ptp(rank_loads(place(load, 64, 16, 2, rng()), load[0], 16)) == 0


@pytest.mark.parametrize("place", [Greedy(redundant=64), Eplb(redundant=64, groups=8)], ids=str)
def test_58_layers_of_256_experts_are_placed_quickly(place):
    load = rng().lognormal(size=(8, 58, 256))
    began = time.process_time()
    place(load, 320, 64, 8, rng())
    assert time.process_time() - began < 0.3

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.ground.errors import PolicyError
from moesim.policies.buckets import choose_buckets, padded

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=8, unique=True).map(sorted)


def total(sizes, weight, cost, buckets):
    run_at = np.array(buckets)[np.searchsorted(buckets, sizes)]
    return float((weight * cost(run_at)).sum())


@given(SIZES, st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_the_choice_is_the_best_of_all(sizes, graphs, seed):
    sizes = np.array(sizes)
    weight = np.random.default_rng(seed).random(len(sizes))

    def cost(size):
        return 5.0 + np.ceil(size / 8)

    chosen = choose_buckets(sizes, weight, cost, graphs)
    others = (
        (*some, int(sizes[-1]))
        for count in range(min(graphs, len(sizes)))
        for some in combinations(sizes[:-1].tolist(), count)
    )
    assert len(chosen) <= graphs
    assert total(sizes, weight, cost, chosen) == pytest.approx(
        min(total(sizes, weight, cost, other) for other in others)
    )


def test_no_room_for_a_graph_is_refused():
    with pytest.raises(PolicyError, match="at least 1"):
        choose_buckets(np.array([1]), np.ones(1), lambda size: size * 1.0, 0)


def test_a_graph_for_every_size_pads_nothing():
    sizes, weight = np.array([3, 9, 20]), np.ones(3)
    assert padded(sizes, weight, choose_buckets(sizes, weight, lambda size: size * 1.0, 3)) == 0

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moesim.plans.layout import NO_LIMIT
from moesim.policies.capacities import aligned_capacity, capacity, kept_in_order, local_capacities, needed_factor
from moesim.policies.gating.static import Static

COUNTS = np.array([[[5, 0, 3, 0], [1, 2, 2, 3]], [[1, 1, 1, 1], [0, 4, 0, 0]]])
TOKENS = np.array([[4, 4]])


def gated(factor, tokens=4):
    static = Static(factor=factor)
    return static(COUNTS, np.full(4, static.capacity(tokens, 4, 2)), TOKENS)


def test_a_positive_factor_is_a_fixed_capacity():
    assert np.array_equal(gated(1.0).rows, np.full(COUNTS.shape, 2))
    assert not gated(1.0).sizes


def test_factor_zero_is_the_largest_count_of_each_pass():
    static = gated(0.0)
    assert np.array_equal(static.kept, COUNTS)
    assert np.array_equal(static.rows[:, 0, 0], [5, 4])
    assert np.all(static.rows == static.rows[:, :1, :1])
    assert np.array_equal(static.mask[:, 0], [4 * 4 * 5, 4 * 4 * 4])
    assert static.sizes
    assert Static(factor=0.0).capacity(4, 4, 2) == NO_LIMIT
    assert not Static(factor=0.0).changes_model


def test_a_negative_factor_is_its_upper_bound():
    static = gated(-2.25)  # at most ceil(2 x 2.25 x 4 / 4) = 5
    assert np.array_equal(static.rows[:, 0, 0], [5, 4])
    tight = gated(-1.0)
    assert np.array_equal(tight.rows[:, 0, 0], [2, 2])
    assert np.array_equal(tight.kept, np.minimum(COUNTS, 2))
    assert Static(factor=-1.0).changes_model


def test_a_capacity_of_alphas_rounds_up():
    assert capacity(1.0, 2, 5, 40) == 16
    assert capacity(1.01, 2, 5, 40) == 17
    assert local_capacities(np.array([1.01, 1.0, 0.0]), 1, 3).tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("tokens", "shards", "degree", "rows"),
    [(64, 1, 1, 16), (65, 1, 1, 18), (65, 2, 4, 24), (1024, 1, 1, 256), (1032, 1, 1, 384), (1032, 3, 1, 384)],
)
def test_tutel_aligns_to_shards_and_degree_and_to_128_above_256(tokens, shards, degree, rows):
    assert aligned_capacity(1.0, 2, 8, tokens, shards=shards, degree=degree) == rows


def test_the_needed_factor_undoes_the_capacity():
    assert needed_factor(capacity(2.5, 2, 8, 400), 2, 8, 400) == 2.5


def test_later_arrivals_are_dropped():
    chosen = np.array([[0, 1], [0, 1], [0, 2], [2, 0]])
    kept = kept_in_order(chosen, np.array([2, 2, 1]))
    assert kept.tolist() == [[True, True], [True, True], [False, True], [False, False]]


@given(arrays(np.int64, (20, 2), elements=st.integers(0, 4)), st.integers(0, 12))
def test_as_many_are_kept_as_find_room(chosen, room):
    kept = kept_in_order(chosen, np.full(5, room))
    counts = np.bincount(chosen.ravel(), minlength=5)
    assert np.array_equal(np.bincount(chosen[kept], minlength=5), np.minimum(counts, room))
    flat, place = chosen.ravel(), kept.ravel()
    for expert in range(5):
        own = place[flat == expert]
        assert np.all(own[:room]), "an early assignment was dropped"

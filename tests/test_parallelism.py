import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.ground.errors import PolicyError
from moesim.policies.parallelism import best_r, check_r, family, least, migration, slices_win, trials, volume


def cost(r, rows, parameters, gpus=64, experts=8):
    """Elements of a training step: four all-to-alls and two gathers."""
    moved = volume(r, gpus=gpus, experts=experts, rows=rows, parameters=parameters)
    return 4 * moved.rows + 2 * moved.weights


def test_the_family_of_table_4():
    assert family(64, 16) == (0, 1, 2, 3, 4)
    assert family(16, 16) == family(8, 32) == (0, 1)


@pytest.mark.parametrize("r", [-1, 5])
def test_an_r_outside_the_family_is_refused(r):
    with pytest.raises(PolicyError, match=r"give one of 0, 1, 2, 3, 4"):
        check_r(r, 64, 16)


@pytest.mark.parametrize(("shards", "count"), [(4, 43), (16, 71), (64, 98)])
def test_trials_per_key(shards, count):
    assert trials(shards) == count


@given(st.floats(1e3, 1e7), st.floats(1e6, 1e10))
def test_the_best_r_is_where_the_volume_is_least(rows, parameters):
    free = best_r(gpus=64, experts=8, rows=rows, parameters=parameters)
    inside = [cost(r, rows, parameters) for r in range(1, 8)]  # at r = 8 the gather ends, which the root cannot see
    least = int(np.argmin(inside)) + 1
    assert abs(least - min(free, 7)) <= 1


def test_high_capacity_favors_gathering_the_weights():
    """Figure 12: r falls as the capacity factor grows, and at last data parallelism is best."""
    best = [
        min(family(64, 16), key=lambda r: cost(r, rows, 16 * 2 * 2048 * 2048.0, experts=16))
        for rows in 2048.0 * 4096 * np.array([0.05, 1, 8, 40])
    ]
    assert best == sorted(best, reverse=True)
    assert best[0] == 4
    assert best[-1] == 0


def test_the_rule_of_the_code():
    assert slices_win(100, 4, 601)
    assert not slices_win(100, 4, 600)


def test_one_layout_moves_nothing_and_another_pays():
    assert migration(16 * 2 * 2048 * 2048.0, 4.0, 64) == 16 * 2 * 2048 * 2048 * 4 / 64


@given(st.integers(1, 200), st.integers(0, 220), st.floats(0.1, 3.0))
def test_the_least_r_is_found_in_no_more_trials_than_tutel_counts(shards, bottom, slope):
    """Any cost that falls and then rises: Tutel's count is (log_1.5 of W / E + 2) for each degree and algorithm."""
    looked = set()

    def cost(r):
        looked.add(r)
        return (bottom - r if r < bottom else slope * (r - bottom)) if r else 0.5

    found = least(family(shards, 1), cost)
    assert cost(found) == min(map(cost, family(shards, 1)))
    looked.clear()
    least(family(shards, 1), cost)
    assert len(looked) <= math.log(shards, 1.5) + 2

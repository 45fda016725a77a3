import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moesim.plans.layout import NO_LIMIT
from moesim.policies.gating.dynamic import Dynamic
from moesim.policies.gating.static import Static

COUNTS = np.array([[[5, 0, 3, 0], [1, 2, 2, 3]]])
TOKENS = np.array([[4, 4]])


def capacity(rows, experts=4):
    return np.full((1, experts), rows)


def test_dynamic_gating_computes_what_was_routed():
    gated = Dynamic()(COUNTS, capacity(NO_LIMIT), TOKENS)
    assert np.array_equal(gated.rows, COUNTS)
    assert np.array_equal(gated.kept, COUNTS)
    assert not gated.mask.any()
    assert gated.sizes
    assert Dynamic().capacity(4, 4, 2) == NO_LIMIT
    assert not Dynamic().changes_model


def test_static_gating_pads_and_drops_on_every_source_rank():
    gated = Static()(COUNTS, capacity(2), TOKENS)
    assert np.array_equal(gated.rows, np.full((1, 2, 4), 2))
    assert np.array_equal(gated.kept, [[[2, 0, 2, 0], [1, 2, 2, 2]]])
    assert np.array_equal(gated.mask, [[4 * 4 * 2, 4 * 4 * 2]])
    assert not gated.sizes


def test_fast_encode_builds_no_mask():
    gated = Static(sparse=True)(COUNTS, capacity(2), TOKENS)
    assert not gated.mask.any()
    assert np.array_equal(gated.rows, Static()(COUNTS, capacity(2), TOKENS).rows)


def test_means_stay_means():
    means = np.array([[[1.5, 2.25]]])
    gated = Static()(means, np.array([[2.0, 2.0]]), np.array([[3.75]]))
    assert np.array_equal(gated.kept, [[[1.5, 2.0]]])
    assert np.array_equal(gated.rows, [[[2.0, 2.0]]])


def test_capacities_may_differ_between_experts():
    gated = Static()(COUNTS, np.array([[1, 2, 3, 4]]), TOKENS)
    assert np.array_equal(gated.rows[0, 0], [1, 2, 3, 4])
    assert np.array_equal(gated.mask, [[4 * 10, 4 * 10]])


@pytest.mark.parametrize(("experts", "fraction", "topk", "waste"), [(512, 0.05, 2, 12.8), (128, 1.0, 2, 64)])
def test_the_waste_of_huang_et_al(experts, fraction, topk, waste):
    tokens = 20_000
    rows = experts * Static(fraction=fraction).capacity(tokens, experts, topk)
    assert rows / (tokens * topk) == pytest.approx(waste, rel=1e-12)


def test_the_capacity_of_tutel():
    assert Static(factor=1.0).capacity(4096, 64, 2) == 128
    assert Static(factor=1.25).capacity(4096, 2048, 1) == 3
    assert Static(factor=1.0).capacity(0, 64, 2) == 0


def test_rounding_forgives_the_last_digit():
    assert [Static(fraction=f).capacity(100, 8, 2) for f in (0.07, 0.29, 0.57, 0.571)] == [7, 29, 57, 58]


def test_only_room_for_all_leaves_the_model_alone():
    assert Static().changes_model
    assert Static(fraction=0.99).changes_model
    assert not Static(fraction=1.0).changes_model


@given(arrays(np.int64, (3, 4, 8), elements=st.integers(0, 50)), st.integers(0, 60))
def test_dropped_and_kept_add_up(counts, rows):
    gated = Static()(counts, capacity(rows, 8), np.full((3, 4), 50))
    assert np.array_equal(gated.kept + np.maximum(counts - rows, 0), counts)
    assert np.all(gated.kept <= gated.rows)

import numpy as np
import pytest

from moesim.policies.scores import LOAD_MEMORY, agreement, caching_gain, load_factor, moved, trigger_step


def test_the_trigger_fires_at_its_computed_step():
    """Start 4, constant load 1.3, g = 0.001: below half of 4 at step 1350, and the new alpha is 1.3 x 2 = 2.6."""
    score, step = np.array(4.0), 0
    while score >= 0.5 * 4.0:
        score = moved(score, np.array(1.3), LOAD_MEMORY)
        step += 1
    assert step == trigger_step(4.0, 1.3, LOAD_MEMORY, 0.5) == 1350
    assert 1.3 * score == pytest.approx(2.6, rel=1e-3)


def test_a_load_above_the_threshold_never_triggers():
    with pytest.raises(ValueError, match="never"):
        trigger_step(4.0, 2.0, 0.001, 0.5)


def test_the_score_is_the_load_in_capacity_factors():
    assert load_factor(np.array([[10, 30]]), 20, 2).tolist() == [[0.5, 1.5]]


def test_agreement_is_of_sets():
    cached = np.array([[0, 1], [2, 3], [4, 5], [6, 7]])
    assert agreement(cached, cached[:, ::-1]) == 1
    assert agreement(cached, np.array([[0, 2], [3, 2], [4, 5], [7, 7]])) == 0.5


def test_caching_gains_most_where_gate_and_experts_are_equal():
    gains = [caching_gain(x) for x in (0.0, 0.5, 0.7, 1.0, 2.0)]
    assert gains == pytest.approx([1.0, 1.5, 1.7, 2.0, 1.5])

import pickle
import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.ground.errors import WorkloadError
from moesim.world.generators import Balanced, Recorded, Skewed, dealt_choices, inclusion, skewed, touched_groups
from moesim.world.routing import Routing

CASES = [(8, 2), (16, 4), (64, 8), (12, 12), (16, 1)]


def rng(seed=0):
    return np.random.default_rng(seed)


def recorded(steps=3, layers=2, tokens=40, experts=16, topk=4):
    order = rng(9).random((steps, layers, tokens, experts)).argsort(axis=-1)
    return Recorded(choices=order[..., :topk], experts=experts)


def routings(layers=3, experts=16, topk=4):
    return [
        Balanced(layers=layers, experts=experts, topk=topk),
        skewed(layers, experts, topk, cv=0.6, seed=1),
        recorded(layers=layers, experts=experts, topk=topk),
    ]


def by_sets(weights, topk):
    """Chance of every set of experts, from the definition: proportional to the product of its weights."""
    sets = list(combinations(range(len(weights)), topk))
    chance = np.array([np.prod(weights[list(each)]) for each in sets])
    return sets, chance / chance.sum()


def within(found, expected, spread, number, errors=4.5):
    """Whether means of `number` draws lie within so many standard errors of what is expected."""
    return np.all(np.abs(found - expected) <= errors * spread / np.sqrt(number) + 1e-12)


@pytest.mark.parametrize("routing", routings(), ids=lambda routing: type(routing).__name__)
def test_all_forms_are_routings(routing):
    assert isinstance(routing, Routing)
    assert (routing.layers, routing.experts, routing.topk) == (3, 16, 4)
    assert np.allclose(routing.shares(1).sum(axis=1), 1, rtol=1e-12)
    assert routing.alike == (not isinstance(routing, Recorded))


@pytest.mark.parametrize("routing", routings(), ids=lambda routing: type(routing).__name__)
@given(tokens=st.lists(st.integers(0, 30), min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_every_token_makes_topk_different_choices(routing, tokens, seed):
    tokens = np.array(tokens)
    counts = routing.draw(tokens, 2, rng(seed))
    assert counts.shape == (3, len(tokens), 16)
    assert np.array_equal(counts.sum(axis=2), np.tile(tokens * 4, (3, 1)))
    assert np.all(counts >= 0)
    assert np.all(counts <= tokens[:, None])


@pytest.mark.parametrize("routing", routings(), ids=lambda routing: type(routing).__name__)
@given(tokens=st.lists(st.integers(0, 12), min_size=1, max_size=5), seed=st.integers(0, 2**32 - 1))
def test_choices_agree_with_counts(routing, tokens, seed):
    tokens = np.array(tokens)
    counts = routing.draw(tokens, 1, rng(seed))
    chosen = routing.assign(tokens, 1, rng(seed))
    assert chosen.shape == (3, tokens.sum(), 4)
    assert np.all(np.diff(np.sort(chosen, axis=-1), axis=-1) > 0)
    for number, part in enumerate(np.split(chosen, np.cumsum(tokens)[:-1], axis=1)):
        found = [np.bincount(layer.ravel(), minlength=16) for layer in part]
        assert np.array_equal(found, counts[:, number])


@pytest.mark.parametrize("routing", routings(), ids=lambda routing: type(routing).__name__)
def test_equal_generators_draw_equal_counts(routing):
    tokens = np.full(4, 25)
    assert np.array_equal(routing.draw(tokens, 0, rng(3)), routing.draw(tokens, 0, rng(3)))
    copy = pickle.loads(pickle.dumps(routing))
    assert np.array_equal(routing.assign(tokens, 0, rng(3)), copy.assign(tokens, 0, rng(3)))


class TestBalanced:
    @given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 9))
    def test_counts_differ_by_at_most_one(self, tokens, step):
        counts = Balanced(layers=5, experts=12, topk=5).draw(np.array(tokens), step, rng())
        assert np.all(np.ptp(counts, axis=2) <= 1)
        assert np.all(np.ptp(counts.sum(axis=1), axis=1) <= 1)

    def test_nothing_is_random_but_who_goes_where(self):
        routing = Balanced(layers=2, experts=12, topk=5)
        assert np.array_equal(routing.draw(np.array([7]), 0, rng(1)), routing.draw(np.array([7]), 0, rng(2)))
        assert not np.array_equal(routing.assign(np.array([7]), 0, rng(1)), routing.assign(np.array([7]), 0, rng(2)))

    def test_odd_rows_turn_with_layer_and_step(self):
        routing = Balanced(layers=8, experts=8, topk=1)
        assert np.array_equal(routing.draw(np.array([1]), 0, rng())[:, 0], np.eye(8))
        over_steps = sum(routing.draw(np.array([1]), step, rng())[0, 0] for step in range(8))
        assert over_steps.sum() == 8

    def test_groups_touched_are_those_of_even_draws(self):
        group = np.arange(256) // 32
        # No group of 32 of 256: C(224, 8) / C(256, 8).
        nowhere = np.prod((224 - np.arange(8)) / (256 - np.arange(8)))
        assert Balanced(layers=2, experts=256, topk=8).distinct(group) == pytest.approx([8 * (1 - nowhere)] * 2)


class TestSkewed:
    @pytest.mark.parametrize(("experts", "topk"), [(6, 1), (6, 3), (7, 6), (5, 5)])
    def test_shares_are_those_of_all_sets(self, experts, topk):
        weights = rng(experts).lognormal(sigma=1.5, size=(2, experts))
        for layer, row in enumerate(weights):
            sets, chance = by_sets(row, topk)
            expected = [sum(c for each, c in zip(sets, chance, strict=True) if e in each) for e in range(experts)]
            assert np.allclose(inclusion(weights, topk)[layer], expected, rtol=1e-12)
            assert np.allclose(Skewed(weights=weights, topk=topk, alike=False).shares(0)[layer] * topk, expected)

    def test_groups_touched_are_those_of_all_sets(self):
        weights, group = rng(4).lognormal(sigma=1.5, size=(2, 9)), np.array([4, 4, 0, 0, 0, 7, 7, 4, 0])
        for layer, row in enumerate(weights):
            sets, chance = by_sets(row, 3)
            expected = sum(c * len(set(group[list(each)])) for each, c in zip(sets, chance, strict=True))
            assert touched_groups(weights, 3, group)[layer] == pytest.approx(expected, rel=1e-12)

    def test_counts_follow_the_law_of_all_sets(self):
        # One token a rank: the drawn counts are sets, each as often as its chance says.
        weights, number = rng(5).lognormal(sigma=1.0, size=(1, 6)), 40_000
        drawn = Skewed(weights=weights, topk=3, alike=False).draw(np.ones(number, dtype=int), 0, rng(6))[0]
        sets, chance = by_sets(weights[0], 3)
        found = np.array([np.mean(drawn[:, list(each)].all(axis=1)) for each in sets])
        assert within(found, chance, np.sqrt(chance * (1 - chance)), number)

    @pytest.mark.parametrize(("experts", "topk"), CASES)
    def test_marginals_are_binomial(self, experts, topk):
        cv = 0.0 if topk == experts else 0.5
        routing, tokens, number = skewed(2, experts, topk, cv=cv, seed=2), 32, 2000
        drawn = routing.draw(np.full(number, tokens), 0, rng(8))
        chance = routing.shares(0) * topk
        variance = tokens * chance * (1 - chance)
        assert within(drawn.mean(axis=1), tokens * chance, np.sqrt(variance), number)
        assert np.allclose(drawn.var(axis=1), variance, rtol=0.2, atol=1e-9)

    @pytest.mark.parametrize(("experts", "topk"), [(16, 4), (64, 8)])
    def test_groups_touched_agree_with_choices(self, experts, topk):
        routing, group = skewed(2, experts, topk, cv=0.8, seed=2), np.arange(experts) // 4
        found = []
        for seed in range(200):
            one = routing.assign(np.ones(64, dtype=int), 0, rng(seed))  # one token a rank: no dealing is needed
            found.append([[len(set(group[token])) for token in layer] for layer in one])
        touched = np.moveaxis(np.array(found), 1, 0).reshape(2, -1)
        assert within(touched.mean(axis=1), routing.distinct(group), touched.std(axis=1), touched.shape[1])

    def test_dealt_pairs_come_close_to_independent_ones(self):
        routing, group = skewed(1, 64, 8, cv=0.8, seed=2), np.arange(64) // 8
        chosen = np.concatenate([routing.assign(np.full(8, 64), 0, rng(seed))[0] for seed in range(10)])
        touched = np.mean([len(set(group[token])) for token in chosen])
        assert touched == pytest.approx(routing.distinct(group)[0], rel=0.01)

    def test_balls_into_bins(self):
        # topk = 1, even: n balls into n bins, whose fullest bin and share of empty bins are known.
        routing, number = skewed(1, 256, 1, cv=0.0, seed=0), 3000
        fullest = routing.draw(np.full(number, 256), 0, rng(1))[0].max(axis=1)
        reference = rng(2).multinomial(256, np.full(256, 1 / 256), size=number).max(axis=1)
        assert abs(fullest.mean() - reference.mean()) < 4.5 * np.hypot(fullest.std(), reference.std()) / np.sqrt(number)
        assert np.mean(routing.draw(np.full(number, 256), 0, rng(3)) == 0) == pytest.approx(
            (1 - 1 / 256) ** 256, rel=0.01
        )

    @pytest.mark.parametrize("topk", [1, 2, 8])
    @pytest.mark.parametrize("cv", [0.0, 0.05, 0.35, 1.12, 2.22])
    def test_the_spread_asked_for_is_the_spread_of_the_shares(self, cv, topk):
        shares = skewed(3, 128, topk, cv=cv, seed=1).shares(0)
        assert np.allclose(shares.std(axis=1) / shares.mean(axis=1), cv, atol=1e-9)

    def test_layers_are_alike_but_for_names(self):
        routing = skewed(4, 64, 8, cv=0.7, seed=1)
        shares = routing.shares(0)
        assert routing.alike
        assert np.allclose(np.sort(shares, axis=1), np.sort(shares[0]))
        assert not np.allclose(shares[0], shares[1])

    def test_seeds_rename_experts(self):
        one, other = (skewed(2, 64, 8, cv=0.7, seed=seed).shares(0) for seed in (1, 2))
        assert np.allclose(np.sort(one), np.sort(other))
        assert not np.allclose(one, other)

    @pytest.mark.parametrize(("experts", "topk", "cv"), [(8, 2, 1.8), (8, 2, -0.1), (8, 8, 0.1)])
    def test_a_spread_out_of_reach_is_refused(self, experts, topk, cv):
        with pytest.raises(WorkloadError, match=r"can't be reached; give 0 or more, at most \d"):
            skewed(1, experts, topk, cv=cv, seed=0)

    def test_more_choices_than_experts_are_refused(self):
        with pytest.raises(WorkloadError, match="9 experts a token, of 8"):
            Balanced(layers=1, experts=8, topk=9)

    def test_experts_that_are_never_chosen(self):
        weights = np.array([[1.0, 0.0, 1.0, 0.0, 2.0]])
        drawn = Skewed(weights=weights, topk=2, alike=False).draw(np.array([100]), 0, rng())
        assert drawn[0, 0, [1, 3]].tolist() == [0, 0]
        assert drawn.sum() == 200

    def test_extreme_weights_still_sum(self):
        weights = np.exp(np.linspace(-30, 30, 256))[None]
        drawn = Skewed(weights=weights, topk=8, alike=False).draw(np.array([1000, 1]), 0, rng())
        assert drawn.sum(axis=2).tolist() == [[8000, 8]]
        assert np.all(drawn <= np.array([[[1000], [1]]]))

    def test_a_deepseek_step_is_drawn_quickly(self):
        routing = skewed(58, 256, 8, cv=0.25, seed=0)
        routing.draw(np.array([1]), 0, rng())  # fill the tables
        began = time.process_time()
        routing.draw(np.full(64, 128), 0, rng())
        assert time.process_time() - began < 1.5


class TestRecorded:
    def test_its_own_size_is_replayed_exactly(self):
        routing = recorded()
        tokens = np.array([10, 0, 30])
        for step in (0, 2, 5):
            assert np.array_equal(routing.assign(tokens, step, rng(step)), routing.choices[step % 3])
        expected = [
            [np.bincount(part.ravel(), minlength=16) for part in (layer[:10], layer[:0], layer[10:])]
            for layer in routing.choices[1]
        ]
        assert np.array_equal(routing.draw(tokens, 1, rng()), expected)

    def test_fewer_tokens_are_thinned(self):
        routing = recorded()
        chosen = routing.assign(np.array([5, 7]), 0, rng())
        whole = [tuple(token) for token in routing.choices[0].transpose(1, 0, 2).reshape(40, -1)]
        picked = [whole.index(tuple(token)) for token in chosen.transpose(1, 0, 2).reshape(12, -1)]
        assert picked == sorted(set(picked))

    def test_more_tokens_are_resampled(self):
        routing = recorded()
        chosen = routing.assign(np.array([500]), 0, rng())
        whole = {tuple(token) for token in routing.choices[0].transpose(1, 0, 2).reshape(40, -1)}
        assert {tuple(token) for token in chosen.transpose(1, 0, 2).reshape(500, -1)} <= whole

    @pytest.mark.parametrize(("tokens", "word"), [(40, "exactly"), (39, "thinned from 40"), (41, "resampled")])
    def test_it_says_what_it_did(self, tokens, word):
        assert word in recorded().note(tokens)

    def test_shares_are_those_of_the_step(self):
        routing = recorded()
        counted = routing.draw(np.array([40]), 1, rng())[:, 0] / 160
        assert np.allclose(routing.shares(1), counted)
        assert np.allclose(routing.shares(4), counted)

    def test_groups_touched_are_counted(self):
        choices = np.array([[[[0, 1], [0, 2]], [[3, 2], [1, 3]]]])
        routing = Recorded(choices=choices, experts=4)
        assert routing.distinct(np.array([0, 0, 1, 1])).tolist() == [1.5, 1.5]
        assert routing.distinct(np.arange(4)).tolist() == [2, 2]
        assert routing.distinct(np.zeros(4, dtype=int)).tolist() == [1, 1]

    def test_the_record_is_protected(self):
        with pytest.raises(ValueError, match="read-only"):
            recorded().choices[0] = 0


def test_dealing_leaves_nothing_over():
    counts = np.array([[[5, 5, 1, 1, 3]]])  # five tokens, three choices each; two experts are taken by all
    for seed in range(50):
        chosen = dealt_choices(counts, np.array([5]), 3, rng(seed))[0]
        assert np.array_equal(np.bincount(chosen.ravel(), minlength=5), counts[0, 0])
        assert np.all((chosen == 0).any(axis=1) & (chosen == 1).any(axis=1))


def test_dealing_favors_no_token():
    counts, number = np.array([[[2, 3, 1, 4, 2]]]), 4000
    taken = np.zeros((4, 5))
    for seed in range(number):
        chosen = dealt_choices(counts, np.array([4]), 3, rng(seed))[0]
        np.add.at(taken, (np.arange(4)[:, None], chosen), 1)
    expected = counts[0, 0] / 4
    assert within(taken / number, expected, np.sqrt(expected * (1 - expected)), number)

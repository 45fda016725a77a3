import pickle
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.ground.errors import WorkloadError
from moesim.world.generators import Balanced, Recorded, Skewed, skewed, with_shares
from moesim.world.generators.choosing import Limits, moved, proposed
from moesim.world.generators.law import SetLaw
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
        Balanced(layers=layers, experts=experts, topk=topk, groups=4, group_topk=3),
        skewed(layers, experts, topk, cv=0.6, seed=1),
        skewed(layers, experts, topk, cv=0.6, seed=1, groups=4, group_topk=3),
        recorded(layers=layers, experts=experts, topk=topk),
    ]


def named(routing):
    limited = "-limited" if getattr(getattr(routing, "law", routing), "groups", 1) > 1 else ""
    return type(routing).__name__ + limited


def law(weights, topk, groups=1, group_topk=1):
    return SetLaw(weights=np.atleast_2d(weights), topk=topk, groups=groups, group_topk=group_topk)


def by_sets(weights, topk, groups=1, group_topk=1):
    """Chance of every permitted set of experts, from the definition: proportional to the product of its weights."""
    size = len(weights) // groups
    every = combinations(range(len(weights)), topk)
    sets = [each for each in every if len({expert // size for expert in each}) <= group_topk]
    chance = np.array([np.prod(weights[list(each)]) for each in sets])
    return sets, chance / chance.sum()


def within(found, expected, spread, number, errors=4.5):
    """Whether means of `number` draws lie within so many standard errors of what is expected."""
    return np.all(np.abs(found - expected) <= errors * spread / np.sqrt(number) + 1e-12)


@pytest.mark.parametrize("routing", routings(), ids=named)
def test_all_forms_are_routings(routing):
    assert isinstance(routing, Routing)
    assert (routing.layers, routing.experts, routing.topk) == (3, 16, 4)
    assert np.allclose(routing.shares(1).sum(axis=1), 1, rtol=1e-12)
    assert routing.alike == (not isinstance(routing, Recorded))


@pytest.mark.parametrize("routing", routings(), ids=named)
@given(tokens=st.lists(st.integers(0, 30), min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_every_token_makes_topk_different_choices(routing, tokens, seed):
    tokens = np.array(tokens)
    counts = routing.draw(tokens, 2, rng(seed))
    assert counts.shape == (3, len(tokens), 16)
    assert np.array_equal(counts.sum(axis=2), np.tile(tokens * 4, (3, 1)))
    assert np.all(counts >= 0)
    assert np.all(counts <= tokens[:, None])


@pytest.mark.parametrize("routing", routings(), ids=named)
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


@pytest.mark.parametrize("routing", routings(), ids=named)
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


GROUPED = [
    (6, 1, 1, 1),
    (6, 3, 1, 1),
    (7, 6, 1, 1),
    (5, 5, 1, 1),
    (6, 3, 3, 2),
    (8, 4, 4, 2),
    (12, 5, 3, 2),
    (9, 3, 3, 1),
]
"""experts, topk, groups, groups a token may touch: all small enough to list the sets"""


class TestLaw:
    @pytest.mark.parametrize("sizes", GROUPED)
    def test_chances_of_experts_are_those_of_all_sets(self, sizes):
        weights = rng(sizes[0]).lognormal(sigma=1.5, size=(2, sizes[0]))
        for layer, row in enumerate(weights):
            sets, chance = by_sets(row, *sizes[1:])
            expected = [sum(c for each, c in zip(sets, chance, strict=True) if e in each) for e in range(sizes[0])]
            assert np.allclose(law(weights, *sizes[1:]).inclusion()[layer], expected, rtol=1e-12)

    @pytest.mark.parametrize("sizes", [(9, 3, 1, 1), (9, 4, 3, 2)])
    def test_groups_touched_are_those_of_all_sets(self, sizes):
        weights, group = rng(4).lognormal(sigma=1.5, size=(2, 9)), np.array([4, 4, 0, 0, 0, 7, 7, 4, 0])
        for layer, row in enumerate(weights):
            sets, chance = by_sets(row, *sizes[1:])
            expected = sum(c * len(set(group[list(each)])) for each, c in zip(sets, chance, strict=True))
            assert law(weights, *sizes[1:]).touched(group)[layer] == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("sizes", [(6, 3, 1, 1), (6, 3, 3, 2), (5, 4, 1, 1)])
    def test_counts_follow_the_law_of_all_sets(self, sizes):
        # One token a rank: the drawn counts are sets, each as often as its chance says.
        weights, number = rng(5).lognormal(sigma=1.0, size=(1, sizes[0])), 40_000
        drawn = law(weights, *sizes[1:]).counts(np.ones(number, dtype=int), rng(6))[0]
        sets, chance = by_sets(weights[0], *sizes[1:])
        found = np.array([np.mean(drawn[:, list(each)].all(axis=1)) for each in sets])
        assert within(found, chance, np.sqrt(chance * (1 - chance)), number)

    @pytest.mark.parametrize("tokens", [[1] * 2000, [33, *[1] * 1999]])
    def test_few_tokens_and_many_follow_one_law(self, tokens):
        # Drawn one by one, and down the tree: the same means and variances.
        weights = rng(5).lognormal(sigma=1.0, size=(1, 6))
        drawn = law(weights, 3).counts(np.array(tokens), rng(3))[0, 1:]
        chance = law(weights, 3).inclusion()[0]
        assert within(drawn.mean(axis=0), chance, np.sqrt(chance * (1 - chance)), 1999)

    @pytest.mark.parametrize("sizes", [(6, 3, 1, 1), (6, 3, 3, 2), (5, 4, 1, 1)])
    def test_free_choices_follow_the_law_of_all_sets(self, sizes):
        weights, number = rng(5).lognormal(sigma=1.0, size=sizes[0]), 40_000
        limits = law(weights, *sizes[1:]).limits
        drawn = np.sort(proposed(weights, limits, number, rng(7)), axis=1)
        sets, chance = by_sets(weights, *sizes[1:])
        found = np.array([np.mean((drawn == each).all(axis=1)) for each in sets])
        assert within(found, chance, np.sqrt(chance * (1 - chance)), number)

    def test_every_column_is_as_likely_to_be_any_of_the_set(self):
        drawn = proposed(np.array([4.0, 2.0, 1.0, 1.0]), law(np.ones(4), 2).limits, 40_000, rng(1))
        first = np.mean(drawn[:, 0] == 0)
        assert abs(first - np.mean(drawn[:, 1] == 0)) < 4.5 * np.sqrt(2 * first * (1 - first) / 40_000)

    def test_seldom_permitted_sets_are_found_one_by_one(self):
        # Twelve of thirteen: hardly a free proposal has twelve different experts.
        weights = np.exp(np.linspace(0, 3, 13))
        routing = Skewed(law=law(weights, 12), alike=True)
        chosen = routing.assign(np.array([2000]), 0, rng(1))[0]
        left_out = np.array([(chosen != expert).all(axis=1).mean() for expert in range(13)])
        chance = 1 - routing.shares(0)[0] * 12
        assert within(left_out, chance, np.sqrt(chance * (1 - chance)), 2000)

    def test_deepseek_tokens_touch_few_nodes(self):
        # 256 experts on 8 nodes, top 8: 5.30 nodes a token without the limit to 4 groups, and 3.90 with it.
        node = np.arange(256) // 32
        nowhere = np.prod((224 - np.arange(8)) / (256 - np.arange(8)))
        assert law(np.ones(256), 8).touched(node) == pytest.approx([8 * (1 - nowhere)])
        limited = law(np.ones(256), 8, 8, 4)
        chosen = proposed(np.ones(256), limited.limits, 20_000, rng(2)) // 32
        touched = 1 + (np.diff(np.sort(chosen, axis=1), axis=1) > 0).sum(axis=1)
        assert touched.max() == 4
        assert within(touched.mean(), limited.touched(node)[0], touched.std(), 20_000)
        assert 3.85 < limited.touched(node)[0] < 3.95

    @pytest.mark.parametrize(
        ("sizes", "said"),
        [
            ((8, 9, 1, 1), "9 experts a token, of 8"),
            ((8, 2, 3, 1), "do not divide"),
            ((8, 3, 4, 1), "hold fewer than 3"),
        ],
    )
    def test_impossible_limits_are_refused(self, sizes, said):
        with pytest.raises(WorkloadError, match=said):
            law(np.ones(sizes[0]), *sizes[1:])
        with pytest.raises(WorkloadError, match=said):
            Balanced(layers=1, experts=sizes[0], topk=sizes[1], groups=sizes[2], group_topk=sizes[3])


class TestShares:
    @pytest.mark.parametrize("limits", [(1, 1), (4, 3)])
    def test_the_shares_asked_for_are_those_given(self, limits):
        shares = rng(3).lognormal(sigma=0.4, size=(3, 16))
        shares /= shares.sum(axis=1, keepdims=True)
        assert shares.max() < 1 / 4
        found = with_shares(shares, 4, groups=limits[0], group_topk=limits[1]).shares(0)
        assert np.allclose(found, shares, rtol=1e-8)

    def test_experts_never_seen_stay_unseen(self):
        found = with_shares(np.array([[4.0, 0.0, 2.0, 2.0]]), 1).shares(0)
        assert np.allclose(found, [[0.5, 0.0, 0.25, 0.25]])

    def test_no_share_exceeds_one_choice_a_token(self):
        found = with_shares(np.array([[100.0, 2.0, 1.0, 1.0]]), 2).shares(0)
        assert np.allclose(found, [[0.5, 0.25, 0.125, 0.125]], rtol=1e-6)

    def test_shares_that_few_groups_can_not_give_are_refused(self):
        # Two choices from one group: whatever one expert of a pair gets, the other gets too.
        with pytest.raises(WorkloadError, match="touch 1 of 2 groups; give less uneven ones"):
            with_shares(np.array([[3.0, 1.0, 2.0, 2.0]]), 2, groups=2, group_topk=1)


class TestSkewed:
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

    def test_experts_that_are_never_chosen(self):
        weights = np.array([[1.0, 0.0, 1.0, 0.0, 2.0]])
        drawn = Skewed(law=law(weights, 2), alike=False).draw(np.array([100]), 0, rng())
        assert drawn[0, 0, [1, 3]].tolist() == [0, 0]
        assert drawn.sum() == 200

    def test_extreme_weights_still_sum(self):
        weights = np.exp(np.linspace(-30, 30, 256))[None]
        drawn = Skewed(law=law(weights, 8), alike=False).draw(np.array([1000, 1]), 0, rng())
        assert drawn.sum(axis=2).tolist() == [[8000, 8]]
        assert np.all(drawn <= np.array([[[1000], [1]]]))


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


class TestMoved:
    def test_the_counts_are_met_where_experts_must_be_taken(self):
        counts = np.array([[5, 5, 1, 1, 3]])  # five tokens, three choices each; two experts are taken by all
        limits = Limits(experts=5, topk=3, groups=1, group_topk=1)
        for seed in range(50):
            free = proposed(np.ones(5), limits, 5, rng(seed))
            chosen = moved(free, counts, np.array([5]), limits, rng(seed))
            assert np.array_equal(np.bincount(chosen.ravel(), minlength=5), counts[0])
            assert limits.allow(chosen).all()

    def test_no_token_is_favored(self):
        counts, number = np.array([[2, 3, 1, 4, 2]]), 1000
        limits = Limits(experts=5, topk=3, groups=1, group_topk=1)
        taken = np.zeros((4, 5))
        for seed in range(number):
            chosen = moved(proposed(np.ones(5), limits, 4, rng(seed)), counts, np.array([4]), limits, rng(seed))
            np.add.at(taken, (np.arange(4)[:, None], chosen), 1)
        expected = counts[0] / 4
        assert within(taken / number, expected, np.sqrt(expected * (1 - expected)), number)

    def test_groups_are_kept(self):
        routing = skewed(2, 64, 8, cv=0.5, seed=2, groups=8, group_topk=4)
        chosen = routing.assign(np.array([50, 0, 200]), 0, rng(4))
        touched = 1 + (np.diff(np.sort(chosen // 8, axis=-1), axis=-1) > 0).sum(axis=-1)
        assert touched.max() == 4

    def test_counts_that_no_permitted_sets_make_are_met_all_the_same(self):
        limits = Limits(experts=8, topk=4, groups=4, group_topk=3)
        free = proposed(np.ones(8), limits, 1, rng(0))
        chosen = moved(free, np.array([[0, 1, 1, 1, 1, 0, 0, 0]]), np.array([1]), limits, rng(1))
        assert sorted(chosen[0].tolist()) == [1, 2, 3, 4]

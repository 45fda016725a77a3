"""Routing presets beside the published statistics they stand for.

Draws have standard errors far below the tolerances; what is compared is the law.
"""

from dataclasses import replace

import numpy as np
import pytest

from moesim.files.routings import load_preset, preset_names, read_routing
from moesim.ground.errors import WorkloadError
from moesim.world.generators import Drift, Fade, Limits, Recipe, made
from moesim.world.generators.making import pareto, zipf
from moesim.world.routing import Routing

SIZES = {  # MoE layers, experts, experts a token, groups, groups a token may touch
    "affinity": (12, 16, 2, 1, 1),
    "balanced": (4, 64, 8, 1, 1),
    "deepseek": (6, 256, 8, 8, 4),
    "early_training": (4, 8, 2, 1, 1),
    "mixtral": (32, 8, 2, 1, 1),
    "nllb_decoder": (6, 128, 2, 1, 1),
    "nllb_encoder": (6, 128, 2, 1, 1),
    "olmoe": (4, 64, 8, 1, 1),
    "power_law": (4, 256, 8, 1, 1),
    "qwen3": (6, 128, 8, 1, 1),
}


def preset(name):
    layers, experts, topk, groups, group_topk = SIZES[name]
    limits = Limits(experts=experts, topk=topk, groups=groups, group_topk=group_topk)
    return made(load_preset(name).recipe, layers, limits)


def rng(seed=0):
    return np.random.default_rng(seed)


def within(found, expected, spread, number, errors=4.5):
    """Whether means of `number` draws lie within so many standard errors of what is expected."""
    return np.all(np.abs(found - expected) <= errors * spread / np.sqrt(number) + 1e-12)


def spread(shares):
    return shares.std(axis=-1) / shares.mean(axis=-1)


def choices(name, tokens, step=0, seed=1):
    return preset(name).assign(np.array([tokens]), step, rng(seed))


def test_every_preset_is_tested():
    assert set(SIZES) == set(preset_names())


@pytest.mark.parametrize("name", SIZES)
def test_choices_agree_with_counts(name):
    routing, tokens = preset(name), np.array([60, 0, 7])
    assert isinstance(routing, Routing)
    counts, chosen = (method(tokens, 3, rng(5)) for method in (routing.draw, routing.assign))
    assert np.all(np.diff(np.sort(chosen, axis=-1), axis=-1) > 0)
    for rank, part in enumerate(np.split(chosen, np.cumsum(tokens)[:-1], axis=1)):
        found = [np.bincount(layer.ravel(), minlength=routing.experts) for layer in part]
        assert np.array_equal(found, counts[:, rank])


@pytest.mark.parametrize("name", [name for name in SIZES if load_preset(name).recipe.cv])
def test_shares_over_all_topics_are_as_skewed_as_published(name):
    assert spread(preset(name).shares(0)) == pytest.approx(load_preset(name).recipe.cv, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("mixtral", 0.11),
        ("qwen3", 0.51),
        ("olmoe", 0.54),
        ("deepseek", 0.25),
        ("nllb_encoder", 1.12),
        ("nllb_decoder", 1.36),
    ],
)
def test_drawn_counts_are_as_skewed_as_measured_over_many_texts(name, published):
    """arXiv 2505.16056, table 2: deviation over mean of what each expert received from all domains, within 15 %."""
    routing = preset(name)
    texts = 40 * max(getattr(routing, "topics", 1), 1)
    counts = sum(routing.draw(np.array([2000]), 64 * text, rng(text))[:, 0] for text in range(texts))
    assert spread(counts).mean() == pytest.approx(published, rel=0.15)


@pytest.mark.parametrize("name", [name for name in SIZES if load_preset(name).recipe.tilt])
def test_a_topic_is_more_skewed_than_all_together(name):
    routing = preset(name)
    by_topic = routing.law.inclusion().reshape(routing.topics, routing.layers, -1)
    assert spread(by_topic).mean() == pytest.approx(load_preset(name).recipe.tilt, rel=1e-3)
    assert np.all(spread(by_topic).mean(axis=0) > spread(routing.shares(0)))


def test_what_is_hot_differs_by_topic_and_layer():
    routing = preset("nllb_decoder")
    hot = routing.law.inclusion().reshape(routing.topics, routing.layers, -1).argmax(axis=-1)
    assert len(np.unique(hot[:, 0])) > 12  # of 16 topics
    assert len(np.unique(hot[0])) > 4  # of 6 layers


class TestMixtral:
    """Table 5 of the Mixtral report: how often the next token chooses alike, in layers 0, 15 and 31, in percent."""

    @pytest.fixture
    def chosen(self):
        routing = preset("mixtral").only([0, 15, 31])
        return routing.assign(np.array([200_000]), 0, rng(1))

    def test_first_choices_are_repeated(self, chosen):
        found = (chosen[:, 1:, 0] == chosen[:, :-1, 0]).mean(axis=1)
        assert found * 100 == pytest.approx([14.1, 26.4, 22.7], abs=1.5)  # a standard error is 0.09

    def test_any_of_two_is_repeated(self, chosen):
        found = (chosen[:, 1:, :, None] == chosen[:, :-1, None, :]).any(axis=(2, 3)).mean(axis=1)
        assert found * 100 == pytest.approx([48.0, 63.7, 50.9], abs=1.5)  # a standard error is 0.11


def following(chosen, best):
    """Share of the tokens that share a first choice and also one of the `best` most popular next ones."""
    found = []
    for here, there in zip(chosen[:-1, :, 0], chosen[1:, :, 0], strict=True):
        table = np.zeros((16, 16))
        np.add.at(table, (here, there), 1)
        found.append(np.sort(table, axis=1)[:, -best:].sum() / table.sum())
    return np.mean(found)


def test_affinity_is_lina_s():
    chosen = choices("affinity", 20_000)
    assert following(chosen, 1) == pytest.approx(0.4194, abs=0.03)
    assert following(chosen, 2) == pytest.approx(0.5459, abs=0.03)


def test_without_links_the_next_layer_is_chance():
    recipe = load_preset("early_training").recipe
    routing = made(recipe, 6, Limits(experts=16, topk=2, groups=1, group_topk=1))
    chosen = routing.assign(np.array([20_000]), 0, rng(2))
    first = [np.bincount(layer[:, 0], minlength=16).max() / 20_000 for layer in chosen[1:]]
    # The most popular of 16 in groups of a thousand tokens is a little above the most popular of all.
    assert np.mean(first) <= following(chosen, 1) < np.mean(first) + 3 * np.sqrt(16 * 0.25 / 20_000)


def test_most_experts_of_the_decoder_are_idle():
    # Huang et al.: about 75 % idle in a batch of 96 tokens, 128 experts; independent choices leave 34 to 37 %.
    routing = preset("nllb_decoder")
    idle = [np.mean(routing.draw(np.array([96]), 64 * topic, rng(topic)) == 0) for topic in range(160)]
    assert np.mean(idle) == pytest.approx(0.75, abs=0.02)
    assert np.std(idle) / np.sqrt(160) < 0.005


def test_hot_experts_stay_while_a_topic_does():
    routing = preset("nllb_decoder").only([0])
    hot = [set(routing.draw(np.array([96]), step, rng(step))[0, 0].argsort()[-12:]) for step in range(256)]
    topics = [routing.topic(step) for step in range(256)]
    shared = {
        gap: [len(hot[s] & hot[s + gap]) / 12 for s in range(256 - gap) if topics[s] == topics[s + gap]]
        for gap in (1, 25, 50)
    }
    assert all(np.mean(found) > 0.6 for found in shared.values())
    assert abs(np.mean(shared[1]) - np.mean(shared[50])) < 0.05
    switched = [len(hot[s] & hot[s + 1]) / 12 for s in range(255) if topics[s] != topics[s + 1]]
    assert np.mean(switched) < 0.3


def hits(chosen, size):
    """Share of one layer's choices found in a cache, by what is kept: a shorter way to say it than an engine's."""
    tokens, experts = len(chosen), 64
    used = np.zeros((tokens + 1, experts))
    used[np.arange(1, tokens + 1)[:, None], chosen] = 1
    often = used.cumsum(axis=0)
    soon = np.full((tokens + 1, experts), 2.0 * tokens)  # next use
    for token in range(tokens - 1, -1, -1):
        soon[token] = soon[token + 1]
        soon[token, chosen[token]] = token
    found = {}
    for policy in ("lru", "lfu", "oracle", "best"):
        kept, last, hit = np.zeros(experts, dtype=bool), np.full(experts, -1.0), 0
        for token, needed in enumerate(chosen):
            hit += kept[needed].sum()
            kept[needed], last[needed] = True, token
            key = {
                "lru": last,
                "lfu": often[token + 1] + last / tokens / 2,
                "oracle": often[min(token + 17, tokens)] - often[token + 1] + last / tokens / 2,
                "best": -soon[token + 1],
            }[policy]
            kept[np.argsort(np.where(kept, key, -np.inf) * -1, kind="stable")[size:]] = False
        found[policy] = hit / chosen.size
    return np.array([found[policy] / found["best"] for policy in ("lru", "lfu", "oracle")])


@pytest.mark.parametrize(
    ("size", "published"), [(8, (0.56, 0.62, 0.81)), (16, (0.67, 0.71, 0.91)), (24, (0.75, 0.78, 0.96))]
)
def test_caches_do_as_well_as_on_olmoe(size, published):
    # Hits as a share of the best possible: LRU, LFU, and an oracle that sees 16 tokens ahead; within 10 points.
    found = np.mean([hits(choices("olmoe", 400, step, step)[0], size) for step in (0, 64, 128)], axis=0)
    assert found == pytest.approx(published, abs=0.1)
    assert np.all(np.diff(found) > 0)


class TestPowerLaws:
    @pytest.mark.parametrize(("exponent", "cv", "top"), [(0.6, 0.98, 0.52), (1.01, 1.8, 0.81), (1.2, 2.5, 0.90)])
    def test_pareto_exponents_are_aiconfigurator_s(self, exponent, cv, top):
        # Means of 400 draws of its sampler with 256 experts; ours lies at the quantiles.
        shares = pareto(256, exponent)
        assert spread(shares) == pytest.approx(cv, rel=0.05)
        assert np.sort(shares)[-51:].sum() == pytest.approx(top, abs=0.015)

    @pytest.mark.parametrize(("experts", "exponent", "cv"), [(8, 0.5, 0.37), (64, 0.4, 0.48), (128, 0.8, 1.6)])
    def test_zipf_exponents_are_of_ranks(self, experts, exponent, cv):
        assert spread(zipf(experts, exponent)) == pytest.approx(cv, rel=0.05)


class TestChanges:
    def test_an_equal_share_trades_places_every_so_often(self):
        recipe = replace(load_preset("deepseek").recipe, drift=Drift(every=100, share=0.25))
        routing = made(recipe, 3, Limits(experts=64, topk=4, groups=8, group_topk=4))
        shares = [routing.shares(step) for step in (0, 99, 100, 250)]
        assert np.array_equal(shares[0], shares[1])
        moved = [np.mean(shares[0] != later, axis=1) for later in shares[2:]]
        assert np.all((moved[0] > 0) & (moved[0] <= 0.25))
        assert moved[1].mean() > moved[0].mean()
        groups = [np.sort(each.reshape(3, 8, 8), axis=2) for each in shares]
        assert np.array_equal(groups[0], groups[3])  # trades stay inside a group

    def test_drifting_counts_follow_drifting_shares(self):
        recipe = Recipe(cv=1.0, drift=Drift(every=10, share=0.5))
        routing = made(recipe, 2, Limits(experts=16, topk=2, groups=1, group_topk=1))
        counts = routing.draw(np.array([20_000]), 35, rng(1))[:, 0] / 40_000
        assert within(counts, routing.shares(35), np.sqrt(routing.shares(35) * 2) / 2, 20_000)
        chosen = routing.assign(np.array([50]), 35, rng(4))
        found = [np.bincount(layer.ravel(), minlength=16) for layer in chosen]
        assert np.array_equal(found, routing.draw(np.array([50]), 35, rng(4))[:, 0])
        assert np.array_equal(routing.only([1]).shares(35), routing.shares(35)[[1]])

    def test_a_skew_fades_by_half_each_half_life(self):
        recipe = replace(load_preset("early_training").recipe, fade=Fade(end=0.2, half_life=500))
        routing = made(recipe, 2, Limits(experts=64, topk=2, groups=1, group_topk=1))
        found = [spread(routing.shares(step))[0] for step in (0, 499, 500, 1500, 10**6)]
        assert found == pytest.approx([0.2 + 0.86 * 0.5**age for age in (0.5, 0.5, 1.5, 3.5)] + [0.2])

    def test_a_section_says_all_that_a_preset_does(self):
        tree = {"preset": "deepseek", "cv": 0.5, "sticky": 0.1, "drift": {"every": "600 steps", "share": 0.2}}
        recipe = read_routing(tree, "study.yaml").recipe
        assert (recipe.cv, recipe.tilt, recipe.keep, recipe.drift) == (0.5, 0.8, 0.5, Drift(every=600, share=0.2))
        fading = read_routing({"cv": {"start": 1.1, "end": 0.2, "half_life": 2000}}, "study.yaml").recipe
        assert (fading.cv, fading.fade) == (1.1, Fade(end=0.2, half_life=2000))
        assert read_routing({"preset": "power_law", "cv": 0.3}, "study.yaml").recipe == Recipe(cv=0.3)
        assert read_routing({"preset": "deepseek", "zipf": 0.5}, "study.yaml").recipe == Recipe(zipf=0.5)

    def test_sticky_is_the_chance_to_choose_as_the_token_before(self):
        recipe = read_routing({"cv": 0.0, "sticky": 0.3}, "study.yaml").recipe
        routing = made(recipe, 1, Limits(experts=64, topk=8, groups=1, group_topk=1))
        first = routing.assign(np.array([20_000]), 0, rng(2))[0, :, 0]
        expected = 0.3 + 0.7 / 64
        assert np.mean(first[1:] == first[:-1]) == pytest.approx(expected, abs=4.5 * 0.5 / np.sqrt(20_000))

    def test_topics_that_do_not_average_out_are_refused(self):
        recipe = Recipe(cv=0.1, tilt=3.0, topics=2)
        with pytest.raises(
            WorkloadError, match=r"does not average out to a cv of 0\.1 over 2 topics; give more topics"
        ):
            made(recipe, 1, Limits(experts=64, topk=2, groups=1, group_topk=1))

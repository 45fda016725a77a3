import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from worlds import offer

from moesim.deployments.adaptation import (
    Charges,
    Loaded,
    Switched,
    Trace,
    at_best_fixed,
    break_even,
    clairvoyant,
    regret,
    walk,
)
from moesim.files.profiles import load_profile
from moesim.passes.parallelisms import layer_seconds
from moesim.plans.layout import NO_LIMIT, Layout
from moesim.plans.plan import Policy
from moesim.policies.finding import make
from moesim.policies.parallelism import family
from moesim.policies.protocols import Sizes
from moesim.world.model import Moe

KNOBS = tuple(
    (r, degree, algorithm) for r in (0, 1, 2) for degree in (1, 2, 4, 8) for algorithm in ("linear", "two_dh")
)
SIZES = Sizes(tokens=1024, topk=2, gpus=16, nodes=2, expert=1e6)


def layout(layers=3, experts=8, ranks=4, rows=NO_LIMIT):
    return Layout(
        expert_of_slot=np.tile(np.arange(experts), (layers, 1)),
        rank_of_slot=np.arange(experts) * ranks // experts,
        capacity=np.full((layers, experts), rows),
        resident=np.ones((layers, experts), bool),
        r=np.ones(layers, int),
        degree=np.ones(layers, int),
        alltoall=("linear",) * layers,
    )


def trace(most, counts=None, agreement=None):
    most = np.asarray(most)
    steps, layers = most.shape
    return Trace(
        counts=np.ones((steps, layers, 8), int) if counts is None else counts,
        most=most,
        agreement=np.zeros(steps) if agreement is None else agreement,
    )


def switched(seed, steps, layers=3, buckets=4):
    rng = np.random.default_rng(seed)
    bucket = rng.integers(0, buckets, (steps, layers))
    prices = Switched(configurations=KNOBS, seconds=rng.random((len(KNOBS), buckets)), bucket=bucket)
    return trace(bucket * 128), prices


def tutel(**settings):
    return make("adaptation", Policy(name="tutel", settings=settings))


@given(st.integers(0, 1000))
def test_full_information_and_free_switches_reach_every_least(seed):
    """A test-only setting: no lag, nothing to pay. Each layer runs the best of all configurations in each step."""
    record, prices = switched(seed, 12)
    found = walk([tutel()], layout(), SIZES, record, prices, lag=0)
    least = prices.seconds.min(axis=0)[prices.bucket].sum(axis=1)
    assert np.allclose(found.seconds, least)
    assert found.stalls.sum() == 0


def test_lag_costs_something_and_trials_are_counted():
    record, prices = switched(0, 40)
    late, early = (walk([tutel()], layout(), SIZES, record, prices, lag=lag) for lag in (1, 0))
    assert late.total > early.total
    assert late.state[0].trials == 4 * len(KNOBS)


def test_trials_cost_what_they_take_longer():
    """Two keys, each tried under all knobs; those faster than the knobs in force lose nothing."""
    record, prices = switched(0, 10, layers=1, buckets=2)
    found = walk([tutel()], layout(layers=1), SIZES, record, prices, charges=Charges(trials=1.0))
    (first, second), own = dict.fromkeys(prices.bucket[:, 0].tolist()), KNOBS.index((1, 1, "linear"))
    present = KNOBS.index(found.state[0].best[first])
    slower = np.maximum(prices.seconds[:, [first, second]] - prices.seconds[[own, present], [first, second]], 0.0)
    assert found.stalls.sum() == pytest.approx(slower.sum())
    assert np.count_nonzero(found.stalls) == 2


class TestConventional:
    """8 experts of 1 MB on 16 gpus: a gpu's share of a layer is 0.5 MB, so three layers move 1.5 MB."""

    def run(self, of_r, capacity, rate=1e6, lag=1, **settings):
        """Seconds of a layer by r, one for each bucket of capacities; degrees and algorithms do nothing."""
        seconds = np.array([of_r[r] for r, _, _ in KNOBS])
        bucket = np.repeat(np.array(capacity)[:, None], 3, axis=1)
        prices = Switched(configurations=KNOBS, seconds=seconds, bucket=bucket)
        policy = make("adaptation", Policy(name="conventional", settings=settings))
        return walk([policy], layout(), SIZES, trace(bucket * 128), prices, charges=Charges(rate=rate), lag=lag)

    def test_another_r_moves_weights_once(self):
        found = self.run({0: [9.0], 1: [2.0], 2: [1.0]}, [0] * 20)
        ((step, change),) = [(step, change) for step, change in found.changes if change.moved]
        assert (step, change.moved) == (1, 1.5e6)
        assert change.layout.r.tolist() == [2, 2, 2]
        assert found.total == 3 * (2.0 + 19 * 1.0) + 1.5

    @pytest.mark.parametrize(("better", "switches"), [(1.92, 0), (1.88, 1)])
    def test_too_small_a_gain_does_not(self, better, switches):
        found = self.run({0: [9.0], 1: [2.0], 2: [better]}, [0] * 20, gain=0.05)
        assert sum(change.moved > 0 for _, change in found.changes) == switches

    def test_the_cool_down_spaces_moves(self):
        found = self.run({0: [9.0, 9.0], 1: [2.0, 1.0], 2: [1.0, 2.0]}, [0, 1] * 200, cool_down=50)
        steps = [step for step, change in found.changes if change.moved]
        assert np.diff(steps).min() > 50
        assert len(steps) >= 4

    @given(st.integers(0, 1000))
    def test_free_moves_reach_every_least_as_tutel_does(self, seed):
        record, prices = switched(seed, 12)
        policy = make("adaptation", Policy(name="conventional", settings={"gain": 0.0, "cool_down": 0}))
        found = walk([policy], layout(), SIZES, record, prices, lag=0)
        assert np.allclose(found.seconds, prices.seconds.min(axis=0)[prices.bucket].sum(axis=1))

    def test_moves_that_cost_more_than_they_save_lose_to_standing_still(self):
        of_r = {0: [9.0, 9.0], 1: [2.0, 1.0], 2: [1.0, 2.0]}
        hasty, still = (
            self.run(of_r, [0, 0, 1, 1] * 20, rate=1e5, cool_down=0, gain=gain).total for gain in (0.0, 0.9)
        )
        assert hasty > still


def test_nobody_sees_the_step_to_come():
    record, prices = switched(1, 20)
    other = trace(np.concatenate([record.most[:10], record.most[10:][::-1]]))
    a, b = (walk([tutel()], layout(), SIZES, each, prices) for each in (record, other))
    assert [step for step, _ in a.changes if step <= 10] == [step for step, _ in b.changes if step <= 10]


@given(arrays(float, (6, 3), elements=st.floats(0, 10)), arrays(float, (3, 3), elements=st.floats(0, 5)))
def test_the_clairvoyant_is_the_best_of_all_ways(seconds, switch):
    total, path = clairvoyant(seconds, switch)
    ways = np.stack(np.meshgrid(*[np.arange(3)] * 6, indexing="ij")).reshape(6, -1)
    costs = seconds[np.arange(6)[:, None], ways].sum(axis=0) + switch[ways[:-1], ways[1:]].sum(axis=0)
    assert total == pytest.approx(costs.min())
    assert seconds[np.arange(6), path].sum() + switch[path[:-1], path[1:]].sum() == pytest.approx(total)


def test_free_switches_are_worth_the_sum_of_minima_and_dear_ones_the_best_fixed():
    seconds = np.random.default_rng(0).random((50, 8))
    assert clairvoyant(seconds, np.zeros((8, 8)))[0] == pytest.approx(seconds.min(axis=1).sum())
    assert clairvoyant(seconds, 1e6 * (1 - np.eye(8)))[0] == pytest.approx(at_best_fixed(seconds)[0])
    assert regret(*(clairvoyant(seconds, price * (1 - np.eye(8)))[0] for price in (0.1, 0.0))) > 0


class TestDynamoe:
    def run(self, load, steps, charges=None, **settings):
        """One layer of 8 experts, capacity factor 4; the busiest expert gets `load` times the mean."""
        tokens = SIZES.tokens * SIZES.gpus * SIZES.topk
        counts = np.full((steps, 1, 8), round((1 - load / 8) / 7 * tokens))
        counts[:, :, 0] = round(load / 8 * tokens)
        start = layout(layers=1, rows=4 * 2 * 1024 // 8)
        record = trace(np.ones((steps, 1), int), counts=counts)
        prices = Loaded(rows=np.array([0.0, 1e6]), seconds=np.array([0.0, 1.0]), counts=counts, gpus=16)
        policy = make("adaptation", Policy(name="dynamoe", settings=settings))
        return walk([policy], start, SIZES, record, prices, charges=charges)

    def test_the_cut_comes_at_its_computed_step_once_and_costs_a_recompile(self):
        found = self.run(1.3, 3000, charges=Charges(rebuild=5.0))
        ((step, change),) = found.changes
        assert step == 1350
        assert change.layout.capacity[0, 0] == pytest.approx(2.6 / 4 * 1024, rel=2e-3)
        assert found.stalls.sum() == 5.0
        assert found.seconds[0] / found.seconds[-1] == pytest.approx(1.54, rel=0.01)

    def test_a_load_above_half_the_capacity_changes_nothing(self):
        assert self.run(2.1, 3000).changes == ()

    def test_the_cool_down_spaces_changes(self):
        found = self.run(1.0, 400, memory=0.2, cool_down=100, threshold=0.7, room=1.01)
        steps = [step for step, _ in found.changes]
        assert len(steps) >= 2
        assert np.diff(steps).min() > 100

    def test_local_factors_cut_each_expert_for_itself(self):
        found = self.run(2.0, 3000, memory=0.1, local=True)
        rows = found.changes[-1][1].layout.capacity[0]
        assert rows[0] > rows[1]


def test_rebalancing_pays_under_stationary_skew_and_loses_when_routing_drifts_fast():
    rng = np.random.default_rng(0)
    popularity = rng.dirichlet(np.full(8, 0.5))
    charges = Charges(rate=1e6)
    policy = make("adaptation", Policy(name="rebalance", settings={"every": 20}))

    def totals(turn):
        counts = np.stack([np.tile(np.roll(popularity, step // turn) * 1e5, (2, 1)) for step in range(400)]).astype(int)
        record = trace(np.ones((400, 2), int), counts=counts)
        prices = Loaded(rows=np.array([0.0, 1e5]), seconds=np.array([0.0, 1.0]), counts=counts, gpus=16)
        moving = walk([policy], layout(layers=2), SIZES, record, prices, charges=charges)
        still = walk([], layout(layers=2), SIZES, record, prices)
        return moving, still

    moving, still = totals(1000)
    assert moving.total < still.total
    ((step, change),) = moving.changes
    gain = float(still.seconds[-1] - moving.seconds[-1])
    assert break_even(charges.stall(change), gain) < 400 - step
    moving, still = totals(20)
    assert moving.total > still.total


def test_a_change_in_the_background_waits_instead_of_stalling():
    popularity = np.random.default_rng(0).dirichlet(np.full(8, 0.5))
    counts = np.tile((popularity * 1e5).astype(int), (100, 2, 1))
    record = trace(np.ones((100, 2), int), counts=counts)
    prices = Loaded(rows=np.array([0.0, 1e5]), seconds=np.array([0.0, 1.0]), counts=counts, gpus=16)
    policy = make("adaptation", Policy(name="rebalance", settings={"every": 20, "background": True}))
    found = walk([policy], layout(layers=2), SIZES, record, prices, charges=Charges(rate=5e5))
    ((step, change),) = found.changes
    assert found.stalls.sum() == 0
    assert change.moved / 5e5 > found.seconds[step]
    falls = np.flatnonzero(np.diff(found.seconds))
    assert len(falls) == 1
    assert falls[0] >= step


class TestTutelsLayer:
    """Prices of one layer from moesim's own pricing: 16 experts on 64 gpus."""

    MOE = Moe(experts=16, topk=1, width=2048, input_dim=2048, gated=False)

    def price(self, r, rows, width=2048):
        moe = Moe(experts=16, topk=1, width=width, input_dim=2048, gated=False)
        node, fabric = offer("nvidia/hgx-a100").node, load_profile("fabric", "infiniband/rail-400g").profile.tiers
        return layer_seconds(moe, node, fabric, 64, rows, (r, 1, "linear"), "fp32")

    def test_gathering_weights_wins_where_capacity_is_large(self):
        small, large = ([self.price(r, rows) for r in family(64, 16)] for rows in (16, 32768))
        assert int(np.argmin(large)) < int(np.argmin(small)) or int(np.argmin(large)) <= 1
        assert min(large[:2]) < large[4]

    def test_slicing_wins_where_experts_are_wide_and_rows_few(self):
        wide = [self.price(r, 64, width=32768) for r in family(64, 16)]
        assert wide[4] < wide[1] < wide[0]

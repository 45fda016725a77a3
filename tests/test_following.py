"""Plans whose policies react, followed over routing that changes: what estimates and searches make of them."""

from dataclasses import replace

import numpy as np
import pytest
import worlds
import yaml

import moesim
from moesim.deployments.adaptation import regret
from moesim.deployments.floors import floor_estimates
from moesim.deployments.following import FEWEST, LONGEST, MOST, SHORTEST, horizon
from moesim.deployments.hindsight import in_hindsight
from moesim.deployments.pools import estimator_of
from moesim.files.plans import plan_tree, read_plan
from moesim.files.resolved import space_tree
from moesim.files.spaces import read_space
from moesim.ground.errors import PlanError
from moesim.ground.units import Source
from moesim.passes.table import table_of
from moesim.plans.plan import Parallel, Plan, Policy, Space
from moesim.search.reacting import offered
from moesim.world.generators import Balanced, Drift, Drifting, Fade, Limits, Phased, Recipe, Recorded, made
from moesim.world.hardware import Fit

EPLB = Policy(name="eplb", settings={"redundant": 8})
PADDED = Policy(name="static", settings={"factor": 4.0, "sparse": True})
NEEDED = Policy(name="static", settings={"factor": 0.0, "sparse": True})
REBALANCE = Policy(name="rebalance", settings={"every": 50})
DYNAMOE = Policy(name="dynamoe", settings={"memory": 0.02})
CONVENTIONAL = Policy(name="conventional", settings={"gain": 0.0, "cool_down": 0})
CACHING = Policy(name="caching", settings={"cool_down": 100, "memory": 0.2})


def world(every=250, share=0.5, recompile=2.0, cv=0.6, **settings):
    """Mixtral, cut short, on one H200 node; a share of its experts trade places now and then."""
    base = worlds.scenario("mistralai/Mixtral-8x7B-v0.1", short=True, **settings)
    drift = Drift(every=every, share=share) if every else None
    routing = made(Recipe(cv=cv, drift=drift), base.routing.layers, Limits(experts=8, topk=2, groups=1, group_topk=1))
    return replace(base, routing=routing, frameworks={"plain": replace(worlds.PLAIN, recompile=recompile)})


def plan(*adaptation, parallel=Parallel(dp=8, ep=8), **policies):  # noqa: B008
    return Plan(pools=(replace(worlds.pool(parallel, **policies), adaptation=adaptation),))


def followed(scenario, chosen):
    estimator = estimator_of(scenario, table_of(chosen.pools))
    estimator.estimate(np.array([0]))
    return estimator.follow(0)


def step(scenario, chosen):
    return moesim.estimate(scenario, chosen).summary["step"].mid


class TestHowLongARoutingStaysAsItIs:
    limits = Limits(experts=8, topk=2, groups=1, group_topk=1)

    @pytest.mark.parametrize(
        ("recipe", "period"),
        [
            (Recipe(), 0),
            (Recipe(cv=0.5), 0),
            (Recipe(pareto=1.01), 0),
            (Recipe(cv=0.5, tilt=0.7, topics=3, together=0.9, hold=40), 40),
            (Recipe(cv=0.5, tilt=0.7, topics=3, together=0.0, hold=40), 0),
            (Recipe(cv=0.5, drift=Drift(every=70, share=0.2)), 70),
            (Recipe(cv=0.5, drift=Drift(every=70, share=0.0)), 0),
            (Recipe(cv=0.5, tilt=0.7, topics=3, together=0.9, hold=40, drift=Drift(every=70, share=0.2)), 40),
            (Recipe(cv=1.0, fade=Fade(end=0.1, half_life=300)), 300),
        ],
    )
    def test_period(self, recipe, period):
        assert made(recipe, 2, self.limits).period == period

    def test_records_change_in_every_step(self):
        choices = np.zeros((3, 1, 4, 1), int)
        assert Recorded(choices=choices, experts=2).period == 1
        assert Recorded(choices=choices[:1].copy(), experts=2).period == 0

    @pytest.mark.parametrize("period", [1, 3, 50, 400, 2500, LONGEST - 1])
    def test_horizon(self, period):
        steps = horizon(period)
        assert steps <= LONGEST
        assert steps <= MOST * period
        assert steps >= min(FEWEST * period, MOST * period, LONGEST)
        assert steps >= min(SHORTEST, MOST * period)
        assert horizon(LONGEST) == horizon(0) == 0


class TestStandingStill:
    def test_nothing_reacts_to_a_stationary_routing(self):
        still = world(every=0)
        reacting = moesim.estimate(still, plan(REBALANCE, placement=EPLB))
        plain = moesim.estimate(still, plan(placement=EPLB))
        assert reacting.verdict.why == f"{plain.verdict.why}; the routing is stationary, so nothing reacts"
        assert reacting.summary == plain.summary
        assert "reaction" not in reacting.tables

    def test_a_phase_is_priced_as_the_estimate_prices_it(self):
        """The first phase under the first layout is the plain estimate, mixed passes and all."""
        drifting = world()
        found = followed(drifting, plan(Policy(name="none"), placement=EPLB))
        assert found.prices.whole(found.start, 0) == pytest.approx(step(drifting, plan(placement=EPLB)), rel=1e-12)
        assert found.mean == pytest.approx(found.still)

    def test_a_placement_grows_stale(self):
        drifting = world()
        assert step(drifting, plan(Policy(name="none"), placement=EPLB)) > step(drifting, plan(placement=EPLB)) * 1.01


class TestReacting:
    @pytest.mark.parametrize(("every", "wins"), [(250, True), (1, False)])
    def test_moving_experts_pays_where_steps_are_alike_for_long_enough(self, every, wins):
        """Trades every 250 steps leave time to win back what moving costs; trades in every step do not."""
        eager = Policy(name="rebalance", settings={"every": 2, "gain": 0.0, "memory": 1.0})
        found = followed(world(every=every), plan(eager, placement=EPLB))
        assert (found.mean < found.still) == wins

    def test_the_result_tells_regret_and_when_changes_pay(self):
        result = moesim.estimate(world(), plan(REBALANCE, placement=EPLB))
        (row,) = result.tables["reaction"].to_dict(orient="records")
        assert row["best"] < row["step"] < row["still"]
        assert row["regret"] == pytest.approx(row["step"] / row["best"] - 1)
        assert result.summary["regret"].mid == row["regret"]
        assert result.summary["step"].mid == pytest.approx(row["step"])
        assert result.summary["step"].low <= result.summary["step"].mid < result.summary["step"].high
        changes = result.tables["changes"]
        assert len(changes) == row["changes"] > 0
        assert np.allclose(changes["break_even"], changes["stalled"] / changes["saved"])
        assert row["break_even"] == pytest.approx(changes["stalled"].sum() / changes["saved"].sum())
        assert (changes["lasted"] > changes["break_even"]).all()
        assert f"{row['changes']} changes in {row['steps']:,} steps" in result.verdict.why

    @pytest.mark.parametrize(
        ("policies", "gating", "workload"),
        [
            ((REBALANCE,), "dynamic", worlds.SERVING),
            ((replace(REBALANCE, settings={"every": 20, "background": True}),), "dynamic", worlds.SERVING),
            ((DYNAMOE,), PADDED, worlds.TRAINING),
            ((DYNAMOE, CACHING), PADDED, worlds.TRAINING),
            ((Policy(name="tutel"),), NEEDED, worlds.TRAINING),
            ((Policy(name="tutel"), REBALANCE), NEEDED, worlds.SERVING),
            ((CONVENTIONAL,), NEEDED, worlds.TRAINING),
        ],
        ids=["rebalance", "in the background", "dynamoe", "dynamoe, caching", "tutel", "tutel, rebalance", "moved"],
    )
    def test_nobody_beats_full_knowledge(self, policies, gating, workload):
        parallel = Parallel(dp=16, ep=8)
        found = followed(
            world(workload=workload, cv=0.3), plan(*policies, parallel=parallel, gating=gating, placement=EPLB)
        )
        rival = in_hindsight(found)
        assert found.walk.changes
        assert 0 <= rival.regret < 2
        assert rival.regret == regret(found.walk.total, rival.best)

    def test_a_recompile_is_paid_for(self):
        cheap, dear = (
            followed(world(workload=worlds.TRAINING, recompile=price, cv=0.3), plan(DYNAMOE, gating=PADDED))
            for price in (1.0, 50.0)
        )
        assert len(cheap.walk.changes) == len(dear.walk.changes) > 0
        assert dear.walk.total - cheap.walk.total == pytest.approx(49.0 * len(dear.walk.changes))
        assert cheap.walk.seconds[-1] < cheap.walk.seconds[0]

    def test_a_machine_that_was_timed_compiling_says_what_a_recompile_takes(self):
        base = world(workload=worlds.TRAINING, recompile=50.0, cv=0.3)
        (offer,) = base.hardware.offers
        fit = Fit(form="compile", params={"launch": 1.0, "per_layer": 0.1}, shared=0.0, point=0.0, box={},
                  source=Source(kind="fitted", title="by hand"))  # fmt: skip
        device = replace(offer.node.device, fits={**offer.node.device.fits, "compile": fit})
        hardware = replace(base.hardware, offers=(replace(offer, node=replace(offer.node, device=device)),))
        found = followed(replace(base, hardware=hardware), plan(DYNAMOE, gating=PADDED))
        expected = 1.0 + 0.1 * 8 * len(base.model.layers)
        assert found.walk.changes
        assert found.charges.rebuild == pytest.approx(expected)
        assert found.walk.stalls.max() == pytest.approx(expected)

    def test_cached_assignments_put_the_gate_aside_while_they_agree(self):
        found = followed(world(workload=worlds.TRAINING, share=0.25), plan(CACHING, gating=PADDED))
        ((first, on), *_) = found.walk.changes
        assert on.layout.cached
        assert found.prices.whole(on.layout, 0) < found.prices.whole(found.start, 0)
        assert found.walk.stalls[first] == 2.0
        assert (found.trace.agreement[1:] < 1).all()

    def test_knobs_turned_back_cost_what_the_plan_does(self):
        parallel = Parallel(dp=16, ep=8)
        found = followed(world(workload=worlds.TRAINING), plan(Policy(name="tutel"), parallel=parallel, gating=NEEDED))
        assert found.prices.changed(found.start, 0) == pytest.approx(0.0)
        assert found.watched.passes == worlds.TRAINING.sequences / 16  # a step runs every layer for each microbatch
        assert found.mean < found.still
        assert in_hindsight(found).regret < 0.02  # the trials: 13 of 925 s

    def test_the_dictionary_is_counted_and_its_trials_take_time(self):
        """16 gpus of 8 experts on two nodes: r is 0, 1 or 2, so a key takes 3 x 4 degrees x 2 algorithms = 24 trials.

        A trial runs one layer instead of as it was; what that takes longer is lost, and a sampled layer stands for
        several.
        """
        drifting = world(workload=worlds.TRAINING)
        chosen = plan(Policy(name="tutel"), parallel=Parallel(dp=16, ep=8), gating=NEEDED)
        found = followed(drifting, chosen)
        keys = {(int(most) // 128) for most in found.trace.most.ravel()}
        (row,) = moesim.estimate(drifting, chosen).tables["reaction"].to_dict(orient="records")
        assert (row["keys"], row["trials"]) == (len(keys), 24 * len(keys))
        state = found.walk.state[0]
        fresh = dict.fromkeys((found.trace.most[0] // 128).tolist())
        first, layers = found.trace.most[0] // 128, range(len(found.watched.layers))
        longer = [
            max(found.prices.added(found.start, layer, knobs, 0), 0.0)
            for layer in (next(layer for layer in layers if first[layer] == key) for key in fresh)
            for knobs in state.choices
        ]
        assert found.walk.stalls[1] == pytest.approx(sum(longer) / found.watched.each)
        assert row["stalled"] == pytest.approx(found.walk.stalls.sum() / found.walk.total)
        assert row["stalled"] > 0

    def test_moving_weights_for_another_r_costs_what_the_bytes_take(self):
        drifting = world(workload=worlds.TRAINING)
        here = {"parallel": Parallel(dp=16, ep=8), "gating": NEEDED}
        free, paying = (followed(drifting, plan(each, **here)) for each in (Policy(name="tutel"), CONVENTIONAL))
        moved = sum(change.moved for _, change in paying.walk.changes)
        moe = paying.watched.moe(0)
        assert paying.walk.state[0].moved == pytest.approx(
            3 * moe.input_dim * moe.width * 8 * (2 + 12) / 16 * paying.watched.each
        )
        assert moved > 0
        assert paying.walk.stalls.sum() > moved / paying.charges.rate
        assert paying.mean > free.mean
        assert in_hindsight(paying).best > in_hindsight(free).best

    @pytest.mark.parametrize(
        ("workload", "sharding", "bytes_each"),
        [
            (worlds.SERVING, 0, 2.0),
            (worlds.TRAINING, 0, 2.0 + 12.0),
            (worlds.TRAINING, 1, 2.0 + 12.0 / 2),
            (replace(worlds.TRAINING, optimizer="sgd"), 0, 2.0 + 4.0),
        ],
        ids=["serving", "Adam on every gpu", "Adam shared by two", "SGD"],
    )
    def test_what_an_optimizer_keeps_moves_with_an_expert(self, workload, sharding, bytes_each):
        """Bf16 weights of 3 matrices; Adam keeps 12 bytes a parameter, shared by the 2 copies of 16 gpus over 8."""
        shared = Policy(name="zero", settings={"stage": sharding}) if sharding else Policy(name="none")
        found = followed(
            world(workload=workload), plan(REBALANCE, parallel=Parallel(dp=16, ep=8), placement=EPLB, sharding=shared)
        )
        moe = found.watched.moe(0)
        expert = 3 * moe.input_dim * moe.width * bytes_each * found.watched.each
        moves = [change.moved / expert for _, change in found.walk.changes]
        assert moves
        assert np.allclose(moves, np.round(moves))

    def test_a_bound_stays_below(self):
        drifting = world()
        pools = [plan(each, placement=EPLB).pools[0] for each in (Policy(name="none"), REBALANCE)]
        pools.append(plan(Policy(name="tutel"), gating=NEEDED).pools[0])
        estimator = estimator_of(drifting, table_of(pools))
        rows = np.arange(len(pools))
        lower, found = floor_estimates(estimator, rows), estimator.estimate(rows)
        assert (lower.step <= found.step).all()
        assert (lower.step[:2] > 0).all()
        assert lower.step[2] == 0


class TestSearching:
    axes = {  # noqa: RUF012
        "parallel.dp": (8,),
        "parallel.ep": (8,),
        "parallel.tp": (1,),
        "parallel.pp": (1,),
        "alltoall": (Policy(name="linear"),),
        "overlap": (Policy(name="none"),),
        "placement": (EPLB,),
        "max_batch": (64,),
        "pools": ("all",),
        "microbatch": (1,),
    }
    trained = {  # noqa: RUF012
        **axes,
        "pipeline": (Policy(name="one_f_one_b"),),
        "recompute": (Policy(name="none"),),
    }
    reacting = (Policy(name="none"),), (REBALANCE,)

    def test_the_space_covers_reacting(self):
        found = moesim.optimize(
            world(workload=worlds.TRAINING), Space(axes={**self.trained, "adaptation": self.reacting})
        )
        assert [plan.pools[0].adaptation for plan in found.chosen] == [(REBALANCE,), (Policy(name="none"),)]
        assert "rebalance:50" in found.plans["layout"][0]
        assert "regret" in found.best.summary
        assert found.certificate.layouts == 2

    def test_where_the_routing_is_stationary_reacting_is_left_out_and_said_so(self):
        found = moesim.optimize(
            world(every=0, workload=worlds.TRAINING), Space(axes={**self.trained, "adaptation": self.reacting})
        )
        assert found.certificate.invalid["the routing is stationary, so nothing reacts"] == 1
        assert [plan.pools[0].adaptation for plan in found.chosen] == [(Policy(name="none"),)]

    def test_a_space_without_the_axis_reacts_to_a_drift(self):
        found = moesim.optimize(world(workload=worlds.TRAINING), Space(axes=self.trained))
        tried = {plan.pools[0].adaptation[0].name for plan in found.chosen}
        assert tried == {"none", "rebalance"}
        assert found.certificate.layouts == 2

    def test_a_space_without_the_axis_follows_nothing_where_nothing_drifts(self, monkeypatch):
        """Topics return to the same shares, and a stationary routing stays."""
        monkeypatch.setattr("moesim.deployments.pools.follow", None)
        topics = Recipe(cv=0.5, tilt=0.7, topics=3, together=0.9, hold=40)
        limits = Limits(experts=8, topk=2, groups=1, group_topk=1)
        still = world(every=0, workload=worlds.TRAINING)
        about = replace(still, routing=made(topics, still.routing.layers, limits))
        for each in (still, about):
            found = moesim.optimize(each, Space(axes=self.axes))
            assert found.chosen[0].pools[0].adaptation == ()

    def test_what_is_offered_goes_with_the_gatings(self):
        routing = world().routing
        names = [[policy.name for (policy,) in offered(routing, each)] for each in ((), (NEEDED,), (PADDED, NEEDED))]
        assert names == [
            ["none", "rebalance"],
            ["none", "rebalance", "tutel"],
            ["none", "rebalance", "dynamoe", "tutel"],
        ]

    def test_what_does_not_go_together_is_left_out_by_reason(self):
        reacting = ((Policy(name="tutel"),), (DYNAMOE,), (Policy(name="none"),))
        found = moesim.optimize(world(workload=worlds.TRAINING), Space(axes={**self.axes, "adaptation": reacting}))
        assert set(found.certificate.invalid) >= {
            "`tutel` follows a capacity, and `dynamic` gating has none",
            "`dynamoe` cuts capacities, and this gating has none",
        }


class TestFiles:
    text = """
        pools:
          - {role: all, node: nvidia/hgx-h200, replicas: 1, parallel: {dp: 16, ep: 8}, policies: POLICIES,
             adaptation: REACTING}
    """

    def read(self, reacting, policies="{}", **settings):
        tree = yaml.safe_load(self.text.replace("REACTING", reacting).replace("POLICIES", policies))
        return read_plan(tree, "plan.yaml", world(**settings))

    def test_reacting_policies_are_read_and_written(self):
        found = self.read("[{name: rebalance, every: 50}, none]")
        assert found.pools[0].adaptation == (REBALANCE, Policy(name="none"))
        assert read_plan(plan_tree(found), "plan.yaml", world()) == found

    @pytest.mark.parametrize(
        ("reacting", "policies", "message"),
        [
            ("tutel", "{}", "`tutel` follows a capacity"),
            ("conventional", "{}", "`conventional` follows a capacity, and `dynamic` gating has none; use `gating"),
            ("[{name: conventional, gain: 1.5}]", "{}", r"adaptation.*gain = 1.5; give a share from 0 to below 1"),
            ("tutel", "{gating: {name: static, factor: 0}, alltoall: deduplicated}", "switches between linear"),
            ("tutel", "{gating: static, overlap: two_batch}", "needs overlap for itself, and that is `two_batch`"),
            ("dynamoe", "{gating: {name: static, factor: 0}}", "cuts capacities, and this gating has none"),
            ("caching", "{}", "serving has no epochs"),
            ("[{name: rebalance, every: 0}]", "{}", "every = 0; give at least 1 step|give at least 1 step"),
            ("rebalanse", "{}", "did you mean `rebalance`"),
            (
                "[]",
                "{gating: {name: static, fraction: 0}}",
                "plan.yaml: pools.0.policies.gating: .*fraction = 0 is a capacity of zero.* give a positive share",
            ),
            ("[{name: caching, batches: 0}]", "{}", r"plan.yaml: pools.0.adaptation.*batches = 0.*at least 1"),
        ],
    )
    def test_what_does_not_go_together_is_refused_by_field(self, reacting, policies, message):
        with pytest.raises(PlanError, match=message):
            self.read(reacting, policies)

    def test_more_chunks_than_the_smallest_pass_has_rows_are_refused(self):
        """Passes that only decode have 16 tokens a rank, so 4 rows an expert, though those with prompts have more."""
        few = Policy(name="chunked", settings={"max_batch": 16})
        cut = Policy(name="pipeline", settings={"degree": 8})
        found = moesim.estimate(world(), plan(gating=Policy(name="static"), overlap=cut, batching=few))
        assert not found.verdict.fits
        assert found.verdict.why == "pipeline cuts a capacity of 4 rows into 8 chunks; give a degree of at most 4"

    def test_more_slots_than_experts_are_refused_by_field(self):
        message = r"pools.0.policies.buffering: .* resident = 17 slots of the 1 experts .*; give 1 to 1"
        with pytest.raises(PlanError, match=message):
            self.read("[]", "{buffering: {name: lifo, resident: 17}}")

    def test_a_space_of_them_reads_back(self):
        text = """adaptation: [none, {name: rebalance, every: [50, 100]}, [{name: dynamoe, memory: 0.02}, caching]]"""
        space = read_space(yaml.safe_load(text), "space", frameworks=(), nodes=())
        hundred = Policy(name="rebalance", settings={"every": 100})
        assert space.axes["adaptation"] == (
            (Policy(name="none"),),
            (REBALANCE,),
            (hundred,),
            (DYNAMOE, Policy(name="caching")),
        )
        assert read_space(space_tree(space), "space", frameworks=(), nodes=()) == space

    def test_r_beyond_the_family_is_refused(self):
        text = "{gating: {name: static, factor: 0}}"
        with pytest.raises(PlanError, match="r = 2 of 8 gpus and 8 experts"):
            read_plan(
                yaml.safe_load(
                    self.text.replace("REACTING", "tutel")
                    .replace("POLICIES", text)
                    .replace("{dp: 16, ep: 8}", "{dp: 8, ep: 4, etp: 2}")
                ),
                "plan.yaml",
                world(),
            )


def test_generators_are_what_these_tests_take_them_for():
    assert isinstance(world().routing, Drifting)
    assert isinstance(made(Recipe(), 1, Limits(experts=8, topk=2, groups=1, group_topk=1)), Balanced)
    fading = Recipe(cv=1.0, fade=Fade(end=0.1, half_life=300))
    assert isinstance(made(fading, 1, Limits(experts=8, topk=2, groups=1, group_topk=1)), Phased)

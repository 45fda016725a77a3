"""What if: one number changed by its path, and a plan estimated under every combination."""

from dataclasses import replace

import pandas as pd
import pytest
import worlds
from hypothesis import given
from hypothesis import strategies as st

from moesim.deployments.estimation import estimate
from moesim.ground import showing
from moesim.ground.errors import MoesimError, PlanError, PolicyError
from moesim.ground.showing import Shown
from moesim.plans.plan import Parallel, Plan, Policy
from moesim.search import sweeping
from moesim.search.paths import changed, paths, recipe_of
from moesim.search.study import Study
from moesim.search.sweeping import Sweep, sweep
from moesim.views.notebook import along_axis, drawn_metric
from moesim.world.generators import Balanced
from moesim.world.generators.choosing import Limits
from moesim.world.generators.making import made
from moesim.world.generators.recipe import Recipe

SCENARIO = worlds.scenario("mistralai/Mixtral-8x7B-v0.1", cv=0.3, seed=5, short=True)
PLAN = Plan(pools=(worlds.pool(Parallel(dp=8, ep=8), batching=Policy(name="chunked", settings={"max_batch": 32})),))


def after(path, value, plan=PLAN):
    return changed(SCENARIO, plan, path, value)


def test_a_list_stands_for_all_its_items_and_a_name_for_one():
    world, plan = after("hardware.fabric.bandwidth", "25 GB/s")
    assert [tier.bandwidth for tier in world.hardware.fabric] == [25e9, 25e9]
    assert plan == PLAN
    world, _ = after("hardware.fabric.spine.bandwidth", 1e9)
    assert [tier.bandwidth for tier in world.hardware.fabric] == [SCENARIO.hardware.fabric[0].bandwidth, 1e9]
    world, _ = after("hardware.offers.nvidia/hgx-h200.rent", "7.2 USD/h")
    assert world.hardware.offers[0].rent == pytest.approx(0.002)
    two = Plan(pools=(replace(PLAN.pools[0], role="prefill"), replace(PLAN.pools[0], role="decode")))
    assert [pool.parallel.ep for pool in after("pools.parallel.ep", 4, two)[1].pools] == [4, 4]
    assert [pool.parallel.ep for pool in after("pools.decode.parallel.ep", 4, two)[1].pools] == [8, 4]


def test_policies_and_their_settings_are_changed_those_left_to_defaults_too():
    bare = Plan(pools=(replace(PLAN.pools[0], policies={}),))
    assert after("pools.all.policies.overlap", "two_batch", bare)[1].pools[0].policy("overlap").name == "two_batch"
    assert after("pools.all.policies.batching.max_batch", 64)[1].pools[0].policy("batching").settings["max_batch"] == 64
    with pytest.raises(PolicyError, match="did you mean `two_batch`"):
        after("pools.all.policies.overlap", "twobatch")
    with pytest.raises(PolicyError, match="max_bach"):
        after("pools.all.policies.batching.max_bach", 64)


def test_a_routing_is_made_anew():
    world, _ = after("routing.cv", 0.5)
    shares = world.routing.shares(0)
    assert (shares.std(axis=1) / shares.mean(axis=1)).tolist() == pytest.approx([0.5] * world.routing.layers)
    assert recipe_of(world.routing).seed == 5
    assert isinstance(after("routing.cv", 0)[0].routing, Balanced)
    back, _ = changed(after("routing.cv", 0)[0], PLAN, "routing.cv", 0.3)
    assert recipe_of(back.routing).cv == 0.3


def test_the_skew_within_a_topic_goes_with_that_over_all():
    recipe = Recipe(cv=0.2, seed=1, tilt=0.3, topics=4, together=0.3, hold=8)
    topical = replace(
        SCENARIO, routing=made(recipe, SCENARIO.routing.layers, Limits(experts=8, topk=2, groups=1, group_topk=1))
    )
    halved = recipe_of(changed(topical, PLAN, "routing.cv", 0.1)[0].routing)
    assert (halved.cv, halved.tilt) == (0.1, pytest.approx(0.15))


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("hardware.fabrc.bandwidth", "hardware.fabric.bandwidth"),
        ("hardware.fabric.spin.bandwidth", "hardware.fabric.spine.bandwidth"),
        ("pools.all.parallel.epp", "pools.all.parallel.ep"),
        ("routing.cvv", "routing.cv"),
        ("workload.requests.arrival.rate", "workload.requests.arrivals.rate"),
        ("spare_node", "spare_nodes"),
    ],
)
def test_a_wrong_path_is_answered_with_the_nearest(path, meant):
    with pytest.raises(PlanError) as refusal:
        after(path, 1)
    (fault,) = refusal.value.faults
    assert fault.path == path
    assert fault.problem == "there is nothing of that name"
    assert fault.remedy.startswith("did you mean `")
    assert meant in paths(SCENARIO, PLAN)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("hardware.fabric.bandwidth", "3 s", "'3 s' is in s, not in B/s; write it as `450 GB/s`"),
        ("hardware.fabric.bandwidth", "fast", "is not a number with a unit"),
        ("pools.all.parallel.ep", "8", "'8' cannot stand for 8"),
        ("pools.all.parallel.ep", 2.5, "2.5 cannot stand for 8"),
        ("hardware.fabric", 3, "3 cannot stand for"),
    ],
)
def test_a_value_that_does_not_fit_its_place_is_refused(path, value, said):
    with pytest.raises(PlanError, match=said):
        after(path, value)


@given(st.sampled_from(paths(SCENARIO, PLAN)))
def test_every_path_that_is_suggested_can_be_changed(path):
    said = [outcome(path, value) for value in (7, 0.37, "none")]
    assert not any("nothing of that name" in each for each in said)
    assert "" in said or "policies" in path or path.startswith("routing.")


def outcome(path, value):
    """Say why a change was refused; "" where it was made."""
    try:
        after(path, value)
    except MoesimError as refusal:
        return str(refusal)
    return ""


@pytest.fixture(scope="module")
def swept():
    return sweep(SCENARIO, PLAN, {"pools.all.parallel.ep": [8, 3, 4], "hardware.fabric.bandwidth": ["25 GB/s", 5e10]})


def test_a_sweep_has_a_row_for_each_combination(swept):
    assert swept.axes == ("pools.all.parallel.ep", "hardware.fabric.bandwidth")
    pairs = list(zip(swept.table[swept.axes[0]], swept.table[swept.axes[1]], strict=True))
    assert pairs == [(ep, bandwidth) for ep in (8, 3, 4) for bandwidth in ("25 GB/s", 5e10)]
    assert swept.table.attrs["units"]["tpot"] == "s"


def test_each_row_is_that_plans_own_estimate(swept):
    for number in (1, 5):
        ep = int(swept.table[swept.axes[0]][number])
        alone = estimate(*changed(SCENARIO, PLAN, "pools.all.parallel.ep", ep))
        assert swept.table["tpot"][number] == pytest.approx(alone.summary["tpot"].mid, rel=1e-12)
        assert bool(swept.table["meets"][number]) == alone.verdict.good


def test_what_cannot_run_says_why(swept):
    rows = swept.table[swept.table[swept.axes[0]] == 3]
    assert rows["why"].str.contains("does not divide").all()
    assert rows["tpot"].isna().all()
    assert not rows["meets"].any()
    big = sweep(SCENARIO, PLAN, {"hardware.offers.node.device.memory": ["1 GB"]}).table
    assert list(big["why"]) == ["does not fit"]


def test_more_processes_give_the_same_numbers(swept):
    again = sweep(
        SCENARIO, PLAN, {"pools.all.parallel.ep": [8, 3, 4], "hardware.fabric.bandwidth": ["25 GB/s", 5e10]}, jobs=2
    )
    pd.testing.assert_frame_equal(again.table, swept.table)


def test_plans_of_one_world_are_estimated_together(monkeypatch):
    calls = []
    real = sweeping.estimator_of
    monkeypatch.setattr(sweeping, "estimator_of", lambda *args, **named: calls.append(1) or real(*args, **named))
    sweep(SCENARIO, PLAN, {"pools.all.parallel.ep": [2, 4, 8], "hardware.fabric.latency": [5e-6, 1e-5]})
    assert len(calls) == 2


@pytest.mark.parametrize("axes", [{}, {"routing.cv": []}])
def test_nothing_to_change_is_refused(axes):
    with pytest.raises(PlanError, match=r"nothing changes|has no values"):
        sweep(SCENARIO, PLAN, axes)


def test_two_pools_are_refused_by_row():
    two = Plan(pools=(replace(PLAN.pools[0], role="prefill"), replace(PLAN.pools[0], role="decode")))
    assert sweep(SCENARIO, two, {"spare_nodes": [1]}).table["why"][0].startswith("2 pools")


def test_records_display_themselves(swept):
    shown = {
        "study": Study(scenario=SCENARIO, space=None, goal="tpot"),
        "scenario": SCENARIO,
        "plan": PLAN,
        "result": estimate(SCENARIO, PLAN),
        "sweep": swept,
    }
    drawn = {name: record._repr_html_() for name, record in shown.items()}
    assert all(text.startswith('<div class="moesim"><style>') for text in drawn.values())
    assert "Goal: tpot" in drawn["study"]
    assert "nvidia/hgx-h200" in drawn["scenario"]
    assert "dp8 ep8" in drawn["plan"]
    assert drawn["result"].count("<svg") == 2
    assert drawn["sweep"].count("<svg") == 1
    assert "does not divide" in drawn["sweep"]


def test_a_plan_that_does_not_fit_displays_its_verdict():
    world, plan = after("hardware.offers.node.device.memory", "1 GB")
    assert "does not fit" in estimate(world, plan)._repr_html_()


def test_a_chart_shows_what_changes():
    table = pd.DataFrame({"price_per_token": [1.0, 1.0], "tpot": [1.0, 2.0], "a": ["x", "y"], "b": [1, 2]})
    assert drawn_metric(table) == "tpot"
    assert along_axis(Sweep(axes=("a", "b"), table=table)) == ("b", ["a"])
    assert along_axis(Sweep(axes=("a",), table=table)) == ("a", [])


def test_where_nobody_draws_a_record_is_its_text(monkeypatch):
    class Thing(Shown):
        def __repr__(self):
            return "Thing<1>"

    monkeypatch.setattr(showing, "_drawer", "")
    assert Thing()._repr_html_() == "<pre>Thing&lt;1&gt;</pre>"
    monkeypatch.setattr(showing, "_drawer", "moesim.views.notebook")
    with pytest.raises(TypeError, match="nothing draws a Thing"):
        Thing()._repr_html_()

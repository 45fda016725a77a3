"""Compiled graphs: how many are a plan's choice, and which sizes they have is chosen for the batches that are made."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import worlds
import yaml

import moesim
from moesim.files.plans import read_plan
from moesim.ground.errors import PlanError
from moesim.plans.plan import Parallel, Plan, Policy, Space
from moesim.policies.buckets import choose_buckets
from moesim.world.workload import Arrivals, Lengths, Requests, Serving

HEAVY = replace(worlds.PLAIN, graph=1e6)
LENGTHS = {
    "input": Lengths(generator="lognormal", mean=300.0, cv=0.8),
    "output": Lengths(generator="lognormal", mean=100.0, cv=0.6),
}


def world(rate=40.0, horizon=400):
    requests = Requests(arrivals=Arrivals(generator="poisson", rate=rate), **LENGTHS)
    workload = Serving(requests=requests, targets=(), horizon=horizon, warm_up=40)
    made = worlds.scenario("mistralai/Mixtral-8x7B-v0.1", short=True, workload=workload)
    return replace(made, frameworks={"plain": HEAVY})


def plan(**settings):
    batching = Policy(name="chunked", settings={"max_batch": 64, **settings})
    return Plan(pools=(worlds.pool(Parallel(tp=8, etp=8), alltoall=Policy(name="reduce"), batching=batching),))


@cache
def simulated(**settings):
    return moesim.simulate(world(), plan(**settings))


def buckets(result):
    return result.plan.pools[0].policy("batching").settings["buckets"]


def test_the_sizes_are_chosen_for_what_is_decoded():
    """Few sequences decode together, so three graphs of four lie low; the last holds the largest batch."""
    chosen = buckets(simulated(graphs=4))
    assert len(chosen) == 4
    assert chosen[-1] == 64
    assert chosen[-2] < 32
    assert "graphs" not in simulated(graphs=4).plan.pools[0].policy("batching").settings


def test_the_plan_that_is_returned_is_the_plan_that_was_run():
    found = simulated(graphs=4)
    again = moesim.simulate(world(), found.plan)
    assert again.summary == found.summary
    assert again.plan == found.plan


def test_one_graph_is_that_of_the_largest_batch():
    assert buckets(simulated(graphs=1)) == (64,)


def test_more_graphs_pad_less_and_chosen_ones_less_than_powers_of_two():
    waste = [float(np.average(t["padding"], weights=t["steps"])) for t in map(graphs, (1, 2, 4, 16))]
    assert waste == sorted(waste, reverse=True)
    assert waste[-1] < 0.05 < waste[0]
    powers = simulated(buckets=(1, 8, 16, 64)).summary["tpot.mean"].mid
    assert simulated().summary["tpot.mean"].mid < simulated(graphs=4).summary["tpot.mean"].mid < powers


def graphs(number):
    return simulated(graphs=number).tables["graphs"]


def test_the_table_tells_the_share_of_steps_and_the_rows_that_pad():
    """By hand, from the log of runs: every step that only decodes runs at the next chosen size."""
    found = simulated(graphs=4)
    log = found.tables["steps"]
    log = log[(log["prompt"] == 0) & (log["decoding"] > 0)]
    chosen = np.array(buckets(found))
    run_at = chosen[np.searchsorted(chosen, log["decoding"])]
    table = found.tables["graphs"]
    assert table["graph"].tolist() == chosen.tolist()
    for graph, share, padding in table[["graph", "steps", "padding"]].itertuples(index=False):
        mine = log[run_at == graph]
        assert share == pytest.approx(mine["steps"].sum() / log["steps"].sum())
        rows = (mine["steps"] * mine["decoding"]).sum()
        assert padding == pytest.approx(1 - rows / (graph * max(mine["steps"].sum(), 1)) if len(mine) else 0.0)


def test_the_choice_is_exact_for_the_requests_it_was_made_for(monkeypatch):
    """The sizes handed over are weighed by steps of a run without padding, and priced by the step table."""
    asked = []

    def choose(sizes, weight, cost, number):
        asked.append((sizes, weight, cost(sizes), number))
        return choose_buckets(sizes, weight, cost, number)

    monkeypatch.setattr("moesim.deployments.graphing.choose_buckets", choose)
    moesim.simulate(world(), plan(graphs=4))
    ((sizes, weight, cost, number),) = asked
    assert number == 4
    assert sizes[-1] == 64
    assert (weight[:-1] > 0).all()
    assert (np.diff(cost) >= 0).all()


def test_graphs_take_memory_whether_their_sizes_are_chosen_or_not():
    layers = len(world().model.layers)
    for settings, number in (({"graphs": 6}, 6), ({"buckets": (1, 64)}, 2)):
        memory = moesim.estimate(world(), plan(**settings)).tables["memory"].set_index("item")["size"]
        assert memory["compiled graphs"] == number * layers * 1e6


def test_a_search_varies_their_number_and_names_their_sizes():
    axes = {
        "parallel.dp": (1,),
        "parallel.tp": (8,),
        "parallel.ep": (1,),
        "parallel.pp": (1,),
        "alltoall": (Policy(name="reduce"),),
        "overlap": (Policy(name="none"),),
        "placement": (Policy(name="contiguous"),),
        "max_batch": (64,),
        "pools": ("all",),
        "graphs": (2, 8),
    }
    found = moesim.optimize(world(), Space(axes=axes))
    assert {"batch 64 graphs 2", "batch 64 graphs 8"} <= {" ".join(n.split()[-4:]) for n in found.plans["layout"]}
    assert [len(each.pools[0].policy("batching").settings["buckets"]) for each in found.chosen[:2]] == [2, 8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("graphs: 4, buckets: [1, 8]", r"plan.yaml: pools.0.policies.batching: .*graphs = 4 asks for a choice.*one of"),
        ("graphs: -1", r"pools.0.policies.batching: .*graphs = -1; give how many may be compiled"),
        ("buckets: [8, 4]", r"pools.0.policies.batching: .*positive sizes in ascending order"),
    ],
)
def test_what_does_not_go_together_is_refused_by_field(settings, message):
    text = f"""
        pools:
          - {{role: all, node: nvidia/hgx-h200, replicas: 1, parallel: {{tp: 8}},
             policies: {{batching: {{name: chunked, {settings}}}}}}}
    """
    with pytest.raises(PlanError, match=message):
        read_plan(yaml.safe_load(text), "plan.yaml", world())

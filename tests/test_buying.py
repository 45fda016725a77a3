"""Buying: money by hand, spares, trials of slow steps, and a purchase end to end."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from moesim.cli import app
from moesim.files.buying import read_buying
from moesim.files.resolved import buying_tree
from moesim.files.runs import load_run
from moesim.files.yaml import load_study
from moesim.ground.errors import InputError
from moesim.plans.plan import Parallel, Plan, Pool
from moesim.search.buying import Buying, Owning
from moesim.search.money import bill, spares
from moesim.search.processes import PAYS_FROM, in_parallel
from moesim.search.purchasing import CONFIRMED, MONTH, at_peak, purchase
from moesim.search.shortage import odds, remaining, shortages
from moesim.search.sizing import TRIALS, Sizer, replicas_of
from moesim.search.trials import joined, with_traffic
from moesim.views.notebook import html
from moesim.views.purchase import bars, outlay, trade_off
from moesim.world.scenario import Failures

TREE = {
    "name": "small",
    "model": "mistralai/Mixtral-8x7B-v0.1",
    "hardware": {
        "offers": [
            {
                "node": "nvidia/hgx-h100",
                "max_nodes": 12,
                "rent": {"value": "3 USD/h", "low": "2 USD/h", "high": "4 USD/h", "from": "ours"},
                "buy": {"value": "30000 USD", "from": "ours"},
            }
        ],
        "fabric": "infiniband/rail-400g",
        "sources": {"ours": {"kind": "assumed", "title": "a test"}},
    },
    "workload": {
        "kind": "serving",
        "requests": {
            "arrivals": {"generator": "poisson", "rate": "20 /s"},
            "input": {"generator": "lognormal", "mean": "1000 tokens", "cv": 0.8},
            "output": {"generator": "lognormal", "mean": "100 tokens", "cv": 0.6},
        },
        "targets": {"ttft.p99": "1 s", "tpot.p99": "40 ms"},
        "horizon": {"requests": 300, "warm_up": 30},
    },
    "routing": {"preset": "mixtral"},
    "failures": {"interval": "30000 h", "repair": "24 h"},
    "space": {"framework": ["vllm"], "parallel.pp": [1], "parallel.tp": [4, 8], "max_batch": [64]},
    "buy": {
        "growth": 2.0,
        "peak": 3.0,
        "availability": 0.99,
        "own": {
            "pue": {"value": 1.5, "from": "ours"},
            "energy": {"value": "0.10 USD/kWh", "from": "ours"},
            "residual": {"value": 0.25, "from": "ours"},
        },
        "sources": {"ours": {"kind": "assumed", "title": "a test"}},
    },
}


def written(tmp_path, **changes):
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump({**TREE, **changes}))
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return load_study(written(tmp_path_factory.mktemp("buy")))


@pytest.fixture(scope="module")
def bought(study):
    return purchase(study)


def test_a_bill_worked_by_hand(study):
    node = study.scenario.hardware.offers[0].node
    pool = Pool(role="all", node=node.name, replicas=2, parallel=Parallel(tp=8))
    watts = 3 * (8 * node.device.power + node.power)
    found = bill(study.scenario, Plan(pools=(pool,), spare_nodes=1), study.buy, power=watts)
    assert found.gpus == 24
    assert found.rent == pytest.approx(24 * 3 / 3600)
    assert found.purchase == pytest.approx(720_000)
    assert found.running == pytest.approx(watts * 1.5 * 0.10 / 3.6e6)
    assert found.owned == pytest.approx(720_000 * 0.75 / study.buy.horizon + found.running)
    assert found.breakeven * found.rent == pytest.approx(found.purchase + found.breakeven * found.running)


def test_what_is_not_for_sale_is_rented(study):
    pool = Pool(role="all", node="nvidia/hgx-h100", replicas=1, parallel=Parallel(tp=8))
    found = bill(study.scenario, Plan(pools=(pool,)), replace(study.buy, own=None), power=1.0)
    assert (found.way, found.cheapest) == ("rent", found.rent)


@pytest.mark.parametrize(("availability", "extra"), [(0.0, 0), (0.8, 0), (0.9, 1), (0.99, 2)])
def test_spares_worked_by_hand(availability, extra):
    """Two nodes, each up 9 tenths of the time: 0.81 of it both, with a spare 0.972, with two 0.9963."""
    assert spares(2, 1, Failures(interval=9.0, repair=1.0), availability) == extra


@pytest.mark.parametrize(("extra", "short"), [(0, 0.726), (3, 0.0631), (5, 0.0060)])
def test_shortages_worked_by_hand(study, extra, short):
    """Ten nodes of 8 gpus, each up for 5e6 / (5e6 + 8 x 86400) = 0.8785 of the time, and spares."""
    world = replace(study.scenario, failures=Failures(interval=5e6, repair=86400.0))
    pool = Pool(role="all", node="nvidia/hgx-h100", replicas=10, parallel=Parallel(tp=8))
    found = shortages(world, Plan(pools=(pool,), spare_nodes=extra))
    assert 1 - found[0] == pytest.approx(short, rel=0.01)
    assert sum(found) == pytest.approx(1)
    assert len(found) == 11


def test_nothing_is_short_where_nothing_fails(study):
    pool = Pool(role="all", node="nvidia/hgx-h100", replicas=10, parallel=Parallel(tp=8))
    found = shortages(replace(study.scenario, failures=Failures()), Plan(pools=(pool,)))
    assert found[0] == 1
    assert not any(found[1:])


@pytest.mark.parametrize(
    ("replicas", "lost", "left"),
    [
        ([(4, 8)], 1, (3,)),  # a node each
        ([(5, 4)], 1, (4,)),  # 5 halves on 3 nodes, 2 of which are left
        ([(2, 16)], 1, (1,)),  # 3 nodes hold one of two
        ([(2, 8), (2, 8)], 1, (1, 1)),  # 3 nodes for two pools of two: 1.5 each, in whole nodes
        ([(1, 16), (1, 16)], 1, (0, 0)),
        ([(2, 8)], 2, (0,)),
    ],
)
def test_what_lost_nodes_leave(study, replicas, lost, left):
    def pool(role, number, gpus):
        return Pool(role=role, node="nvidia/hgx-h100", replicas=number, parallel=Parallel(tp=gpus))

    roles = ("all",) if len(replicas) == 1 else ("prefill", "decode")
    pools = tuple(pool(role, *each) for role, each in zip(roles, replicas, strict=True))
    assert remaining(study.scenario, Plan(pools=pools, spare_nodes=7), lost) == left


def test_odds_weigh_what_is_left_by_how_often_it_is(study):
    """Two nodes, each up for half of the time, no spare: both 1/4, one 1/2, none 1/4."""
    world = replace(at_peak(study.scenario, study.buy), failures=Failures(interval=8.0, repair=1.0))
    sizer = Sizer(scenario=world, buying=study.buy, seed=0)
    pool = Pool(role="all", node="nvidia/hgx-h100", replicas=2, parallel=Parallel(tp=8, ep=8), framework="vllm")
    plan = Plan(pools=(pool,))
    ready = sizer.ready(plan)
    ready = replace(ready, workload=with_traffic(ready.workload, 0.05))
    whole, half = ready.run((2,)), ready.run((1,))
    found = odds(ready, plan, whole)
    assert found.short == pytest.approx(0.75)
    assert found.share == pytest.approx(0.25 * whole.share + 0.5 * half.share + 0.25)
    assert found.share < 1  # so light a load is carried by either
    assert odds(ready, replace(plan, spare_nodes=2), whole).share < found.share


def test_steps_as_slow_as_estimated_and_twice_as_slow(study):
    sizer = Sizer(scenario=at_peak(study.scenario, study.buy), buying=study.buy, seed=0)
    pool = Pool(role="all", node="nvidia/hgx-h100", replicas=8, parallel=Parallel(tp=8, ep=8), framework="vllm")
    ready = sizer.ready(Plan(pools=(pool,)))
    usual, slow = (ready.run((8,), factors=np.full(3, factor)) for factor in (1.0, 2.0))
    assert (slow.values["tpot.p99"] > 2 * usual.values["tpot.p99"] * 0.99).all()
    assert np.array_equal(usual.values["ttft.p99"], ready.run((8,), factors=np.ones(3)).values["ttft.p99"])
    more = replace(ready, workload=with_traffic(ready.workload, 50.0)).run((8,), factors=np.ones(1))
    assert more.share == 1.0  # it cannot carry that for ever


def test_a_purchase_is_the_least_that_holds(study, bought):
    assert bought.good
    best = bought.options.iloc[0]
    assert best["price"] == bought.options["price"].min()
    assert best["spares"] == bought.chosen.spare_nodes >= 1
    sizer = Sizer(scenario=at_peak(study.scenario, study.buy), buying=study.buy, seed=0)
    ready, number = sizer.ready(bought.chosen), replicas_of(bought.chosen)
    factors = sizer.slowness(bought.chosen, CONFIRMED)
    assert ready.run(number).missed.sum() <= sizer.allowed
    again = odds(ready, bought.chosen, ready.run(number, first=TRIALS, factors=factors), first=TRIALS, factors=factors)
    assert again.share == bought.miss <= 0.1
    assert 0 < again.short == bought.short <= 0.01
    if max(number) > 1:
        fewer = tuple(max(each - 1, 1) for each in number)
        trials = ready.run(fewer), ready.run(fewer, first=TRIALS, factors=factors)
        assert trials[0].missed.sum() > sizer.allowed or trials[1].share > 0.1


def test_what_if_asks_both_ways(bought):
    found = bought.what_if.set_index(["circumstance", "value"])
    traffic = found.loc["traffic"]["price"]
    assert traffic["x 0.5"] <= bought.options["price"].iloc[0] <= traffic["x 1.5"]
    assert found.loc[("rent", "low end"), "price"] <= found.loc[("rent", "high end"), "price"]
    reach = {bar.name: bar.reach for bar in bars(bought.what_if)}
    assert reach["traffic"] == pytest.approx(3600 * np.ptp([*traffic, bought.options["price"].iloc[0]]))
    assert set(found.index.get_level_values(0)) >= {
        "traffic",
        "prefix hits",
        "bandwidth between nodes",
        "links in the node",
        "rent",
    }
    assert not found.loc[("links in the node", "pcie"), "price"] < bought.options["price"].iloc[0]


def test_a_purchase_is_shown_kept_and_read_back(tmp_path, capsys, bought):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as end:
        app(["optimize", str(written(tmp_path)), "--out", str(out), "--json"])
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out)["purchase"]
    assert found["miss"] == bought.miss
    assert found["options"][0]["price"] == pytest.approx(bought.options["price"].iloc[0])
    page = (out / "report.html").read_text()
    assert "What to buy" in page
    assert "tornado" in page
    assert load_study(out / "scenario.yaml").buy == load_study(written(tmp_path)).buy
    assert load_run(out).answer.bought == bought.chosen
    assert app(["launch", str(out), "--plan", "purchase"], result_action="return_value") == 0
    replicas = sum(pool.replicas for pool in bought.chosen.pools)
    assert capsys.readouterr().out.count("vllm serve") >= replicas


def test_a_section_written_in_full_reads_back_equal():
    found, sources = read_buying(TREE["buy"], "a file")
    assert isinstance(found.own, Owning)
    assert read_buying(yaml.safe_load(yaml.safe_dump(buying_tree(found, sources))), "again") == (found, sources)
    assert found.busiest == 6.0
    assert Buying().busiest == 1.0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"buy": {"confidence": 1.0}}, "confidence"),
        ({"buy": {"peak": 0.0}}, "peak"),
        ({"buy": {"router": "round"}}, "no router is called `round`"),
        ({"buy": {"own": {"pue": 1.3}}}, "1.3 has no source"),
        ({"buy": 3}, "is not a section"),
        ({"buy": {"availability": 0.9}, "failures": {}}, "rests on how often gpus fail"),
    ],
)
def test_a_wrong_section_is_refused(tmp_path, changes, problem):
    with pytest.raises(InputError, match=problem):
        load_study(written(tmp_path, **changes))


class Told(Sizer):
    """A sizer whose first pool is the one that is short, with room for three replicas of each."""

    def _offered(self, plan, replicas):
        return max(replicas) <= 3

    def option(self, ready, replicas, trials):
        return SimpleNamespace(replicas=replicas, trials=trials, bill=SimpleNamespace(cheapest=sum(replicas)))


@pytest.mark.parametrize(("has", "grown"), [((1, 1), (2, 1)), ((3, 1), (3, 2)), ((3, 3), None)])
def test_the_pool_that_is_short_grows(has, grown):
    bench = SimpleNamespace(run=lambda replicas: SimpleNamespace(missed=np.arange(12) < 9 - 3 * replicas[0]))
    pools = tuple(
        Pool(role=role, node="nvidia/hgx-h200", replicas=number, parallel=Parallel(dp=8, ep=8))
        for role, number in zip(("prefill", "decode"), has, strict=True)
    )
    found = Told(scenario=None, buying=None, seed=0).grown(SimpleNamespace(bench=bench, plan=Plan(pools=pools)))
    assert (found and found.replicas) == grown


@pytest.mark.parametrize("things", [PAYS_FROM - 1, PAYS_FROM + 3])
def test_processes_answer_in_order(things):
    told = []
    assert in_parallel(abs, [-number for number in range(things)], told.append) == list(range(things))
    assert told == [(number + 1) / things for number in range(things)]


def test_trials_made_in_parts_are_those_made_at_once(study, bought):
    world = at_peak(study.scenario, study.buy)
    sizer = Sizer(scenario=world, buying=study.buy, seed=0)
    bench = sizer.ready(bought.chosen)
    whole = bench.run((2,), first=5, factors=bench.factors)
    parts = joined([bench.run((2,), first=5 + at, factors=bench.factors[at : at + 4]) for at in range(0, TRIALS, 4)])
    assert parts.missed.tolist() == whole.missed.tolist()
    assert parts.power.tolist() == whole.power.tolist()
    assert {name: values.tolist() for name, values in parts.values.items()} == {
        name: values.tolist() for name, values in whole.values.items()
    }


def test_outlays_cross_at_the_break_even(bought):
    """Both lines pass through one point, as many months in as the table says."""
    amounts = dict(zip(bought.money["what"], bought.money["value"], strict=True))
    even = amounts["break-even"]
    assert amounts["rent"] * even == pytest.approx(amounts["purchase"] + amounts["running"] * even)
    rented, owned = re.findall(r'points="([^"]+)"', outlay(bought.money))
    assert 0 < even / MONTH < 36
    assert rented.split()[1] == owned.split()[1]
    assert rented.split()[0] != owned.split()[0]


def test_nothing_is_owned_where_it_cannot_be(bought):
    assert not outlay(bought.money.iloc[:2])


def test_a_purchase_is_drawn_in_a_cell(bought):
    page = html(bought)
    assert trade_off(bought.options) in page
    assert outlay(bought.money) in page


def test_ranked_plans_say_how_they_fared_when_simulated(bought):
    ranking = bought.ranking
    fared = ["meets" if result.verdict.good else "misses" for result in ranking.simulated]
    assert fared
    assert ranking.plans["simulated"].tolist() == [*fared, *["no"] * (len(ranking.plans) - len(fared))]

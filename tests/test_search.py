"""The search: what is enumerated, how plans are ordered, and what becomes of those that are left out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import worlds

from moesim.deployments.deployed import Deployments, listed
from moesim.deployments.estimation import estimate
from moesim.deployments.metrics import METRICS
from moesim.deployments.result import Result, Verdict
from moesim.ground.errors import PlanError
from moesim.passes.table import table_of
from moesim.plans.plan import Parallel, Plan, Policy, Pool, Space, misfits
from moesim.search.answer import headline
from moesim.search.deploying import every_number_of_replicas
from moesim.search.finalists import Finals, standing
from moesim.search.optimization import optimize
from moesim.search.ranking import Comparison, Ranking
from moesim.search.space import enumerate_pools
from moesim.views.ranking import certificate_in_words, in_words
from moesim.world.attention import Linear
from moesim.world.model import Dense, Moe
from moesim.world.scenario import Scenario
from moesim.world.workload import Arrivals, Target

DEEPSEEK, MIXTRAL, GPT_OSS, QWEN, SWIN, NLLB, DENSE = worlds.MODELS
LIMITED = "deduplicated", "two_dh"
SMALL = {
    "pools": ("all",),
    "parallel.pp": (1,),
    "parallel.tp": (1, 2),
    "parallel.etp": (1,),
    "max_batch": (16, 8192),
    "overlap": (Policy(name="none"), Policy(name="two_batch")),
    "placement": (Policy(name="contiguous"),),
    "alltoall": (Policy(name="linear"), Policy(name="reduce"), Policy(name="deduplicated")),
}


def world(name: str = MIXTRAL, *, max_nodes: int = 2, targets: tuple[Target, ...] = (), cv: float = 0.2) -> Scenario:
    workload = replace(worlds.SERVING, targets=targets)
    moe = bool(worlds.model(name).moe_layers)
    node = worlds.offer().node
    small = replace(node, device=replace(node.device, memory=24e9))  # so that not all fits, of a model so short
    offers = [replace(worlds.offer(max_nodes=max_nodes), node=small)]
    return worlds.scenario(name, cv=cv if moe else 0.0, workload=workload, offers=offers, short=True)


def pools(name: str, max_nodes: int = 4, **axes: tuple[object, ...]) -> tuple[Pool, ...]:
    """Enumerate; `parallel_tp` stands for `parallel.tp`."""
    named = {path.replace("parallel_", "parallel."): values for path, values in axes.items()}
    found = enumerate_pools(world(name, max_nodes=max_nodes), Space(axes={"pools": ("all",), **named}))
    return tuple(found.table.pools())


@cache
def ranking(goal: str = "price_per_token", limit: float = np.inf) -> Ranking:
    """Rank the small space, with a target on the time per output token."""
    return optimize(world(targets=(Target(metric="tpot", limit=limit),)), Space(axes=SMALL), goal=goal)


@pytest.mark.parametrize("name", worlds.MODELS)
def test_every_enumerated_pool_is_valid(name: str) -> None:
    found = pools(name)
    layers = set(worlds.model(name).layers)
    assert len(set(map(repr, found))) == len(found) > 100
    for parallel in {pool.parallel for pool in found}:
        assert not list(misfits(parallel))
        assert parallel.gpus in (1, 2, 4, 8, 16, 32)
        for layer in layers:
            assert layer.attention is None or layer.attention.heads % parallel.tp == 0
            assert not isinstance(layer.attention, Linear) or layer.attention.key_heads % parallel.tp == 0
            assert not isinstance(layer.ffn, Dense) or layer.ffn.width % parallel.tp == 0
            if isinstance(layer.ffn, Moe):
                assert parallel.ep <= layer.ffn.experts
                assert layer.ffn.width % parallel.etp == 0
    for pool in found:
        p, alltoall = pool.parallel, pool.policy("alltoall").name
        if alltoall == "reduce":
            assert (p.dp == p.cp == 1) or name == DENSE
        else:
            assert p.ranks > 1
        assert alltoall not in LIMITED or (p.ranks > 8 and p.ranks % 8 == 0)


def test_known_layouts_are_among_those_enumerated() -> None:
    """What is deployed today: 8-way tensor parallelism, attention by data and experts over nodes, two stages."""
    found = {(pool.parallel, pool.policy("alltoall").name) for pool in pools(DEEPSEEK)}
    for parallel, alltoall in (
        (Parallel(tp=8, ep=8), "reduce"),
        (Parallel(tp=8, etp=8), "reduce"),
        (Parallel(dp=8, ep=8), "linear"),
        (Parallel(dp=32, ep=32), "deduplicated"),
        (Parallel(dp=4, tp=8, ep=32), "two_dh"),
        (Parallel(pp=2, dp=8, ep=8), "linear"),
    ):
        assert (parallel, alltoall) in found


@pytest.mark.parametrize("degree", ["pp", "dp", "tp", "ep", "etp"])
def test_an_axis_restricts_a_degree(degree: str) -> None:
    free = pools(DEEPSEEK)
    wanted = {2, 4} if degree != "pp" else {2}
    held = pools(DEEPSEEK, **{f"parallel_{degree}": tuple(wanted)})
    assert {getattr(pool.parallel, degree) for pool in held} == wanted
    assert list(map(repr, held)) == [repr(pool) for pool in free if getattr(pool.parallel, degree) in wanted]


def test_an_axis_restricts_policies_batches_and_frameworks() -> None:
    placements = tuple(Policy(name=name) for name in ("contiguous", "greedy"))
    gating = (Policy(name="static", settings={"factor": 1.5}),)
    found = pools(MIXTRAL, placement=placements, gating=gating, max_batch=(7,), framework=("plain",))
    assert {pool.policy("placement") for pool in found} == set(placements)
    assert {pool.policy("gating") for pool in found} == set(gating)
    assert {pool.policy("batching").settings["max_batch"] for pool in found} == {7}


def test_every_number_of_replicas_that_an_offer_holds() -> None:
    """Three nodes of 8 hold 1 to 3 replicas of 8 gpus, 2, 4 and 6 of 4, and one of 16."""
    three = [worlds.pool(parallel) for parallel in (Parallel(dp=8, ep=8), Parallel(dp=4, ep=4), Parallel(dp=16, ep=16))]
    world = worlds.scenario(MIXTRAL, offers=[worlds.offer(max_nodes=3)])
    found = every_number_of_replicas(world, table_of(three), np.arange(3))
    pairs = sorted(zip(found.pool.tolist(), found.replicas.tolist(), strict=True))
    assert pairs == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 4), (1, 6), (2, 1)]


def deployed(space: Space) -> Deployments:
    table = enumerate_pools(world(), space).table
    return every_number_of_replicas(world(), table, np.arange(len(table)))


def test_counts_add_up() -> None:
    counts = ranking().certificate
    assert counts.estimated + counts.unfit + counts.refused + counts.bounded == counts.considered
    combined = len(SMALL["overlap"]) * len(SMALL["max_batch"]) * len(SMALL["alltoall"])
    table = enumerate_pools(world(), Space(axes=SMALL)).table
    degrees = len({pool.parallel for pool in table.pools()})
    assert counts.layouts == len(table)
    assert counts.layouts + sum(counts.invalid.values()) == degrees * combined
    assert counts.considered == len(deployed(Space(axes=SMALL)))
    assert ranking().unfit["unfit"].sum() > 0
    assert ranking().unfit["of"].sum() == counts.layouts


@pytest.mark.parametrize("goal", ["price_per_token", "tpot", "throughput_per_gpu", "memory_headroom"])
def test_plans_come_in_order_of_the_goal(goal: str) -> None:
    found = ranking(goal).plans[goal]
    sign = 1 if METRICS[goal].less_is_better else -1
    assert np.all(np.diff(sign * found) >= 0)
    assert len(found) == 10
    assert ranking(goal).best is not None
    assert ranking(goal).best.summary[goal].mid == found.iloc[0]


def test_each_layout_is_shown_once() -> None:
    assert ranking().plans["layout"].is_unique


def test_plans_that_miss_a_target_come_last_by_how_much_they_miss() -> None:
    """A few plans meet a limit near the least: they come first, by price; then the others, nearest misses first."""
    middle = 1.5 * float(ranking("tpot").plans["tpot"].iloc[0])
    table = ranking("price_per_token", middle).plans
    meeting = table["miss"] == 0
    assert 0 < meeting.sum() < len(table)
    assert meeting.is_monotonic_decreasing
    assert table["price_per_token"][meeting].is_monotonic_increasing
    assert table["miss"][~meeting].is_monotonic_increasing
    assert np.all(table["tpot"][meeting] <= middle)
    np.testing.assert_allclose(table["miss"][~meeting], table["tpot"][~meeting] / middle - 1, rtol=1e-9)


def test_when_nothing_meets_its_target_the_nearest_miss_comes_first() -> None:
    found = ranking("price_per_token", 1e-4)
    assert found.meets == 0
    assert found.plans["miss"].is_monotonic_increasing
    assert found.best is not None
    assert (found.best.verdict.good, found.best.verdict.binding) == (False, "tpot")


@pytest.mark.parametrize("place", [0, 3, -1])
def test_a_ranked_plan_is_estimated_the_same_alone(place: int) -> None:
    """To 1e-9, although the ranking priced it beside others of its structure."""
    found = ranking()
    plan, row = found.chosen[place], found.plans.iloc[place]
    alone = estimate(world(targets=(Target(metric="tpot", limit=np.inf),)), plan)
    assert isinstance(plan, Plan)
    for metric in ("throughput", "throughput_per_gpu", "ttft", "tpot", "price_per_token", "memory_headroom", "mfu"):
        assert alone.summary[metric].mid == pytest.approx(row[metric], rel=1e-9)
    assert alone.source == row["source"]


def test_the_best_plan_comes_with_its_details() -> None:
    best = ranking().best
    assert best is not None
    assert best.plan == ranking().chosen[0]
    assert {"breakdown", "memory", "tasks"} <= set(best.tables)


def test_the_seed_reaches_the_draws() -> None:
    axes = {**SMALL, "parallel.tp": (1,), "max_batch": (64,), "overlap": (Policy(name="none"),)}
    one, same, other = (optimize(world(cv=0.6), Space(axes=axes), seed=seed).plans for seed in (0, 0, 1))
    assert one.equals(same)
    assert not one["tpot"].equals(other["tpot"])


def test_a_bigger_space_never_has_a_worse_best() -> None:
    small = Space(axes={**SMALL, "max_batch": (16,)})
    worse = optimize(world(targets=(Target(metric="tpot", limit=np.inf),)), small).plans["price_per_token"]
    assert ranking().plans["price_per_token"].iloc[0] <= worse.iloc[0]


def test_a_dense_model_has_one_way_into_its_layers() -> None:
    found = optimize(
        world(DENSE),
        Space(axes={"pools": ("all",), "parallel.pp": (1,), "max_batch": (64,), "overlap": (Policy(name="none"),)}),
    )
    assert found.certificate.refused == 0
    assert found.certificate.estimated > 0
    assert found.plans["layout"].str.contains("reduce").all()


def test_a_plan_that_misses_when_simulated_stands_behind_those_that_do_not() -> None:
    """Whole requests are timed by a simulation only, in which the plan that is estimated best takes too long."""
    asked = worlds.SERVING.requests
    busy = replace(asked, arrivals=replace(asked.arrivals, rate=395.0))
    tight = world(targets=(Target(metric="e2e.p99", limit=0.73),))
    found = optimize(replace(tight, workload=replace(tight.workload, requests=busy)), Space(axes=SMALL))
    verdicts = [result.verdict.good for result in found.simulated]
    assert found.good
    assert found.certificate.overtaken == 1
    assert verdicts == [True, True, False]
    assert [result.plan for result in found.simulated] == list(found.chosen[:3])
    assert found.plans["throughput"][2] > found.plans["throughput"][0]  # prices are equal
    assert any("1 estimated better do not" in sentence for sentence in headline(found))
    assert "better than the first but 1 that miss a target" in certificate_in_words(found.certificate)


def test_where_all_that_were_simulated_miss_no_plan_is_good() -> None:
    found = ranking("price_per_token")
    missing = replace(found.simulated[0].verdict, meets={"load": False})
    missed = tuple(replace(result, verdict=missing) for result in found.simulated)
    assert found.good
    assert not replace(found, simulated=missed).good
    assert "simulated, none does" in " ".join(headline(replace(found, simulated=missed)))
    assert standing(missed).tolist() == list(range(len(missed)))
    assert standing((missed[0], *found.simulated[1:], missed[0])).tolist()[-2:] == [0, len(missed)]


def test_more_nodes_are_tried_where_queues_need_them() -> None:
    """What one node carries on average bursts of requests overwhelm; the same layout on two of them is the answer."""
    requests = replace(worlds.SERVING.requests, arrivals=Arrivals(generator="gamma", rate=395.0, burstiness=30.0))
    tight = world(max_nodes=4, targets=(Target(metric="ttft.p99", limit=0.02),))
    found = optimize(replace(tight, workload=replace(tight.workload, requests=requests)), Space(axes=SMALL))
    pools = [(result.plan.pools[0], result.verdict.good) for result in found.simulated]
    missed = next(pool for pool, good in pools if not good)
    assert found.good
    assert (replace(missed, replicas=2 * missed.replicas), True) in pools
    assert found.certificate.overtaken >= 1


class Told(Finals):
    """Finals in which a plan misses TTFT with fewer than two feeders, and TPOT with fewer than three replicas."""

    def _simulated(self, one: Deployments) -> Result:
        met = {"ttft.p99": bool(one.feeders[0] >= 2), "tpot.p99": bool(one.replicas[0] >= 3)}
        asked.append(one.rows()[0])
        return SimpleNamespace(verdict=Verdict(fits=True, meets=met, binding="", why=""))


asked: list[tuple[int, ...]] = []


def test_what_is_short_of_nodes_in_one_plan_is_enlarged_untried_in_others() -> None:
    """Columns: pool, replicas, feeder, feeders, spare nodes; ranked by nodes, so both first plans cost two."""
    here = world(max_nodes=5)
    wide = Parallel(dp=8, ep=8)
    roles = ("prefill", "decode", "decode")
    table = table_of([Pool(role=role, node="nvidia/hgx-h200", replicas=1, parallel=wide) for role in roles])
    plans = listed(table, [(1, 1, 0, 1, 0), (2, 1, 0, 1, 0)])
    asked.clear()
    cost = lambda one: np.stack([0.0 * one.pool, one.replicas + one.feeders, one.pool], axis=1)  # noqa: E731
    tried, results = Told(scenario=here, rank=cost, seed=0).run(plans)
    assert asked[0] == (1, 1, 0, 1, 0)  # which misses both, so it alone is enlarged, either way
    assert len(asked) == len(set(asked))
    assert {tuple(row) for row, result in zip(tried.rows(), results, strict=True) if result.verdict.good} == {
        (1, 3, 0, 2, 0),
        (2, 3, 0, 2, 0),
    }
    assert all(replicas + feeders <= 5 for _, replicas, _, feeders, _ in asked)


def test_a_runner_up_that_lost_by_its_simulation_says_so() -> None:
    lost = Comparison(metric="throughput", first=1.0, second=2.0, probability=0.4, missed="tpot.p99 = 60 ms misses")
    assert in_words(lost) == "estimated better, but simulated tpot.p99 = 60 ms misses"


def test_training_is_ranked_by_its_step() -> None:
    studied = replace(world(), workload=worlds.TRAINING)
    axes = {"parallel.pp": (1, 2), "parallel.tp": (1, 2), "overlap": (Policy(name="none"),), "microbatch": (1, 2)}
    found = optimize(studied, Space(axes=axes), goal="throughput")
    assert found.plans["throughput"].is_monotonic_decreasing
    assert {"ttft", "tpot"}.isdisjoint(found.plans.columns)
    assert found.meets > 0
    assert found.plans["layout"].str.contains("microbatch").all()


def test_nothing_fits() -> None:
    """DeepSeek-V3 needs 83 GB a rank for its experts on one node, which H100 have not; 8-way experts come nearest."""
    small = worlds.scenario(DEEPSEEK, offers=[worlds.offer("nvidia/hgx-h100", 1)])
    found = optimize(small, Space(axes={"pools": ("all",), "max_batch": (16,), "parallel.tp": (1,)}))
    assert (found.best, found.chosen, found.meets, len(found.plans)) == (None, (), 0, 0)
    assert found.certificate.unfit == found.certificate.considered
    (row,) = found.unfit.to_dict(orient="records")
    assert (row["node"], row["unfit"], row["of"]) == (
        "nvidia/hgx-h100",
        found.certificate.layouts,
        found.certificate.layouts,
    )
    assert row["nearest"].startswith("dp8 ep8 ")
    assert row["why"].startswith("does not fit: expert weights 81.8 GB")


def test_an_unknown_goal_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(PlanError, match=r"`price_per_tokn` is no metric; did you mean `price_per_token`\?"):
        optimize(world(), goal="price_per_tokn")


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(PlanError, match="space: holds no valid layout"):
        optimize(world(), Space(axes={"parallel.tp": (3,)}))
    with pytest.raises(PlanError, match=r"holds no valid layout.*`reduce` needs tokens replicated"):
        optimize(world(), Space(axes={"parallel.dp": (8,), "alltoall": (Policy(name="reduce"),)}))


@pytest.mark.parametrize("goal", ["imbalance"])
def test_a_goal_that_no_estimate_gives_is_refused(goal: str) -> None:
    with pytest.raises(PlanError):
        optimize(world(), Space(axes=SMALL), goal=goal)


IGNORED = {
    "node": ("nvidia/hgx-h100",),
    "pools": ("prefill+decode",),
    "pools.all.parallel.ep": (4,),
    "batching": (Policy(name="continuous"),),
    "precision.experts": ("fp8", "bf16"),
}


@pytest.mark.parametrize("path", IGNORED)
def test_no_axis_is_silently_ignored(path: str) -> None:
    """It changes what is enumerated, or is refused."""
    free = enumerate_pools(world(), Space(axes=SMALL)).table
    try:
        held = enumerate_pools(world(), Space(axes={**SMALL, path: IGNORED[path]})).table
    except PlanError:
        return
    assert len(held) != len(free)

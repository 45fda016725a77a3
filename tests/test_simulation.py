"""Simulating a deployment: step tables against passes, percentiles against targets, and what cannot be simulated."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import MappingProxyType

import numpy as np
import pytest
import worlds

from moesim.deployments.arrangements import arrangements
from moesim.deployments.capacity import capacity
from moesim.deployments.estimation import estimate
from moesim.deployments.metrics import METRICS, base_metric
from moesim.deployments.result import Result
from moesim.deployments.serving.ticks import PER_SECOND
from moesim.deployments.simulation import simulate, simulate_many
from moesim.deployments.steps import GRAIN
from moesim.deployments.tabulation import Pass, pass_times, tabulate
from moesim.ground.errors import PlanError, WorkloadError
from moesim.plans.plan import Parallel, Plan, Policy, Pool
from moesim.world.scenario import Scenario
from moesim.world.workload import Arrivals, Lengths, Requests, Serving, Target

DEEPSEEK, MIXTRAL, GPT_OSS, QWEN, SWIN, NLLB, DENSE = worlds.MODELS
EP8 = Parallel(dp=8, ep=8)
BATCH = Policy(name="chunked", settings={"max_batch": 32, "budget": 2048})
CLOSED = Arrivals(generator="closed", concurrency=64)
OPEN = Arrivals(generator="poisson", rate=6.0)


def serving(arrivals: Arrivals = OPEN, *, requests: int = 600, **targets: float) -> Serving:
    return Serving(
        requests=Requests(
            arrivals=arrivals,
            input=Lengths(generator="lognormal", mean=800.0, cv=0.8),
            output=Lengths(generator="lognormal", mean=150.0, cv=0.6),
        ),
        targets=tuple(Target(metric=name.replace("_", "."), limit=limit) for name, limit in targets.items()),
        horizon=requests,
        warm_up=requests // 10,
    )


def mixtral(workload: Serving) -> Scenario:
    return worlds.scenario(MIXTRAL, short=True, workload=workload)


def plan(pool: Pool | None = None, *, replicas: int = 1) -> Plan:
    return Plan(pools=(replace(pool or worlds.pool(EP8, batching=BATCH), replicas=replicas),))


@cache
def light() -> Result:
    return simulate(mixtral(serving(ttft_p99=1.0, tpot_p90=0.05)), plan())


WORLDS = {
    "one rank a group": (MIXTRAL, worlds.pool(Parallel(dp=4, tp=2, ep=8), batching=BATCH)),
    "tensor parallel": (MIXTRAL, worlds.pool(Parallel(tp=8, ep=8), alltoall="reduce", batching=BATCH)),
    "two copies of the experts": (GPT_OSS, worlds.pool(Parallel(dp=8, ep=4), batching=BATCH)),
    "pipeline": (GPT_OSS, worlds.pool(Parallel(pp=2, dp=2, ep=2), batching=BATCH)),
    "two batches": (DEEPSEEK, worlds.pool(EP8, overlap="two_batch", batching=BATCH)),
    "deduplicated": (
        DEEPSEEK,
        worlds.pool(Parallel(dp=16, ep=16), alltoall="deduplicated", batching=BATCH),
    ),
    "dense": (DENSE, worlds.pool(Parallel(tp=4), alltoall="reduce", batching=BATCH)),
}


@pytest.mark.parametrize("name", WORLDS)
def test_a_table_follows_the_passes_between_its_knots(name: str) -> None:
    """Steps of 20 random batches within 10 %, half of them within 3 %."""
    model, pool = WORLDS[name]
    world = worlds.scenario(model, short=True, cv=0.3 if model != DENSE else 0.0, workload=serving())
    shared, p = arrangements(world, seed=0, draws=4), pool.parallel
    table = tabulate(world, pool, shared, most=p.dp * 2048)
    rng = np.random.default_rng(0)
    batches, found = [], []
    for _ in range(20):
        sequences, context = int(rng.integers(p.edp * p.pp, 32 * p.dp)), float(rng.uniform(100, 4000))
        prompt = int(rng.integers(16, 2048))
        largest = int(rng.integers(max(prompt // p.dp, 1), prompt + 1))
        each, group = max(largest, prompt / p.dp) / p.pp, p.tp * p.cp
        count = max(each / 800, 1.0)
        batch = Pass(
            prefill=each / group,
            prompts=each / 800 / group,
            pairs=each * 1500 / group,
            keys=count * (1500 + each / count / 2) / group,
            decode=max(sequences / p.pp / p.dp, 1.0) / group,
            context=context,
            home=(sequences + prompt) / p.pp / p.ranks,
        )
        batches.append(batch)
        grains = round(sequences * context * GRAIN)
        found.append(table.mixed(sequences, grains, prompt, prompt * 1500.0, max(largest, prompt / p.dp)) / PER_SECOND)
        decode = replace(batch, prefill=0.0, prompts=0.0, pairs=0.0, keys=0.0, home=sequences / p.pp / p.ranks)
        batches.append(decode)
        found.append(table.decoding(sequences, grains) / PER_SECOND)
    exact = np.concatenate([pass_times(world, pool, shared, batches[part::2])[0] for part in (0, 1)])
    error = np.abs(np.array(found[0::2] + found[1::2]) / exact - 1)
    assert error.max() < 0.1
    assert np.median(error) < 0.03


def test_a_table_is_shared_with_nobody_and_made_alike_twice() -> None:
    world, pool = mixtral(serving()), worlds.pool(EP8, batching=BATCH)
    one, other = (tabulate(world, pool, arrangements(world, seed=0, draws=4), most=4096) for _ in range(2))
    assert one.decode == other.decode
    assert one.row(7) == other.row(7)


def test_steps_in_buckets_are_padded() -> None:
    world = mixtral(serving())
    settings = {"max_batch": 32, "buckets": (8, 32)}
    pool = worlds.pool(EP8, batching=Policy(name="chunked", settings=settings))
    shared = arrangements(world, seed=0, draws=4)
    padded = tabulate(world, pool, shared, most=4096)
    plain = tabulate(world, worlds.pool(EP8, batching=BATCH), shared, most=4096)
    context = 65 * 500 * GRAIN
    assert padded.decoding(64, context) == plain.decoding(64, context)
    assert padded.decoding(65, context) > plain.decoding(65, context)
    assert padded.row(65)[0][1] == pytest.approx(plain.row(256)[0][1], rel=0.05)


def test_percentiles_are_held_against_their_targets() -> None:
    result = light()
    assert result.verdict.good
    assert set(result.verdict.meets) == {"ttft.p99", "tpot.p90", "load", "served"}
    requests = result.tables["requests"]
    measured = requests[requests["measured"]]
    assert len(requests) == 600
    assert len(measured) == 540
    assert result.summary["ttft.p99"].mid == pytest.approx(measured["ttft"].quantile(0.99, interpolation="higher"))
    between = (result.summary["tpot.p50"].mid + result.summary["tpot.p99"].mid) / 2
    assert result.verdict.binding == "tpot.p90"
    assert result.verdict.why.startswith("meets every target; the tightest is tpot.p90, with ")
    assert simulate(mixtral(serving()), plan()).verdict.why.startswith("carries the ")
    missed = simulate(mixtral(serving(tpot_p99=between, tpot_p50=between)), plan())
    assert missed.verdict.meets["tpot.p50"]
    assert not missed.verdict.meets["tpot.p99"]
    assert missed.verdict.binding == "tpot.p99"
    assert missed.verdict.why.startswith("tpot.p99 = ")
    assert {base_metric(name) for name in result.summary} <= set(METRICS)


def test_the_load_is_missed_where_replicas_cannot_follow() -> None:
    flood = Arrivals(generator="poisson", rate=4000.0)
    one = simulate(mixtral(serving(flood)), plan())
    assert not one.verdict.good
    assert one.verdict.binding == "load"
    assert one.verdict.why.startswith("serves ")
    assert one.summary["utilization"].mid > 0.9
    assert one.summary["queue"].mid > light().summary["queue"].mid


@pytest.mark.parametrize("pace", [1.0, 1.4])
def test_a_full_batch_takes_the_steps_of_an_estimate(pace: float) -> None:
    """A closed loop that keeps a replica full, tensor parallel: tokens/s within 10 % of the formula's, at any pace."""
    pool = worlds.pool(
        Parallel(tp=8, ep=8), alltoall="reduce", batching=Policy(name="chunked", settings={"max_batch": 64})
    )
    world = mixtral(serving(CLOSED, requests=1500))
    constant = Requests(
        arrivals=CLOSED,
        input=Lengths(generator="uniform", mean=800.0, cv=0.2),
        output=Lengths(generator="uniform", mean=150.0, cv=0.2),
    )
    paced = {name: replace(each, pace=pace) for name, each in world.frameworks.items()}
    world = replace(world, workload=replace(world.workload, requests=constant), frameworks=MappingProxyType(paced))
    simulated, estimated = simulate(world, plan(pool)), estimate(world, plan(pool))
    assert simulated.summary["throughput"].mid == pytest.approx(estimated.summary["throughput"].mid, rel=0.1)
    assert simulated.summary["tpot.mean"].mid == pytest.approx(estimated.summary["tpot"].mid, rel=0.1)


def test_more_replicas_wait_less() -> None:
    results = [simulate(mixtral(serving(Arrivals(generator="poisson", rate=60.0))), plan(replicas=n)) for n in (1, 2)]
    assert results[1].summary["e2e.mean"].mid < results[0].summary["e2e.mean"].mid
    assert set(results[1].tables["requests"]["replica"]) == {0, 1}
    assert results[1].summary["gpus"].mid == 16


def test_plans_face_the_same_requests() -> None:
    world = mixtral(serving())
    one, two = simulate_many(world, [plan(), plan(replicas=2)], requests=300, seed=5)
    for column in ("arrival", "input", "output"):
        assert np.array_equal(one.tables["requests"][column], two.tables["requests"][column])
    assert len(one.tables["requests"]) == 300
    assert not one.tables["requests"]["measured"].iloc[:30].any()
    again = simulate_many(world, [plan()], requests=300, seed=5)[0]
    assert again.summary == one.summary
    other = simulate_many(world, [plan()], requests=300, seed=6)[0]
    assert other.summary != one.summary


def test_replications_are_averaged() -> None:
    world = mixtral(serving(requests=200))
    several = simulate(world, plan(), replications=3)
    assert several.summary != simulate(world, plan()).summary
    assert len(several.tables["requests"]) == 200


def test_cache_is_what_the_rest_leaves() -> None:
    world = mixtral(serving())
    pool = worlds.pool(EP8, batching=BATCH)
    found = capacity(world, [pool])
    limits, memory = found.limits[0], found.memory
    per_token = memory.items["kv cache"][0] / (32 * 950)
    assert limits.largest * per_token <= found.room[0] < (limits.largest + limits.block) * per_token
    assert limits.blocks == 8 * limits.largest // limits.block
    assert limits.sequences == 8 * 32
    assert found.room[0] == pytest.approx(memory.capacity[0] - memory.total[0] + memory.items["kv cache"][0])


def test_a_cache_takes_no_more_than_its_room_however_many_wait_for_it() -> None:
    crowd = worlds.scenario(MIXTRAL, workload=serving(Arrivals(generator="closed", concurrency=100_000)))
    found = capacity(
        crowd, [worlds.pool(EP8, batching=Policy(name="chunked", settings={"max_batch": 20_000, "budget": 20_000}))]
    )
    assert found.memory.headroom[0] < 0
    assert found.used.headroom[0] == pytest.approx(0.0, abs=1.0)
    few = capacity(worlds.scenario(MIXTRAL, workload=serving()), [worlds.pool(EP8, batching=BATCH)])
    assert few.used.items == few.memory.items


def test_hits_and_preemptions_are_those_of_the_measured_requests() -> None:
    """As many prompt tokens as are certain to be found are, and none of a request's cache is taken where all fits."""
    workload = serving(CLOSED)
    certain = replace(workload, requests=replace(workload.requests, prefix_hits=0.25))
    found = simulate(mixtral(certain), plan())
    rows = found.tables["requests"].query("measured")
    assert found.summary["prefix_hits"].mid == pytest.approx(rows["cached"].sum() / rows["input"].sum())
    assert found.summary["prefix_hits"].mid == pytest.approx(0.25, abs=0.01)
    assert found.summary["preemptions"].mid == 0


def test_a_model_larger_than_its_gpus_does_not_fit() -> None:
    world = worlds.scenario(DEEPSEEK, workload=serving())
    result = simulate(world, plan(worlds.pool(Parallel(tp=4, ep=4), alltoall="reduce", batching=BATCH)))
    assert not result.verdict.fits
    assert result.verdict.why.startswith("does not fit: ")
    assert result.summary == {}
    assert set(result.tables) == {"memory"}


@pytest.mark.parametrize("arrivals", [OPEN, CLOSED])
def test_requests_that_outgrow_the_cache_are_told(arrivals: Arrivals) -> None:
    long = Lengths(generator="constant", mean=9e8)
    huge = replace(serving(requests=50), requests=replace(serving(arrivals).requests, input=long))
    result = simulate(mixtral(huge), plan())
    assert not result.verdict.good
    assert result.verdict.binding == "kv cache"
    assert result.verdict.why.startswith("50 of 50 requests were refused")
    assert [result.summary[name].mid for name in ("queue", "throughput", "goodput")] == [0, 0, 0]


def test_a_time_that_no_request_has_is_kept() -> None:
    """Where every answer is one token, there is no time between tokens to limit."""
    one = replace(
        serving(tpot_p99=0.01), requests=replace(serving().requests, output=Lengths(generator="constant", mean=1))
    )
    result = simulate(mixtral(one), plan())
    assert result.verdict.good
    assert np.isnan(result.summary["tpot.p99"].mid)


def test_speculation_gives_several_tokens_a_step() -> None:
    world = mixtral(serving())
    drafts = Policy(name="chunked", settings={"max_batch": 32, "budget": 2048, "speculated": 2, "acceptance": 0.7})
    drafted = simulate(world, plan(worlds.pool(EP8, batching=drafts)))
    assert drafted.summary["tpot.mean"].mid < 0.75 * light().summary["tpot.mean"].mid


def test_a_policy_that_refuses_is_a_verdict() -> None:
    odd = worlds.pool(Parallel(dp=6, ep=6), alltoall="deduplicated", batching=BATCH)
    world = worlds.scenario(GPT_OSS, short=True, workload=serving())
    twelve = replace(odd, parallel=Parallel(dp=12, ep=12))
    result = simulate(world, plan(twelve))
    assert (result.verdict.fits, result.verdict.binding) == (False, "policy")


def test_what_cannot_be_simulated() -> None:
    with pytest.raises(WorkloadError, match="only serving is simulated"):
        simulate(worlds.scenario(MIXTRAL, short=True, workload=worlds.TRAINING), plan())
    with pytest.raises(PlanError, match="roles: all, all"):
        simulate(mixtral(serving()), Plan(pools=plan().pools * 2))


PREFILL = replace(worlds.pool(EP8, batching=BATCH), role="prefill")
DECODE = replace(worlds.pool(EP8, batching=Policy(name="continuous", settings={"max_batch": 32})), role="decode")


def test_prefill_and_decode_apart() -> None:
    """Decode steps carry no prompts, so tokens come more evenly than from one pool; gpus are those of both."""
    busy = Arrivals(generator="poisson", rate=40.0)
    world = mixtral(serving(busy))
    apart = simulate(world, Plan(pools=(DECODE, PREFILL)))
    together = simulate(world, plan(replicas=2))
    assert apart.summary["gpus"].mid == together.summary["gpus"].mid == 16
    assert apart.summary["itl.p99"].mid < together.summary["itl.p99"].mid
    steps = apart.tables["steps"]
    assert set(steps["replica"]) == {0, 1}
    assert (steps.query("replica == 1")["prompt"] == 0).all()
    assert (steps.query("replica == 0")["decoding"] == 0).all()
    assert set(apart.tables["memory"]["pool"]) == {"prefill", "decode"}
    assert (apart.tables["requests"]["replica"] == 1).sum() > 590  # all but those of one output token


def test_a_slow_network_hands_over_late() -> None:
    world = mixtral(serving())
    slow = tuple(replace(tier, bandwidth=tier.bandwidth / 1e4) for tier in world.hardware.fabric)
    slower = replace(world, hardware=replace(world.hardware, fabric=slow))
    one, other = (simulate(each, Plan(pools=(PREFILL, DECODE))) for each in (world, slower))
    assert other.summary["ttft.mean"].mid == one.summary["ttft.mean"].mid
    assert other.summary["e2e.mean"].mid > one.summary["e2e.mean"].mid
    assert other.summary["itl.p99"].mid > one.summary["itl.p99"].mid


def test_routers_deal_requests() -> None:
    """In a burst, going where fewest are in hand waits less than taking turns."""
    bursts = Arrivals(generator="gamma", rate=120.0, burstiness=8.0)
    world = mixtral(serving(bursts))
    waits = {}
    for name in ("round_robin", "least_loaded", "prefix_aware"):
        result = simulate(world, replace(plan(replicas=4), router=Policy(name=name)))
        waits[name] = result.summary["e2e.mean"].mid
        assert set(result.tables["requests"]["replica"]) == {0, 1, 2, 3}
    assert waits["least_loaded"] < waits["round_robin"]
    assert waits["prefix_aware"] == waits["least_loaded"]  # requests without sessions


def test_a_framework_schedules_in_its_own_way() -> None:
    """Prompts that go first come sooner and hold up the others' tokens."""
    busy = mixtral(serving(Arrivals(generator="poisson", rate=150.0)))
    world = replace(busy, frameworks={"plain": replace(worlds.PLAIN, prompts="first")})
    mixed, first = simulate(busy, plan()), simulate(world, plan())
    assert (first.tables["steps"].query("prompt > 0")["decoding"] == 0).all()
    assert first.summary["itl.p99"].mid > mixed.summary["itl.p99"].mid
    whole = replace(busy, frameworks={"plain": replace(worlds.PLAIN, cache="whole")})
    assert capacity(whole, [plan().pools[0]]).limits[0].whole


def test_swapping_takes_the_time_of_a_copy() -> None:
    settings = {"max_batch": 32, "preemption": "swap"}
    pool = worlds.pool(EP8, batching=Policy(name="chunked", settings=settings))
    limits = capacity(mixtral(serving()), [pool]).limits[0]
    assert limits.swap > 0
    assert capacity(mixtral(serving()), [plan().pools[0]]).limits[0].swap == 0

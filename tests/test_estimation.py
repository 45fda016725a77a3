"""Estimating one plan: what adds up, what the verdict says, and what may never happen."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import worlds

from moesim.deployments.estimation import estimate
from moesim.deployments.grounding import scenario_grounds
from moesim.deployments.metrics import METRICS
from moesim.deployments.operation import Passes, operation
from moesim.deployments.pools import estimate_pools
from moesim.deployments.result import Result
from moesim.deployments.summary import pass_work
from moesim.files.yaml import load_plan, load_scenario
from moesim.ground.errors import PlanError
from moesim.ground.units import Source
from moesim.passes.table import table_of
from moesim.plans.plan import Parallel, Plan, Policy, Pool
from moesim.schedules.costs.priors import kernel_prior
from moesim.world.hardware import Hardware
from moesim.world.model import active_parameters, layer_parameters
from moesim.world.scenario import Scenario
from moesim.world.workload import Target

EXAMPLES = Path(__file__).parents[1] / "examples"
DEEPSEEK, MIXTRAL, GPT_OSS, QWEN, SWIN, NLLB, DENSE = worlds.MODELS
EP8 = Parallel(dp=8, ep=8)
BATCH = Policy(name="chunked", settings={"max_batch": 64})
SERVING = replace(worlds.SERVING, targets=())


def run(world: Scenario, pool: Pool, *, spare_nodes: int = 0, seed: int = 0) -> Result:
    return estimate(world, Plan(pools=(pool,), spare_nodes=spare_nodes), seed=seed)


@cache
def mixtral(**targets: float) -> Result:
    """Mixtral on one node, with targets on means by metric."""
    wanted = tuple(Target(metric=metric, limit=limit) for metric, limit in targets.items())
    return run(
        worlds.scenario(MIXTRAL, short=True, workload=replace(SERVING, targets=wanted)),
        worlds.pool(EP8, batching=BATCH),
    )


def faster(world: Scenario, what: str, factor: float) -> Scenario:
    """The world with one thing quicker: every link, the multipliers or the memory."""
    (offer,) = world.hardware.offers
    node, fabric = offer.node, world.hardware.fabric
    device = node.device
    match what:
        case "links":
            fabric = tuple(replace(tier, bandwidth=tier.bandwidth * factor) for tier in fabric)
            tiers = tuple(replace(tier, bandwidth=tier.bandwidth * factor) for tier in node.tiers)
            node = replace(node, tiers=tiers)
        case "flop_rate":
            rates = {name: rate * factor for name, rate in device.flop_rate.items()}
            node = replace(node, device=replace(device, flop_rate=rates))
        case _:
            node = replace(node, device=replace(device, bandwidth=device.bandwidth * factor))
    return replace(world, hardware=Hardware(offers=(replace(offer, node=node),), fabric=fabric))


def numbers(result: Result) -> dict[str, float]:
    """Headline numbers without their ranges."""
    return {name: value.mid for name, value in result.summary.items()}


def test_the_shipped_plan_meets_its_targets() -> None:
    world = load_scenario(EXAMPLES / "deepseek_v3_serving.yaml")
    plan = load_plan(EXAMPLES / "deepseek_v3_plan.yaml", world)
    result = estimate(world, plan)
    assert result.verdict.good
    assert set(result.verdict.meets) == {"ttft.p99", "tpot.p99", "load"}
    assert result.verdict.binding == result.tables["breakdown"]["part"].iloc[0]
    assert result.verdict.why.startswith("meets every target; the tightest is ")
    (pool,) = plan.pools
    whole = result.tables["breakdown"]["exposed"].sum() * pool.parallel.pp
    assert whole == pytest.approx(result.summary["step"].mid, rel=1e-9)


TRAINING = Parallel(pp=4, dp=4, tp=2, ep=8)


@cache
def microbatch() -> Result:
    world = load_scenario(EXAMPLES / "mixtral_pretraining.yaml")
    pool = worlds.pool(TRAINING, node="nvidia/hgx-a100")
    return run(world, replace(pool, framework=next(iter(world.frameworks))))


def test_a_training_step() -> None:
    """1,024 sequences of 4,096 tokens an update, 256 microbatches for each of 4 dp groups; no target to miss."""
    result = microbatch()
    assert (result.verdict.fits, result.verdict.good, result.verdict.why) == (True, True, "fits")
    assert "tpot" not in result.summary
    step = result.summary["step"].mid
    assert result.summary["throughput"].mid == pytest.approx(1024 * 4096 / step, rel=1e-12)
    parts = result.tables["step"].set_index("part")["time"]
    assert parts.sum() == pytest.approx(step, rel=1e-9)
    passes = parts["forward"] + parts["backward"]
    assert result.tables["breakdown"]["exposed"].sum() * 256 == pytest.approx(passes, rel=1e-9)
    assert parts["bubble"] == pytest.approx(3 / 256 * passes, rel=0.1)  # (stages - 1) / microbatches, and messages
    assert (parts[["gradients", "update"]] > 0).all()
    spent = result.summary["time_to_train"].mid
    assert spent == pytest.approx(300e9 / result.summary["throughput"].mid / result.summary["useful"].mid, rel=1e-12)
    assert result.summary["price_to_train"].mid == pytest.approx(spent * result.summary["price"].mid, rel=1e-12)
    assert 0.05 < result.summary["mfu"].mid < 0.8
    dispatches = result.tables["tasks"].query("name == 'dispatch'").groupby("layer")["task"].nunique()
    assert set(dispatches) == {2}  # forth, and the gradients' way back


OVERLAPS = {
    "none": Policy(name="none"),
    "two batches": Policy(name="two_batch"),
    "chunks": Policy(name="pipeline", settings={"degree": 4}),
}


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_exposed_parts_add_up_to_the_step(overlap: str) -> None:
    """To 1e-9 without overlap; with it, to the thousandth by which shortened passes may differ from whole ones."""
    result = run(
        worlds.scenario(GPT_OSS, short=True, cv=0.35, workload=SERVING),
        worlds.pool(EP8, batching=BATCH, overlap=OVERLAPS[overlap]),
    )
    table = result.tables["breakdown"]
    assert np.all(table["exposed"] >= 0)
    assert np.all(table["exposed"].diff().dropna() <= 0)
    tolerance = 1e-9 if overlap == "none" else 1e-3
    assert table["exposed"].sum() == pytest.approx(result.summary["step"].mid, rel=tolerance)
    exchanged = table[table["part"].isin(["dispatch", "combine"])]
    hidden = exchanged["hidden"].sum() / exchanged["busy"].sum()
    assert hidden < 0.01 if overlap == "none" else hidden > 0.3


def test_headline_numbers_follow_from_the_step() -> None:
    """Two replicas of 8 gpus and a spare node: tokens a step over its time, and rent over the tokens asked for."""
    world = worlds.scenario(MIXTRAL, short=True, workload=SERVING)
    result = run(world, worlds.pool(EP8, replicas=2, batching=BATCH), spare_nodes=1)
    found, offered = numbers(result), 12.0 * 300.0
    step = found["step"]
    able = 2 * 8 * 64 / step
    assert found["throughput"] == pytest.approx(able, rel=1e-12)
    assert (found["gpus"], found["tpot"]) == (24, step)
    assert found["throughput_per_gpu"] == pytest.approx(able / 24, rel=1e-12)
    assert found["price"] == pytest.approx(24 * 3.5 / 3600, rel=1e-12)
    assert offered < able
    assert found["price_per_token"] == pytest.approx(24 * 3.5 / 3600 / offered, rel=1e-12)
    assert set(found) <= set(METRICS)


def test_half_a_node_is_paid_for_whole() -> None:
    world = worlds.scenario(MIXTRAL, short=True, workload=SERVING)
    assert run(world, worlds.pool(Parallel(dp=4, ep=4), replicas=3, batching=BATCH)).summary["gpus"].mid == 16


@pytest.mark.parametrize("overlap", ["none", "two_batch"])
@pytest.mark.parametrize("parallel", [EP8, Parallel(dp=4, tp=2, ep=8), Parallel(pp=2, dp=8, ep=8)])
def test_prompts_enter_as_fast_as_answers_leave(parallel: Parallel, overlap: str) -> None:
    """A full batch ends one request in 300 a step and sequence, so 2000/300 prompt tokens a sequence must enter."""
    pool = worlds.pool(parallel, batching=BATCH, overlap=overlap)
    table = table_of([pool])
    point = operation(SERVING, table)
    share, decoding = point.carrying.item(), point.decoding.item()
    assert decoding == 64 / parallel.pp
    entering = share * point.carriers.item() * point.chunk.item()
    assert entering == pytest.approx(decoding * 2000 / 300, rel=1e-12)
    alone = decoding * 2000 / 300 / point.chunk.item()  # share of its passes in which one group carries prompts
    assert share == pytest.approx(1 - (1 - alone) ** parallel.dp, rel=1e-12)
    group = parallel.tp * parallel.cp
    for carrying in (True, False):
        passes = Passes(table=table, point=point, carrying=np.array([carrying]))
        batch = passes.batch(SERVING, 1.0)
        assert batch.decode.item() * group == pytest.approx(decoding, rel=1e-12)
        assert batch.prefill.item() * group == pytest.approx(point.chunk.item() * carrying, rel=1e-12)
        half = passes.batch(SERVING, 0.5)
        assert half.tokens.item() == pytest.approx(batch.tokens.item() / 2, rel=1e-12)


def test_a_small_budget_shrinks_the_batch_to_what_it_feeds() -> None:
    """512 tokens a step: 512 x 300 / 2300 = 66.8 sequences decode, the other 445.2 tokens are of prompts."""
    starved = Policy(name="chunked", settings={"max_batch": 256, "budget": 512})
    point = operation(SERVING, table_of([worlds.pool(EP8, batching=starved)]))
    assert point.decoding.item() == pytest.approx(512 * 300 / 2300, rel=1e-12)
    assert point.chunk.item() == pytest.approx(512 * 2000 / 2300, rel=1e-12)
    assert point.carrying.item() == pytest.approx(1.0, rel=1e-12)


def test_speculation_emits_more_than_one_token_a_step() -> None:
    drafting = Policy(name="chunked", settings={"max_batch": 16, "speculated": 1, "acceptance": 0.85})
    world = worlds.scenario(DEEPSEEK, short=True, workload=SERVING)
    plain, drafts = (
        run(world, worlds.pool(Parallel(dp=16, ep=16), batching=policy)).summary
        for policy in (Policy(name="chunked", settings={"max_batch": 16}), drafting)
    )
    assert drafts["tpot"].mid == pytest.approx(drafts["step"].mid / 1.85, rel=1e-12)
    assert drafts["step"].mid > plain["step"].mid


def test_utilization_counts_each_layers_own_tokens() -> None:
    """8 x 64 decoded and 6.67 times as many prompt tokens a step, on bf16 peak; NLLB's decoder sees answers alone."""
    found = numbers(mixtral())
    tokens = 8 * 64 * (1 + 2000 / 300)
    work = 2 * active_parameters(worlds.brief(MIXTRAL)) * tokens
    assert found["mfu"] == pytest.approx(work / (found["step"] * 8 * 989e12), rel=1e-3)
    model = worlds.brief(NLLB)
    prompts, decoded = np.array([300.0]), np.array([100.0])
    encoder = [layer_parameters(layer, active=True) for layer in model.layers if layer.part == "encoder"]
    rest = active_parameters(model) - sum(encoder)
    assert pass_work(model, prompts, prompts + decoded, training=False) == 2 * (300 * sum(encoder) + 100 * rest)
    whole = 6 * 400 * active_parameters(model)
    assert pass_work(model, prompts + decoded, prompts + decoded, training=True) == whole


def test_verdict_of_a_plan_that_does_not_fit() -> None:
    result = run(worlds.scenario(DEEPSEEK, workload=SERVING), worlds.pool(Parallel(dp=4, ep=4)))
    verdict = result.verdict
    assert (verdict.fits, verdict.good, verdict.binding) == (False, False, "memory")
    assert verdict.why.startswith("does not fit: expert weights 164 GB + ")
    assert set(result.tables) == {"memory"}
    assert np.isnan(result.summary["step"].mid)
    assert result.summary["memory_headroom"].mid < 0


def test_verdict_of_missed_targets() -> None:
    step = mixtral().summary["tpot"].mid
    result = mixtral(tpot=step / 2, ttft=1e6)
    assert result.verdict.meets == {"tpot": False, "ttft": True, "load": True}
    assert result.verdict.binding == "tpot"
    assert result.verdict.why.startswith("tpot = ")
    assert "misses its limit of" in result.verdict.why
    assert mixtral(tpot=step).verdict.good


def test_verdict_of_too_much_load() -> None:
    busy = replace(SERVING.requests.arrivals, rate=1e6)
    heavy = replace(SERVING, requests=replace(SERVING.requests, arrivals=busy))
    result = run(worlds.scenario(MIXTRAL, short=True, workload=heavy), worlds.pool(EP8, batching=BATCH))
    assert (result.verdict.binding, result.verdict.fits, result.verdict.good) == ("load", True, False)
    able = result.summary["throughput"].mid
    assert result.verdict.why == f"carries {able:,.0f} of the 300,000,000 output tokens/s asked for"
    assert result.summary["price_per_token"].mid == pytest.approx(result.summary["price"].mid / able, rel=1e-12)


def test_a_closed_loop_asks_for_all_there_is() -> None:
    closed = replace(SERVING.requests.arrivals, rate=0.0, concurrency=64)
    workload = replace(SERVING, requests=replace(SERVING.requests, arrivals=closed))
    result = run(worlds.scenario(MIXTRAL, short=True, workload=workload), worlds.pool(EP8, batching=BATCH))
    assert (result.verdict.good, result.verdict.meets, result.verdict.why) == (True, {}, "fits")


def test_a_refusing_policy_gives_a_verdict() -> None:
    result = run(worlds.scenario(MIXTRAL, short=True, workload=SERVING), worlds.pool(EP8, alltoall="two_dh"))
    assert (result.verdict.fits, result.verdict.good, result.verdict.binding) == (False, False, "policy")
    assert "needs two or more whole nodes of 8 gpus, not 8 ranks; use `linear`" in result.verdict.why


def test_several_pools_are_refused() -> None:
    pool = worlds.pool(EP8)
    with pytest.raises(PlanError, match="pools of roles all, all; estimate one pool of role `all`"):
        estimate(worlds.scenario(MIXTRAL), Plan(pools=(pool, pool)))


@pytest.mark.parametrize(
    ("name", "parallel", "alltoall"),
    [
        (DENSE, Parallel(tp=4), "reduce"),
        (NLLB, EP8, "linear"),
        (SWIN, EP8, "linear"),
        (QWEN, Parallel(dp=16, ep=16), "linear"),
    ],
)
def test_every_kind_of_model_can_be_estimated(name: str, parallel: Parallel, alltoall: str) -> None:
    result = run(
        worlds.scenario(name, short=True, workload=SERVING), worlds.pool(parallel, alltoall=alltoall, batching=BATCH)
    )
    parts = set(result.tables["breakdown"]["part"])
    assert np.isfinite(list(numbers(result).values())).all()
    assert ("experts" in parts) == (name != DENSE)
    assert ("head" in parts) == (name != SWIN)
    assert 0 < result.summary["mfu"].mid < 1


SPEEDS = {
    "one node": (MIXTRAL, EP8, "linear"),
    "two nodes": (DEEPSEEK, Parallel(dp=16, ep=16), "deduplicated"),
    "tensors": (MIXTRAL, Parallel(tp=8, ep=8), "reduce"),
}


@pytest.mark.parametrize("case", SPEEDS)
@pytest.mark.parametrize("what", ["links", "flop_rate", "bandwidth"])
def test_faster_hardware_is_never_slower(case: str, what: str) -> None:
    name, parallel, alltoall = SPEEDS[case]
    pool = worlds.pool(parallel, alltoall=alltoall, batching=BATCH)
    world = worlds.scenario(name, short=True, cv=0.35, workload=SERVING)
    steps = [estimate_pools(faster(world, what, factor), table_of([pool])).step[0] for factor in (1.0, 1.5, 4.0)]
    assert steps[0] > steps[1] > steps[2]


def test_the_weakest_source_and_what_left_its_box_reach_the_result() -> None:
    """A calibrated product measured up to 8 rows: the estimate still rests on priors, and says where it strayed."""
    offer = worlds.offer()
    prior = kernel_prior(offer.node.device, "gemm", "bf16", "")
    plain = run(worlds.scenario(MIXTRAL, short=True, workload=SERVING), worlds.pool(EP8, batching=BATCH))
    assert plain.outside == ()

    def with_source(source: Source) -> Result:
        fit = replace(prior, source=source, box={"m": (1.0, 8.0)})
        device = replace(offer.node.device, fits={"gemm/bf16": fit})
        changed = replace(offer, node=replace(offer.node, device=device))
        world = worlds.scenario(MIXTRAL, short=True, workload=SERVING, offers=[changed])
        return run(world, worlds.pool(EP8, batching=BATCH))

    fitted = with_source(Source(kind="fitted", title="a bench"))
    assert fitted.source == plain.source
    assert fitted.summary["step"].mid == plain.summary["step"].mid
    assert any(line.startswith("gemm/bf16: m ") and "calibrated on 1 to 8" in line for line in fitted.outside)
    assert with_source(Source(kind="assumed", title="a guess")).source == "assumed"


def test_same_seed_same_result() -> None:
    world = worlds.scenario(MIXTRAL, short=True, cv=0.5, workload=SERVING)
    one, same, other = (run(world, worlds.pool(EP8, batching=BATCH), seed=seed) for seed in (3, 3, 4))
    assert one.summary == same.summary
    assert one.tables["tasks"].equals(same.tables["tasks"])
    assert one.summary["step"].mid != other.summary["step"].mid
    assert one.summary["step"].mid == pytest.approx(other.summary["step"].mid, rel=0.05)


def test_tables_name_their_units() -> None:
    units = {name: table.attrs["units"] for name, table in mixtral().tables.items()}
    assert units["memory"] == {"size": "B"}
    assert units["breakdown"] == {"busy": "s", "exposed": "s", "hidden": "s"}
    assert units["tasks"] == {"start": "s", "finish": "s"}
    tasks = mixtral().tables["tasks"]
    assert np.all(tasks["finish"] >= tasks["start"])
    assert tasks["finish"].max() > 0


def test_a_skewed_load_is_slower_than_a_balanced_one() -> None:
    steps = [
        run(worlds.scenario(MIXTRAL, short=True, cv=cv, workload=SERVING), worlds.pool(EP8, batching=BATCH))
        .summary["step"]
        .mid
        for cv in (0.0, 0.3, 0.9)
    ]
    assert steps == sorted(steps)
    assert steps[2] > 1.1 * steps[0]


def test_the_slowest_stage_is_broken_down() -> None:
    """Of two stages of a Mixtral with a million words, the last has the head."""
    world = worlds.scenario(MIXTRAL, short=True, workload=SERVING)
    wordy = replace(world, model=replace(world.model, vocab=1_000_000))
    result = run(wordy, worlds.pool(Parallel(pp=2, dp=8, ep=8), batching=BATCH))
    parts = set(result.tables["breakdown"]["part"])
    assert "head" in parts
    assert "send" not in parts
    assert result.tables["breakdown"]["exposed"].sum() * 2 == pytest.approx(result.summary["step"].mid, rel=1e-9)


def test_numbers_without_a_source_are_assumed() -> None:
    world = worlds.scenario("mistralai/Mixtral-8x7B-v0.1")
    assert not world.sources
    assert scenario_grounds(world, table_of([worlds.pool(Parallel(dp=8, ep=8))])) == ["assumed"]

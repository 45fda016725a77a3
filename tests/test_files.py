"""Scenario, plan, hardware and model files that are right: what they become."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.files.yaml import dump_plan, load_hardware, load_model, load_plan, load_scenario, load_study
from moesim.ground.errors import PlanError
from moesim.ground.units import Source
from moesim.plans.plan import DEFAULT_POLICIES, Parallel, Policy
from moesim.world.generators import Balanced, Topical
from moesim.world.model import parameters
from moesim.world.workload import Arrivals, Lengths, Target, Training

EXAMPLES = Path(__file__).parents[1] / "examples"
SERVING = EXAMPLES / "deepseek_v3_serving.yaml"
PLAN = Path(__file__).parent / "data" / "disaggregated_plan.yaml"

SMALL = """
name: small
model: Qwen/Qwen3-32B
hardware:
  offers: [{node: nvidia/hgx-h200, max_nodes: 2}]
  fabric: infiniband/rail-400g
workload:
  kind: serving
  requests:
    arrivals: {generator: closed, concurrency: 64}
    input: {generator: constant, mean: 100 tokens}
    output: {generator: constant, mean: 10 tokens}
"""


def study_of(tmp_path, text):
    file = tmp_path / "study.yaml"
    file.write_text(text)
    return load_study(file)


@pytest.fixture(scope="module")
def study():
    return load_study(SERVING)


@pytest.fixture(scope="module")
def scenario(study):
    return study.scenario


def test_the_serving_example_asks_for_the_cheapest_token(study):
    assert (study.goal, study.frontier) == ("price_per_token", ("price_per_token", "tpot"))
    assert study.space is not None
    assert study.space.axes == {"framework": ("vllm",)}
    hardware = study.scenario.hardware
    assert [(offer.node.name, offer.max_nodes) for offer in hardware.offers] == [
        ("nvidia/hgx-h100", 8),
        ("nvidia/hgx-h200", 8),
        ("nvidia/hgx-b200", 8),
        ("nvidia/gb200-nvl72", 1),
    ]
    assert [offer.rent * 3600 for offer in hardware.offers] == pytest.approx([2.95, 3.50, 6.03, 4.54])
    assert [tier.name for tier in hardware.fabric] == ["rail", "spine"]


def test_the_serving_example_is_the_load_it_describes(scenario):
    workload = scenario.workload
    assert workload.requests.arrivals == Arrivals(generator="gamma", rate=12.0, burstiness=2.0)
    assert workload.requests.input == Lengths(generator="lognormal", mean=2000.0, cv=0.8)
    assert workload.targets == (Target(metric="ttft.p99", limit=2.0), Target(metric="tpot.p99", limit=0.05))
    assert (workload.horizon, workload.warm_up) == (20000, 2000)


def test_a_preset_becomes_a_routing_for_the_models_experts(scenario):
    routing = scenario.routing
    assert isinstance(routing, Topical)
    assert (routing.layers, routing.experts, routing.topk) == (58, 256, 8)
    shares = routing.shares(0)
    assert (shares.std(axis=1) / shares.mean(axis=1)).tolist() == pytest.approx([0.25] * 58, rel=1e-3)
    assert routing.law.limits.group_topk == 4


def test_every_number_can_be_traced(scenario):
    assert scenario.sources["hardware.offers.nvidia/hgx-h100.rent"].read == "2026-05-20"
    assert scenario.sources["hardware.offers.nvidia/hgx-h100.node.device.memory"].kind == "published"
    assert scenario.sources["hardware.offers.nvidia/hgx-h200.node.tiers.nvlink.latency"].kind == "assumed"
    assert scenario.sources["hardware.fabric.rail.bandwidth"].kind == "published"
    assert scenario.sources["frameworks.vllm.utilization"].kind == "published"
    assert "2505.16056" in scenario.sources["routing.cv"].title


def test_all_frameworks_are_known_the_plain_one_first(scenario):
    assert list(scenario.frameworks) == ["plain", "sglang", "tensorrt_llm", "vllm"]


def test_the_training_example_loads():
    study = load_study(EXAMPLES / "mixtral_pretraining.yaml")
    assert study.scenario.workload == Training(sequence=4096, sequences=1024, tokens=3e11, optimizer="adam")
    assert study.scenario.failures.interval == 50700 * 3600
    assert study.scenario.failures.repair == 1800
    assert study.space.axes["parallel.tp"] == (1, 2, 4)
    assert study.space.axes["overlap"] == (
        Policy(name="none"),
        Policy(name="pipeline", settings={"degree": 2}),
    )


def test_a_small_file_has_the_usual_rest(tmp_path):
    study = study_of(tmp_path, SMALL)
    assert isinstance(study.scenario.routing, Balanced)  # a dense model has nothing to route
    assert study.scenario.hardware.offers[0].rent * 3600 == pytest.approx(3.50)  # the dated price that ships
    assert study.scenario.workload.requests.arrivals.concurrency == 64
    assert study.scenario.workload.targets == ()
    assert study.scenario.failures.interval == 0
    assert study.goal == "price_per_token"


def test_a_space_lists_alternatives_at_every_depth(tmp_path):
    space = """
space:
  pools: [all, prefill+decode]
  parallel.ep: [8, 16]
  parallel: {tp: [1, 2], pp: 1}
  pools.decode.parallel.ep: [32]
  placement: [contiguous, {name: eplb, redundant: [0, 32], groups: 8}]
  overlap: [none, {name: pipeline, degree: [2, [2, 4]]}]
  alltoall: linear
  framework: [vllm, plain]
  precision: {experts: [fp8, bf16]}
  max_batch: [64, 128]
  node: nvidia/hgx-h200
"""
    axes = study_of(tmp_path, SMALL + space).space.axes
    assert axes == {
        "pools": ("all", "prefill+decode"),
        "parallel.ep": (8, 16),
        "parallel.tp": (1, 2),
        "parallel.pp": (1,),
        "pools.decode.parallel.ep": (32,),
        "placement": (
            Policy(name="contiguous"),
            Policy(name="eplb", settings={"redundant": 0, "groups": 8}),
            Policy(name="eplb", settings={"redundant": 32, "groups": 8}),
        ),
        "overlap": (
            Policy(name="none"),
            Policy(name="pipeline", settings={"degree": 2}),
            Policy(name="pipeline", settings={"degree": (2, 4)}),
        ),
        "alltoall": (Policy(name="linear"),),
        "framework": ("vllm", "plain"),
        "precision.experts": ("fp8", "bf16"),
        "max_batch": (64, 128),
        "node": ("nvidia/hgx-h200",),
    }


def test_files_of_ones_own_are_found_beside_the_scenario(tmp_path):
    (tmp_path / "gpu.yaml").write_text(
        "name: acme/gpu\n"
        "memory: {value: 10 GB, from: me}\nbandwidth: {value: 1 TB/s, from: me}\npower: {value: 100 W, from: me}\n"
        "processors: {value: 10, from: me}\ncache: {value: 1 MB, from: me}\n"
        "flop_rate: {bf16: {value: 100 TFLOP/s, from: me}}\n"
        "fits:\n"
        "  gemm/bf16/mine:\n"
        "    {form: gemm, params: {peak: 9.0e13}, shared: 0.02, point: 0.05, box: {m: [1, 8192]}, source: run}\n"
        "sources:\n"
        "  me: {kind: assumed, title: mine}\n"
        "  run: {kind: fitted, title: my run, raw: samples.csv}\n"
    )
    (tmp_path / "box.yaml").write_text(
        "name: acme/box\ndevice: gpu.yaml\ngpus: {value: 2, from: me}\n"
        "host_memory: {value: 64 GB, from: me}\npower: {value: 100 W, from: me}\n"
        "tiers:\n"
        "  - {name: pcie, ranks: {value: 2, from: me}, bandwidth: {value: 32 GB/s, from: me},"
        " latency: {value: 5 us, from: me}}\n"
        "  - {name: host, bandwidth: {value: 32 GB/s, from: me}, latency: {value: 5 us, from: me}}\n"
        "  - {name: disk, bandwidth: {value: 1 GB/s, from: me}, latency: {value: 50 us, from: me}}\n"
        "sources: {me: {kind: assumed, title: mine}}\n"
    )
    (tmp_path / "habits.yaml").write_text(
        "name: mine\nversion: '2'\nreserve: {value: 1 GB, from: me}\nutilization: {value: 0.8, from: me}\n"
        "step: {value: 1 ms, from: me}\nblock: {value: 8, from: me}\nworkspace: {value: 4, from: me}\n"
        "sources: {me: {kind: assumed, title: mine}}\n"
    )
    text = SMALL.replace("nvidia/hgx-h200", "box.yaml") + "frameworks: [habits.yaml]\nspace: {framework: mine}\n"
    scenario = study_of(tmp_path, text).scenario
    device = scenario.hardware.offer("acme/box").node.device
    fit = device.fits["gemm/bf16/mine"]
    assert fit.source == Source(kind="fitted", title="my run", raw="samples.csv")
    assert (fit.box["m"], fit.params["peak"]) == ((1.0, 8192.0), 9e13)
    assert scenario.frameworks["mine"].source.kind == "assumed"
    assert scenario.sources["hardware.offers.acme/box.node.device.memory"].title == "mine"


def test_a_model_can_be_a_list_of_layers(tmp_path):
    file = tmp_path / "model.yaml"
    file.write_text(
        "name: tiny\nvocab: 10\ntied: true\n"
        "dtype_of: {experts: bf16, attention: bf16, dense: bf16, embedding: bf16, kv: bf16}\n"
        "layers:\n"
        "  - repeat: 2\n"
        "    layers:\n"
        "      - {part: decoder, dim: 8, tokens: 1.0, attention: none, ffn: {kind: dense, width: 16}}\n"
        "  - part: decoder\n"
        "    dim: 8\n"
        "    tokens: 1.0\n"
        "    attention: {kind: gqa, heads: 2, kv_heads: 1, head_dim: 4, value_dim: 4}\n"
        "    ffn: {kind: moe, experts: 4, topk: 2, width: 8, input_dim: 8}\n"
    )
    model = load_model(file)
    assert len(model.layers) == 3
    assert model.moe_layers == (2,)
    dense, attention, experts, gate, norms = 2 * 3 * 8 * 16, 8 * (8 + 8) + 8 * 8, 4 * 3 * 8 * 8, 8 * 4, 4 * 8
    assert parameters(model) == 10 * 8 + dense + attention + experts + gate + norms


def test_hardware_loads_alone_from_a_scenario_or_by_a_nodes_name(tmp_path):
    assert load_hardware(SERVING) == load_scenario(SERVING).hardware
    hardware = load_hardware("nvidia/hgx-a100", nodes=4, fabric="infiniband/hdr-200g")
    assert (hardware.offers[0].max_nodes, hardware.fabric[0].bandwidth) == (4, 25e9)
    file = tmp_path / "mine.yaml"
    file.write_text("offers: [{node: nvidia/hgx-h200, max_nodes: 2}]\nfabric: none/ethernet\n")
    assert load_hardware(file).offers[0].node.name == "nvidia/hgx-h200"


def test_the_plan_example_loads_and_writes_back(scenario, tmp_path):
    plan = load_plan(PLAN, scenario)
    assert [pool.role for pool in plan.pools] == ["prefill", "decode"]
    assert plan.pools[0].parallel == Parallel(dp=16, ep=16)
    assert plan.pools[0].policies["gating"] == DEFAULT_POLICIES["gating"]
    assert plan.pools[1].policies["batching"].settings["buckets"] == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    file = tmp_path / "plan.yaml"
    file.write_text(dump_plan(plan))
    assert load_plan(file, scenario) == plan


def test_any_plan_reads_back_equal(scenario, tmp_path):
    first = load_plan(PLAN, scenario)
    file = tmp_path / "plan.yaml"

    @given(
        pp=st.sampled_from([1, 2, 4]),
        dp=st.sampled_from([1, 2, 8]),
        tp=st.sampled_from([1, 2]),
        redundant=st.integers(0, 64),
        degree=st.sampled_from([2, "adaptive", (2, 4)]),
        precision=st.dictionaries(st.sampled_from(["experts", "kv", "dispatch"]), st.sampled_from(["fp8", "bf16"])),
        microbatch=st.integers(1, 4),
    )
    def reads_back(pp, dp, tp, redundant, degree, precision, microbatch):
        policies = {
            **DEFAULT_POLICIES,
            "placement": Policy(name="eplb", settings={"redundant": redundant}),
            "overlap": Policy(name="pipeline", settings={"degree": degree}),
        }
        pool = replace(
            first.pools[0],
            role="all",
            replicas=1,
            parallel=Parallel(pp=pp, dp=dp, tp=tp, ep=dp * tp),
            policies=policies,
            precision=precision,
            microbatch=microbatch,
        )
        plan = replace(first, pools=(pool,))
        file.write_text(dump_plan(plan))
        assert load_plan(file, scenario) == plan

    reads_back()


def planned(tmp_path, **changes):
    """Write a one-pool plan with some words changed."""
    text = (EXAMPLES / "deepseek_v3_plan.yaml").read_text()
    for before, after in changes.values():
        assert before in text
        text = text.replace(before, after)
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return path


def test_drafts_need_a_model_with_drafting_modules(tmp_path, scenario):
    drafting = planned(tmp_path, batch=("max_batch: 32", "max_batch: 32, speculated: 1, acceptance: 0.8"))
    assert load_plan(drafting, scenario).pools[0].policy("batching").settings["speculated"] == 1
    plain = replace(scenario, model=replace(scenario.model, mtp=0))
    with pytest.raises(PlanError, match=r"pools\.0\.policies\.batching: speculates 1 tokens.*set speculated to 0"):
        load_plan(drafting, plain)


def test_tokens_kept_in_place_need_one_group(tmp_path, scenario):
    degrees = ("dp: 4, tp: 4, cp: 1", "dp: 1, tp: 1, cp: 16")
    split = planned(tmp_path, degrees=degrees, alltoall=("alltoall: deduplicated", "alltoall: reduce"))
    with pytest.raises(PlanError, match=r"needs dp = cp = 1, not 1 and 16"):
        load_plan(split, scenario)

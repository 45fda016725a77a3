"""Training steps: pipelines by their published bubbles, what ends a step, what is kept and run again, whole runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.deployments.floors import floor_estimates
from moesim.deployments.pools import estimator_of
from moesim.deployments.runs import useful
from moesim.deployments.training import KINDS, Steps
from moesim.files.yaml import load_plan, load_scenario
from moesim.ground.errors import PlanError
from moesim.passes.backward import backward_of, gradients, subset
from moesim.passes.columns import columns
from moesim.passes.pipelining import Durations, held, training_step
from moesim.passes.table import table_of
from moesim.passes.timeline import makespan
from moesim.passes.updating import updating
from moesim.plans.plan import Parallel, Policy, Pool, Space
from moesim.policies.pipeline.dualpipe import DualPipe
from moesim.policies.pipeline.interleaved import Interleaved
from moesim.policies.pipeline.one_f_one_b import OneForwardOneBackward
from moesim.policies.protocols import Pipeline
from moesim.policies.sharding.none import Whole
from moesim.policies.sharding.zero import Zero
from moesim.schedules.costs.collectives import WAYS
from moesim.schedules.costs.pricing import price
from moesim.schedules.ops import AllToAll, Elementwise, Gemm, Reduce
from moesim.schedules.schedule import Schedule, Task
from moesim.search.optimization import optimize
from moesim.world.hardware import Device, Node
from moesim.world.scenario import Failures
from tests import worlds

ROOT = Path(__file__).parents[1]
MIXTRAL = "mistralai/Mixtral-8x7B-v0.1"
DEVICE = Device(name="d", memory=1, bandwidth=1, power=1, processors=1, cache=0, flop_rate={"bf16": 1.0})
NODE = Node(name="n", device=DEVICE, gpus=1, tiers=(), host_memory=0.0, power=0.0)
ONE, TWO, DUAL = OneForwardOneBackward(), Interleaved(chunks=2), DualPipe()


def durations(stages: int, **seconds: float | np.ndarray) -> Durations:
    """Durations of one plan, alike on all stages where given as one number; none otherwise."""
    given = {kind: np.broadcast_to(seconds.get(kind, 0.0), (1, stages)).astype(float) for kind in KINDS}
    return Durations(**given)


def end(step: Schedule) -> float:
    return makespan(price(step, NODE, ())).item()


def span(pipeline: Pipeline, stages: int, microbatches: int, **seconds: float | np.ndarray) -> float:
    return end(training_step(pipeline, microbatches, durations(stages, **seconds), behind=True))


class TestPipelines:
    @pytest.mark.parametrize(("stages", "microbatches"), [(1, 4), (2, 2), (4, 8), (8, 40), (8, 3)])
    def test_one_forward_one_backward_waits_for_all_stages_but_one(self, stages, microbatches):
        """Bubble (p - 1)(F + B): arXiv 2104.04473, section 2.2.1."""
        found = span(ONE, stages, microbatches, forward=1.0, backward=2.0)
        assert found == pytest.approx(3 * (microbatches + stages - 1), rel=1e-12)

    @pytest.mark.parametrize(("stages", "chunks"), [(2, 2), (4, 2), (4, 4), (8, 3)])
    def test_chunks_divide_the_bubble(self, stages, chunks):
        """Bubble (p - 1)(F + B) / v: arXiv 2104.04473, section 2.2.2."""
        found = span(Interleaved(chunks=chunks), stages, 3 * stages, forward=1.0, backward=2.0)
        assert found == pytest.approx(3 * (3 * stages + (stages - 1) / chunks), rel=1e-12)

    @pytest.mark.parametrize(("stages", "microbatches"), [(2, 4), (4, 8), (8, 20), (8, 40), (16, 32)])
    def test_two_ways_leave_the_published_bubble(self, stages, microbatches):
        """Bubble (p / 2 - 1)(F&B + B - 3 W): DeepSeek-V3's report, table 2. F&B here takes what both take alone."""
        found = span(DUAL, stages, microbatches, forward=1.0, backward=2.0, weights=1.0, beside=3.0)
        assert found == pytest.approx(3 * microbatches + (stages / 2 - 1) * (3 + 2 - 3), rel=1e-12)

    def test_messages_between_stages_are_on_the_way_of_the_first_and_the_last_microbatch(self):
        """Three hops there and three back are on the way of the first and the last; others wait for some hops, too."""
        without, with_ = (span(ONE, 4, 8, forward=1.0, backward=2.0, send=hop) for hop in (0.0, 0.01))
        assert 6 * 0.01 <= with_ - without <= 2 * 8 * 3 * 0.01

    @pytest.mark.parametrize("policy", [ONE, TWO, DUAL])
    @pytest.mark.parametrize("stages", [2, 4, 8])
    def test_every_further_round_takes_as_long_where_stages_are_alike(self, policy, stages):
        given = durations(stages, forward=1.0, backward=2.0, weights=1.0, beside=2.6, send=0.05, gradients=0.3)
        steps = Steps(
            node=NODE, fabric=(), durations=given, orders=[(policy, Whole(), 9 * stages)], sources=(), outside=()
        )
        exact = end(training_step(policy, 9 * stages, given, behind=True))
        assert steps.seconds().item() == pytest.approx(exact, rel=1e-12)

    @given(st.integers(2, 6), st.data())
    @settings(max_examples=25, deadline=None)
    def test_every_further_round_takes_nearly_as_long(self, stages, data):
        """Of many microbatches a few rounds are run, and the last difference stands for the rest."""
        policy = data.draw(st.sampled_from([ONE, TWO] if stages % 2 else [ONE, TWO, DUAL]))
        rounds = data.draw(st.integers(4, 9))
        seconds = {
            kind: np.array(data.draw(st.lists(st.floats(0.5, 2.0), min_size=stages, max_size=stages)))
            for kind in ("forward", "backward")
        }
        given = durations(stages, **seconds, weights=0.4, beside=seconds["forward"] + seconds["backward"], send=0.05)
        steps = Steps(
            node=NODE, fabric=(), durations=given, orders=[(policy, Whole(), rounds * stages)], sources=(), outside=()
        )
        exact = end(training_step(policy, rounds * stages, given, behind=True))
        assert steps.seconds().item() == pytest.approx(exact, rel=0.03)

    def test_stages_hold_as_many_microbatches_as_published(self):
        """p for one forward, one backward; p + 1 both ways; p (1 + (p - 1) / (p v)) interleaved."""
        assert [held(ONE, stage, 4, 64) for stage in range(4)] == [4, 3, 2, 1]
        assert held(ONE, 0, 8, 3) == 3
        assert {held(DUAL, stage, 8, 32) for stage in range(8)} == {9}
        assert held(TWO, 0, 8, 64) == pytest.approx(8 * (1 + 7 / 16))


class TestWhatEndsAStep:
    def test_gradients_hide_behind_the_last_backward_by_quarters(self):
        """The first quarter is ready after half a second of two: four seconds end at 4.5, and the update takes one."""
        plain, reduced = (span(ONE, 1, 4, forward=1.0, backward=2.0, update=1.0, gradients=g) for g in (0.0, 4.0))
        assert reduced - plain == pytest.approx(2.5)
        assert span(ONE, 1, 4, forward=1.0, backward=2.0, gradients=0.4) == pytest.approx(12 + 0.1)

    def test_weights_are_gathered_before_the_first_forward(self):
        assert span(ONE, 1, 4, forward=1.0, backward=2.0, gathered=2.0) == pytest.approx(12 + 2 + 0.25 - 1)

    def test_without_hiding_both_add_up(self):
        given = durations(1, forward=1.0, backward=2.0, gathered=2.0, gradients=4.0)
        assert end(training_step(ONE, 4, given, behind=False)) == pytest.approx(12 + 6)

    def test_collectives_go_by_levels(self):
        """DP 16 on two nodes of eight: reduce-scatter of all inside, of an eighth between; then gathers back."""
        reduced, gathered = exchanged(Parallel(dp=16, ep=8), Policy(name="zero"))
        dense = 32 * (4096 * (4096 * 2 + 2 * 1024) + 4096 * 8) + 2 * 32000 * 4096
        experts = 32 * 3 * 4096 * 14336
        assert [(op.form, op.size.item(), op.ranks.item()) for op in reduced] == [
            ("reduce_scatter", 4.0 * dense, 8.0),
            ("reduce_scatter", 4.0 * dense / 8, 2.0),
            ("reduce_scatter", 4.0 * experts, 1.0),  # the two copies of an expert are on two nodes
            ("reduce_scatter", 4.0 * experts, 2.0),
        ]
        assert [op.form for op in gathered] == ["all_gather"] * 4
        assert gathered[0].size.item() == 2.0 * dense / 8
        assert gathered[0].ranks.item() == 2.0

    def test_whole_states_are_all_reduced_and_nothing_is_gathered(self):
        reduced, gathered = exchanged(Parallel(dp=16, ep=8), Policy(name="none"))
        assert [op.form for op in reduced[:3]] == ["reduce_scatter", "all_reduce", "all_gather"]
        assert gathered == []

    @pytest.mark.parametrize(("stage", "shared"), [(1, {"optimizer"}), (2, {"optimizer", "gradients"})])
    def test_shares_of_states_are_kept(self, stage, shared):
        """Everything but the experts is divided by dp = 16, experts by their two copies."""
        whole, divided = kept(Policy(name="none")), kept(Policy(name="zero", settings={"stage": stage}))
        for item in ("gradients", "optimizer"):
            bytes_each = {"gradients": 4, "optimizer": 12}[item]
            dense = 32 * (4096 * (4096 * 2 + 2 * 1024) + 4096 * 8) + 2 * 32000 * 4096
            experts = 32 * 3 * 4096 * 14336
            assert whole[item] == bytes_each * (dense + experts)
            if item in shared:
                assert divided[item] == bytes_each * (dense / 16 + experts / 2)
            else:
                assert divided[item] == whole[item]

    def test_shared_weights_take_a_share_of_memory(self):
        whole, divided = (kept(Policy(name="zero", settings={"stage": stage})) for stage in (2, 3))
        assert divided["expert weights"] == whole["expert weights"] / 2
        assert divided["attention weights"] == whole["attention weights"] / 16


def exchanged(parallel: Parallel, sharding: Policy) -> tuple[list[Reduce], list[Reduce]]:
    """The collectives that reduce gradients, and those that gather weights, of one stage."""
    world = worlds.scenario(MIXTRAL, workload=worlds.TRAINING)
    cols = columns(table_of([worlds.pool(parallel, sharding=sharding)]), world.model, folded=True)
    found = updating(world, cols, 0)
    return [task.op for task in found.gradients.tasks], [task.op for task in found.gathered.tasks]


def kept(sharding: Policy) -> dict[str, float]:
    world = worlds.scenario(MIXTRAL, workload=worlds.TRAINING)
    memory = estimator_of(world, table_of([worlds.pool(Parallel(dp=16, ep=8), sharding=sharding)])).memory
    return {item: values.item() for item, values in memory.items.items()}


def trained(pool: Pool) -> tuple[float, float]:
    """Bound and estimate of a pool's step."""
    world = worlds.scenario(MIXTRAL, workload=worlds.TRAINING)
    estimator = estimator_of(world, table_of([pool]))
    rows = np.array([0])
    return floor_estimates(estimator, rows).step.item(), estimator.estimate(rows).step.item()


PIPED = [(1, "one_f_one_b"), (4, "one_f_one_b"), (4, "interleaved"), (4, "dualpipe")]


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(("pp", "pipeline"), PIPED)
@pytest.mark.parametrize("overlap", ["none", "two_batch", "pipeline"])
def test_no_step_is_below_its_bound(recompute, pp, pipeline, overlap):
    pool = worlds.pool(Parallel(pp=pp, dp=8, ep=4), pipeline=pipeline, recompute=recompute, overlap=overlap)
    bound, step = trained(pool)
    assert 0.4 * step < bound <= step


def test_what_is_run_again_takes_its_time_and_saves_memory():
    pools = [worlds.pool(Parallel(dp=8, ep=8), recompute=name) for name in ("none", "selective", "full")]
    steps = [trained(pool)[1] for pool in pools]
    assert steps[0] < steps[1] < steps[2] < steps[0] * 1.4
    world = worlds.scenario(MIXTRAL, workload=worlds.TRAINING)
    activations = estimator_of(world, table_of(pools)).memory.items["activations"]
    logits = 4096 * 32000 * 6
    gates = 4 * 4096 + 2 * 14336 * 2  # results of two norms; of both chosen experts' activation functions
    assert activations[0] - activations[1] == pytest.approx(4096 * 32 * gates)
    assert activations[2] == pytest.approx(4096 * 32 * 4096 * 2 + logits)


@pytest.mark.parametrize("way", WAYS)
def test_every_exchange_has_a_way_back_whose_way_back_it_is(way):
    sent, received = np.ones((1, 4)), np.full((1, 4), 2.0)
    there = AllToAll(tiers=("nvlink",), sent=sent, received=received, messages=np.ones((1, 1)), way=way)
    (back,) = gradients(there)
    assert (back.sent is received, back.received is sent) == (True, True)
    assert gradients(back)[0].way == way


def test_a_subset_waits_for_what_is_left_before_it():
    """Of norm, product, activation, product: the activation, run again, waits for the norm, and backward for it."""
    size = np.ones((1, 1, 1))
    product, passed = Gemm(m=size, n=size, k=size, dtype="bf16"), Elementwise(traffic=size)
    tasks = [
        Task(name="mlp", stream="compute", op=op, after=(at - 1,) if at else ())
        for at, op in enumerate((passed, product, passed, product))
    ]
    forward = Schedule(tasks=tuple(tasks), out=(3,))
    few = subset(forward, lambda task: isinstance(task.op, Elementwise))
    assert [task.after for task in few.tasks] == [(), (0,)]
    assert few.out == (1,)
    again = backward_of(forward, lambda task: isinstance(task.op, Elementwise))
    assert [type(task.op) for task in again.tasks[:3]] == [Elementwise, Elementwise, Gemm]
    assert again.tasks[2].after == (1,)
    assert len(again.tasks) == len(few.tasks) + len(backward_of(forward).tasks)


class TestRuns:
    def test_failures_take_time_by_young_and_daly(self):
        """10,000 gpus, one failure per gpu in 50,000 h: every 5 h; 1 TB at 1 GB/s a gpu takes 0.1 s to write."""
        often = Failures(interval=50_000 * 3600.0, repair=1800.0, checkpoint=1e12)
        found = useful(often, np.array([10_000]), np.array([1e9]))
        assert found.item() == pytest.approx(1 - np.sqrt(2 * 0.1 / 18_000) - 1800 / 18_000, rel=1e-12)

    def test_nothing_fails_nothing_is_lost(self):
        assert useful(Failures(), np.array([8]), np.array([np.inf])).tolist() == [1.0]

    def test_the_cheapest_run_is_found(self):
        """The search's first plan is the cheapest of all that fit, each estimated by itself."""
        world = load_scenario(ROOT / "examples/mixtral_pretraining.yaml")
        axes = {
            "parallel.pp": (1, 2),
            "parallel.tp": (2,),
            "parallel.etp": (1,),
            "parallel.dp": (16, 32),
            "alltoall": (Policy(name="linear"),),
            "overlap": (Policy(name="none"),),
            "microbatch": (1, 2),
        }
        ranking = optimize(world, Space(axes=axes), goal="price_to_train")
        found = ranking.estimated["price_to_train"].min()
        best = ranking.results[0].summary["price_to_train"].mid
        assert best == pytest.approx(found, rel=1e-12)
        assert ranking.certificate.estimated + ranking.certificate.bounded > 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("replicas: 2", "pools.0.replicas: 2 replicas would train 2 models; give 1, and parallel.dp 2 times as large"),
        ("microbatch: 3", "do not divide 1024 sequences a step"),
        ("policies: {pipeline: interleaved}", "one stage has nothing to interleave; use `one_f_one_b`"),
        ("policies: {sharding: {name: zero, stage: 4}}", "stage = 4; give 1, 2 or 3"),
        ("role: prefill", "`prefill` has no meaning in training; give `all`"),
    ],
)
def test_what_cannot_train_is_refused_by_field(change, message, tmp_path):
    world = load_scenario(ROOT / "examples/mixtral_pretraining.yaml")
    fields = {
        "role": "all",
        "node": "nvidia/hgx-a100",
        "replicas": "1",
        "parallel": "{dp: 8, ep: 8}",
        "microbatch": "1",
    }
    name, _, value = change.partition(": ")
    fields[name] = value
    text = "pools:\n  - " + "\n    ".join(f"{key}: {value}" for key, value in fields.items())
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(PlanError) as refused:
        load_plan(tmp_path / "plan.yaml", world)
    assert message in str(refused.value)


def test_policies_of_training_are_refused_in_serving(tmp_path):
    world = load_scenario(ROOT / "examples/deepseek_v3_serving.yaml")
    text = (ROOT / "examples/deepseek_v3_plan.yaml").read_text()
    (tmp_path / "plan.yaml").write_text(text.replace("policies:", "policies:\n      sharding: zero", 1))
    with pytest.raises(PlanError, match=r"policies.sharding: has no meaning in serving; leave it out"):
        load_plan(tmp_path / "plan.yaml", world)


def test_dtypes_of_masters_do_not_change_what_is_gathered():
    """bf16 weights are gathered as they are stored, 2 bytes; gradients travel in fp32, 4 bytes."""
    reduced, gathered = exchanged(Parallel(dp=8, ep=8), Policy(name="zero"))
    assert reduced[0].size.item() == 2 * gathered[1].size.item()


def test_zero_3_gathers_for_every_pass():
    """A microbatch takes at least as long as gathering its weights, where that hides behind it."""
    given = durations(1, forward=1.0, backward=2.0, gathered=3.0, gradients=1.0)
    plain, shared = (
        Steps(node=NODE, fabric=(), durations=given, orders=[(ONE, Zero(stage=stage), 8)], sources=(), outside=())
        for stage in (1, 3)
    )
    assert shared.seconds().item() - plain.seconds().item() == pytest.approx(8 * (3 + 4 - 3), rel=0.1)


def test_parts_add_up_to_the_step():
    given = durations(4, forward=1.0, backward=2.0, gathered=0.3, gradients=0.6, update=0.2, send=0.01)
    steps = Steps(node=NODE, fabric=(), durations=given, orders=[(ONE, Zero(), 16)], sources=(), outside=())
    parts = steps.parts(0)
    assert sum(parts.values()) == pytest.approx(steps.seconds().item(), rel=1e-12)
    assert (parts["forward"], parts["backward"], parts["update"]) == (16.0, 32.0, 0.2)

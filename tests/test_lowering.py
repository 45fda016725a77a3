"""Lowered schedules: what they hold, and what they must conserve."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pytest
import worlds
from hypothesis import given
from hypothesis import strategies as st

from moesim.passes.columns import stage_layers
from moesim.passes.exchanges import Routed, Topology, mixture
from moesim.passes.groups import labels
from moesim.passes.lowering import arrange, distinct_blocks, lower
from moesim.passes.presence import home_tokens
from moesim.plans.layout import NO_LIMIT, Layout
from moesim.plans.plan import Parallel, Policy, Pool
from moesim.schedules.ops import AllToAll, Attend, Elementwise, Gemm, Grouped, Reduce
from moesim.schedules.schedule import Schedule, Task
from moesim.world.attention import Cross, Linear, Window
from moesim.world.generators import Recorded
from moesim.world.model import Moe
from moesim.world.scenario import Scenario
from moesim.world.workload import Batch, decoding, mixed, prompts

TOKENS = 128
CONTEXT = 1000.0

PARALLELISMS = {
    "tp": (Parallel(tp=8, ep=8), "reduce"),
    "tp etp": (Parallel(tp=8, ep=2, etp=4), "reduce"),
    "dp attention, ep": (Parallel(dp=8, ep=8), "linear"),
    "dp attention, tp, ep": (Parallel(dp=4, tp=2, ep=8), "linear"),
    "ep over nodes": (Parallel(dp=16, ep=16), "deduplicated"),
    "gathered": (Parallel(dp=8, tp=2, ep=16), "gathered"),
    "two-level": (Parallel(dp=8, tp=2, ep=16), "two_dh"),
    "etp": (Parallel(dp=8, ep=4, etp=2), "linear"),
    "edp": (Parallel(dp=8, ep=4), "linear"),
    "cp": (Parallel(dp=4, cp=2, ep=8), "linear"),
    "pp": (Parallel(pp=2, dp=8, ep=8), "linear"),
}
BATCHES = {
    "prefill": prompts(np.array([1.0]), np.array([float(TOKENS)])),
    "decode": decoding(np.array([float(TOKENS)]), np.array([CONTEXT])),
    "mixed": mixed(
        prompts(np.array([1.0]), np.array([TOKENS / 2])), decoding(np.array([TOKENS / 2]), np.array([CONTEXT]))
    ),
    "training": prompts(np.array([1.0]), np.array([float(TOKENS)]), backward=True),
}
ONE = Parallel()
DEEPSEEK, MIXTRAL, GPT_OSS, QWEN, SWIN, NLLB, DENSE = worlds.MODELS


def divides(name: str, parallel: Parallel) -> bool:
    """Whether a model's heads and experts take these degrees."""
    model = worlds.model(name)
    heads = all(layer.attention is None or layer.attention.heads % parallel.tp == 0 for layer in model.layers)
    return heads and (not model.moe_layers or parallel.ep <= model.moe(model.moe_layers[0]).experts)


def stages(name: str, parallel: Parallel, alltoall: str, batch: Batch) -> list[Schedule]:
    """Lower every stage of a shortened model, all ranks and layers kept apart."""
    world = worlds.scenario(name, cv=0.5 if worlds.model(name).moe_layers else 0.0, short=True)
    chosen = worlds.pool(parallel, alltoall=alltoall)
    return [worlds.unfolded(world, chosen, batch, stage=stage)[0] for stage in range(parallel.pp)]


def first_layer(name: str, parallel: Parallel, batch: Batch, **policies: Policy | str) -> list[Task]:
    """Lower a shortened model and keep its first layer's tasks."""
    chosen = worlds.pool(parallel, **policies)
    return layer_tasks(worlds.unfolded(worlds.scenario(name, short=True), chosen, batch)[0], 0)


def layer_tasks(schedule: Schedule, number: int) -> list[Task]:
    return [task for task in schedule.tasks if task.layer == number]


def parts(tasks: Sequence[Task]) -> list[str]:
    """Names of parts in order, neighbours of one name once."""
    return [name for name, _ in groupby(task.name for task in tasks)]


def over_ranks(size: np.ndarray, schedule: Schedule) -> float:
    return float(np.broadcast_to(size, (*size.shape[:-1], schedule.rows)).sum())


def products(schedule: Schedule) -> dict[str, float]:
    """Multiply-adds over all ranks by name of part."""
    work: dict[str, float] = {}
    for task in schedule.tasks:
        if isinstance(task.op, Gemm | Grouped):
            rows = task.op.m if isinstance(task.op, Gemm) else task.op.rows.sum(axis=0)
            work[task.name] = work.get(task.name, 0.0) + over_ranks(rows * task.op.n * task.op.k, schedule)
    return work


CASES = [
    pytest.param(name, kind, id=f"{name.split('/')[1]}-{kind}")
    for name in worlds.MODELS
    for kind in PARALLELISMS
    if divides(name, PARALLELISMS[kind][0])
]


@pytest.mark.parametrize("phase", ["mixed", "training"])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_bytes_and_tokens_are_conserved(name: str, kind: str, phase: str) -> None:
    parallel, alltoall = PARALLELISMS[kind]
    model, batch = worlds.brief(name), BATCHES[phase]
    for stage, schedule in enumerate(stages(name, parallel, alltoall, batch)):
        for task in schedule.tasks:
            if isinstance(task.op, AllToAll):
                np.testing.assert_allclose(task.op.sent.sum(axis=-1), task.op.received.sum(axis=-1), rtol=1e-12)
        for number in stage_layers(model, parallel.pp, stage):
            layer = model.layers[number]
            if not isinstance(layer.ffn, Moe):
                continue
            grouped = [task.op for task in layer_tasks(schedule, number) if isinstance(task.op, Grouped)]
            home = home_tokens(layer, model, batch).max() * parallel.ranks
            assert len(grouped) == (6 if batch.backward else 2)
            for op in grouped:
                assert op.rows.sum() == home * layer.ffn.topk * parallel.etp


def test_the_whole_of_deepseek() -> None:
    """3 dense and 58 MoE layers, the head, and with speculation the drafting module and its head."""
    world = worlds.scenario(DEEPSEEK)
    drafting = Policy(name="chunked", settings={"speculated": 1, "acceptance": 0.85})
    chosen = worlds.pool(Parallel(dp=8, ep=8), batching=drafting)
    drawn = worlds.one_layer_draws(world, chosen, TOKENS, draws=1, folded=True)
    (schedule,) = worlds.lowered(world, chosen, BATCHES["decode"], [drawn])
    dense = {task.layer for task in schedule.tasks if task.name == "mlp"}
    mixtures = {task.layer for task in schedule.tasks if task.name == "experts"}
    assert (dense, mixtures) == ({0, 1, 2}, {*range(3, 61), 61})
    assert [task.layer for task in schedule.tasks if task.name == "head"] == [61, 62]
    assert [task.layer for task in schedule.tasks if task.name == "mtp"] == [61]
    plain = worlds.pool(Parallel(dp=8, ep=8))
    (without,) = worlds.lowered(world, plain, BATCHES["decode"], [drawn])
    assert parts(without.tasks[-2:]) == ["norm", "head"]
    assert {task.layer for task in without.tasks if task.name == "experts"} == {*range(3, 61)}


def test_equal_layers_hold_the_same_ops() -> None:
    world = worlds.scenario(DEEPSEEK)
    chosen = worlds.pool(Parallel(dp=8, ep=8))
    drawn = worlds.one_layer_draws(world, chosen, TOKENS, draws=2)
    (schedule,) = worlds.lowered(world, chosen, BATCHES["mixed"], [drawn])
    ops = [[id(task.op) for task in layer_tasks(schedule, number)] for number in range(61)]
    assert ops[0] == ops[1] == ops[2]
    assert all(each == ops[3] for each in ops[4:])
    assert set(ops[0]).isdisjoint(ops[3])


def test_layers_with_their_own_draws_share_nothing_routed() -> None:
    schedule, drawn = worlds.unfolded(
        worlds.scenario(MIXTRAL, cv=0.5, short=True), worlds.pool(Parallel(dp=8, ep=8)), BATCHES["decode"]
    )
    for number in range(2):
        rows = [task.op.rows for task in layer_tasks(schedule, number) if isinstance(task.op, Grouped)]
        np.testing.assert_array_equal(rows[0][0, 0, 0], drawn.counts[0, number].sum(axis=0))


PARTS = {
    ("tp", DEEPSEEK): "norm attention reduce norm gate shared pack experts unpack reduce",
    ("dp attention, ep", DEEPSEEK): "norm attention norm gate shared pack sizes dispatch experts combine unpack",
    ("cp", QWEN): "norm attention norm gate shared pack sizes dispatch experts combine unpack",
    ("etp", MIXTRAL): "norm attention norm gate pack sizes dispatch experts combine unpack",
    ("two-level", GPT_OSS): "norm attention reduce norm gate pack sizes dispatch experts combine unpack reduce",
}


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_order_of_parts(kind: str, name: str) -> None:
    parallel, alltoall = PARALLELISMS[kind]
    (schedule,) = stages(name, parallel, alltoall, BATCHES["mixed"])
    number = worlds.brief(name).moe_layers[-1]
    assert parts(layer_tasks(schedule, number)) == PARTS[kind, name].split()
    assert schedule.tasks[0].name == "embed"
    assert parts(schedule.tasks[-2:]) == ["norm", "head"]


def test_stages_hand_over_to_the_next() -> None:
    first, last = stages(MIXTRAL, *PARALLELISMS["pp"], BATCHES["decode"])
    assert (first.tasks[0].name, first.tasks[-1].name) == ("embed", "send")
    assert (last.tasks[0].name, last.tasks[-1].name) == ("norm", "head")
    np.testing.assert_array_equal(first.tasks[-1].op.size, TOKENS * 4096 * 2)
    assert {task.layer for task in first.tasks if task.name == "gate"} == {0}
    assert {task.layer for task in last.tasks if task.name == "gate"} == {1}


def test_all_tokens_to_one_expert_arrive_at_its_rank() -> None:
    """Expert 3 lives on rank 3: seven ranks send it 128 rows of 4096 bf16 elements and get as many back."""
    world, chosen = worlds.scenario(MIXTRAL, short=True), worlds.pool(Parallel(dp=8, ep=8))
    counts = np.zeros((1, 1, 8, 8), int)
    counts[..., 3] = TOKENS
    layers = np.array([[0]])
    drawn = Routed(counts=counts, layer_of=layers, distinct=worlds.distinct(world, chosen, layers))
    (schedule,) = worlds.lowered(world, chosen, BATCHES["decode"], [drawn])
    found = {task.name: task.op for task in layer_tasks(schedule, 0)}
    buffer, there, elsewhere = TOKENS * 4096 * 2, np.arange(8) == 3, np.arange(8) != 3
    dispatch, combine, experts = found["dispatch"], found["combine"], found["experts"]
    assert isinstance(dispatch, AllToAll)
    assert isinstance(combine, AllToAll)
    assert isinstance(experts, Grouped)
    inside = dispatch.tiers.index("nvlink")
    np.testing.assert_array_equal(dispatch.received[inside].ravel(), there * 7 * buffer)
    np.testing.assert_array_equal(dispatch.sent[inside].ravel(), elsewhere * buffer)
    np.testing.assert_array_equal(combine.received[inside].ravel(), elsewhere * buffer)
    np.testing.assert_array_equal(combine.sent[inside].ravel(), there * 7 * buffer)
    assert np.delete(dispatch.received, inside, axis=0).sum() == 0
    np.testing.assert_array_equal(experts.rows.sum(axis=0).ravel(), there * 8 * TOKENS)


degrees = st.sampled_from([1, 2, 4])


@given(dp=degrees, tp=degrees, cp=degrees, etp=degrees, edp=degrees, stage=st.integers(0, 2))
def test_groups_partition_the_ranks_by_their_indices(dp: int, tp: int, cp: int, etp: int, edp: int, stage: int) -> None:
    ranks = dp * cp * tp
    if ranks % (etp * edp):
        return
    parallel = Parallel(pp=3, dp=dp, tp=tp, cp=cp, ep=ranks // etp // edp, etp=etp)
    dense = [(d, c, t) for d in range(dp) for c in range(cp) for t in range(tp)]
    sparse = [(d, e, t) for d in range(edp) for e in range(parallel.ep) for t in range(etp)]
    place = [divmod(stage * ranks + rank, 4) for rank in range(ranks)]
    same = {
        "all": [()] * ranks,
        "tp": [(d, c) for d, c, _ in dense],
        "cp": [(d, t) for d, _, t in dense],
        "dp": [(c, t) for _, c, t in dense],
        "etp": [(d, e) for d, e, _ in sparse],
        "edp": [(e, t) for _, e, t in sparse],
        "ep": [d for d, _, _ in sparse],
        "node": [(node, d) for (node, _), (d, _, _) in zip(place, sparse, strict=True)],
        "rail": [(rail, d) for (_, rail), (d, _, _) in zip(place, sparse, strict=True)],
    }
    found = labels(parallel, stage, 4)
    assert set(found) == set(same)
    for kind, keys in same.items():
        meets = found[kind][:, None] == found[kind]
        wanted = np.array([[one == other for other in keys] for one in keys])
        np.testing.assert_array_equal(meets, wanted, err_msg=kind)


def test_an_adaptive_pipeline_gives_an_alternative_for_each_degree() -> None:
    world = worlds.scenario(MIXTRAL, cv=0.5, short=True)
    chosen = worlds.pool(Parallel(dp=8, ep=8), overlap=Policy(name="pipeline", settings={"degree": "adaptive"}))
    drawn = worlds.unfolded_draws(world, chosen, BATCHES["mixed"])
    found = worlds.lowered(world, chosen, BATCHES["mixed"], [drawn])
    dispatches = [[task.op for task in layer_tasks(one, 1) if task.name == "dispatch"] for one in found]
    assert [len(ops) for ops in dispatches] == [1, 2, 4, 8]
    received = [sum(op.received for op in ops) for ops in dispatches]
    rows = [sum(task.op.rows.sum() for task in one.tasks if isinstance(task.op, Grouped)) for one in found]
    for each in received[1:]:
        np.testing.assert_allclose(each, received[0], rtol=1e-12)
    assert rows == [2 * 2 * 8 * TOKENS * 2] * 4  # layers x products x ranks x tokens x topk


def test_two_halves_carry_the_whole_batch() -> None:
    world, chosen = worlds.scenario(MIXTRAL, cv=0.5, short=True), worlds.pool(Parallel(dp=8, ep=8), overlap="two_batch")
    half = decoding(np.array([TOKENS / 2]), np.array([CONTEXT]))
    drawn = [worlds.unfolded_draws(world, chosen, half, seed=seed) for seed in range(2)]
    (both,) = worlds.lowered(world, chosen, half, drawn)
    (whole,) = worlds.lowered(
        world,
        worlds.pool(Parallel(dp=8, ep=8)),
        BATCHES["decode"],
        [worlds.unfolded_draws(world, chosen, BATCHES["decode"])],
    )
    assert products(both) == pytest.approx(products(whole), rel=1e-12)
    rows = [task.op.rows for task in both.tasks if isinstance(task.op, Grouped) and task.layer == 0]
    assert len(rows) == 4
    assert not np.array_equal(rows[0], rows[1])  # each half has its own draw


@pytest.mark.parametrize("alltoall", ["linear", "reduce"])
@pytest.mark.parametrize("name", [MIXTRAL, GPT_OSS, DENSE])
def test_tensor_parallelism_divides_the_work(name: str, alltoall: str) -> None:
    """Sliced products add up to one rank's, and every rank of a group has an equal share."""
    total = 8 * TOKENS
    one = worlds.scenario(name, short=True)

    def work(parallel: Parallel) -> dict[str, float]:
        per_rank = total / parallel.ranks
        batch = decoding(np.array([per_rank]), np.array([CONTEXT]))
        return products(worlds.unfolded(one, worlds.pool(parallel, alltoall=alltoall), batch)[0])

    alone, divided = work(ONE), work(Parallel(tp=8, ep=8))
    copied = {"gate": 8.0 if alltoall == "reduce" else 1.0}
    assert divided == pytest.approx({part: size * copied.get(part, 1.0) for part, size in alone.items()}, rel=1e-12)


def test_a_tensor_parallel_group_of_a_mixed_model_shares_dense_layers() -> None:
    """DeepSeek's dense layers shrink by tp = 4 on each rank, and see the tokens of the group's four homes."""
    alone, divided = (
        {
            task.op.n.item()
            for task in first_layer(DEEPSEEK, Parallel(dp=8 // tp, tp=tp, ep=8), BATCHES["decode"])
            if task.name == "mlp" and isinstance(task.op, Gemm)
        }
        for tp in (1, 4)
    )
    assert (alone, divided) == ({2 * 18432, 7168}, {2 * 18432 / 4, 7168})


@pytest.mark.parametrize(("alltoall", "slices"), [("linear", 1), ("reduce", 8)])
def test_a_shared_expert_is_sliced_only_where_tokens_stay_replicated(alltoall: str, slices: int) -> None:
    """With an exchange each rank runs all of it on its own tokens; without, its slice of it on the group's."""
    schedule = stages(DEEPSEEK, Parallel(tp=8, ep=8), alltoall, BATCHES["decode"])[0]
    products = [task.op for task in layer_tasks(schedule, 1) if task.name == "shared" and isinstance(task.op, Gemm)]
    assert [op.n.item() for op in products] == [2 * 2048 / slices, 7168]
    assert {op.m.max() for op in products} == {TOKENS * slices}


@pytest.mark.parametrize(("tp", "met"), [(1, 0), (8, 1)])
def test_a_norm_over_all_heads_meets_under_tensor_parallelism(tp: int, met: int) -> None:
    """Two sums of squares a token, fp32, added up over the group; what one rank holds needs no sum."""
    schedule = stages("MiniMaxAI/MiniMax-M2.5", Parallel(tp=tp, ep=tp), "reduce", BATCHES["decode"])[0]
    sums = [t.op for t in layer_tasks(schedule, 0) if isinstance(t.op, Reduce) and t.op.size.max() == 8 * TOKENS * tp]
    assert len(sums) == met


def cores(tasks: Sequence[Task]) -> dict[str, Attend]:
    return {task.op.phase: task.op for task in tasks if isinstance(task.op, Attend)}


def test_context_parallelism_conserves_pairs_and_gathers_keys() -> None:
    batch = BATCHES["mixed"]
    for name in (MIXTRAL, QWEN):
        apart, shared = (first_layer(name, Parallel(dp=8 // cp, cp=cp, ep=8), batch) for cp in (1, 2))
        for phase in ("prefill", "decode"):
            assert cores(shared)[phase].pairs.sum() == cores(apart)[phase].pairs.sum()
    (gather, partial) = [
        task.op
        for task in first_layer(MIXTRAL, Parallel(dp=4, cp=2, ep=8), batch)
        if isinstance(task.op, Reduce) and task.group == "cp"
    ]
    assert (gather.form, partial.form) == ("all_gather", "all_reduce")
    assert gather.size.max() == 2 * 64 * 8 * 256 * 2  # cp x new tokens x kv heads x (key + value) x bf16
    assert partial.size.max() == 64 * 32 * 128 * 2  # decoded tokens x heads x value x bf16


@pytest.mark.parametrize("etp", [2, 4])
def test_expert_tensor_slices_compute_every_row_on_a_slice(etp: int) -> None:
    world = worlds.scenario(MIXTRAL, cv=0.5, short=True)
    whole, sliced = (
        worlds.unfolded(world, worlds.pool(Parallel(dp=8, ep=8 // each, etp=each)), BATCHES["decode"])[0]
        for each in (1, etp)
    )
    first = next(task.op for task in sliced.tasks if isinstance(task.op, Grouped))
    assert first.rows.sum() == 8 * TOKENS * 2 * etp
    assert first.n.item() == 2 * 14336 / etp
    blocks = first.rows.sum(axis=0).reshape(-1, etp)
    np.testing.assert_array_equal(blocks, np.repeat(blocks[:, :1], etp, axis=1))
    assert products(sliced)["experts"] == pytest.approx(products(whole)["experts"], rel=1e-12)


@pytest.mark.parametrize(("alltoall", "results"), [("reduce", 1), ("gathered", 1), ("linear", 8)])
def test_results_are_added_up_where_they_are(alltoall: str, results: int) -> None:
    """Eight slices send a row's parts back to its token; a rank that keeps its rows adds up its own slice's alone."""
    parallel = Parallel(tp=8, etp=8) if alltoall == "reduce" else Parallel(dp=8, etp=8)
    found = {task.name: task.op for task in first_layer(MIXTRAL, parallel, BATCHES["decode"], alltoall=alltoall)}
    ops = [found[name] for name in ("pack", "unpack")]
    gathered, added = (op.traffic.max() / (4096 * 2) for op in ops if isinstance(op, Elementwise))
    tokens = TOKENS * (8 if alltoall == "reduce" else 1)
    assert added - tokens == results * (gathered - tokens)


def test_a_window_caps_what_is_seen() -> None:
    """gpt-oss, window 128: decode reads 128 of 1000 tokens; a prompt of 512 sees 128 each, not 256 on average."""
    decode = cores(first_layer(GPT_OSS, ONE, BATCHES["decode"]))["decode"]
    assert isinstance(decode.kind, Window)
    assert (decode.pairs.item(), decode.keys.item()) == (128 * 128, 128 * 128)
    batch = prompts(np.array([2.0]), np.array([512.0]))
    prefill = cores(first_layer(GPT_OSS, ONE, batch))["prefill"]
    assert (prefill.pairs.item(), prefill.prompts.item()) == (1024 * 128, 2)
    full = [task for task in first_layer(MIXTRAL, ONE, batch) if task.name == "attention"]
    assert cores(full)["prefill"].pairs.item() == 1024 * 256


def test_linear_attention_by_hand() -> None:
    """Qwen3.5: 16 key and 64 value heads of 128; one product makes q, k, v, output gate, decay and write strength."""
    tasks = first_layer(QWEN, Parallel(dp=4, tp=2, ep=8), BATCHES["decode"])
    enter, leave = [task.op for task in tasks if task.name == "attention" and isinstance(task.op, Gemm)]
    assert (enter.k.item(), enter.n.item()) == (4096, (2 * 16 * 128 + 64 * (2 * 128 + 2)) / 2)
    assert (leave.k.item(), leave.n.item()) == (64 * 128 / 2, 4096)
    core = cores(tasks)["decode"]
    assert isinstance(core.kind, Linear)
    assert core.heads.item() == 32
    assert core.tokens.max() == core.prompts.max() == 2 * TOKENS


def test_latent_attention_copies_its_down_projection() -> None:
    tasks = first_layer(DEEPSEEK, Parallel(dp=2, tp=4, ep=8), BATCHES["decode"])
    shapes = [(task.op.k.item(), task.op.n.item()) for task in tasks[1:5] if isinstance(task.op, Gemm)]
    heads = 128 // 4
    assert shapes == [(7168, 1536 + 512 + 64), (1536, heads * 192), (512, heads * 256)]


def decoder_layer(batch: Batch) -> list[Task]:
    world = worlds.scenario(NLLB, short=True)
    schedule, _ = worlds.unfolded(world, worlds.pool(Parallel(dp=8, ep=8)), batch)
    number = next(i for i, layer in enumerate(world.model.layers) if isinstance(layer.attention, Cross))
    return [task for task in layer_tasks(schedule, number) if task.name == "attention"]


def test_an_encoder_sees_prompts_and_a_decoder_answers() -> None:
    """In an encoder every token sees all of its prompt; cross attention makes keys and values of the encoder's."""
    batch = mixed(prompts(np.array([1.0]), np.array([96.0])), decoding(np.array([TOKENS - 96.0]), np.array([CONTEXT])))
    encoder = first_layer(NLLB, Parallel(dp=8, ep=8), batch)
    assert set(cores(encoder)) == {"prefill"}
    assert cores(encoder)["prefill"].pairs.item() == 96 * 96
    decoder = decoder_layer(batch)
    cores_there = [task.op for task in decoder if isinstance(task.op, Attend)]
    assert [core.phase for core in cores_there] == ["decode", "decode"]
    assert sum(core.keys.item() for core in cores_there) == (TOKENS - 96) * CONTEXT
    shapes = [(op.m.item(), op.k.item(), op.n.item()) for op in (t.op for t in decoder) if isinstance(op, Gemm)]
    width = 2048
    alone = [(32, width, 3 * width), (32, width, width)]
    assert shapes == [*alone, (32, width, width), (96, width, 2 * width), (32, width, width)]


def test_in_training_cross_attention_sees_twice_the_causal_pairs() -> None:
    phases = [task.op for task in decoder_layer(BATCHES["training"]) if isinstance(task.op, Attend)]
    forward = [op.pairs.item() for op in phases if op.phase == "prefill"]
    assert forward == [TOKENS * TOKENS / 2, TOKENS * TOKENS]


def test_backward_mirrors_forward() -> None:
    """Gradients of inputs and of weights each cost what the forward product costs; exchanges run the other way."""
    batches = [BATCHES["prefill"], BATCHES["training"]]
    forward, both = (stages(MIXTRAL, *PARALLELISMS["dp attention, ep"], batch)[0] for batch in batches)
    expected = {part: 3 * size for part, size in products(forward).items()}
    head = worlds.brief(MIXTRAL).vocab * 4096 * 8
    expected["head"] = 3 * head * TOKENS  # all tokens need logits in training, one a prompt in serving
    assert products(both) == pytest.approx(expected, rel=1e-12)
    mirrored = [task.op for task in layer_tasks(both, 0) if task.name in ("dispatch", "combine")]
    assert len(mirrored) == 4
    np.testing.assert_array_equal(mirrored[0].sent, mirrored[3].received)
    assert products(forward)["head"] == head


def test_static_gating_pads_every_expert_to_its_capacity() -> None:
    """Capacity ceil(2 x 1.25 x 128 / 8) = 40 rows per expert and source: each rank computes 8 x 40 of any draw."""
    world = worlds.scenario(MIXTRAL, cv=0.5, short=True)
    static = Policy(name="static", settings={"factor": 1.25})
    schedule, _ = worlds.unfolded(world, worlds.pool(Parallel(dp=8, ep=8), gating=static), BATCHES["decode"])
    assert "sizes" not in parts(schedule.tasks)
    for task in schedule.tasks:
        if isinstance(task.op, Grouped):
            np.testing.assert_array_equal(task.op.rows.sum(axis=0).ravel(), 8 * 40)


@pytest.mark.parametrize("flexible", [True, False])
def test_without_the_flexible_layout_every_source_is_a_product_of_its_own(flexible: bool) -> None:
    """Eight ranks of one expert: one product of 8 x 40 rows, or eight of 40 by the same weights."""
    world = worlds.scenario(MIXTRAL, cv=0.5, short=True)
    static = Policy(name="static", settings={"factor": 1.25, "sparse": True, "flexible": flexible})
    schedule, _ = worlds.unfolded(world, worlds.pool(Parallel(dp=8, ep=8), gating=static), BATCHES["decode"])
    for task in schedule.tasks:
        if isinstance(task.op, Grouped):
            assert task.op.rows[..., 0].ravel().tolist() == ([8 * 40] if flexible else [40] * 8)
            assert task.op.repeats == (1 if flexible else 8)


def test_every_layer_has_the_capacity_of_its_own() -> None:
    """Two draws, from layers with a capacity of 40 and of 24 rows: each computes what its own layer allows."""
    world = worlds.scenario(MIXTRAL, cv=0.5)
    pool = worlds.pool(Parallel(dp=8, ep=8), gating=Policy(name="static", settings={"factor": 1.25}))
    drawn = worlds.one_layer_draws(world, pool, TOKENS, draws=2, folded=True)
    layers = drawn.layer_of[:, 0]
    layout = arrange(world, pool, tokens=TOKENS, seed=0)
    layout.capacity[layers[1]] = 24
    schedule = lower(world, [pool], 0, [layout], [BATCHES["decode"]], [[drawn]]).schedules()[0]
    rows = [task.op.rows for task in schedule.tasks if isinstance(task.op, Grouped)]
    np.testing.assert_array_equal(rows[0].sum(axis=0)[0].max(axis=-1), [8 * 40, 8 * 24])


def lower_folded(world: Scenario, pools: Sequence[Pool]) -> Schedule:
    drawn = [worlds.one_layer_draws(world, each, TOKENS, draws=2, folded=True) for each in pools]
    layouts = [arrange(world, each, tokens=TOKENS, seed=0) for each in pools]
    return lower(world, pools, 0, layouts, [BATCHES["decode"]], [drawn]).schedules()[0]


def test_plans_of_one_structure_are_lowered_as_each_alone() -> None:
    """A plan with fewer slots a rank is padded with empty ones; nothing else changes beside another plan."""
    world = worlds.scenario(DEEPSEEK, cv=0.5, short=True)
    pools = [
        worlds.pool(Parallel(dp=16, ep=16), placement=Policy(name="eplb", settings={"redundant": 32})),
        worlds.pool(Parallel(dp=16, ep=16)),
        worlds.pool(Parallel(dp=32, ep=32), placement="greedy"),
    ]
    together = lower_folded(world, pools)
    for plan, each in enumerate(pools):
        for task, other in zip(lower_folded(world, [each]).tasks, together.tasks, strict=True):
            match task.op, other.op:
                case Grouped(rows=rows), Grouped(rows=stacked):
                    np.testing.assert_array_equal(rows[:, 0], stacked[: len(rows), plan])
                    assert stacked[len(rows) :, plan].sum() == 0
                case AllToAll(sent=sent), AllToAll(sent=stacked):
                    np.testing.assert_array_equal(sent[:, 0], stacked[:, plan])
                case Gemm(m=tokens), Gemm(m=stacked):
                    np.testing.assert_array_equal(tokens[0], stacked[plan if len(stacked) > 1 else 0])
                case _:
                    assert type(task.op) is type(other.op)


def test_every_layer_s_own_placement_says_how_many_nodes_a_token_touches():
    """Two layers of 4 experts, top 2, on 4 ranks of two nodes; what is chosen together is together in one of them.

    There each of 4 tokens a rank crosses or stays, 3 of them with experts 0 and 1; in the other layer all cross.
    """
    choices = np.array([[[[0, 1]] * 3 + [[2, 3]], [[0, 1]] * 3 + [[2, 3]]]])
    routing = Recorded(choices=choices, experts=4)
    placed = np.array([[0, 1, 2, 3], [0, 2, 1, 3]])
    layout = Layout(
        expert_of_slot=placed,
        rank_of_slot=np.arange(4),
        capacity=np.full((2, 4), NO_LIMIT),
        resident=np.ones((2, 4), bool),
        r=np.ones(2, int),
        degree=np.ones(2, int),
        alltoall=("deduplicated",) * 2,
    )

    def touched(*layers):
        found = distinct_blocks(routing.only(layers), layout, 1, (2,), layers)
        return {size: each.tolist() for size, each in found.items()}

    assert touched(0, 1) == {1: [2.0, 2.0], 2: [1.0, 2.0]}
    assert touched(1) == {1: [2.0], 2: [2.0]}
    assert touched(0, 0) == {1: [2.0, 2.0], 2: [1.0, 1.0]}

    drawn = Routed(
        counts=np.tile([3, 3, 1, 1], (2, 1, 4, 1)),
        layer_of=np.array([[0], [1]]),
        distinct={size: np.array(each)[:, None] for size, each in touched(0, 1).items()},
    )
    nodes = Topology(reach=(("nvlink", 2), ("rail", 4)), gpus_per_node=2)
    pool = worlds.pool(Parallel(dp=4, ep=4), alltoall="deduplicated")
    moe = Moe(experts=4, topk=2, width=8, input_dim=1)
    (phase,) = mixture(moe, [pool], False, [layout], [drawn], 0, np.full((1, 1, 4), 4.0), nodes, {}).dispatch
    crossing = phase.op.sent[1, 0] / 2  # bf16
    np.testing.assert_allclose(crossing, [[1, 1, 3, 3], [4, 4, 4, 4]])

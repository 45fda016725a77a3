"""Bytes per rank, by hand; and what may never change whether a plan fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import worlds

from moesim.ground.errors import ModelError
from moesim.passes.footprint import Memory, describe, footprint
from moesim.passes.table import table_of
from moesim.plans.plan import Parallel, Policy, Pool
from moesim.world.attention import Unmodelled
from moesim.world.scenario import Scenario

DEEPSEEK, MIXTRAL, GPT_OSS, QWEN, SWIN, NLLB, DENSE = worlds.MODELS
BLOCK_FP8 = 1 + 4 / 128**2
"""Bytes per element of fp8 with one fp32 scale per 128 x 128 block."""
SEQUENCES, CONTEXT, TOKENS = 64.0, 2300.0, 512.0
EP16 = Parallel(dp=16, ep=16)


def memory(
    world: Scenario, *pools: Pool, sequences: float = SEQUENCES, context: float = CONTEXT, tokens: float = TOKENS
) -> Memory:
    many = np.ones(len(pools))
    return footprint(world, table_of(pools), sequences=sequences * many, context=context * many, tokens=tokens * many)


def items(name: str, parallel: Parallel, *, training: bool = False, **policies: Policy | str) -> dict[str, float]:
    """Bytes by item of one plan at the standard batch."""
    workload = worlds.TRAINING if training else worlds.SERVING
    found = memory(worlds.scenario(name, workload=workload), worlds.pool(parallel, **policies))
    return {item: values.item() for item, values in found.items.items()}


def test_deepseek_on_sixteen_ranks() -> None:
    """16 of 256 experts of 3 x 7168 x 2048 in 58 layers; all else whole; one latent a token in the cache."""
    found = items(DEEPSEEK, EP16)
    assert found["expert weights"] == pytest.approx(58 * 16 * 3 * 7168 * 2048 * BLOCK_FP8, rel=1e-12)
    down, up = 7168 * (1536 + 512 + 64), 1536 * 128 * 192 + 512 * 128 * 256
    assert found["attention weights"] == pytest.approx(61 * (down + up + 128 * 128 * 7168) * BLOCK_FP8, rel=1e-12)
    dense = 3 * 3 * 7168 * 18432 + 58 * (3 * 7168 * 2048 + 7168 * 256)
    assert found["dense weights"] == pytest.approx(dense * BLOCK_FP8, rel=1e-12)
    assert found["vocabulary"] == 2 * 129280 * 7168 * 2
    assert found["kv cache"] == SEQUENCES * CONTEXT * 61 * (512 + 64) * 2
    assert found["activations"] == TOKENS * 7168 * 20 + SEQUENCES * 129280 * 4
    assert found["exchange buffers"] == TOKENS * 8 * 7168 * 2 * 2
    assert found["runtime"] == 3.5e9


def test_tensor_parallelism_copies_latent_down_projections_and_caches() -> None:
    one, eight = items(DEEPSEEK, EP16), items(DEEPSEEK, Parallel(dp=2, tp=8, ep=16))
    down, up = 7168 * (1536 + 512 + 64), 1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 7168
    assert eight["attention weights"] == pytest.approx(61 * (down + up / 8) * BLOCK_FP8, rel=1e-12)
    assert eight["kv cache"] == one["kv cache"]
    assert eight["vocabulary"] == one["vocabulary"] / 8
    assert eight["expert weights"] == one["expert weights"]


def test_shared_experts_are_sliced_only_where_tokens_stay_replicated() -> None:
    """With an exchange each rank runs the shared expert on its own tokens, and so holds all of it."""
    gates, shared, dense = 58 * 7168 * 256, 58 * 3 * 7168 * 2048, 3 * 3 * 7168 * 18432
    for alltoall, slices in (("linear", 1), ("reduce", 8)):
        found = items(DEEPSEEK, Parallel(tp=8, ep=8), alltoall=alltoall)
        assert found["dense weights"] == pytest.approx((gates + shared / slices + dense / 8) * BLOCK_FP8, rel=1e-12)


@pytest.mark.parametrize("ep", [8, 16, 32, 64])
def test_expert_weights_are_divided_by_expert_parallelism(ep: int) -> None:
    """Every rank holds its slots and no more: a planner that leaves this out asks for 8 to 64 times the memory."""
    whole = 58 * 256 * 3 * 7168 * 2048 * BLOCK_FP8
    assert items(DEEPSEEK, Parallel(dp=ep, ep=ep))["expert weights"] == pytest.approx(whole / ep, rel=1e-12)


def test_expert_slices_and_copies() -> None:
    plain = items(DEEPSEEK, EP16)["expert weights"]
    assert items(DEEPSEEK, Parallel(dp=16, ep=8, etp=2))["expert weights"] == plain
    assert items(DEEPSEEK, Parallel(dp=32, ep=16))["expert weights"] == plain  # two copies of the experts: edp = 2
    eplb = Policy(name="eplb", settings={"redundant": 32})
    assert items(DEEPSEEK, EP16, placement=eplb)["expert weights"] == pytest.approx(plain * 18 / 16, rel=1e-12)


def test_the_cache_is_never_divided_by_data_parallelism() -> None:
    for dp in (8, 16, 32):
        assert items(DEEPSEEK, Parallel(dp=dp, ep=8))["kv cache"] == SEQUENCES * CONTEXT * 61 * 576 * 2


@pytest.mark.parametrize(("tp", "heads"), [(1, 8), (2, 4), (8, 1), (16, 1)])
def test_grouped_heads_are_divided_until_one_is_left(tp: int, heads: int) -> None:
    found = items(MIXTRAL, Parallel(dp=16 // tp, tp=tp, ep=8))
    assert found["kv cache"] == SEQUENCES * CONTEXT * 32 * heads * 256 * 2


def test_a_window_caps_the_cache() -> None:
    """gpt-oss: 18 layers keep 128 tokens, 18 keep all, each with 8 heads of 64 + 64."""
    found = items(GPT_OSS, Parallel(dp=8, ep=8))
    assert found["kv cache"] == SEQUENCES * 18 * (128 + CONTEXT) * 8 * 128 * 2
    short = memory(worlds.scenario(GPT_OSS), worlds.pool(Parallel(dp=8, ep=8)), context=100.0)
    assert short.items["kv cache"].item() == SEQUENCES * 36 * 100 * 8 * 128 * 2


def test_linear_attention_keeps_a_state_instead() -> None:
    """Qwen3.5: 45 states of 64 x 128 x 128 fp32 and a tail of 3 x 12288 bf16 a sequence; 15 caches of 2 x 512."""
    state = 45 * (64 * 128 * 128 * 4 + (2 * 16 * 128 + 64 * 128) * 3 * 2)
    cache = 15 * CONTEXT * 2 * 512 * 2
    assert items(QWEN, EP16)["kv cache"] == SEQUENCES * (state + cache)
    assert items(QWEN, Parallel(dp=8, tp=2, ep=16))["kv cache"] == SEQUENCES * (state + cache) / 2


def test_context_parallelism_divides_the_cache() -> None:
    assert items(DEEPSEEK, Parallel(dp=8, cp=2, ep=16))["kv cache"] == items(DEEPSEEK, EP16)["kv cache"] / 2


def test_only_a_decoder_keeps_a_cache() -> None:
    """NLLB's 24 decoder layers keep the prompt's keys and values and those of their answer; Swin keeps nothing."""
    cache = SEQUENCES * CONTEXT * 24 * 16 * 256 * 4
    assert items(NLLB, Parallel(dp=8, ep=8))["kv cache"] == cache
    assert items(SWIN, Parallel(dp=8, ep=8))["kv cache"] == 0.0


def test_tied_vocabularies_are_held_once() -> None:
    matrix = 256206 * 2048 * 4
    assert items(NLLB, Parallel(dp=8, ep=8))["vocabulary"] == matrix
    assert items(MIXTRAL, Parallel(dp=8, ep=8))["vocabulary"] == 2 * 32000 * 4096 * 2


def test_a_stage_holds_its_layers() -> None:
    """Two stages of DeepSeek: 31 layers, 28 of them MoE, and 30 MoE layers with the head; the last is the fuller."""
    found = items(DEEPSEEK, Parallel(pp=2, dp=8, ep=8))
    assert found["expert weights"] == pytest.approx(30 * 32 * 3 * 7168 * 2048 * BLOCK_FP8, rel=1e-12)
    assert found["vocabulary"] == 129280 * 7168 * 2
    assert found["kv cache"] == SEQUENCES * CONTEXT * 30 * 576 * 2


def test_the_fullest_stage_may_lie_between_the_ends() -> None:
    """Eight stages in training: 5, 8, 8, 8, 8, 7, 7, 7 MoE layers. The second is the fullest."""
    found = items(DEEPSEEK, Parallel(pp=8, dp=8, ep=8), training=True)
    assert found["expert weights"] == pytest.approx(8 * 32 * 3 * 7168 * 2048 * BLOCK_FP8, rel=1e-12)
    assert found["vocabulary"] == 0


def test_training_keeps_states_of_every_parameter() -> None:
    """Adam: fp32 gradient, master copy and two moments of 4 bytes each; no cache, and what backward needs."""
    found = items(MIXTRAL, Parallel(dp=8, ep=8), training=True, sharding=Policy(name="none"))
    expert = 32 * 3 * 4096 * 14336
    attention = 32 * 4096 * (32 * 128 + 2 * 8 * 128 + 32 * 128)
    parameters = expert + attention + 32 * 4096 * 8 + 2 * 32000 * 4096
    assert (found["gradients"], found["optimizer"]) == (4 * parameters, 12 * parameters)
    assert found["kv cache"] == 0
    kept = 32 * (18 * 4096 + 2 * (2 * 4096 + 3 * 14336) * 2)
    assert found["activations"] == TOKENS * (kept + 32000 * 6)
    plain = worlds.scenario(MIXTRAL, workload=replace(worlds.TRAINING, optimizer="sgd"))
    sgd = memory(plain, worlds.pool(Parallel(dp=8, ep=8), sharding=Policy(name="none")))
    assert sgd.items["optimizer"].item() == found["optimizer"] / 3


def test_a_pipeline_in_training_holds_a_microbatch_a_stage() -> None:
    one, four = (items(MIXTRAL, Parallel(pp=pp, dp=8, ep=8), training=True) for pp in (1, 4))
    logits = TOKENS * 32000 * 6  # on the last stage alone, and the first is the fullest: it holds all four
    assert four["activations"] == one["activations"] - logits  # a quarter of the layers, four microbatches


def test_drafting_keeps_its_modules() -> None:
    """DeepSeek's module: one more MoE layer with its cache, behind a projection of 2 x 7168 by 7168."""
    drafting = Policy(name="chunked", settings={"speculated": 1, "acceptance": 0.85})
    plain, drafts = items(DEEPSEEK, EP16), items(DEEPSEEK, EP16, batching=drafting)
    assert drafts["expert weights"] == pytest.approx(plain["expert weights"] * 59 / 58, rel=1e-12)
    assert drafts["kv cache"] == pytest.approx(plain["kv cache"] * 62 / 61, rel=1e-12)
    module = 2 * 7168**2 + 3 * 7168 * 2048 + 7168 * 256
    assert drafts["dense weights"] - plain["dense weights"] == pytest.approx(module * BLOCK_FP8, rel=1e-9)


def test_precision_changes_the_bytes_of_its_class_alone() -> None:
    world = worlds.scenario(DEEPSEEK)
    plain, small = (
        memory(world, worlds.pool(EP16, precision=precision)).items
        for precision in ({}, {"kv": "fp8", "experts": "nvfp4"})
    )
    ratio = {item: (small[item] / plain[item]).item() for item in plain}
    changed = {"kv cache": 0.5, "expert weights": 0.5625 / BLOCK_FP8}
    assert ratio == pytest.approx({item: changed.get(item, 1.0) for item in plain}, rel=1e-12)


def test_plans_of_any_structure_in_one_call_are_as_each_alone() -> None:
    world = worlds.scenario(DEEPSEEK)
    pools = [
        worlds.pool(EP16),
        worlds.pool(Parallel(tp=8, ep=8), alltoall="reduce"),
        worlds.pool(Parallel(pp=2, dp=8, ep=8)),
        worlds.pool(EP16, precision={"kv": "fp8"}),
        worlds.pool(Parallel(dp=32, ep=32)),
    ]
    together = memory(world, *pools)
    for index, each in enumerate(pools):
        alone = memory(world, each)
        assert {item: values[index] for item, values in together.items.items()} == {
            item: values.item() for item, values in alone.items.items()
        }
        assert together.capacity[index] == alone.capacity.item()


@pytest.mark.parametrize("name", worlds.MODELS)
def test_items_are_not_negative_and_add_up(name: str) -> None:
    pools = [worlds.pool(Parallel(dp=8, ep=8)), worlds.pool(Parallel(pp=2, dp=8, ep=8))]
    found = memory(worlds.scenario(name), *pools)
    assert all(np.all(values >= 0) for values in found.items.values())
    np.testing.assert_allclose(found.total, sum(found.items.values()), rtol=1e-15)
    np.testing.assert_allclose(found.headroom, 149.9e9 * 0.9 - found.total, rtol=1e-12)
    np.testing.assert_array_equal(found.fits, found.headroom >= 0)


def test_more_memory_never_turns_a_fit_into_a_misfit() -> None:
    pools = [worlds.pool(Parallel(dp=dp, tp=tp, ep=dp * tp)) for dp in (8, 16, 32, 64) for tp in (1, 2, 8)]
    before = np.zeros(len(pools), bool)
    for size in np.linspace(40e9, 400e9, 13):
        offer = worlds.offer()
        device = replace(offer.node.device, memory=float(size))
        world = worlds.scenario(DEEPSEEK, offers=[replace(offer, node=replace(offer.node, device=device))])
        fits = memory(world, *pools).fits
        assert np.all(fits >= before)
        before = fits
    assert before.all()


@pytest.mark.parametrize("what", ["sequences", "context", "tokens"])
def test_more_to_keep_never_needs_less(what: str) -> None:
    world, chosen = worlds.scenario(QWEN), worlds.pool(EP16)
    sizes = [memory(world, chosen, **{what: size}).total.item() for size in (1.0, 100.0, 10000.0)]
    assert sizes[0] < sizes[1] < sizes[2]


def test_a_misfit_is_described_with_its_largest_items() -> None:
    """All 256 experts on one rank: 58 layers of 11.3 GB."""
    found = memory(worlds.scenario(DEEPSEEK), worlds.pool(Parallel()))
    assert not found.fits[0]
    assert describe(found, 0, "h200-sxm") == (
        "does not fit: expert weights 654 GB + attention weights 11.4 GB and others, 687 GB > 135 GB on h200-sxm"
    )


def test_a_cache_without_a_formula_is_refused() -> None:
    world = worlds.scenario(MIXTRAL)
    odd = Unmodelled(name="mamba", heads=32, parameters=1000)
    layers = tuple(replace(layer, attention=odd) for layer in world.model.layers)
    with pytest.raises(ModelError, match="attention `mamba` has no formula"):
        memory(replace(world, model=replace(world.model, layers=layers)), worlds.pool(Parallel(dp=8, ep=8)))


def test_compiled_graphs_take_memory_for_each_layer_of_a_stage() -> None:
    """Four graphs of 61 layers, or of the 31 of the longer of two stages."""
    framework = replace(worlds.PLAIN, graph=0.4e6)
    world = replace(worlds.scenario(DEEPSEEK), frameworks={"plain": framework})
    graphs = Policy(name="chunked", settings={"max_batch": 8, "buckets": (1, 2, 4, 8)})
    plain = Policy(name="chunked", settings={"max_batch": 8})
    captured = [worlds.pool(parallel, batching=graphs) for parallel in (EP16, replace(EP16, pp=2))]
    found = memory(world, worlds.pool(EP16, batching=plain), *captured)
    assert found.items["compiled graphs"].tolist() == pytest.approx([0.0, 4 * 61 * 0.4e6, 4 * 31 * 0.4e6])
    assert found.total[1] - found.total[0] == pytest.approx(4 * 61 * 0.4e6)
    assert "compiled graphs" not in memory(world, worlds.pool(EP16, batching=plain)).items


def test_cached_assignments_are_kept_for_every_batch_of_the_data_set() -> None:
    """One int32 for each of two experts of each token, in 32 layers."""
    world = worlds.scenario(MIXTRAL, workload=worlds.TRAINING)
    pool = worlds.pool(Parallel(dp=8, ep=8))
    caching = [
        replace(pool, adaptation=(Policy(name="caching", settings={"batches": number}),)) for number in (10, 10**6)
    ]
    found = memory(world, pool, *caching)
    each = TOKENS * 2 * 32 * 4
    assert found.items["cached assignments"].tolist() == [0.0, 10 * each, 10**6 * each]
    assert found.total[1] == found.total[0] + 10 * each
    assert not found.fits[2]

"""What stands for what: a few ranks for all ranks, a few layers for all layers, floors for times."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import worlds
from jaxtyping import Float

from moesim.deployments.arrangements import arrangements
from moesim.deployments.operation import Passes, operation
from moesim.deployments.pools import Run, estimate_pools, estimator_of
from moesim.passes.folding import class_counts, classes
from moesim.passes.repetition import shortened
from moesim.passes.table import table_of
from moesim.passes.timeline import makespan
from moesim.plans.plan import Parallel, Policy, Pool
from moesim.schedules.costs.bounds import bound
from moesim.schedules.costs.pricing import price
from moesim.schedules.schedule import Schedule
from moesim.world.workload import Batch, Lengths, decoding, prompts

DEEPSEEK, MIXTRAL, GPT_OSS, QWEN, SWIN, NLLB, DENSE = worlds.MODELS
Times = Float[np.ndarray, "draw"]
CV = 0.35
DRAWS = 200


SERVING = replace(
    worlds.SERVING,
    requests=replace(
        worlds.SERVING.requests,
        input=Lengths(generator="fixed", mean=1024.0),
        output=Lengths(generator="fixed", mean=512.0),
    ),
)
"""A batch of 64 decodes 64 tokens a pass and rank; every eighth pass carries a prompt of 1,024 besides."""

WHOLE = worlds.scenario(DEEPSEEK, cv=CV, workload=SERVING)
SKEWED = replace(WHOLE, model=replace(WHOLE.model, layers=WHOLE.model.layers[2:10]))
"""One dense layer and seven MoE layers of DeepSeek-V3; routing is that of all 58."""
BATCH = Policy(name="chunked", settings={"max_batch": 64})


def wide(placement: str) -> Pool:
    return worlds.pool(Parallel(dp=64, ep=64), placement=placement, batching=BATCH)


def passes_of(chosen: Pool, *, carrying: bool, everywhere: bool = False) -> Passes:
    """The pass of an operating point; `everywhere` gives prompts to every dp group that else only some would have."""
    table = table_of([chosen])
    point = operation(SERVING, table)
    point = replace(point, carriers=np.ones(1)) if everywhere else point
    return Passes(table=table, point=point, carrying=np.array([carrying]))


def batch_of(chosen: Pool, *, carrying: bool) -> Batch:
    batch = passes_of(chosen, carrying=carrying, everywhere=True).batch(SERVING, 1.0)
    assert batch.tokens.item() == (1088 if carrying else 64)
    return batch


def estimated(placement: str, *, carrying: bool, seed: int = 0) -> float:
    """Seconds of one of the two kinds of pass whose mean the estimate is, prompts on every dp group."""
    chosen = wide(placement)
    run = estimator_of(SKEWED, table_of([chosen]), seed=seed).run
    return float(run.passes(passes_of(chosen, carrying=carrying, everywhere=True))[0].item())


def seconds(schedule: Schedule) -> Times:
    return makespan(price(schedule, worlds.offer().node, SKEWED.hardware.fabric)).ravel()


@cache
def unfolded(placement: str, *, carrying: bool) -> Times:
    """Seconds of a pass by draw, every rank a row; in each draw one layer's counts stand for all layers'."""
    chosen = wide(placement)
    batch = batch_of(chosen, carrying=carrying)
    drawn = worlds.one_layer_draws(SKEWED, chosen, int(batch.tokens.item()), draws=DRAWS, seed=1)
    assert drawn.counts.shape == (DRAWS, 1, 64, 256)
    return seconds(worlds.lowered(SKEWED, chosen, batch, [drawn])[0])


@pytest.mark.parametrize("placement", ["contiguous", "greedy"])
@pytest.mark.parametrize("carrying", [True, False], ids=["mixed", "decode"])
def test_the_estimate_is_the_mean_over_draws_of_all_ranks(placement: str, carrying: bool) -> None:
    """Within 3%, of which the reference's own standard error is under 0.5%; the estimate draws 8 times, not 200."""
    times = unfolded(placement, carrying=carrying)
    error = times.std() / times.mean() / np.sqrt(DRAWS)
    found = [estimated(placement, carrying=carrying, seed=seed) for seed in range(3)]
    print(f"{placement}: estimates {found} s, unfolded {times.mean():.6f} s, standard error {error:.2%}")
    assert error < 0.005
    np.testing.assert_allclose(found, times.mean(), rtol=0.03)


@pytest.mark.parametrize("carrying", [True, False], ids=["mixed", "decode"])
def test_greedy_beats_contiguous_under_skew(carrying: bool) -> None:
    """At cv 0.35 the fullest of 64 ranks has a third more rows than the mean, when nothing balances."""
    assert estimated("greedy", carrying=carrying) < 0.9 * estimated("contiguous", carrying=carrying)
    assert unfolded("greedy", carrying=carrying).mean() < 0.9 * unfolded("contiguous", carrying=carrying).mean()


def test_one_layer_stands_for_layers_that_each_draw_their_own() -> None:
    """Every layer with its own counts: within 1.5% of the mean of passes of one layer's counts."""
    chosen = wide("greedy")
    own = seconds(worlds.unfolded(SKEWED, chosen, batch_of(chosen, carrying=False), draws=8)[0]).mean()
    one_for_all = unfolded("greedy", carrying=False).mean()
    print(f"own draws {own:.6f} s, one for all {one_for_all:.6f} s")
    assert own == pytest.approx(one_for_all, rel=0.015)


@pytest.mark.parametrize("ranks", [1, 3, 4, 5, 8, 64, 72])
def test_classes_are_real_ranks_with_the_heaviest_first(ranks: int) -> None:
    rows = np.random.default_rng(ranks).poisson(2.0, (3, 5, ranks))
    chosen, total = classes(rows), rows.sum(axis=0)
    assert all(len(set(draw)) == len(draw) for draw in chosen.tolist())
    assert class_counts(ranks).sum() == ranks
    assert class_counts(ranks).shape == chosen.shape[1:]
    if ranks > 4:
        kept = np.take_along_axis(total, chosen, axis=-1)
        np.testing.assert_array_equal(kept[:, 0], total.max(axis=-1))
        active = np.take_along_axis((rows > 0).sum(axis=0), chosen, axis=-1)
        np.testing.assert_array_equal(active[:, :2].max(axis=-1), (rows > 0).sum(axis=0).max(axis=-1))
        assert np.all(kept @ class_counts(ranks) > 0)


SHORTENED = {
    "DeepSeek": (DEEPSEEK, Parallel(dp=16, ep=16), {}),
    "DeepSeek, two levels": (DEEPSEEK, Parallel(dp=16, ep=16), {"alltoall": "two_dh"}),
    "DeepSeek in stages": (DEEPSEEK, Parallel(pp=4, dp=8, ep=8), {}),
    "gpt-oss, a pattern of 2": (GPT_OSS, Parallel(dp=4, tp=2, ep=8), {}),
    "Qwen, a pattern of 4": (QWEN, Parallel(dp=16, ep=16), {"alltoall": "deduplicated"}),
    "Mixtral by tensors": (MIXTRAL, Parallel(tp=8, ep=8), {"alltoall": "reduce"}),
    "NLLB, a pattern in each part": (NLLB, Parallel(dp=8, ep=8), {}),
    "dense": (DENSE, Parallel(tp=4), {"alltoall": "reduce"}),
}


def both_ways(name: str, parallel: Parallel, **policies: str) -> tuple[float, float]:
    """Estimate a pass from a shortened one, and from the whole of it."""
    moe = bool(worlds.model(name).moe_layers)
    world = worlds.scenario(name, cv=CV if moe else 0.0, workload=SERVING)
    chosen = worlds.pool(parallel, batching=BATCH, **policies)
    estimates = estimate_pools(world, table_of([chosen]))
    assert estimates.memory.fits[0]
    run = Run(scenario=world, point=estimates.operation, arrangements=arrangements(world, seed=0, draws=8))
    slowest = max(
        min(seconds(schedule).mean() for schedule in run.stage(passes_of(chosen, carrying=True), stage).schedules())
        for stage in range(parallel.pp)
    )
    return float(estimates.carrying[0]), float(slowest * parallel.pp)


@pytest.mark.parametrize("case", SHORTENED)
def test_a_few_layers_stand_for_all(case: str) -> None:
    """Exact where nothing overlaps: every layer past the first adds what the one before it added."""
    name, parallel, policies = SHORTENED[case]
    short, whole = both_ways(name, parallel, **policies)
    assert short == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("name", [DEEPSEEK, GPT_OSS, QWEN])
def test_a_few_layers_stand_for_all_where_halves_overlap(name: str) -> None:
    """Overlapping halves share links and slow each other by where they meet: within a thousandth."""
    short, whole = both_ways(name, Parallel(dp=16, ep=16), overlap="two_batch")
    assert short == pytest.approx(whole, rel=1e-3)


def test_patterns_are_found_whole() -> None:
    """gpt-oss repeats every 2 layers, Qwen3.5 every 4, NLLB's parts every 4; DeepSeek's 3 dense layers stay."""
    found = {name: shortened(worlds.model(name), range(len(worlds.model(name).layers))) for name in worlds.MODELS}
    assert [found[GPT_OSS].missing, len(found[GPT_OSS].base)] == [(15,), 6]
    assert [found[QWEN].missing, len(found[QWEN].base)] == [(12,), 12]
    assert [found[NLLB].missing, len(found[NLLB].base)] == [(3, 3), 24]
    assert [found[DEEPSEEK].missing, len(found[DEEPSEEK].base)] == [(55,), 6]
    for name, short in found.items():
        turns = [len(short.base) - len(without) for without in short.without]
        missing = sum(turn * number for turn, number in zip(turns, short.missing, strict=True))
        assert len(short.base) + missing == len(worlds.model(name).layers)


BOUNDED = {
    "ep": (DEEPSEEK, Parallel(dp=16, ep=16), "linear"),
    "deduplicated": (DEEPSEEK, Parallel(dp=16, ep=16), "deduplicated"),
    "two levels": (QWEN, Parallel(dp=16, ep=16), "two_dh"),
    "tp": (MIXTRAL, Parallel(tp=8, ep=8), "reduce"),
    "etp": (MIXTRAL, Parallel(dp=8, ep=4, etp=2), "linear"),
    "cp": (GPT_OSS, Parallel(dp=4, cp=2, ep=8), "linear"),
}


@pytest.mark.parametrize("case", BOUNDED)
@pytest.mark.parametrize("tokens", [2, 128])
def test_the_bound_stays_below_the_mean_of_real_passes(case: str, tokens: int) -> None:
    name, parallel, alltoall = BOUNDED[case]
    world = worlds.scenario(name, cv=CV, short=True)
    chosen = worlds.pool(parallel, alltoall=alltoall)
    for batch in (
        decoding(np.array([float(tokens)]), np.array([2000.0])),
        prompts(np.array([1.0]), np.array([float(tokens)])),
    ):
        drawn = worlds.one_layer_draws(world, chosen, tokens, draws=20)
        (schedule,) = worlds.lowered(world, chosen, batch, [drawn])
        low, mean = bound(schedule, worlds.offer().node, world.hardware.fabric), seconds(schedule).mean()
        print(f"bound {float(np.max(low)):.6f} s, mean {mean:.6f} s")
        assert 0.0 < np.max(low) <= mean

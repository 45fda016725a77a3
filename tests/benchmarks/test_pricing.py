"""How fast a schedule is priced; `make bench` reports CPU time. Reach: 20 ms and 60 ms; record: 5 ms and 15 ms."""

from dataclasses import replace

import numpy as np
import pytest
from costs_strategies import FABRIC, H200

from moesim.schedules.costs.pricing import price
from moesim.schedules.ops import AllToAll, Attend, Elementwise, Gemm, Grouped, Op, Reduce
from moesim.schedules.schedule import Schedule, Task
from moesim.world.attention import Mla

LAYERS = 61
MLA = Mla(heads=128, q_lora=1536, kv_lora=512, rope=64, nope=128, value_dim=128)
ORDER = (
    *("attention", "reduce", "gate", "sizes", "pack", "dispatch", "shared"),
    *("up", "down", "combine", "unpack", "reduce", "norm", "add"),
)


def alike(rng: np.random.Generator, plans: int) -> dict[str, Op]:
    """The ops whose sizes are alike on all ranks, [plan, 1, 1]."""
    one = np.ones((plans, 1, 1))
    tokens = rng.integers(1, 512, (plans, 1, 1)).astype(float)
    return {
        "attention": Attend(
            kind=MLA,
            heads=16 * one,
            phase="decode",
            tokens=tokens,
            prompts=tokens,
            pairs=4096 * tokens,
            keys=4096 * tokens,
            dtype="bf16",
        ),
        "reduce": Reduce(size=tokens * 14336, form="all_reduce", ranks=8 * one, tier="nvlink"),
        "gate": Gemm(m=tokens, n=256 * one, k=7168 * one, dtype="bf16"),
        "sizes": AllToAll(tiers=("nvlink",), sent=1024 * one[None], received=1024 * one[None], messages=7 * one[None]),
        "pack": Elementwise(traffic=tokens * 7168 * 18),
        "shared": Gemm(m=tokens, n=4096 * one, k=7168 * one, dtype="fp8_block"),
        "unpack": Elementwise(traffic=tokens * 7168 * 20),
        "norm": Elementwise(traffic=tokens * 7168 * 8),
        "add": Elementwise(traffic=tokens * 7168 * 6),
    }


def exchanged(rng: np.random.Generator, plans: int, ranks: int) -> dict[str, Op]:
    """The ops whose sizes differ between ranks, [plan, 1, rank]: the experts' two products, dispatch and combine."""
    rows = rng.poisson(8.0, (1, plans, 1, ranks))
    one = np.ones((plans, 1, 1))

    def exchange() -> AllToAll:
        sent, received = rng.uniform(1e6, 2e6, (2, 2, plans, 1, ranks))
        messages = np.full((2, 1, 1, 1), 7.0)
        return AllToAll(tiers=("nvlink", "rail"), sent=sent, received=received, messages=messages)

    return {
        "up": Grouped(rows=rows, n=4096 * one, k=7168 * one, dtype="fp8_block"),
        "down": Grouped(rows=rows, n=7168 * one, k=2048 * one, dtype="fp8_block"),
        "dispatch": exchange(),
        "combine": exchange(),
    }


def block(layer: int, ops: dict[str, Op]) -> tuple[Task, ...]:
    return tuple(Task(name=name, stream="compute", op=ops[name], layer=layer) for name in ORDER)


def many_plans(rng: np.random.Generator, plans: int = 1000) -> Schedule:
    """A structure of 61 equal layers of 14 tasks, for many plans at once, on one row of ranks."""
    first = block(0, alike(rng, plans) | exchanged(rng, plans, 1))
    tasks = tuple(replace(task, layer=layer) for layer in range(LAYERS) for task in first)
    return Schedule(tasks=tasks, out=(len(tasks) - 1,), count=np.full(1, 64.0))


def many_ranks(rng: np.random.Generator, ranks: int = 16_384) -> Schedule:
    """One plan, every rank apart, and other rows in every layer."""
    same = alike(rng, 1)
    tasks = tuple(task for layer in range(LAYERS) for task in block(layer, same | exchanged(rng, 1, ranks)))
    return Schedule(tasks=tasks, out=(len(tasks) - 1,), count=np.ones(ranks))


@pytest.mark.benchmark(group="pricing")
def test_a_thousand_plans_are_priced(benchmark):
    schedule = many_plans(np.random.default_rng(0))
    priced = benchmark(price, schedule, H200, FABRIC)
    assert len(priced.duration) == LAYERS * 14
    assert len({id(duration.base) for duration in priced.duration}) <= 13
    assert {duration.shape for duration in priced.duration} == {(1000, 1, 1)}


@pytest.mark.benchmark(group="pricing")
def test_durations_of_many_ranks_are_filled(benchmark):
    schedule = many_ranks(np.random.default_rng(0))
    priced = benchmark.pedantic(price, (schedule, H200, FABRIC), rounds=7, warmup_rounds=2)
    assert len(priced.duration) == LAYERS * 14
    assert sum(duration.shape[-1] == 16_384 for duration in priced.duration) == LAYERS * 4
    assert sum(duration.size for duration in priced.duration) == LAYERS * (4 * 16_384 + 10)

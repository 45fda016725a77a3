"""Speed of routing. Targets stand in the names; `make bench` measures in CPU time."""

import tracemalloc

import numpy as np
import pytest

from moesim.files.routing_traces import open_trace, write_choices
from moesim.files.routings import load_preset
from moesim.world.generators import Limits, made, skewed
from moesim.world.generators.law import SetLaw
from moesim.world.tracing import Shape, describe_counts

LAYERS, EXPERTS, TOPK = 61, 256, 8


def rng():
    return np.random.default_rng(1)


def whole(benchmark, number):
    """The size asked for where speed is measured; a fiftieth where only the asserted counts are checked."""
    return number if benchmark.enabled else number // 50


def test_choices_of_a_hundred_thousand_tokens(benchmark):
    """100,000 tokens x 61 layers, top-8 of 256: 10 s of CPU."""
    routing = skewed(LAYERS, EXPERTS, TOPK, cv=0.25, seed=0)
    number = whole(benchmark, 100_000)
    chosen = benchmark.pedantic(lambda: routing.assign(np.array([number]), 0, rng()), rounds=1)
    assert chosen.shape == (LAYERS, number, TOPK)
    counts = routing.draw(np.array([number]), 0, rng())[:, 0]
    assert all(np.array_equal(np.bincount(chosen[at].ravel(), minlength=EXPERTS), counts[at]) for at in range(LAYERS))


def test_counts_of_ten_thousand_steps(benchmark):
    """10,000 steps of 16 tokens x 61 layers x 256 experts, drawn and described piece by piece: 20 s of CPU."""
    routing, piece, batch = skewed(LAYERS, EXPERTS, TOPK, cv=0.25, seed=0), 40, 16
    steps = whole(benchmark, 10_000)

    def pieces(stream):
        for start in range(0, steps, piece):
            yield np.moveaxis(routing.draw(np.full(piece, batch), start, stream), 1, 0)

    def run():
        return describe_counts(pieces(rng()), Shape(layers=LAYERS, experts=EXPERTS, topk=0))

    found = benchmark.pedantic(run, rounds=1)
    assert (found.batches, found.choices) == (steps, steps * batch * TOPK)
    assert found.cv.mean() == pytest.approx(np.hypot(0.25, (EXPERTS / found.choices) ** 0.5), rel=0.05)


def test_a_search_draws_its_totals(benchmark):
    """Eight layers of DeepSeek-V3 at 24 batch sizes from 100 to 30,000 tokens: 100 ms of CPU before the tree."""
    routing = skewed(8, EXPERTS, TOPK, cv=0.25, seed=0, groups=8, group_topk=4)
    totals = np.geomspace(100, 30_000, 24).astype(int)
    drawn = benchmark(lambda: [routing.draw(np.array([total]), 0, rng()).sum() for total in totals])
    assert drawn == (totals * 8 * TOPK).tolist()


def test_the_deepseek_preset_is_made(benchmark, monkeypatch):
    """58 layers of DeepSeek-V3, each expert's share right to 1e-4: 100 ms of CPU."""
    tried = []
    inclusion = SetLaw.inclusion
    monkeypatch.setattr(SetLaw, "inclusion", lambda law: tried.append(law) or inclusion(law))
    limits = Limits(experts=EXPERTS, topk=TOPK, groups=8, group_topk=4)
    routing = benchmark.pedantic(made, args=(load_preset("deepseek").recipe, 58, limits), rounds=1)
    assert routing.layers == 58
    assert len(tried) <= 6


def test_a_trace_is_described(benchmark, tmp_path):
    """A file of 20,000 tokens x 61 layers, a fiftieth of a million: 1 s of CPU."""
    routing = skewed(LAYERS, EXPERTS, TOPK, cv=0.25, seed=0)
    part = np.moveaxis(routing.assign(np.array([400]), 0, rng()), 0, 1).astype(np.int16)
    parts = whole(benchmark, 50)
    write_choices(tmp_path / "run.parquet", (part for _ in range(parts)), experts=EXPERTS)
    found = benchmark.pedantic(lambda: open_trace(tmp_path / "run.parquet").description(2048), rounds=1)
    assert found.choices == parts * 400 * TOPK
    assert found.following.first.shape == (LAYERS,)


def test_memory_does_not_grow_with_a_trace():
    routing = skewed(4, 64, 4, cv=0.25, seed=0)

    def peak(pieces):
        tracemalloc.start()
        stream = (routing.draw(np.full(50, 16), 0, rng()).transpose(1, 0, 2) for _ in range(pieces))
        describe_counts(stream, Shape(layers=4, experts=64, topk=0))
        return tracemalloc.get_traced_memory()[1], tracemalloc.stop()

    assert peak(20)[0] < 1.2 * peak(4)[0]

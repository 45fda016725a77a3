"""Speed of both executors. Targets (reach / record) stand in the names; `make bench` measures in CPU time."""

import numpy as np
import pytest
from layers import LAYER, collectives, layers

from moesim.passes.engine import engine
from moesim.passes.timeline import makespan, timeline

LAYERS = 61
TASKS = LAYERS * 14


def flows(priced):
    """How many tasks on a rank use a link."""
    ranks = priced.schedule.rows
    return sum(int((demand > 0).sum()) * ranks // demand.shape[-1] for its in priced.demand.values() for demand in its)


@pytest.mark.parametrize(("ranks", "target"), [(2048, "3.5 ms / 1 ms"), (16384, "15 ms / 5 ms")])
def test_timeline_of_many_ranks(benchmark, ranks, target):
    priced = layers(ranks)
    benchmark.extra_info["target"] = target
    records = benchmark(timeline, priced, keep=(TASKS - 1,), sharing=False)
    assert len(priced.schedule.tasks) == LAYERS * len(LAYER) == TASKS
    assert sum(length.shape == (ranks,) for length in priced.duration) == LAYERS * 4
    assert records.finish.shape == (1, ranks)
    assert records.finish.max() == makespan(priced, sharing=False)


@pytest.mark.parametrize(
    ("sharing", "target"), [(False, "50 ms / 5 ms with pricing"), (True, "100 ms / 15 ms with pricing")]
)
def test_a_thousand_plans_of_one_row(benchmark, sharing, target):
    priced = layers(1, (1000,), wants=1.25)
    benchmark.extra_info["target"] = target
    end = benchmark(makespan, priced, sharing=sharing)
    assert end.shape == (1000,)
    assert len(priced.schedule.tasks) == TASKS
    assert (makespan(priced) > 1.05 * makespan(priced, sharing=False)).all()


def test_engine_of_64_ranks(benchmark):
    priced = layers(64, slowdown=False)
    benchmark.extra_info["target"] = "3 s / 0.5 s"
    records = benchmark.pedantic(engine, (priced,), rounds=3, warmup_rounds=1)
    assert records.finish.shape == (TASKS, 64)
    assert np.isfinite(records.finish).all()
    assert flows(priced) == LAYERS * 4 * 64
    assert records.finish.max() > 1.1 * makespan(priced, sharing=False)


def test_overlapping_coflows(benchmark):
    count = 2000
    priced = collectives(64, count)
    benchmark.extra_info["target"] = "10,000 / 100,000 collectives per CPU second"
    records = benchmark.pedantic(engine, (priced,), {"coflows": True}, rounds=5, warmup_rounds=1)
    start, finish = records.start[:, 0], records.finish[:, 0]
    overlapping = [
        np.count_nonzero((start < end) & (finish > begin)) > 1 for begin, end in zip(start, finish, strict=True)
    ]
    assert len(finish) == count
    assert flows(priced) == count * 64 * 2
    assert np.mean(overlapping) > 0.99

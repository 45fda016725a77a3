from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.passes.timeline import timeline
from moesim.plans.layout import NO_LIMIT, Layout
from moesim.policies.overlap.none import Unchanged
from moesim.policies.overlap.pipeline import Pipeline, chunked
from moesim.policies.overlap.two_batch import TwoBatch
from moesim.schedules.ops import Elementwise, Exchange, Fixed, Gemm, Grouped, fixed
from moesim.schedules.schedule import Priced, Schedule, Task, series
from moesim.testing import sizes_by_name

LAYOUT = Layout(
    expert_of_slot=np.arange(4)[None],
    rank_of_slot=np.arange(4),
    capacity=np.full((1, 4), NO_LIMIT),
    resident=np.ones((1, 4), dtype=bool),
    r=np.ones(1, dtype=int),
    degree=np.ones(1, dtype=int),
    alltoall=("linear",),
)
STREAMS = MappingProxyType({"dispatch": "comm", "combine": "comm", "fetch": "h2d"})


def chain(*steps, layer=0):
    """A block of (name, op or seconds), each waiting for the one before."""
    tasks = tuple(
        Task(
            name=name,
            stream=STREAMS.get(name, "compute"),
            op=op if not isinstance(op, int | float) else fixed(op),
            after=(i - 1,) if i else (),
            layer=layer,
        )
        for i, (name, op) in enumerate(steps)
    )
    return Schedule(tasks=tasks, out=(len(tasks) - 1,))


def end(schedule):
    durations = tuple(task.op.duration for task in schedule.tasks)
    return timeline(Priced(schedule=schedule, duration=durations)).finish.max().item()


def issued(schedule):
    return [f"{task.name}{task.chunk}" for task in schedule.tasks]


@pytest.mark.parametrize(("degree", "seconds"), [(1, 12), (2, 8), (4, 8)])
def test_pipelining_by_hand(degree, seconds):
    (block,) = Pipeline(degree=degree).block(chain(("dispatch", 4), ("experts", 4), ("combine", 4)), LAYOUT)
    assert end(block) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(("degree", "seconds"), [(1, 13), (2, 10), (4, 12)])
def test_the_best_degree_is_2_when_every_message_costs_half_a_second(degree, seconds):
    (block,) = Pipeline(degree=degree).block(chain(("dispatch", 4), ("experts", 4), ("combine", 4)), LAYOUT)
    slowed = [
        replace(task, op=Fixed(duration=task.op.duration + 0.5)) if task.stream == "comm" else task
        for task in block.tasks
    ]
    assert end(replace(block, tasks=tuple(slowed))) == pytest.approx(seconds, rel=1e-12)


def test_experts_run_chunk_by_chunk():
    whole = chain(("dispatch", 4), ("experts", 2), ("experts", 2), ("combine", 4))
    block = chunked(whole, 4)
    assert issued(block) == [
        *["dispatch0", "dispatch1", "dispatch2", "dispatch3"],
        *["experts0", "experts0", "experts1", "experts1", "experts2", "experts2", "experts3", "experts3"],
        *["combine0", "combine1", "combine2", "combine3"],
    ]
    assert end(block) == pytest.approx(8, rel=1e-12)
    assert end(task_by_task(block)) == pytest.approx(9, rel=1e-12)


def task_by_task(block):
    """Issue all chunks of the first expert task before any of the second: what chunk by chunk is better than."""
    order = [0, 1, 2, 3, 4, 6, 8, 10, 5, 7, 9, 11, 12, 13, 14, 15]
    place = {old: new for new, old in enumerate(order)}
    tasks = [replace(block.tasks[old], after=tuple(place[i] for i in block.tasks[old].after)) for old in order]
    return replace(block, tasks=tuple(tasks))


def test_what_waits_for_what():
    whole = chain(("gate", 1), ("dispatch", 4), ("dispatch", 4), ("experts", 2), ("combine", 4), ("unpack", 1))
    block = chunked(whole, 2)
    assert issued(block) == [
        *["gate0", "dispatch0", "dispatch0", "dispatch1", "dispatch1"],
        *["experts0", "experts1", "combine0", "combine1", "unpack0"],
    ]
    assert [task.after for task in block.tasks] == [(), (0,), (1,), (0,), (3,), (2,), (4,), (5,), (6,), (7, 8)]
    assert block.out == (9,)


def test_a_combine_that_is_the_result_stays_the_result():
    block = chunked(chain(("dispatch", 4), ("experts", 2), ("combine", 4)), 3)
    assert [issued(block)[i] for i in block.out] == ["combine0", "combine1", "combine2"]


def test_what_lies_between_is_cut_whatever_its_name():
    block = chunked(chain(("dispatch", 4), ("reduce", 1), ("experts", 2), ("reduce", 1), ("combine", 4)), 2)
    assert issued(block)[2:8] == ["reduce0", "experts0", "reduce0", "reduce1", "experts1", "reduce1"]


def test_what_runs_beside_is_not_cut():
    tasks = (
        Task(name="gate", stream="compute", op=fixed(1)),
        Task(name="fetch", stream="h2d", op=fixed(2), after=(0,)),
        Task(name="dispatch", stream="comm", op=fixed(4), after=(0,)),
        Task(name="shared", stream="side", op=fixed(3), after=(0,)),
        Task(name="experts", stream="compute", op=fixed(2), after=(1, 2)),
        Task(name="combine", stream="comm", op=fixed(4), after=(4,)),
        Task(name="add", stream="compute", op=fixed(1), after=(3, 5)),
    )
    block = chunked(Schedule(tasks=tasks, out=(6,)), 2)
    assert issued(block) == [
        *["gate0", "fetch0", "dispatch0", "dispatch1", "shared0"],
        *["experts0", "experts1", "combine0", "combine1", "add0"],
    ]
    assert [task.after for task in block.tasks[5:]] == [(1, 2), (1, 3), (5,), (6,), (4, 7, 8)]


def test_a_link_issued_early_brings_what_it_needs():
    # The second dispatch needs a task that stands after the first one.
    tasks = (
        Task(name="dispatch", stream="comm", op=fixed(4)),
        Task(name="pack", stream="compute", op=fixed(1)),
        Task(name="dispatch", stream="comm", op=fixed(4), after=(0, 1)),
        Task(name="experts", stream="compute", op=fixed(2), after=(2,)),
        Task(name="combine", stream="comm", op=fixed(4), after=(3,)),
    )
    block = chunked(Schedule(tasks=tasks, out=(4,)), 2)
    assert issued(block)[:5] == ["pack0", "dispatch0", "dispatch0", "dispatch1", "dispatch1"]
    assert all(earlier < i for i, task in enumerate(block.tasks) for earlier in task.after)


def test_two_layers_are_two_chains():
    layer = [("attention", 1), ("dispatch", 4), ("experts", 4), ("combine", 4)]
    both = series([chain(*layer, layer=0), chain(*layer, layer=1)])
    block = chunked(both, 2)
    assert end(block) == pytest.approx(2 * (1 + 8), rel=1e-12)
    assert issued(block).count("attention0") == 2
    second = issued(block).index("attention0", 1)
    assert [issued(block)[i] for i in block.tasks[second].after] == ["combine0", "combine1"]


def test_degrees_are_alternatives():
    whole = chain(("dispatch", 4), ("experts", 4), ("combine", 4))
    dense = chain(("mlp", 4))
    assert [end(block) for block in Pipeline(degree=(1, 2, 4)).block(whole, LAYOUT)] == pytest.approx([12, 8, 8])
    assert len(Pipeline(degree="adaptive").block(whole, LAYOUT)) == 4
    assert Pipeline(degree="adaptive").degrees == (1, 2, 4, 8)
    assert Pipeline(degree=(1, 2, 4)).block(dense, LAYOUT) == (dense, dense, dense)
    assert Pipeline(degree=4).whole((whole,)) is whole


def test_no_overlap_leaves_blocks_alone():
    whole = chain(("dispatch", 4), ("experts", 4), ("combine", 4))
    assert Unchanged().block(whole, LAYOUT) == (whole,)
    assert Unchanged().whole((whole,)) is whole
    assert Unchanged().halves == Pipeline().halves == 1


def test_two_halves_fill_each_others_gaps():
    half = chain(("attention", 2), ("dispatch", 2), ("experts", 2))
    assert TwoBatch().halves == 2
    assert TwoBatch().block(half, LAYOUT) == (half,)
    assert end(TwoBatch().whole((half, half))) == pytest.approx(8, rel=1e-12)
    assert end(series([half, half])) == pytest.approx(12, rel=1e-12)


@given(seed=st.integers(0, 2**32 - 1), degree=st.integers(1, 9))
def test_splitting_conserves_every_row(seed, degree):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 20, size=(6, 2, 4))
    exchange = Exchange(
        rows=rows,
        ranks_of_slot=np.arange(6)[:, None] % 4,
        ranks=4,
        row=16.0,
        reverse=False,
        tokens=rng.integers(0, 20, size=(2, 4)),
    )
    grouped = Grouped(rows=rows, n=np.array([8]), k=np.array([8]), dtype="bf16")
    whole = chain(
        ("gate", Gemm(m=rng.integers(0, 9, size=4), n=np.array([8]), k=np.array([8]), dtype="bf16")),
        ("dispatch", exchange),
        ("experts", grouped),
        ("experts", Elementwise(traffic=rng.integers(0, 1000, size=4))),
        ("experts", grouped),
        ("combine", replace(exchange, reverse=True)),
    )
    assert sizes_by_name(chunked(whole, degree)) == sizes_by_name(whole)


@given(seed=st.integers(0, 2**32 - 1), degree=st.integers(2, 5))
def test_a_chunk_computes_the_rows_it_was_sent(seed, degree):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 20, size=(6, 2, 1))
    exchange = Exchange(
        rows=rows,
        ranks_of_slot=np.zeros((6, 1), dtype=int),
        ranks=1,
        row=16.0,
        reverse=False,
        tokens=rng.integers(0, 20, size=(2, 1)),
    )
    grouped = Grouped(rows=rows, n=np.array([8]), k=np.array([8]), dtype="bf16")
    block = chunked(chain(("dispatch", exchange), ("experts", grouped), ("combine", exchange)), degree)
    sent, computed, back = (block.tasks[part * degree : (part + 1) * degree] for part in range(3))
    for dispatch, experts, combine in zip(sent, computed, back, strict=True):
        assert np.array_equal(dispatch.op.rows, experts.op.rows)
        assert np.array_equal(experts.op.rows, combine.op.rows)

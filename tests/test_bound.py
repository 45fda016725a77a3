from dataclasses import replace

import numpy as np
import pytest
from costs_strategies import FABRIC, H200, machine, one
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.passes.timeline import makespan
from moesim.schedules.costs.bounds import bound
from moesim.schedules.costs.forms import form_of
from moesim.schedules.costs.pricing import price
from moesim.schedules.ops import AllToAll, Copy, Elementwise, Gemm, Grouped, Reduce, fixed
from moesim.schedules.schedule import Schedule, Task

STREAMS = ("compute", "side", "comm")


def grouped(rows, width=2048.0):
    return Grouped(rows=rows, n=np.full((1, 1, 1), width), k=np.full((1, 1, 1), 7168.0), dtype="fp8_block")


seeds = st.integers(0, 2**32 - 1)


def random_schedule(seed):
    """A schedule of loads over (plan, draw, rank): three streams, some tasks met in a group, some on half the ranks."""
    rng = np.random.default_rng(seed)
    plans, draws, ranks = ((1, 1, 1), (2, 5, 1), (3, 4, 6))[rng.integers(3)]
    lead, load = (plans, draws), float(rng.choice([0.3, 3.0, 300.0]))

    def volume(*first):
        return rng.gamma(0.5, load * 1e6, (*first, *lead, ranks))

    def op():
        match rng.integers(6):
            case 0:
                return Gemm(
                    m=rng.poisson(load, (*lead, ranks)), n=np.full(1, 4096.0), k=np.full(1, 7168.0), dtype="bf16"
                )
            case 1:
                return grouped(rng.poisson(load, (8, *lead, ranks)))
            case 2:
                sent = volume(2)
                return AllToAll(
                    tiers=("nvlink", "rail"), sent=sent, received=sent[..., ::-1], messages=np.full((2, 1, 1, 1), 7.0)
                )
            case 3:
                return Reduce(size=volume(), form="all_reduce", ranks=np.full((1, 1, 1), 8.0), tier="nvlink")
            case 4:
                return Copy(size=volume(), source="host", target="device")
            case _:
                return Elementwise(traffic=volume())

    known = [op() for _ in range(4)]
    tasks = tuple(
        Task(
            name=f"task{i}",
            stream=str(rng.choice(STREAMS)),
            op=known[rng.integers(4)],
            after=tuple(int(j) for j in rng.choice(i, min(i, int(rng.integers(3))), replace=False)) if i else (),
            group=str(rng.choice(["", "all"])),
            on=str(rng.choice(["", "half"])) if ranks > 1 else "",
        )
        for i in range(rng.integers(1, 13))
    )
    return Schedule(
        tasks=tasks,
        out=(len(tasks) - 1,),
        groups={"all": np.zeros(ranks, dtype=int)},
        parts={"half": np.arange(ranks) % 2 == 0},
        count=np.ones(ranks) if ranks > 1 else np.full(1, 8.0),
    )


def mean_end(schedule, base=H200):
    """Mean over draws of the end of the pass, by plan."""
    return makespan(price(schedule, base, FABRIC)).mean(axis=-1)


@settings(max_examples=120)
@given(seeds)
def test_the_bound_never_exceeds_the_mean_of_the_timeline(seed):
    schedule = random_schedule(seed)
    low = bound(schedule, H200, FABRIC)
    assert low.shape in ((), mean_end(schedule).shape)
    assert np.all(low <= mean_end(schedule) * (1 + 1e-12))


FASTER = ("bandwidth", "flop_rate", "memory", "cache", "links")


def improved(base, what, factor):
    """The node with one thing better; the fabric too where it is the links."""
    if what == "links":
        return replace(base, tiers=tuple(replace(tier, bandwidth=factor * tier.bandwidth) for tier in base.tiers))
    value = getattr(base.device, what)
    better = {name: factor * rate for name, rate in value.items()} if what == "flop_rate" else factor * value
    return replace(base, device=replace(base.device, **{what: better}))


@settings(max_examples=100)
@given(seeds, st.sampled_from(FASTER), st.floats(1.0, 20.0))
def test_better_hardware_never_raises_the_bound(seed, what, factor):
    schedule = random_schedule(seed)
    fabric = tuple(replace(tier, bandwidth=factor * tier.bandwidth) for tier in FABRIC) if what == "links" else FABRIC
    assert np.all(bound(schedule, improved(H200, what, factor), fabric) <= bound(schedule, H200, FABRIC) * (1 + 1e-12))


def chain(*ops, **fields):
    tasks = tuple(Task(name=f"task{i}", stream="compute", op=op) for i, op in enumerate(ops))
    return Schedule(tasks=tasks, out=(len(tasks) - 1,), **fields)


def test_a_floor_at_mean_rows_would_overshoot():
    """Three rows a draw on 64 slots: mean rows keep all 64 experts active, while a pass reads at most three."""
    rng = np.random.default_rng(7)
    rows = rng.multinomial(3, np.full(64, 1 / 64), size=200).T.reshape(64, 1, 200, 1)
    schedule = chain(grouped(rows))
    at_mean_rows = chain(grouped(rows.mean(axis=2, keepdims=True)))
    mean = mean_end(schedule)
    assert bound(schedule, H200, FABRIC) <= mean
    assert bound(at_mean_rows, H200, FABRIC) > mean


def test_the_bound_is_of_mean_loads_not_the_mean_of_bounds():
    """Draws that are bound by work alternate with draws bound by traffic; each resource is busy half the time."""
    rows = np.zeros((64, 1, 2, 1), dtype=int)
    rows[0, 0, 0], rows[:, 0, 1] = 100_000, 1
    op, h200 = grouped(rows), machine(H200)
    form = form_of(op)
    _, memory, few, many = loads = [load[0, :, 0] for load in form.terms(op, h200)]
    assert max(few[0], many[0]) > memory[0]
    assert max(few[1], many[1]) < memory[1]
    found = bound(chain(op), H200, FABRIC)
    assert found == pytest.approx([form.least(op, h200, [load.mean() for load in loads]).item()])
    assert found < form.least(op, h200, loads).mean()


def test_the_busiest_stream_counts():
    tasks = tuple(
        Task(name="x", stream=stream, op=fixed(duration))
        for stream, duration in (("compute", 1.0), ("comm", 2.5), ("compute", 2.0))
    )
    assert bound(Schedule(tasks=tasks, out=(2,)), H200, FABRIC) == 3.0


def test_ranks_are_averaged_by_what_they_stand_for_and_idle_ones_count_as_zero():
    work = Elementwise(traffic=one(4e12, 1e12))
    peak = 0.9 * 4.8e12
    assert bound(chain(work, count=np.array([1.0, 3.0])), H200, FABRIC) == pytest.approx(7e12 / 4 / peak)
    absent = replace(chain(work), tasks=(replace(chain(work).tasks[0], on="second"),), count=np.array([1.0, 3.0]))
    absent = replace(absent, parts={"second": np.array([False, True])})
    assert bound(absent, H200, FABRIC) == pytest.approx(3e12 / 4 / peak)


def test_plans_are_kept_apart_and_draws_are_not():
    traffic = np.array([[[1.0], [3.0]], [[10.0], [30.0]]]) * 1e12
    assert bound(chain(Elementwise(traffic=traffic)), H200, FABRIC) == pytest.approx(np.array([2, 20]) / (0.9 * 4.8))


def test_a_schedule_without_tasks_takes_no_time():
    assert bound(Schedule(tasks=(), out=()), H200, FABRIC) == 0.0

from dataclasses import replace

import numpy as np
import pytest
from hand_cases import CASES, copies, node, run, schedule
from hypothesis import given
from hypothesis import strategies as st
from layers import ALL_TO_ALL, KERNEL, STAGED, collectives, layers

from moesim.ground.errors import MoesimError
from moesim.passes.engine import engine
from moesim.passes.fairness import level, shares
from moesim.passes.timeline import makespan, timeline
from moesim.schedules.costs.pricing import price
from moesim.schedules.schedule import Link, Priced

WANTS = st.lists(st.tuples(st.floats(0.1, 10.0), st.integers(1, 4).map(float)), min_size=1, max_size=6)


@given(WANTS, st.floats(0.1, 30.0))
def test_a_full_link_is_used_up_and_nobody_is_favored(wants, capacity):
    share = level(capacity, wants)
    got = sum(min(want, share) * members for want, members in wants)
    wanted = sum(want * members for want, members in wants)
    assert got == pytest.approx(min(capacity, wanted), rel=1e-9)


@given(st.lists(st.lists(st.floats(0.0, 10.0), min_size=3, max_size=3), min_size=1, max_size=5))
def test_coflows_share_each_link_as_flows_would(wants):
    capacity = np.array([5.0, 9.0, 20.0])
    columns = np.array(wants)
    levels = [level(room, [(want, 1.0) for want in column]) for room, column in zip(capacity, columns.T, strict=True)]
    expected = [min([1.0, *(lv / w for lv, w in zip(levels, row, strict=True) if w > lv)]) for row in wants]
    assert shares(capacity, columns).tolist() == pytest.approx(expected, rel=1e-9)


def test_a_small_flow_is_not_held_up_by_a_large_one():
    tasks = (run("fetch", "h2d", op=STAGED),)
    priced = Priced(
        schedule=schedule(*tasks, ranks=2),
        duration=(np.array([1.0, 1.0]),),
        demand={"pcie": (np.array([2.0, 10.0]),)},
        links={"pcie": Link(capacity=10.0, link_of_rank=np.zeros(2, int), members=np.ones(2))},
    )
    # The large one has 8 of the 10 a second for a second, and then all of it for the 2 that are left.
    assert engine(priced).finish[0].tolist() == pytest.approx([1.0, 1.2], rel=1e-12)


def test_kernels_beside_each_other_slow_each_other():
    tasks = (run("experts", "compute", op=KERNEL), run("fetch", "h2d", op=STAGED))
    priced = Priced(
        schedule=schedule(*tasks),
        duration=(np.array([2.0]), np.array([1.0])),
        slowdown={"compute": {"copy": 0.5}, "copy": {"compute": 0.25}},
    )
    # Until 1.25 the kernel runs at 2/3.
    assert engine(priced).finish.ravel().tolist() == pytest.approx([2.0 + 1.25 / 3, 1.25], rel=1e-12)


def test_like_ranks_behind_one_row_share_its_link():
    priced = price(copies(0.0), node(), ())
    link = replace(priced.links["host"], members=np.array([2.0]))
    assert engine(replace(priced, links={"host": link})).finish[1] == pytest.approx([0.2], rel=1e-12)


def test_a_coflow_keeps_one_rate():
    """Two ranks of one exchange; a copy crosses the link of the first and slows both ranks' parts."""
    tasks = (run("dispatch", "comm", op=ALL_TO_ALL, group="all"), run("fetch", "h2d", op=STAGED))
    priced = Priced(
        schedule=schedule(*tasks, ranks=2, groups={"all": [0, 0]}),
        duration=(np.array([2.0]), np.array([1.0, 0.0])),
        demand={"nic": (np.array([20.0]), np.array([10.0, 0.0]))},
        links={"nic": Link(capacity=10.0, link_of_rank=np.arange(2), members=np.ones(2))},
    )
    assert engine(priced).finish[0].tolist() == pytest.approx([3.0, 2.0], rel=1e-12)
    assert engine(priced, coflows=True).finish[0].tolist() == pytest.approx([3.0, 3.0], rel=1e-12)


def test_a_coflow_ends_on_each_rank_after_that_ranks_own_part():
    tasks = (run("dispatch", "comm", op=ALL_TO_ALL, group="all"),)
    priced = Priced(
        schedule=schedule(*tasks, ranks=3, groups={"all": [0, 0, 0]}),
        duration=(np.array([1.0, 2.0, 0.0]),),
        demand={"nic": (np.array([10.0, 20.0, 0.0]),)},
        links={"nic": Link(capacity=7.5, link_of_rank=np.zeros(3, int), members=np.ones(3))},
    )
    # 30 bytes over 2 seconds are twice what the link has.
    assert engine(priced, coflows=True).finish[0].tolist() == pytest.approx([2.0, 4.0, 0.0], rel=1e-12)


def test_ranks_that_cannot_be_told_apart_are_run_once_and_recorded_all():
    priced = collectives(8, 12)
    records = engine(priced, coflows=True)
    assert records.finish.shape == (12, 8)
    # A rank with a copy of its own is not like the others; nobody is folded then, and nothing else changes.
    lone = run("fetch", "h2d", op=STAGED)
    told_apart = replace(
        priced,
        schedule=replace(priced.schedule, tasks=(*priced.schedule.tasks, lone)),
        duration=(*priced.duration, np.zeros(1)),
        demand={tier: (*its, np.ones(1)) for tier, its in priced.demand.items()},
    )
    assert engine(told_apart, coflows=True).finish[:-1] == pytest.approx(records.finish, rel=1e-12)


def test_a_real_layer_under_contention_ends_where_the_timeline_says():
    priced = layers(8, count=3)
    assert engine(priced).finish.max() == pytest.approx(makespan(priced).item(), rel=0.1)
    assert engine(priced).finish.max() > 1.05 * makespan(priced, sharing=False).item()


def test_leading_axes_of_size_one_are_no_axes():
    priced = layers(4, (1, 1), count=1)
    assert engine(priced).finish.max() == pytest.approx(timeline(priced).finish.max(), rel=0.1)


def test_several_plans_at_once_are_refused():
    with pytest.raises(ValueError, match=r"one plan at a time; these durations have leading axes \(3,\)"):
        engine(layers(2, (3,), count=1))


def test_a_schedule_that_cannot_run_is_refused():
    with pytest.raises(MoesimError, match="comes after"):
        engine(Priced(schedule=schedule(run("gate", "compute", 1, after=(7,))), duration=(np.ones(1),)))


def test_a_run_is_the_same_every_time():
    priced = CASES["three staggered flows"].priced
    assert engine(priced).finish.tobytes() == engine(priced).finish.tobytes()

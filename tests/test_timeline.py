from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hand_cases import run, schedule
from hypothesis import given
from layers import layers
from random_schedules import drawn_schedules

from moesim.ground.errors import MoesimError
from moesim.passes import timeline as timeline_module
from moesim.passes.program import Cells, Crowd, across, beside, compiled, tasks_in
from moesim.passes.stretch import contention, stretch
from moesim.passes.timeline import makespan, timeline
from moesim.schedules.ops import AllToAll, Copy, Elementwise
from moesim.schedules.schedule import KIND_OF_OP, Link, Priced

OPS = {
    "compute": Elementwise(traffic=np.ones(1)),
    "comm": AllToAll(tiers=("nic",), sent=np.ones((1, 1)), received=np.ones((1, 1)), messages=np.ones((1, 1))),
    "h2d": Copy(size=np.ones(1), source="host", target="device"),
}
TIERS = {"nic": ("comm",), "pcie": ("comm", "h2d")}
SLOWDOWN = {"compute": {"collective": 0.3, "copy": 0.1}, "collective": {"compute": 0.2}}


def sharing(drawn):
    """The same schedule with links and interference: all-to-alls use a NIC of two ranks and PCIe, copies PCIe."""
    priced = drawn.priced
    ranks = np.arange(drawn.ranks)
    tasks = tuple(replace(task, op=OPS[task.stream]) for task in priced.schedule.tasks)
    return replace(
        priced,
        schedule=replace(priced.schedule, tasks=tasks),
        demand={
            tier: tuple(
                length * (0.3 + 0.1 * (number * 37 % 7)) * (task.stream in users)
                for number, (task, length) in enumerate(zip(tasks, priced.duration, strict=True))
            )
            for tier, users in TIERS.items()
        },
        links={
            "nic": Link(capacity=1.0, link_of_rank=ranks // 2, members=1.0 + ranks % 3),
            "pcie": Link(capacity=0.8, link_of_rank=ranks % 2, members=np.ones(drawn.ranks)),
        },
        slowdown=SLOWDOWN,
    )


@given(drawn_schedules(lead=(2, 3)))
def test_leading_axes_are_runs_of_their_own(drawn):
    priced = drawn.priced
    records = timeline(priced)
    lead = records.start.shape[1:-1]
    for place in product(*map(range, lead)):
        one = tuple(np.broadcast_to(length, (*lead, length.shape[-1]))[place] for length in priced.duration)
        alone = timeline(replace(priced, duration=one))
        assert (records.start[:, *place] == alone.start).all()
        assert (records.finish[:, *place] == alone.finish).all()


@given(drawn_schedules(lead=(3,)))
def test_what_is_kept_does_not_change_when_it_runs(drawn):
    priced = sharing(drawn)
    records = timeline(priced)
    keep = tuple(range(len(priced.duration)))[::-2]
    kept = timeline(priced, keep=keep)
    assert (kept.start == records.start[list(keep)]).all()
    assert (kept.finish == records.finish[list(keep)]).all()
    assert makespan(priced) == pytest.approx(records.finish.max(axis=(0, -1)), rel=1e-12)


@given(drawn_schedules(lead=(2,)))
def test_the_stretch_is_the_mean_over_each_interval(drawn):
    priced = sharing(drawn)
    alone = timeline(priced, sharing=False)
    shape = alone.start.shape
    expected = np.ones(shape)
    for lead in range(shape[1]):
        start, finish = alone.start[:, lead], alone.finish[:, lead]
        wants = wanted(priced, lead, shape)
        for task, rank in product(range(shape[0]), range(shape[2])):
            expected[task, lead, rank] = stretch_by_hand(priced, start, finish, wants, task, rank)
    met = contention(priced)
    rows = list(met.tasks)
    others = np.delete(expected, rows, axis=0)
    assert (others == 1.0).all()
    found = stretch(priced, met, alone.start[rows], alone.finish[rows])
    np.testing.assert_allclose(found, expected[rows], rtol=1e-9)


def wanted(priced, lead, shape):
    """Share of its link that each task would have, by tier, task and rank."""
    wants = {}
    for tier, link in priced.links.items():
        demand = np.stack([np.broadcast_to(demand, shape[1:])[lead] for demand in priced.demand[tier]])
        length = np.stack([np.broadcast_to(length, shape[1:])[lead] for length in priced.duration])
        share = np.divide(demand, length, out=np.zeros_like(length), where=length > 0)
        wants[tier] = share * link.members / link.capacity
    return wants


def stretch_by_hand(priced, start, finish, wants, task, rank):
    """From moment to moment of one task on one rank, who is there besides."""
    begin, end = start[task, rank], finish[task, rank]
    if end == begin:
        return 1.0
    moments = np.unique(np.clip(np.concatenate((start.ravel(), finish.ravel())), begin, end))
    kinds = [KIND_OF_OP[type(other.op).__name__] for other in priced.schedule.tasks]
    slowed = [SLOWDOWN.get(kinds[task], {}).get(kind, 0.0) for kind in kinds]
    on_links = beside_it = 0.0
    for at, until in pairwise(moments):
        there = (start <= at) & (finish >= until)
        loads = [
            (wants[tier] * there)[:, link.link_of_rank == link.link_of_rank[rank]].sum()
            for tier, link in priced.links.items()
            if wants[tier][task, rank] > 0
        ]
        on_links += (until - at) * max([1.0, *loads])
        beside_it += (until - at) * (1.0 + sum(np.delete(there[:, rank] * slowed, task)))
    return on_links * beside_it / (end - begin) ** 2


@given(drawn_schedules(lead=(3,)))
def test_sharing_never_makes_a_pass_shorter(drawn):
    priced = sharing(drawn)
    assert (makespan(priced) >= makespan(priced, sharing=False) * (1 - 1e-12)).all()


def test_plans_run_in_blocks_as_they_do_at_once(monkeypatch):
    priced = layers(16, (3, 7), count=2)
    at_once = makespan(priced)
    monkeypatch.setattr(timeline_module, "CHUNK", 64)
    assert at_once.shape == (3, 7)
    assert (makespan(priced) == at_once).all()


def test_kernels_beside_each_other_slow_each_other():
    tasks = (run("experts", "compute", op=OPS["compute"]), run("fetch", "h2d", op=OPS["h2d"]))
    priced = Priced(
        schedule=schedule(*tasks),
        duration=(np.array([2.0]), np.array([1.0])),
        slowdown={"compute": {"copy": 0.5}, "copy": {"compute": 0.2}},
    )
    assert timeline(priced).finish.ravel() == pytest.approx([2 * (1 + 0.5 / 2), 1.2], rel=1e-12)


def test_many_like_ranks_wait_on_a_link_too_small_for_them():
    tasks = (run("fetch", "h2d", op=OPS["h2d"]),)
    priced = Priced(
        schedule=schedule(*tasks),
        duration=(np.ones(1),),
        demand={"pcie": (np.array([10.0]),)},
        links={"pcie": Link(capacity=10.0, link_of_rank=np.zeros(1, int), members=np.array([2.0]))},
    )
    assert makespan(priced) == 2.0


def test_a_task_slowed_by_its_fullest_link_at_each_moment():
    """On ranks 0, 1, 2 a flow of 4 s; rank 1 shares one link for the first half, rank 2 another for all of it."""
    flow, other = run("dispatch", "comm", op=OPS["comm"]), run("fetch", "h2d", op=OPS["h2d"])
    priced = Priced(
        schedule=schedule(flow, other, ranks=3),
        duration=(np.full(3, 4.0), np.array([0.0, 2.0, 4.0])),
        demand={
            "nic": (np.array([4.0, 0.0, 0.0]), np.array([0.0, 2.0, 0.0])),
            "pcie": (np.array([4.0, 0.0, 0.0]), np.array([0.0, 0.0, 2.0])),
        },
        links={
            "nic": Link(capacity=1.0, link_of_rank=np.array([0, 0, 1]), members=np.ones(3)),
            "pcie": Link(capacity=1.0, link_of_rank=np.array([0, 1, 0]), members=np.ones(3)),
        },
    )
    assert timeline(priced).finish[0, 0] == pytest.approx(4 * (2.0 + 1.5) / 2, rel=1e-12)


@pytest.mark.parametrize(
    ("labels", "form"),
    [
        ([0, 0, 0, 0], Cells(size=4, inner=1)),
        ([5, 5, 3, 3], Cells(size=2, inner=1)),
        ([0, 1, 0, 1], Cells(size=2, inner=2)),
        ([0, 1, 0, 1, 2, 3, 2, 3], Cells(size=2, inner=2)),
        ([0, 1, 1, 0], Crowd),
        ([0, 0, -1, -1], Crowd),
        ([0, 1, 2, 3], None),
        ([-1, -1, 2, 3], None),
    ],
)
def test_a_group_takes_the_quickest_form(labels, form):
    program = compiled(schedule(run("gate", "compute", 1, group="g"), ranks=len(labels), groups={"g": labels}))
    meeting = program.meeting[0]
    if isinstance(form, Cells):
        assert (meeting.size, meeting.inner) == (form.size, form.inner)
    else:
        assert meeting is None if form is None else isinstance(meeting, form)


def test_schedules_of_one_structure_share_a_program():
    first, second = (schedule(run("gate", "compute", seconds)) for seconds in (1, 2))
    assert compiled(first) is compiled(second)
    assert compiled(first) is not compiled(schedule(run("gate", "comm", 1)))


def test_predecessors_that_others_imply_are_dropped():
    tasks = (
        run("attention", "compute", 1),
        run("dispatch", "comm", 1, after=(0,)),
        run("experts", "compute", 1, after=(0, 1)),
        run("combine", "comm", 1, after=(2,)),
    )
    program = compiled(schedule(*tasks))
    assert program.after == ((), (0,), (1,), (2,))
    assert not any(program.queued)
    assert program.ends == (3,)


def test_who_may_run_beside_whom():
    tasks = (
        run("attention", "compute", 1),
        run("dispatch", "comm", 1, after=(0,), group="all"),
        run("shared", "compute", 1),
        run("experts", "compute", 1, after=(1,)),
    )
    program = compiled(schedule(*tasks, ranks=4, groups={"all": [0, 0, 0, 0]}))
    assert [list(tasks_in(bits)) for bits in beside(program)] == [[], [], [1], []]
    # On another rank of the link, only what came before a meeting is known to be over.
    assert [list(tasks_in(bits)) for bits in across(program, (0, 0, 1, 1))] == [[], [], [0, 1], [1, 2]]


def test_a_schedule_that_cannot_run_is_refused():
    with pytest.raises(MoesimError, match="comes after"):
        makespan(Priced(schedule=schedule(run("gate", "compute", 1, after=(7,))), duration=(np.ones(1),)))

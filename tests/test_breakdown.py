import numpy as np
import pytest
from hand_cases import CASES, run, schedule
from hypothesis import given
from random_schedules import drawn_schedules

from moesim.passes.breakdown import breakdown, critical_path
from moesim.passes.timeline import timeline
from moesim.schedules.schedule import Priced


def of(case):
    return breakdown(case.priced, timeline(case.priced))


def test_what_was_waited_for_is_exposed_and_the_rest_hidden():
    # Dispatch after the first attention 2-5, experts 5-6, combine 6-9; mlp, attention and shared run beside.
    assert of(CASES["shortcut, expert after mlp"]) == {
        "attention": (4.0, 2.0),
        "dispatch": (3.0, 3.0),
        "mlp": (2.0, 0.0),
        "experts": (1.0, 1.0),
        "combine": (3.0, 3.0),
        "shared": (1.0, 0.0),
    }


def test_the_path_crosses_ranks_where_they_meet():
    case = CASES["2DH groups"]
    steps = list(critical_path(case.schedule, timeline(case.priced).finish))
    # The last rank to be ready is 3, at 6; it holds up its node, and then the rails do the other node.
    assert [(step.task, step.rank, step.begin, step.end) for step in steps][-2:] == [(1, 2, 6.0, 7.0), (0, 3, 0.0, 6.0)]


def test_a_task_that_a_rank_skips_takes_no_time():
    tasks = (
        run("gate", "compute", 1, 5),
        run("experts", "compute", 3, after=(0,), on="experts"),
        run("head", "compute", 1, after=(1,)),
    )
    priced = Priced(
        schedule=schedule(*tasks, ranks=2, parts={"experts": [True, False]}),
        duration=tuple(task.op.duration for task in tasks),
    )
    assert breakdown(priced, timeline(priced)) == {"gate": (5.0, 5.0), "experts": (3.0, 0.0), "head": (1.0, 1.0)}


@given(drawn_schedules(lead=(3,)))
def test_exposed_times_add_up_to_the_mean_pass(drawn):
    records = timeline(drawn.priced)
    parts = breakdown(drawn.priced, records)
    assert sum(exposed for _, exposed in parts.values()) == pytest.approx(records.finish.max(axis=(0, -1)).mean())


@given(drawn_schedules())
def test_the_steps_of_the_path_join_up(drawn):
    finish = timeline(drawn.priced).finish
    steps = list(critical_path(drawn.priced.schedule, finish))
    moments = [finish.max(), *(step.begin for step in steps)]
    assert [step.end for step in steps] == moments[:-1]
    assert moments[-1] == 0.0
    assert all(step.begin <= step.end for step in steps)
    assert np.all(np.diff([step.task for step in steps]) < 0)

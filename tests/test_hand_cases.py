import numpy as np
import pytest
from hand_cases import CASES, one_f_one_b

from moesim.passes.breakdown import breakdown
from moesim.passes.engine import engine
from moesim.passes.timeline import makespan, timeline

by_both = pytest.mark.parametrize("execute", [timeline, engine], ids=["timeline", "engine"])
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def exactly(value):
    return pytest.approx(value, rel=1e-12, abs=0.0)


@every_case
@by_both
def test_the_pass_ends_when_it_must(case, execute):
    end = case.end if execute is engine or case.stretched is None else case.stretched
    assert execute(case.priced).finish.max() == exactly(end)


@every_case
@by_both
def test_the_tasks_run_when_they_must(case, execute):
    records = execute(case.priced)
    for task, (start, finish) in case.times.items():
        assert start is None or records.start[task].tolist() == exactly(start)
        assert records.finish[task].tolist() == exactly(finish)


@every_case
def test_the_end_alone_is_the_end_of_the_records(case):
    assert makespan(case.priced) == timeline(case.priced).finish.max()


@every_case
def test_without_sharing_everything_runs_alone(case):
    alone = case.end if case.alone is None else case.alone
    assert makespan(case.priced, sharing=False) == exactly(alone)


@every_case
@by_both
def test_exposed_times_add_up_to_the_pass(case, execute):
    records = execute(case.priced)
    parts = breakdown(case.priced, records)
    assert sum(exposed for _, exposed in parts.values()) == exactly(records.finish.max())


@by_both
def test_a_pipeline_idles_for_its_bubble(execute):
    records = execute(CASES["1F1B"].priced)
    busy = (records.finish - records.start).sum(axis=0)
    assert (1 - busy / 33).tolist() == pytest.approx([3 / 11] * 4, rel=1e-12)


@by_both
def test_a_hand_over_gives_the_latencies_of_its_request(execute):
    prefill, _, *decode = execute(CASES["KV hand-over"].priced).finish[:, 0]
    assert prefill == exactly(1.0)
    assert (decode[-1] - prefill) / len(decode) == exactly(0.35)


def test_sends_between_stages_meet_without_the_rest():
    schedule = one_f_one_b(stages=3, microbatches=1)
    assert {task.on for task in schedule.tasks if task.name == "send"} == {"pair:0", "pair:1"}
    assert np.count_nonzero(schedule.parts["pair:0"]) == 2

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hand_cases import CASES
from layers import layers

from moesim.passes.engine import engine
from moesim.passes.timeline import timeline
from moesim.views.trace import trace

TESTS = Path(__file__).parent
DIGEST = """
import hashlib, sys
sys.path.insert(0, "tests")
from layers import layers
from moesim.passes.engine import engine
from moesim.passes.timeline import timeline
from moesim.views.trace import trace
priced = layers(4, count=2)
runs = timeline(priced), engine(priced), engine(priced, coflows=True)
print(hashlib.sha256("".join(trace(priced.schedule, run) for run in runs).encode()).hexdigest())
"""


def events(priced, execute=timeline):
    return json.loads(trace(priced.schedule, execute(priced)))["traceEvents"]


@pytest.mark.parametrize("execute", [timeline, engine])
def test_every_task_of_every_rank_is_a_complete_event(execute):
    priced = layers(4, count=2)
    records = execute(priced)
    shown = [event for event in events(priced, execute) if event["ph"] == "X"]
    assert len(shown) == 2 * 14 * 4
    finish = [event["ts"] + event["dur"] for event in shown]
    assert finish == pytest.approx((records.finish * 1e6).ravel().tolist(), rel=1e-9)
    assert {event["name"] for event in shown} >= {"attention 0", "experts 1"}


def test_ranks_are_processes_and_streams_are_threads():
    named = [(e["name"], e["pid"], e.get("tid"), e["args"]) for e in events(layers(2, count=1)) if e["ph"] == "M"]
    assert ("process_name", 1, None, {"name": "rank 1"}) in named
    assert ("thread_name", 1, 0, {"name": "compute"}) in named
    assert ("thread_name", 1, 1, {"name": "comm"}) in named
    assert len(named) == 2 * (2 + 2 * 2)


def test_a_rank_without_a_part_shows_nothing():
    shown = [event for event in events(CASES["no part"].priced) if event["ph"] == "X"]
    assert [(event["name"], event["pid"]) for event in shown] == [("attention", 0), ("attention", 1), ("dispatch", 0)]


def test_a_folded_row_says_how_many_ranks_it_stands_for():
    priced = layers(1, count=1)
    object.__setattr__(priced.schedule, "count", np.array([8.0]))
    assert events(priced)[0]["args"]["name"] == "rank 0 of 8 alike"


def test_several_runs_are_refused():
    priced = layers(2, (3,), count=1)
    with pytest.raises(ValueError, match=r"one run; these records have leading axes \(3,\)"):
        trace(priced.schedule, timeline(priced))


def test_a_run_is_the_same_to_the_byte_in_any_process():
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            cwd=TESTS.parent,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1

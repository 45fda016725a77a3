"""Requests from traces and from laws: what is read, what is refused and where, and what sessions share."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import worlds
from hypothesis import given
from hypothesis import strategies as st
from test_run_length import CACHES, differences, run

from moesim.deployments.serving.asked import Asked, generate, swung
from moesim.deployments.simulation import simulate
from moesim.files.requests import LONGEST, load_requests
from moesim.files.resolved import workload_tree
from moesim.files.workloads import read_workload
from moesim.ground.errors import InputError, WorkloadError
from moesim.plans.plan import Parallel, Plan, Policy
from moesim.world.workload import Arrivals, Lengths, Prefixes, Requests, Serving, Sessions

TRACES = Path(__file__).parent / "data" / "traces"

HASHED = '{{"timestamp": 4000, "input_length": 9, "output_length": 1, "hash_ids": {}}}\n'
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
MOONCAKE = "".join(
    json.dumps({"timestamp": t, "input_length": n, "output_length": 5, "hash_ids": ids}) + "\n"
    for t, n, ids in [(0, 1100, [1, 2, 3]), (1500, 1400, [1, 2, 9]), (1500, 600, [7, 8]), (3000, 512, [1])]
)


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_forms_of_published_traces(tmp_path: Path) -> None:
    azure = load_requests(written(tmp_path, AZURE))
    assert azure.arrival.tolist() == pytest.approx([0.0, 4.314579], abs=1e-6)
    assert (azure.input.tolist(), azure.output.tolist()) == ([374, 396], [44, 109])
    burst = load_requests(written(tmp_path, BURST))
    assert (burst.arrival.tolist(), burst.output.tolist()) == ([0.0, 113.0], [18, 276])  # one request failed
    mooncake = load_requests(written(tmp_path, MOONCAKE, "trace.jsonl"))
    assert mooncake.arrival.tolist() == [0.0, 1.5, 1.5, 3.0]
    assert mooncake.shared.tolist() == [0, 1024, 0, 511]  # a prompt's last token is never found
    assert mooncake.session.tolist() == [1, 1, 7, 1]
    conversation = load_requests(TRACES / "conversation.csv")
    assert (len(conversation.input), conversation.input[0], conversation.output[0]) == (600, 374, 44)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", "", "holds no request"),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n", "", "holds no request"),
        ("time,tokens\n1,2\n", "line 1", "lacks"),
        ("arrived_at,num_prefill_tokens,num_decode_token\n1,2,3\n", "line 1", "lacks `num_decode_tokens`"),
        (AZURE + "yesterday,3,4\n", "line 4", "TIMESTAMP = 'yesterday' is no time"),
        (AZURE + "2023-11-16 18:15:49.0,3,4\n", "line 4", "comes 1.9"),
        (AZURE + "2023-11-16 18:16:49.0,-3,4\n", "line 4", "ContextTokens = -3 tokens"),
        (AZURE + "2023-11-16 18:16:49.0,3.5,4\n", "line 4", "is no whole number of tokens"),
        (AZURE + "2023-11-16 18:16:49.0,3,0\n", "line 4", "GeneratedTokens is zero"),
        (AZURE + "2023-11-16 18:16:49.0,3\n", "line 4", "has 2 fields, not 3"),
        (AZURE + "2023-11-16 18:16:49.0,3,1e99\n", "line 4", "GeneratedTokens = 1e99 tokens"),
        (BURST + "inf,x,3,4,7,y\n", "line 5", "Timestamp = 'inf' is no time"),
        (MOONCAKE + "{}\n", "line 5", "timestamp = None is no time"),
        (MOONCAKE + "{oops\n", "line 5", "is no JSON"),
        (MOONCAKE + "[1]\n", "line 5", "is no JSON object"),
        (MOONCAKE + '{"timestamp": 4000, "input_length": true, "output_length": 1}\n', "line 5", "no whole number"),
        ("\x00\x01\x02" * 50, "line 1", "lacks"),
        ("[" * 200_000 + "\n", "line 1", "is no CSV: field larger than"),
        (AZURE + "2" * 200_000 + ",3,4\n", "line 4", "is no CSV: field larger than"),
        (
            MOONCAKE + '{"timestamp": 4000, "input_length": 9, "output_length": 1, "hash_ids": 5}\n',
            "line 5",
            "hash_ids",
        ),
        (
            MOONCAKE + '{"timestamp": 4000, "input_length": 9, "output_length": 1, "hash_ids": [[1]]}\n',
            "line 5",
            "hash_ids",
        ),
        (
            MOONCAKE + '{"timestamp": 4000, "input_length": 9, "output_length": 1, "hash_ids": ["a"]}\n',
            "line 5",
            "hash_ids",
        ),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, where: str, what: str) -> None:
    with pytest.raises(WorkloadError) as refusal:
        load_requests(written(tmp_path, text))
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path / 'trace.csv'}: {where}")
    assert what in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="cannot be read: No such file"):
        load_requests(tmp_path / "nothing.csv")


def test_an_endless_line_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A sparse file of 10 GB on one line: refused at a megabyte."""
    path = written(tmp_path, AZURE)
    with path.open("r+b") as file:
        file.truncate(10 * 2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WorkloadError, match=f"line 4: is longer than {LONGEST:,} characters"):
        load_requests(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@given(st.binary(max_size=200))
def test_no_bytes_make_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("traces") / "trace.csv"
    path.write_bytes(content)
    with pytest.raises(WorkloadError):
        load_requests(path)


def serving(folder: Path, **requests: object) -> Serving:
    workload = read_workload({"kind": "serving", "requests": requests}, "scenario.yaml", folder)
    assert isinstance(workload, Serving)
    return workload


def test_a_workload_may_be_a_trace() -> None:
    """Its rate and mean lengths are what an estimate reads; it loads back from what is written of it."""
    workload = serving(TRACES, trace="code.csv", speed=2.0)
    requests = workload.requests
    assert requests.recorded is not None
    assert requests.arrivals.rate == pytest.approx(599 / requests.recorded.arrival[-1])
    assert requests.input.mean == requests.recorded.input.mean()
    assert read_workload(workload_tree(workload), "scenario.yaml", Path()) == workload
    closed = serving(TRACES, trace="code.csv", concurrency=8)
    asked = generate(closed, seed=0)
    assert asked.concurrency == 8
    assert len(asked.prompt) == 600
    assert read_workload(workload_tree(closed), "scenario.yaml", Path()) == closed


@pytest.mark.parametrize(
    ("requests", "what"),
    [
        ({"trace": "code.csv", "speed": 0.0}, "speed"),
        ({"trace": "code.csv", "arrivals": {"generator": "poisson"}}, "arrivals"),
        ({"trace": 3}, "trace"),
        ({"recorded": {}, **workload_tree(worlds.SERVING)["requests"]}, "cannot be written here"),  # type: ignore[dict-item]
    ],
)
def test_a_wrong_section_is_refused(requests: dict[str, object], what: str) -> None:
    with pytest.raises(InputError, match=what):
        serving(TRACES, **requests)


LAWS = {
    "arrivals": {"generator": "poisson", "rate": "5 /s"},
    "input": {"generator": "lognormal", "mean": "300 tokens", "cv": 0.5},
    "output": {"generator": "lognormal", "mean": "100 tokens", "cv": 0.5},
}


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"sessions": {"turns": 0.5, "gap": "10 s"}}, "turns"),
        ({"sessions": {"turns": 3, "gap": "0 s"}}, "gap"),
        ({"prefixes": {"groups": 0, "tokens": "10 tokens"}}, "groups"),
        ({"sessions": {"turns": 3, "gap": "9 s"}, "prefixes": {"groups": 1, "tokens": "10 tokens"}}, "do not go with"),
        ({"arrivals": {"generator": "diurnal", "rate": "5 /s", "swing": 1.5}}, "swing"),
        ({"arrivals": {"generator": "poisson", "rate": "5 /s", "swing": 0.5}}, "do not swing"),
    ],
)
def test_a_wrong_law_is_refused(more: dict[str, object], what: str) -> None:
    with pytest.raises(InputError, match=what):
        serving(TRACES, **(LAWS | more))


@pytest.mark.parametrize("trace", ["conversation", "code"])
@pytest.mark.parametrize("cache", ["whole", "tight", "prompts first", "small budget"])
@pytest.mark.parametrize("replicas", [1, 3])
def test_runs_equal_their_steps_on_recorded_requests(trace: str, cache: str, replicas: int) -> None:
    recorded = generate(serving(TRACES, trace=f"{trace}.csv", speed=4.0), seed=0)
    limits = replace(CACHES[cache], blocks=600, largest=9600)
    recorded = Asked(
        arrival=recorded.arrival[:250],
        prompt=recorded.prompt[:250],
        output=recorded.output[:250],
        shared=recorded.shared[:250],
        session=recorded.session[:250],
    )
    book, _ = run(recorded, limits, replicas)
    assert differences(book, recorded, limits, replicas) == 0


def test_conversations_carry_what_was_said() -> None:
    workload = serving(TRACES, **(LAWS | {"sessions": {"turns": 4, "gap": "30 s"}}))
    asked = generate(replace(workload, horizon=20_000), seed=1)
    assert (np.diff(asked.arrival) >= 0).all()
    for session in np.unique(asked.session)[:50]:
        own = np.flatnonzero(asked.session == session)
        assert asked.shared[own[0]] == 0
        assert (asked.shared[own[1:]] == (asked.prompt + asked.output)[own[:-1]]).all()
    sizes = np.unique(asked.session, return_counts=True)[1]
    assert sizes.mean() == pytest.approx(4, rel=0.05)
    middle = slice(len(asked.arrival) // 4, len(asked.arrival) // 2)
    span = (asked.arrival[middle][-1] - asked.arrival[middle][0]) / 2**40
    assert (middle.stop - middle.start) / span == pytest.approx(5, rel=0.1)


def test_prefixes_are_found_where_they_were_left() -> None:
    """A router that knows sessions finds more of them cached than one that takes turns."""
    laws = Requests(
        arrivals=Arrivals(generator="poisson", rate=20.0),
        input=Lengths(generator="lognormal", mean=800.0, cv=0.5),
        output=Lengths(generator="constant", mean=50.0),
        sessions=Sessions(turns=5.0, gap=5.0),
    )
    world = worlds.scenario(worlds.MODELS[1], short=True, workload=Serving(requests=laws, horizon=1000, warm_up=100))
    pool = worlds.pool(Parallel(dp=2, ep=2), replicas=4)
    hits = {}
    for router in ("round_robin", "prefix_aware"):
        table = simulate(world, Plan(pools=(pool,), router=Policy(name=router))).tables["requests"]
        hits[router] = table["cached"].sum() / table["input"].sum()
    assert hits["prefix_aware"] > 1.2 * hits["round_robin"]
    groups = replace(laws, sessions=None, prefixes=Prefixes(groups=3, tokens=200.0))
    grouped = replace(world, workload=Serving(requests=groups, horizon=1000, warm_up=100))
    table = simulate(grouped, Plan(pools=(pool,))).tables["requests"]
    assert 0.9 < (table["cached"] > 0).mean() < 1
    assert table["cached"].max() <= 200


def test_a_rate_that_swings_lets_more_in_by_day() -> None:
    arrivals = Arrivals(generator="diurnal", rate=50.0, swing=0.8, period=100.0)
    times = swung(np.arange(1, 50_001) / 50.0, arrivals)
    phase = times % 100.0
    first, second = ((phase < 50).mean(), (phase >= 50).mean())
    assert first == pytest.approx(0.5 + 0.8 / np.pi, rel=1e-3)
    assert second == pytest.approx(0.5 - 0.8 / np.pi, rel=1e-3)
    assert times[-1] == pytest.approx(1000.0, rel=1e-6)


def test_a_warm_up_longer_than_the_trace_is_refused() -> None:
    world = worlds.scenario(worlds.MODELS[1], short=True, workload=serving(TRACES, trace="code.csv"))
    with pytest.raises(WorkloadError, match="1000 leaves none of 600 recorded requests"):
        simulate(world, Plan(pools=(worlds.pool(Parallel(dp=8, ep=8)),)))

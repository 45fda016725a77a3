"""Settings that cannot be, each through a scenario's space and through a plan: file, field, value and a remedy."""

import sys

import pytest
import worlds

import moesim
from moesim.cli import main
from moesim.plans.plan import Parallel, Plan, Policy

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")  # main() reads sys.argv

WORLD = """
name: small
model: mistralai/Mixtral-8x7B-v0.1
hardware:
  offers: [{node: nvidia/hgx-h200, max_nodes: 1, rent: {value: 3.50 USD/h, from: list}}]
  fabric: infiniband/rail-400g
  sources: {list: {kind: assumed, title: none}}
workload:
  kind: serving
  requests:
    arrivals: {generator: poisson, rate: 5 /s}
    input: {generator: constant, mean: 1000 tokens}
    output: {generator: constant, mean: 200 tokens}
  targets: {}
  horizon: {requests: 100, warm_up: 10}
routing: {cv: 0.5, drift: {every: 500, share: 0.2}}
"""

SPACE = """
space:
  pools: [all]
  max_batch: [16]
  placement: [contiguous]
  alltoall: [linear]
  parallel: {pp: 1, dp: 8, tp: 1, ep: EP, etp: ETP}
  KIND: [POLICY]
"""

PLAN = """
pools:
  - role: all
    node: nvidia/hgx-h200
    replicas: 1
    parallel: {dp: 8, ep: EP, etp: ETP}
    policies: {batching: {name: chunked, max_batch: 16}, KIND: POLICY}
"""

EIGHT, FOUR = (8, 1), (4, 2)
CASES = [
    ("gating", "{name: static, fraction: 0}", EIGHT, "fraction = 0 is a capacity of zero", "give a positive share"),
    ("buffering", "{name: lifo, resident: 17}", EIGHT, "17 slots", "give 1 to 1|give at most 1"),
    ("buffering", "{name: lru, resident: 0}", EIGHT, "resident = 0", "give at least 1 slot"),
    ("overlap", "{name: pipeline, degree: 0}", EIGHT, "degree = 0", "give 1 or more chunks"),
    (
        "overlap",
        "{name: pipeline, degree: 8}\n  gating: static",
        EIGHT,
        "cuts a capacity of 4 rows into 8 chunks",
        "give a degree of at most 4",
    ),
    (
        "adaptation",
        "tutel\n  gating: {name: static, factor: 0}",
        FOUR,
        r"r = 2 of 8 gpus and 8 experts|`parallel.etp` is r, of which 8 experts have 0 and 1 to ranks / 8",
        "give one of 0, 1|give at most 1",
    ),
]


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """Run a command on files; give what it complained about."""

    def run(command, **files):
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["moesim", command, *(f"{name}.yaml" for name in files)])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        return capsys.readouterr().err

    return run


def filled(text, kind, policy, degrees):
    ep, etp = map(str, degrees)
    return text.replace("POLICY", policy).replace("KIND", kind).replace("ETP", etp).replace("EP", ep)


def check(message, file, field, value, remedy):
    assert message.startswith(f"moesim: {file}.yaml: ")
    assert field in message
    assert any(each in message for each in value.split("|"))
    assert any(each in message for each in remedy.split("|"))


@pytest.mark.parametrize(("kind", "policy", "degrees", "value", "remedy"), CASES)
def test_a_space_says_what_is_wrong_with_it(said, kind, policy, degrees, value, remedy):
    first, *others = policy.split("\n  ")
    text = filled(SPACE, kind, first, degrees)
    for name, _, listed in (other.partition(": ") for other in others):
        text += f"  {name}: [{listed}]\n"
    check(
        said("optimize", world=WORLD + text), "world", "parallel.etp" if kind == "adaptation" else kind, value, remedy
    )


@pytest.mark.parametrize(("kind", "policy", "degrees", "value", "remedy"), CASES)
@pytest.mark.parametrize("command", ["estimate", "simulate"])
def test_a_plan_says_what_is_wrong_with_it(said, command, kind, policy, degrees, value, remedy):
    first, *others = policy.split("\n  ")
    text = filled(PLAN, kind, ", ".join((first, *others)), degrees)
    field = f"pools.0.policies.{kind}"
    if kind == "adaptation":
        text = filled(PLAN, "gating", others[0].partition(": ")[2], degrees) + "    adaptation: [tutel]\n"
        field = "pools.0.parallel.etp"
    check(said(command, world=WORLD, plan=text), "plan", field, value, remedy)


@pytest.mark.parametrize("degree", [2, 4])
def test_a_pipelined_capacity_is_simulated_though_tables_begin_at_one_token(degree):
    """Knots of the step table below a pool's own passes are cut into as many chunks, some of which are empty."""
    scenario = worlds.scenario("mistralai/Mixtral-8x7B-v0.1", short=True, workload=worlds.SERVING)
    batching = Policy(name="chunked", settings={"max_batch": 16})
    cut = Policy(name="pipeline", settings={"degree": degree})
    plans = [
        Plan(pools=(worlds.pool(Parallel(dp=8, ep=8), gating=Policy(name="static"), overlap=way, batching=batching),))
        for way in (cut, Policy(name="none"))
    ]
    piped, plain = (moesim.simulate(scenario, plan).summary["tpot.mean"].mid for plan in plans)
    assert 1 < piped / plain < degree  # messages of a few rows gain nothing from being cut, and cost a launch each

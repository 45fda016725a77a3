"""Plans run for real, on tiny shapes: the whole loop, a pair that differs much, and everything that may go wrong."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faulty_turns import HUNG, KILLED, LOST, NO_MEMORY
from moesim.validate.layers.emulated import Link
from moesim.validate.layers.spec import LayerSpec, Reaction
from moesim.validate.run.bundle import Bundle, Pair, Predicted, Setting, Trial, write_bundle
from moesim.validate.run.execute import execute
from moesim.validate.run.links import available
from moesim.validate.run.results import read_results
from moesim.validate.run.scores import compare, scored, summary

from moesim.ground.errors import InputError

TWO = Setting(ranks=2)
TINY = LayerSpec(hidden=64, intermediate=128, experts=4, topk=2, tokens=32, dtype="bf16", ranks=2, ep=2)
SCENARIO = """
name: tiny
model:
  name: tiny
  vocab: 0
  dtype_of: {experts: bf16, dense: bf16, attention: bf16, embedding: bf16, kv: bf16}
  layers:
    - part: decoder
      dim: 256
      tokens: 1
      attention: none
      ffn: {kind: moe, experts: 8, topk: 2, width: 512, input_dim: 256, gated: true}
hardware: {offers: [{node: generic/cpu, max_nodes: 1}], fabric: none/ethernet}
workload:
  kind: serving
  requests:
    arrivals: {generator: closed, concurrency: 64}
    input: {generator: constant, mean: 1 tokens}
    output: {generator: constant, mean: 1000 tokens}
routing: {preset: balanced}
goal: tpot
space: {pools: all, parallel.ep: 2, max_batch: 256, gating: [dynamic, {name: static, fraction: 1.0, sparse: true}]}
"""


def bundle(
    folder: Path, specs: dict[str, LayerSpec], setting: Setting = TWO, rounds: int = 4, *, course: bool = False
) -> Path:
    """Write a bundle of layers, the first one repeated; all are told to take a millisecond."""
    first = next(iter(specs))
    trials = [Trial(name=name, spec=spec.json(), choices="t", plan={}) for name, spec in specs.items()]
    if course:
        trials += [replace(trial, name=f"{trial.name}, stalls aside", aside=trial.name) for trial in trials]
    trials.append(replace(trials[0], name="again"))
    made = Bundle(
        scenario="tiny",
        setting=setting,
        trials=tuple(trials),
        pairs=tuple(Pair(first=first, second=name, axis="gating") for name in specs if name != first),
        pick=first,
        repeated="again",
        rounds=rounds,
        course=course,
        choices={"t": np.argsort(np.random.default_rng(0).random((2, setting.ranks, 32, 4)), axis=-1)[..., :2]},
    )
    told = {name: Predicted(seconds=1e-3, low=1e-3, high=1e-3, parts={}) for name in specs}
    write_bundle(folder, made, told, {})
    return folder


def test_the_whole_loop_orders_a_pair_that_differs_much(tmp_path):
    """All tokens to all experts is some four times the work of two experts each; the machine is measured first."""
    scenario = tmp_path / "tiny.yaml"
    scenario.write_text(SCENARIO)
    command = [sys.executable, "-m", "moesim.cli", "validate", "run", str(scenario), "--out", str(tmp_path / "out")]
    ran = subprocess.run([*command, "--rounds", "6"], capture_output=True, text=True, timeout=200, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    compared = compare(tmp_path / "out" / "tiny")
    (pair,) = scored(compared)
    assert "static" in pair.slow
    assert pair.right
    assert pair.telling
    assert not compared.failed
    assert all(each.memory > 0 and each.parts["experts"] > 0 for each in compared.finished.values())
    assert summary([compared]).ordered_right == 1.0
    with pytest.raises(InputError, match="was measured already"):
        execute(tmp_path / "out" / "tiny")


def test_a_course_is_walked_from_its_start_in_every_round_and_its_stalls_are_told_apart(tmp_path):
    """The capacity is cut before the second step; nothing is compiled here, so it stands still for nothing."""
    settings = {"memory": 1.0, "threshold": 0.6, "room": 1.2}
    spec = replace(TINY, gating="sparse", factor=4.0)
    reacting = replace(spec, reactions=(Reaction(name="dynamoe", settings=settings),))
    folder = bundle(tmp_path / "course", {"padded": spec, "altered": reacting}, rounds=2, course=True)
    assert execute(folder) == {}
    trials = read_results(folder).trials
    assert all(len(trials[name].rounds) == 2 for name in ("padded", "altered", "again"))
    assert trials["altered"].rounds == trials["altered, stalls aside"].rounds
    assert compare(folder).failed == {}


def test_what_goes_wrong_is_named_and_all_else_is_measured(tmp_path, monkeypatch):
    here = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")])))
    wrong = {"killed": KILLED, "hung": HUNG, "no memory": NO_MEMORY, "lost": LOST}
    specs = {"good": TINY, "better": replace(TINY, degree=2)}
    specs |= {name: replace(TINY, gating="sparse", factor=factor) for name, factor in wrong.items()}
    specs["impossible"] = replace(TINY, ranks=1, ep=1)
    folder = bundle(tmp_path / "bundle", specs)
    failed = execute(folder, silence=12.0, module="faulty_turns")
    assert set(failed) == {*wrong, "impossible"}
    assert "SIGKILL" in failed["killed"]
    assert "silent for 12 s" in failed["hung"]
    assert "can't allocate memory" in failed["no memory"]
    assert "device is lost" in failed["lost"]
    assert "1 in a group of 2" in failed["impossible"]
    trials = read_results(folder).trials
    assert all(len(trials[name].rounds) == 4 and trials[name].parts for name in ("good", "better", "again"))
    assert trials["killed"].rounds  # what was measured before it died is kept
    assert compare(folder).failed == failed
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(folder) not in left  # no rank is left behind


def test_a_run_that_was_stopped_is_no_result_and_is_run_anew(tmp_path):
    """Stopped after its first lines: they are kept aside, and the next run measures all rounds."""
    folder = bundle(tmp_path / "stopped", {"one": TINY, "two": replace(TINY, degree=2)}, rounds=200)
    partial = folder / "results.partial.jsonl"
    command = [sys.executable, "-m", "moesim.validate.run.execute", str(folder)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while run.poll() is None and not (partial.exists() and partial.read_text().count("\n") > 2):
            time.sleep(0.05)
    finally:
        run.terminate()
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "stopped, and all ranks are ended; run again what has no results.jsonl" in said
    assert partial.exists()
    assert not (folder / "results.jsonl").exists()
    with pytest.raises(InputError, match="is missing"):
        read_results(folder)
    assert execute(folder) == {}
    assert not partial.exists()
    assert all(len(each.rounds) == 200 for each in read_results(folder).trials.values())


def test_a_first_step_that_fails_on_one_rank_loses_that_plan_alone(tmp_path):
    """Tokens choose among four experts, and one of the layers has three."""
    alone = replace(TINY, ranks=1, ep=1)
    specs = {
        "good": alone,
        "short": replace(alone, experts=3, gating="sparse"),
        "other": replace(alone, gating="static"),
    }
    folder = bundle(tmp_path / "bundle", specs, Setting(ranks=1))
    failed = execute(folder)
    assert set(failed) == {"short"}
    lines = (folder / "results.jsonl").read_text().splitlines()
    assert sum('"compile"' in line for line in lines) == 3  # built once each: the good ones were not run again


@pytest.mark.skipif(bool(available()), reason="no network namespaces may be made here")
def test_a_slow_link_is_slow(tmp_path):
    """32 rows of 2 KB to another node at 2 MB/s take tens of milliseconds; over the loopback they do not."""
    wide = replace(TINY, hidden=1024, intermediate=32)
    slow = bundle(tmp_path / "slow", {"one": wide, "two": wide}, Setting(ranks=2, nodes=2, rate=2e6, link="kernel"))
    fast = bundle(tmp_path / "fast", {"one": wide, "two": wide})
    assert execute(slow) == {}
    assert execute(fast) == {}
    times = [read_results(folder).trials["one"].seconds for folder in (slow, fast)]
    assert times[0] > 2 * times[1]


def test_a_slow_link_may_be_emulated(tmp_path):
    """32 rows of 2 KB, about, from each rank to the other take 32 ms at 2 MB/s, there and back."""
    wide = replace(TINY, hidden=1024, intermediate=32)
    setting = Setting(ranks=2, nodes=2, rate=2e6, link="emulated", latency=1e-3)
    specs = {"one": wide, "pipelined": replace(wide, degree=2), "apart": replace(wide, ep=1)}
    slow = bundle(tmp_path / "slow", specs, setting)
    assert execute(slow) == {}
    trials = read_results(slow).trials
    assert trials["one"].seconds > 0.05
    assert trials["pipelined"].seconds > 0.05
    assert trials["apart"].seconds < 0.05


def test_what_crosses_an_emulated_link_leaves_it_one_after_the_other():
    """Two ranks a node, 100 B/s each node: 20 bytes to the other node are 0.4 s of this rank's half."""
    link = Link(rate=100.0, latency=1.0, width=2, rank=1)
    begun = time.perf_counter()
    first = link.leave([5.0, 5.0, 10.0, 10.0], [0.0, 0.0, 0.0, 0.0])
    second = link.leave([0.0] * 4, [5.0, 5.0, 20.0, 20.0])
    assert first - begun == pytest.approx(1.4, abs=0.05)
    assert second - first == pytest.approx(0.8, abs=1e-9)
    assert Link(rate=1.0, latency=9.0, width=4).leave([7.0] * 4, [7.0] * 4) < begun + 1.0  # stays inside the node


def test_a_bundle_that_nobody_predicted_is_not_run(tmp_path):
    folder = bundle(tmp_path / "bundle", {"good": TINY})
    (folder / "predictions.json").unlink()
    with pytest.raises(InputError, match=r"predictions\.json: is missing"):
        execute(folder)

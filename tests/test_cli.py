"""The command line: tables and JSON, exit codes, and messages in place of tracebacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from moesim.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")  # main() reads sys.argv

WORLD = """
name: Mixtral on two nodes, cut short
model: small.yaml
hardware:
  offers: [{{node: nvidia/hgx-h200, max_nodes: 2, rent: {{value: 3.50 USD/h, from: list}}}}]
  fabric: infiniband/rail-400g
  sources: {{list: {{kind: published, title: price list, read: 2026-05-20}}}}
workload:
  kind: serving
  requests:
    arrivals: {{generator: poisson, rate: {rate}}}
    input: {{generator: constant, mean: 1000 tokens}}
    output: {{generator: constant, mean: 200 tokens}}
  targets: {{tpot.p99: {tpot}}}
routing: {{preset: mixtral}}
goal: {goal}
space:
  parallel: {{pp: [1], tp: [1, 2], etp: [1]}}
  max_batch: [32, 128]
  framework: [vllm]
"""

PLAN = """
pools:
  - role: all
    node: nvidia/hgx-h200
    replicas: 1
    parallel: {{pp: 1, dp: {dp}, tp: 1, cp: 1, ep: {ep}, etp: 1}}
    framework: vllm
    policies: {{alltoall: {alltoall}, batching: {{name: chunked, max_batch: {batch}}}}}
"""


SMALL_MODEL = """
name: small
vocab: 32000
dtype_of: {experts: bf16, attention: bf16, dense: bf16, embedding: bf16, kv: bf16}
layers:
  - repeat: 4
    layers:
      - part: decoder
        dim: 4096
        tokens: 1.0
        attention: {kind: gqa, heads: 32, kv_heads: 8, head_dim: 128, value_dim: 128}
        ffn: {kind: moe, experts: 8, topk: 2, width: 14336, input_dim: 4096}
"""


def world(tpot: str = "50 ms", rate: str = "5 /s", goal: str = "price_per_token") -> str:
    return WORLD.format(tpot=tpot, rate=rate, goal=goal)


def plan(dp: int = 8, ep: int = 8, alltoall: str = "linear", batch: int = 64) -> str:
    return PLAN.format(dp=dp, ep=ep, alltoall=alltoall, batch=batch)


Answer = tuple[int, str, str]
"""Exit code, what was printed, and what was complained about."""


@pytest.fixture
def inside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Answer]:
    """Run the command in this process, in a folder of some files."""

    def run(*words: str, **files: str) -> Answer:
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        (tmp_path / "small.yaml").write_text(SMALL_MODEL)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["moesim", *words])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return run


@cache
def moesim(*words: str, files: tuple[tuple[str, str], ...] = (), hash_seed: str = "0") -> Answer:
    """Run the command in a process of its own."""
    with TemporaryDirectory() as folder:
        for name, text in files:
            (Path(folder) / name).write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "moesim.cli", *words],
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONWARNINGS": "error"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


def optimize(*words: str, hash_seed: str = "0", **settings: str) -> Answer:
    return moesim(
        "optimize",
        "world.yaml",
        *words,
        files=(("world.yaml", world(**settings)), ("small.yaml", SMALL_MODEL)),
        hash_seed=hash_seed,
    )


def estimate(*words: str) -> Answer:
    files = (("world.yaml", world()), ("plan.yaml", plan()), ("small.yaml", SMALL_MODEL))
    return moesim("estimate", "world.yaml", "plan.yaml", *words, files=files)


def test_help_names_the_commands() -> None:
    code, said, _ = moesim("--help")
    assert code == 0
    assert "optimize" in said
    assert "estimate" in said


def test_optimize_shows_tables() -> None:
    code, said, complaint = optimize()
    assert (code, complaint) == (0, "")
    for line in (
        "Mixtral on two nodes, cut short",
        "Certificate: ",
        "Runner-up: 1 x nvidia/hgx-h200, ",
        ": it lost by ",
        "Frontier, by estimates: ",
        "simulated under the same requests",
        "1 x hgx-h200",
        "USD/M    P10",
        "The first plan: meets",
    ):
        assert line in said
    assert max(map(len, said.splitlines())) <= 160
    for table in (
        "One pass of the slowest stage",
        "Memory of the fullest rank: ",
        "experts",
        "kv cache",
        "expert weights",
    ):
        assert table in said


def test_optimize_writes_json() -> None:
    code, said, complaint = optimize("--json")
    found = json.loads(said)
    assert (code, complaint) == (0, "")
    keys = {"plans", "frontier", "certificate", "comparison", "units", "meets", "best", "simulated", "unfit"}
    assert set(found) == keys
    assert found["meets"] > 0
    prices = [row["price_per_token"] for row in found["plans"]]
    assert prices == sorted(prices)
    assert found["units"]["tpot"] == "s"
    counts = found["certificate"]
    parts = ("estimated", "bounded", "unfit", "refused")
    assert sum(counts[part] for part in parts) == counts["considered"]
    assert counts["gap"] == 0
    price = found["best"]["summary"]["price_per_token"]
    assert price["low"] <= price["mid"] <= price["high"]
    assert price["mid"] == prices[0]
    assert 0 <= found["comparison"]["probability"] <= 1
    assert found["best"]["verdict"]["fits"] is True


def test_same_seed_same_bytes_in_another_process() -> None:
    """And under another PYTHONHASHSEED: nothing depends on the order of a set."""
    assert optimize("--json", hash_seed="1")[1] == optimize("--json")[1]


def test_optimize_exits_with_1_when_every_plan_misses() -> None:
    """And says by how much: the first plan's value and the limit."""
    code, said, _ = optimize(tpot="1 ms")
    assert code == 1
    assert "No plan carries the load and meets every target; the nearest misses" in said
    assert "misses its limit of 1.00 ms" in said


def test_estimate_shows_tables() -> None:
    code, said, complaint = estimate()
    assert (code, complaint) == (0, "")
    for line in ("The plan: meets every target", "tpot", "headroom", "One pass of the slowest stage", "Memory of"):
        assert line in said


def test_estimate_writes_json() -> None:
    code, said, _ = estimate("--json")
    found = json.loads(said)
    assert code == 0
    assert found["verdict"]["meets"] == {"tpot.p99": True, "load": True}
    exposed = sum(row["exposed"] for row in found["breakdown"])
    assert exposed == pytest.approx(found["summary"]["step"]["mid"], rel=0.01)  # one stage; the host's own time, too
    assert {row["item"] for row in found["memory"]} >= {"expert weights", "kv cache", "runtime"}


def test_the_seed_is_passed_on(inside: Callable[..., Answer]) -> None:
    answers = [inside("estimate", "w.yaml", "p.yaml", "--json", "--seed", seed, w=world(), p=plan()) for seed in "05"]
    steps = [json.loads(said)["summary"]["step"]["mid"] for _, said, _ in answers]
    assert steps[0] != steps[1]
    assert steps[0] == json.loads(estimate("--json")[1])["summary"]["step"]["mid"]


def test_estimate_exits_with_1_when_a_plan_misses(inside: Callable[..., Answer]) -> None:
    code, said, _ = inside("estimate", "w.yaml", "p.yaml", w=world(tpot="1 ms"), p=plan())
    assert code == 1
    assert "misses its limit of 1.00 ms; bound by tpot.p99" in said


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"dp": 1, "ep": 1, "batch": 512}, "does not fit: expert weights 90.2 GB"),
        ({"alltoall": "two_dh"}, "use `linear`"),
    ],
)
def test_a_plan_that_cannot_run_is_a_verdict(
    inside: Callable[..., Answer], settings: dict[str, Any], reason: str
) -> None:
    """Its numbers do not exist: null in JSON, not NaN, which no JSON reader knows."""
    whole = world().replace("small.yaml", "mistralai/Mixtral-8x7B-v0.1")
    code, said, complaint = inside("estimate", "w.yaml", "p.yaml", "--json", w=whole, p=plan(**settings))
    found = json.loads(said, parse_constant=pytest.fail)
    assert (code, complaint) == (1, "")
    assert found["verdict"]["fits"] is False
    assert reason in found["verdict"]["why"]
    assert found["summary"]["step"]["mid"] is None
    code, said, _ = inside("estimate", "w.yaml", "p.yaml", w=whole, p=plan(**settings))
    assert code == 1
    assert reason in " ".join(said.split())


def test_bad_input_exits_with_2_and_no_traceback() -> None:
    code, said, complained = optimize(goal="price_per_tokn")
    assert (code, said) == (2, "")
    assert complained.startswith("moesim: world.yaml: goal: ")
    assert "did you mean `price_per_token`?" in complained


def test_all_faults_are_told_at_once(inside: Callable[..., Answer]) -> None:
    code, said, complained = inside("optimize", "w.yaml", w=world(rate="5 ms", tpot="50"))
    assert (code, said) == (2, "")
    assert "w.yaml: workload.requests.arrivals.rate: " in complained
    assert "w.yaml: workload.targets.tpot.p99: " in complained


def test_a_bad_plan_exits_with_2(inside: Callable[..., Answer]) -> None:
    code, said, complained = inside("estimate", "w.yaml", "p.yaml", w=world(), p=plan(dp=8, ep=3))
    assert (code, said) == (2, "")
    assert "p.yaml: pools.0.parallel.ep: ep x etp = 3 x 1 does not divide" in complained


def test_a_missing_file_exits_with_2(inside: Callable[..., Answer]) -> None:
    code, said, complained = inside("estimate", "absent.yaml", "p.yaml")
    assert (code, said) == (2, "")
    assert "absent.yaml" in complained


def test_a_place_that_cannot_be_written_exits_with_2(inside: Callable[..., Answer]) -> None:
    code, _, complained = inside("optimize", "w.yaml", "--out", "/proc/answer", w=world())
    assert code == 2
    assert "No such file or directory; name another place" in complained


ODD_MODEL = """
name: odd
vocab: 1000
dtype_of: {experts: bf16, attention: bf16, dense: bf16, embedding: bf16, kv: bf16}
layers:
  - part: decoder
    dim: 1024
    tokens: 1.0
    attention: {kind: unmodelled, name: mamba, heads: 16, parameters: 1000000}
    ffn: {kind: dense, width: 4096}
"""


def test_a_model_that_cannot_be_timed_exits_with_2(inside: Callable[..., Answer]) -> None:
    odd_world = world().replace("small.yaml", "odd.yaml").replace("{preset: mixtral}", "{preset: balanced}")
    one = plan(dp=1, ep=1, alltoall="reduce")
    code, said, complained = inside("estimate", "w.yaml", "p.yaml", w=odd_world, p=one, odd=ODD_MODEL)
    assert (code, said) == (2, "")
    assert "attention `mamba` has no formula" in complained

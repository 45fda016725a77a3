"""The commands of run folders, as a user gives them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moesim.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")  # main() reads sys.argv

WORLD = """
name: "Small: one node"
model:
  name: small
  vocab: 32000
  dtype_of: {experts: bf16, attention: bf16, dense: bf16, embedding: bf16, kv: bf16}
  layers:
    - repeat: 4
      layers:
        - part: decoder
          dim: 1024
          tokens: 1.0
          attention: {kind: gqa, heads: 8, kv_heads: 8, head_dim: 128, value_dim: 128}
          ffn: {kind: moe, experts: 8, topk: 2, width: 1024, input_dim: 1024}
hardware:
  offers: [{node: nvidia/hgx-h200, max_nodes: 1, rent: {value: 3.50 USD/h, from: list}}]
  fabric: infiniband/rail-400g
  sources: {list: {kind: published, title: price list, read: 2026-05-20}}
workload:
  kind: serving
  requests:
    arrivals: {generator: poisson, rate: 5 /s}
    input: {generator: constant, mean: 1000 tokens}
    output: {generator: constant, mean: 200 tokens}
  targets: {tpot.p99: 50 ms}
routing: {preset: mixtral}
space:
  parallel: {pp: 1, tp: 1, etp: 1, ep: [4, 8]}
  overlap: none
  placement: contiguous
  max_batch: 32
  framework: [vllm]
"""

Told = tuple[int, str, str]


@pytest.fixture
def moesim(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Told]:
    """Run a command in a folder with a scenario: exit code, what was printed, what was complained about."""
    (tmp_path / "w.yaml").write_text(WORLD)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Told:
        monkeypatch.setattr(sys, "argv", ["moesim", *words])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return run


def contents(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_optimize_keeps_a_run_that_can_be_run_again_to_the_byte(moesim: Callable[..., Told]) -> None:
    code, said, complaint = moesim("optimize", "w.yaml", "--seed", "3")
    assert (code, complaint) == (0, "")
    assert "Kept in runs/small-one-node" in said
    first = contents("runs/small-one-node")
    assert {"report.html", "trace.json", "scenario.yaml", "plans/01.yaml", "tables/plans.parquet"} <= set(first)
    assert json.loads(first["manifest.json"])["seed"] == 3
    Path("w.yaml").unlink()  # the folder needs nothing else
    code, said, _ = moesim("optimize", "runs/small-one-node/scenario.yaml", "--seed", "3", "--out", "again", "--json")
    assert code == 0
    assert json.loads(said)["plans"]  # a pipe gets JSON alone
    assert contents("again") == first


def test_a_kept_plan_is_estimated_again(moesim: Callable[..., Told]) -> None:
    moesim("optimize", "w.yaml", "--out", "kept")
    code, said, _ = moesim("estimate", "kept/scenario.yaml", "kept/plans/01.yaml", "--json")
    assert code == 0
    assert json.loads(said)["verdict"]["fits"]


def test_report_draws_again(moesim: Callable[..., Told]) -> None:
    moesim("optimize", "w.yaml", "--out", "kept")
    before = contents("kept")
    code, said, _ = moesim("report", "kept")
    assert (code, contents("kept")) == (0, before)
    assert "Drawn in kept/report.html" in said
    assert moesim("report", "kept", "--out", "page.html")[0] == 0
    assert Path("page.html").read_bytes() == before["report.html"]
    told = json.loads(moesim("report", "kept", "--json")[1])
    assert told["plans"]
    assert told["certificate"]["estimated"] == len(told["plans"])


@pytest.mark.parametrize(
    ("damage", "words", "said"),
    [
        (lambda: None, ("report", "absent"), "absent: there is no such folder"),
        (lambda: Path("kept/report.html").write_text("x"), ("report", "kept"), "report.html: is not what was written"),
        (lambda: Path("kept/manifest.json").write_text('{"format": 0}'), ("report", "kept"), "has format 0"),
        (lambda: None, ("optimize", "w.yaml", "--out", "w.yaml/kept"), "cannot be written"),
        (lambda: Path("kept/manifest.json").unlink(), ("optimize", "w.yaml", "--out", "kept"), "is no run folder"),
    ],
)
def test_what_is_wrong_with_a_folder_is_told(
    damage: Callable[[], object], words: tuple[str, ...], said: str, moesim: Callable[..., Told]
) -> None:
    moesim("optimize", "w.yaml", "--out", "kept")
    damage()
    code, _, complaint = moesim(*words)
    assert code == 2
    assert said in complaint
    assert complaint.startswith("moesim: ")


@pytest.mark.parametrize(
    ("old", "new", "expected", "words"),
    [
        ("ep: [4, 8]", "ep: [3]", 2, "space: holds no valid layout"),
        ("50 ms", "1 us", 1, "No plan carries the load and meets every target"),
        ("50 ms", "1 us", 1, "misses its limit of 1.00 us"),
        ("5 /s", "50000 /s", 1, "of the 10,000,000 output tokens/s asked for"),
        ("width: 1024, input_dim", "width: 100000000, input_dim", 1, "does not fit: expert weights"),
        (", rent: {value: 3.50 USD/h, from: list}", "", 0, "Kept in kept"),  # the list price of a shipped node
        (
            "offers: [{node: nvidia/hgx-h200, max_nodes: 1, rent: {value: 3.50 USD/h, from: list}}]",
            "offers: []",
            2,
            "no",
        ),
    ],
)
def test_a_hopeless_question_gets_an_answer(
    old: str, new: str, expected: int, words: str, moesim: Callable[..., Told]
) -> None:
    assert old in WORLD
    Path("w.yaml").write_text(WORLD.replace(old, new))
    code, said, complaint = moesim("optimize", "w.yaml", "--out", "kept")
    assert code == expected
    assert words in " ".join((said + complaint).split())
    assert "Traceback" not in said + complaint
    if code < 2:
        assert moesim("report", "kept")[0] == 0  # a run without a plan is a run

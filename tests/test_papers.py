"""Published results: cases are found by walking, a new one needs no code, and a wrong one is told what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from moesim.validate.eager import eager, unfused
from moesim.validate.expressions import evaluate
from moesim.validate.issuing import issued
from moesim.validate.papers import CASES, case_files, failures, validate_papers
from moesim.validate.passes import run_passes
from moesim.validate.report import report
from moesim.validate.rules import RULES

from moesim.cli import app
from moesim.cli.codes import MET, MISSED
from moesim.files.profiles import load_profile
from moesim.files.trees import read
from moesim.ground.errors import InputError, MoesimError
from moesim.passes.timeline import makespan
from moesim.schedules.costs.pricing import price_together
from moesim.schedules.ops import Attend, Elementwise, fixed
from moesim.schedules.schedule import Schedule, Task
from moesim.world.attention import Gqa

STRONG = {
    "dynamoe": ("K1", "K2", "K3", "K4"),
    "huang": ("H1", "H2", "H3", "H4", "H5", "H6", "H7", "H12", "H14"),
    "scmoe": ("S1", "S2", "S4", "S7"),
    "tutel": ("T1", "T2", "T3", "T5", "T7", "T8", "T10", "T11", "T13"),
}
SLOW = ("T8", "T12", "T14", "H17")
"""Hundreds of passes; of them T8 alone is strong: its orders are held on a part (`test_the_order_of_table_6`)."""
CASE = """
title: One and one
grade: strong
source: arithmetic
rows:
  - {name: sum, predict: "1 + 1", expect: 2}
"""


@pytest.fixture(scope="module")
def checked():
    return validate_papers([name for _, name, _ in case_files() if name not in SLOW])


def test_all_strong_checks_are_there():
    found = {(paper, name) for paper, name, _ in case_files()}
    assert {(paper, name) for paper, names in STRONG.items() for name in names} <= found


def test_every_check_of_the_reference_is_attempted():
    """Cases once got lost in a merge, and nothing said so."""
    found = {name for _, name, _ in case_files()}
    wanted = {"K": 7, "H": 17, "T": 14, "S": 12}
    assert {f"{paper}{number}" for paper, last in wanted.items() for number in range(1, last + 1)} <= found


def test_eager_kernels_reach_what_the_unit_test_did_and_write_scores():
    """58.07 of 125 TFLOP/s; 16 heads of 16,384 x 512 pairs at 40 bytes take 6.6 ms of memory, four projections 2.4."""
    device = eager(load_profile("node", "nvidia/dgx1-v100").profile.device, "fp16", 64)
    assert device.fits["gemm"].params["peak"] == pytest.approx(58.07e12)
    rate = device.fits["attention_prefill"].params["peak"]
    assert 4 * 64 / rate == pytest.approx(40 / 810e9)
    one = {"node": "nvidia/dgx1-v100", "dim": 1024, "width": 4096, "experts": 1, "topk": 1, "gpus": 1, "tokens": 16384}
    with_attention, without = (
        run_passes({**one, "heads": heads, "context": 1024, "kernels": "eager"}, "case", CASES) for heads in (16, 0)
    )
    scores, projections = 16 * 16384 * 512 * 40 / 810e9, 4 * 2 * 16384 * 1024**2 / 58.07e12
    assert with_attention["attention"] == pytest.approx(scores + projections, rel=0.05)
    assert "attention" not in without


@pytest.mark.parametrize(
    ("dtype", "windowed", "traffic"),
    [("fp16", False, (5 + 5 + 10) * 2), ("tf32", False, (5 + 5 + 10) * 4), ("tf32", True, (5 + 5 + 10 + 6) * 4)],
)
def test_what_is_not_fused_crosses_memory_again(dtype, windowed, traffic):
    """One token of width 1: two norms of 5 passes each, and 10 of attention's own, 6 more in windows; masks stay."""
    norm, one = Elementwise(traffic=np.array([4 * 2.0])), np.ones(1)
    mask = Elementwise(traffic=one, kernel="mask")
    gqa = Gqa(heads=1, kv_heads=1, head_dim=1, value_dim=1)
    attend = Attend(kind=gqa, heads=one, phase="prefill", tokens=one, prompts=one, pairs=one, keys=one, dtype=dtype)
    named = (("norm", norm), ("attention", attend), ("norm", norm), ("pack", mask))
    tasks = tuple(Task(name=name, stream="compute", op=op, layer=0) for name, op in named)
    eagerly = unfused(Schedule(tasks=tasks, out=(3,)), dtype, windowed=windowed)
    assert sum(float(task.op.traffic[0]) for task in eagerly.tasks if task.name == "norm") == traffic
    assert eagerly.tasks[3].op is mask


@pytest.mark.parametrize(
    ("second", "takes"),
    [("mlp", 15 + 10 + 1), ("sizes", 15 + 10 + 5 + 1)],
    ids=["the host runs ahead", "the host reads sizes back"],
)
def test_a_device_waits_for_operators_to_be_issued(second, takes):
    """A norm of two operators at 5 s each and 1 s of work, then one of 10 s, then one of 1 s.

    The second is issued after 15 s and ends at 25; the third is issued at 20, or once the second is read back, at 30.
    """
    parts = [("norm", 1.0), (second, 10.0), ("mlp", 1.0)]
    tasks = tuple(
        Task(name=name, stream="compute", op=fixed(seconds), after=(i - 1,) if i else ())
        for i, (name, seconds) in enumerate(parts)
    )
    node = load_profile("node", "nvidia/dgx1-v100").profile
    (priced,) = price_together([issued(Schedule(tasks=tasks, out=(2,), count=np.ones(1)), 5.0)], node, ())
    assert float(makespan(priced).mean()) == pytest.approx(takes)


def test_no_strong_check_fails(checked):
    assert failures(checked) == ()
    strong = {(each.paper, each.check) for each in checked for row in each.outcomes if row.grade == "strong"}
    assert {(paper, name) for paper, names in STRONG.items() for name in names if name not in SLOW} <= strong


def test_every_fitted_constant_says_to_how_many_rows(checked):
    for each in checked:
        file = CASES / each.paper / each.check / "case.yaml"
        hosted = any("launch" in one for one in read(file).get("passes", {}).values())
        if hosted or "fits:" in file.read_text():
            assert any(digit.isdigit() for digit in each.case.fitted), each.check


def test_the_order_of_table_6():
    """Linear at degree 2 is the best static choice at 16 gpus, 2DH at 256."""
    (_, _, file) = next(case for case in case_files() if case[1] == "T8")
    passes = read(file)["passes"]
    best = {}
    for gpus in (16, 256):
        ways = []
        for kind in "lh":
            setup = {**passes[f"{kind}{gpus}one"], "width": [2048]}
            times = run_passes(setup, "T8", file.parent)
            ways += [times[f"way{i}"] for i in (1, 2, 3, 4)]
        least = np.minimum.reduce(ways)
        best[gpus] = int(np.argmin([np.mean(way / least) for way in ways])) + 1
    assert best[16] == 2
    assert best[256] > 4


def test_a_new_case_is_one_new_file(tmp_path):
    file = tmp_path / "mine" / "M1" / "case.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(CASE)
    (one,) = validate_papers(folder=tmp_path)
    assert (one.paper, one.check, one.outcomes[0].predicted, one.outcomes[0].passed) == ("mine", "M1", 2, True)
    file.write_text(CASE.replace("expect: 2", "expect: 3"))
    (outcome,) = failures(validate_papers(folder=tmp_path))
    assert outcome.error == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("grade: strong", "grade: string"), "grade"),
        (("title: One and one", "titel: One"), "titel"),
        (('"1 + 1"', '"1 + x"'), "nothing is called `x`"),
        (('"1 + 1"', '"capacityy(1)"'), "did you mean `capacity`"),
        (('"1 + 1"', '"1 +"'), "is no expression"),
        (('"1 + 1"', '"1 / 0"'), "division by zero"),
        (("rows:", "passes: {p: {dims: 3, node: nvidia/hgx-a100}}\nrows:"), "a pass has no field `dims`"),
        (("rows:", "passes: {p: {dim: 3, node: nvidia/hgx-a100}}\nrows:"), "lacks a field"),
        (("rows:", "passes: {p: {dim: 3, node: nvidia/hgx-a101}}\nrows:"), "no node is called `nvidia/hgx-a101`"),
    ],
)
def test_a_wrong_case_is_told_what_is_wrong(tmp_path, change, message):
    file = tmp_path / "mine" / "M1" / "case.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(CASE.replace(*change))
    with pytest.raises(MoesimError, match=message):
        validate_papers(folder=tmp_path)


def test_unknown_checks_are_refused():
    with pytest.raises(InputError, match="no paper or check is called `H99`"):
        validate_papers(["H99"])


@pytest.mark.parametrize("text", ["().__class__", "lambda: 1", "[x for x in y]", "'a'.upper()", "open('x')"])
def test_expressions_are_arithmetic_only(text):
    with pytest.raises(MoesimError):
        evaluate(text, {"y": [1]})


def test_the_command_prints_json_and_exits_by_the_strong_checks(capsys, tmp_path):
    page = tmp_path / "page.md"
    with pytest.raises(SystemExit) as end:
        app(["validate", "papers", "H5", "S9", "--json", "--page", str(page)])
    assert end.value.code == MET
    answer = json.loads(capsys.readouterr().out)
    assert {"paper", "check", "grade", "expected", "predicted", "error", "passed"} <= set(answer["checks"][0])
    assert answer["failed"] == 0
    assert "### H5" in page.read_text()
    assert MISSED != MET


def test_the_page_shows_every_row(checked):
    text = report(checked)
    assert text.count("| yes | yes |") + text.count("passes") >= sum(
        row.passed is True for each in checked for row in each.outcomes
    )
    assert "**misses**" in text


def test_the_page_in_the_docs_is_of_these_cases():
    text = (Path(__file__).parents[1] / "docs/accuracy/papers.md").read_text()
    for paper, name, file in case_files():
        assert f"### {name}: " in text, f"{paper}/{name}: run `moesim validate papers` again"
        assert file.read_text().splitlines()[0].removeprefix("title: ") in text


def test_positions_hide_what_their_window_allows():
    hidden = [
        RULES["pair"](0, attention=2.0, mlp=2.0, shared=1.0, experts=1.0, dispatch=3.0, combine=3.0)
        - RULES["pair"](at, attention=2.0, mlp=2.0, shared=1.0, experts=1.0, dispatch=3.0, combine=3.0)
        for at in (1, 2, 3)
    ]
    assert hidden == [3.0, 5.0, 6.0]

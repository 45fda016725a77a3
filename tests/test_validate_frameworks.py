"""Logs of the frameworks' benchmarks become rows that are scored; a plug-in routes as recorded; published cases run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moesim.validate.papers import case_files
from moesim.validate.serving.logs import rows_of
from moesim.validate.serving.measured import read_measured
from moesim.validate.serving.pinning import plug_in, read_choices
from moesim.validate.serving.published import CASES, served

from moesim.cli import app
from moesim.files.trees import read
from moesim.ground.errors import InputError, MoesimError

SETUP = """
system: h200_sxm
gemm_quant_mode: bf16
moe_quant_mode: bf16
model: Qwen/Qwen3-30B-A3B
tp_size: 1
pp_size: 1
attention_dp_size: 1
moe_tp_size: 1
moe_ep_size: 1
gpus: 1
"""
VLLM: dict[str, Any] = {
    "model_id": "Qwen/Qwen3-30B-A3B",
    "max_concurrency": 4,
    "completed": 40,
    "total_input_tokens": 40 * 900,
    "total_output_tokens": 40 * 90,
    "mean_ttft_ms": 55.5,
    "mean_tpot_ms": 7.25,
}
SGLANG = {**VLLM, "random_input_len": 1000, "random_output_len": 100}
TENSORRT: dict[str, Any] = {
    "engine": {"model": "Qwen/Qwen3-30B-A3B", "version": "1.3.0rc20"},
    "world_info": {"tp_size": 1, "pp_size": 1, "ep_size": 1, "world_size": 1},
    "request_info": {"avg_num_concurrent_requests": 3.9, "avg_input_length": 900.0, "avg_output_length": 90.0},
    "streaming_metrics": {"avg_ttft_ms": 55.5, "avg_tpot_ms": 7.25},
}


@pytest.fixture
def setup(tmp_path: Path) -> Path:
    file = tmp_path / "setup.yaml"
    file.write_text(SETUP)
    return file


@pytest.mark.parametrize(("log", "backend"), [(VLLM, "vllm"), (SGLANG, "sglang"), (TENSORRT, "trtllm")])
def test_a_log_becomes_a_row_that_is_read(log: dict[str, Any], backend: str, setup: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "log.json", tmp_path / "rows.csv"
    file.write_text(json.dumps(log))
    out.write_text(rows_of([file], setup))
    (row,) = read_measured(out)
    assert row.setup is not None
    assert (row.setup.backend, row.setup.isl, row.setup.osl, row.setup.concurrency) == (backend, 1000, 100, 4)
    assert (row.ttft, row.tpot) == (pytest.approx(0.0555), pytest.approx(0.00725))


def test_lines_become_rows(setup: Path, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps({**SGLANG, "max_concurrency": load}) + "\n" for load in (1, 2, 4)))
    assert [line.split(",")[7] for line in rows_of([file], setup).splitlines()[1:]] == ["1", "2", "4"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is no JSON"),
        ('{"a": 1', "line 1: is no JSON"),
        ("[1]", "holds no fields"),
        ("{}", "mean_ttft_ms: is missing"),
        (json.dumps({**VLLM, "completed": 0}), "no request was completed"),
        (json.dumps({**VLLM, "mean_tpot_ms": "fast"}), "mean_tpot_ms: 'fast' is no number"),
        (json.dumps(VLLM).replace("7.25", "NaN"), "mean_tpot_ms: nan is no number"),
        (json.dumps(SGLANG) + "\n{oops\n", "line 2: is no JSON"),
        (json.dumps({**TENSORRT, "streaming_metrics": None}), "run trtllm-bench with --streaming"),
        (json.dumps({**VLLM, "max_concurrency": None}), "concurrency: is said neither by the log nor beside it"),
    ],
)
def test_malformed_logs_are_told(text: str, complaint: str, setup: Path, tmp_path: Path) -> None:
    file = tmp_path / "log.json"
    file.write_text(text)
    with pytest.raises(InputError, match=complaint):
        rows_of([file], setup)


@given(text=st.text(max_size=60))
def test_no_text_gives_a_traceback(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("logs") / "log.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(MoesimError):
        rows_of([file], None)


def test_an_unknown_column_of_the_setup_is_told(tmp_path: Path) -> None:
    file = tmp_path / "setup.yaml"
    file.write_text("gpu: 8\n")
    with pytest.raises(InputError, match="gpu: is no column of a measurement"):
        rows_of([], file)


@pytest.mark.parametrize("framework", ["vllm", "sglang"])
def test_a_plug_in_is_python_and_names_its_version(framework: str, tmp_path: Path, capsys: Any) -> None:
    trace, out = tmp_path / "trace.npy", tmp_path / "plug-in"
    np.save(trace, np.arange(24).reshape(4, 3, 2))  # 4 tokens, 3 layers, 2 experts each
    words = ["validate", "frameworks", "pin", str(trace), "--framework", framework, "--out", str(out)]
    app(words, result_action="return_value")
    code = (out / "moesim_recorded_routing" / "__init__.py").read_text()
    compile(code, "plug-in", "exec")
    kept = np.load(out / "moesim_recorded_routing" / "choices.npy")
    assert kept[1].tolist() == [[2, 3], [8, 9], [14, 15], [20, 21]]
    assert f"For {framework} 0." in capsys.readouterr().out


@pytest.mark.parametrize("array", [np.zeros((2, 3)), np.zeros((2, 3, 1)), -np.ones((2, 2, 2), int)])
def test_what_is_no_trace_of_choices_is_refused(array: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "trace.npy", array)
    with pytest.raises(InputError, match=r"\[token layer topk\]"):
        read_choices(tmp_path / "trace.npy")


def test_there_are_two_plug_ins() -> None:
    with pytest.raises(InputError, match="no plug-in for `megatron`"):
        plug_in("megatron")


def test_every_published_case_is_well_formed_and_names_its_source() -> None:
    found = [read(file) for _, _, file in case_files(CASES)]
    assert len(found) >= 7
    assert all(tree["source"] and tree["passes"] and tree["rows"] for tree in found)


def test_a_published_step_is_priced_from_its_set_up() -> None:
    """Half the sequences take less than the whole and more than half of the time: weights are read all the same."""
    tree = {
        "phase": "decodes",
        "model": "mistralai/Mixtral-8x7B-v0.1",
        "node": "nvidia/hgx-h200",
        "fabric": "infiniband/rail-400g",
        "nodes": 1,
        "routing": {"preset": "balanced"},
        "size": 64,
        "length": 1000,
        "pool": {"parallel": {"dp": 8, "ep": 8}},
    }
    whole, half = served(tree, "case", Path()), served({**tree, "size": 32}, "case", Path())
    assert half["step"] < whole["step"] < 2 * half["step"]
    assert whole["per_node"] == pytest.approx(8 * 64 / whole["step"])
    with pytest.raises(InputError, match="phase"):
        served({**tree, "phase": "backwards"}, "case", Path())

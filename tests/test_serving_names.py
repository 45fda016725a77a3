"""Files of serving measurements as others write them: names in any dress, missing cells, odd rows and odd files."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moesim.validate.serving import prediction
from moesim.validate.serving.compare import compare, with_predictions
from moesim.validate.serving.measured import LONGEST, Setup, read_table
from moesim.validate.serving.names import FORMATS, NODES, backend_named, mode_named, model_named, releases, system_named
from moesim.validate.serving.prediction import Predicted
from moesim.validate.serving.spreads import shipped_spread
from moesim.validate.serving.worlds import node_of, pool

from moesim.files.models import load, model_names
from moesim.files.profiles import load_profile
from moesim.ground.errors import InputError, PlanError

ROW = {
    "model": "openai/gpt-oss-120b",
    "system": "h200_sxm",
    "backend": "trtllm",
    "precision": "fp4",
    "gemm_quant_mode": "nvfp4",
    "moe_quant_mode": "nvfp4",
    "isl": "1024",
    "osl": "1024",
    "concurrency": "16",
    "tp_size": "4",
    "pp_size": "1",
    "attention_dp_size": "1",
    "moe_tp_size": "4",
    "moe_ep_size": "1",
    "gpus": "4",
}


def table(tmp_path: Path, rows: list[dict[str, str]], end: str = "\n") -> Path:
    """Write rows under the columns of the first."""
    file, text = tmp_path / "rows.csv", io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    file.write_bytes(text.getvalue().encode())
    return file


def setup_of(tmp_path: Path, **changes: str) -> Setup:
    """The setup of one row, some of whose cells are others."""
    ((row,)) = read_table(table(tmp_path, [{**ROW, **changes}]))[1]
    assert row.setup is not None, row.reason
    return row.setup


@pytest.mark.parametrize("name", model_names())
def test_every_model_of_the_zoo_is_found_by_its_own_name_in_any_dress(name):
    shape = load(name).layers
    last = name.rsplit("/", 1)[-1]
    for other in (name, last, last.upper(), last.replace("-", "_"), f"someone/{last}", f" {name} "):
        assert model_named(other) == name or load(model_named(other)).layers == shape
    for other in (f"nvidia/{last}-NVFP4", f"someone/{last}-quantized.w4a16", f"{last}-0528-FP8"):
        assert load(model_named(other)).layers == shape


@pytest.mark.parametrize(
    ("name", "zoo"),
    [
        ("nvidia/DeepSeek-R1-0528-FP4-v2", "deepseek-ai/DeepSeek-R1"),
        ("amd/DeepSeek-R1-0528-MXFP4-Preview", "deepseek-ai/DeepSeek-R1"),
        ("cognitivecomputations/DeepSeek-R1-AWQ", "deepseek-ai/DeepSeek-R1"),
        ("dsr1", "deepseek-ai/DeepSeek-R1"),
        ("dsv4", "deepseek-ai/DeepSeek-V4-Pro"),
        ("sgl-project/DeepSeek-V4-Flash-FP8", "deepseek-ai/DeepSeek-V4-Flash"),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek-ai/DeepSeek-V3"),
        ("deepseek-ai/DeepSeek-V3.2-Exp", "deepseek-ai/DeepSeek-V3.2"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", "Qwen/Qwen3-235B-A22B"),
        ("Qwen/Qwen3-235B-A22B-Thinking-2507-FP8", "Qwen/Qwen3-235B-A22B-FP8"),
        ("nvidia/Qwen3-235B-A22B-FP4", "Qwen/Qwen3-235B-A22B"),
        ("amd/gpt-oss-120b-w-mxfp4-a-fp8", "openai/gpt-oss-120b"),
        ("nvidia/Llama-4-Scout-17B-16E-Instruct-FP8", "meta-llama/Llama-4-Scout-17B-16E-Instruct"),
        ("nvidia/Mixtral-8x7B-Instruct-v0.1-FP8", "mistralai/Mixtral-8x7B-v0.1"),
        ("nvidia/Nemotron-3-Nano-30B-A3B", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"),
        ("/models/Kimi-K2.5-NVFP4/", "moonshotai/Kimi-K2.5"),
        ("deepseek-ai/DeepSeek-V3.1-Terminus", "deepseek-ai/DeepSeek-V3"),
        ("nvidia/DeepSeek-V3.1-NVFP4", "deepseek-ai/DeepSeek-V3"),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8", "Qwen/Qwen3-30B-A3B"),
        ("zai-org/GLM-4.6-FP8", "zai-org/GLM-4.5"),
        ("nvidia/GLM-4.7-NVFP4", "zai-org/GLM-4.5"),
        ("zai-org/GLM-4.7-Flash", "zai-org/GLM-4.7-Flash"),
        ("moonshotai/Kimi-K2-Instruct-0905", "moonshotai/Kimi-K2-Instruct"),
        ("nvidia/Kimi-K2-Thinking-NVFP4", "moonshotai/Kimi-K2.5"),
        ("MiniMaxAI/MiniMax-M2", "MiniMaxAI/MiniMax-M2.5"),
        ("tencent/Hunyuan-A13B-Instruct-FP8", "tencent/Hunyuan-A13B-Instruct"),
        ("baidu/ERNIE-4.5-300B-A47B-FP8-PT", "baidu/ERNIE-4.5-300B-A47B-PT"),
        ("Nemotron-3-Super", "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8"),
    ],
)
def test_releases_of_one_shape_are_one_model(name, zoo):
    assert model_named(name) == zoo


def test_every_release_of_a_shape_names_one_of_the_zoo():
    for release in releases():
        assert release.like in model_names()
        assert all(model_named(f"someone/{name}-NVFP4") == release.like for name in release.names)
        assert release.source


@pytest.mark.parametrize("name", ["deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "Qwen3", "DeepSeek", "nobody/none", ""])
def test_other_shapes_and_half_names_are_no_model(name):
    assert model_named(name) == ""


@given(st.text(max_size=40))
def test_any_text_is_read_as_names(text):
    assert model_named(text) in ("", text.strip(), *model_names())
    assert isinstance(mode_named(text), str)
    assert isinstance(backend_named(text) + system_named(text), str)


@pytest.mark.parametrize(
    ("text", "system"),
    [
        ("h100", "h100_sxm"),
        ("NVIDIA H200", "h200_sxm"),
        ("NVIDIA H20", "h20_sxm"),
        ("h200", "h200_sxm"),
        ("B200-SXM", "b200_sxm"),
        ("gb200_nvl72", "gb200"),
        ("GB300", "gb300"),
        ("h100_pcie", "h100_pcie"),
        ("a100", "a100_sxm"),
        ("A100-PCIE-40GB", "a100_40gb_pcie"),
        ("a100_sxm_80gb", "a100_sxm"),
        ("l4", "l4"),
        ("L40S", "l40s"),
        ("rtx_pro_6000_server", "rtx_pro_6000"),
        ("AMD Instinct MI300X", "mi300x"),
        ("mi355x", "mi355x"),
        ("abacus", "abacus"),
    ],
)
def test_systems_are_known_in_any_dress(text, system):
    assert system_named(text) == system


@pytest.mark.parametrize("system", NODES)
def test_every_system_has_its_node(system):
    assert system_named(system) == system
    assert load_profile("node", node_of(system)).profile.gpus > 0


@pytest.mark.parametrize(
    ("modes", "formats"),
    [
        (("", "", "bf16"), ("bf16", "bf16")),
        (("", "", "fp4"), ("nvfp4", "nvfp4")),
        (("", "", "fp8"), ("fp8_block", "fp8_block")),
        (("", "", ""), ("fp8_block", "fp8_block")),
        (("FP8", "fp8_block", ""), ("fp8_block", "fp8_block")),
        (("nan", "NVFP4", "n/a"), ("fp8_block", "nvfp4")),
        (("float16", "float16", "fp8"), ("bf16", "bf16")),
        (("w4a16", "W4A16", ""), ("fp8_block", "int4")),
    ],
)
def test_formats_are_what_columns_say_then_the_precision_then_the_release(tmp_path, modes, formats):
    names = ("gemm_quant_mode", "moe_quant_mode", "precision")
    changes = dict(zip(names, modes, strict=True))
    setup = setup_of(tmp_path, model="deepseek-ai/DeepSeek-R1-0528", **changes)
    precision = pool(setup).precision
    assert (precision["dense"], precision["experts"]) == formats


def test_a_format_may_be_said_by_the_name_alone(tmp_path):
    unsaid = dict.fromkeys(("gemm_quant_mode", "moe_quant_mode", "precision"), "")
    assert pool(setup_of(tmp_path, model="nvidia/DeepSeek-R1-FP4", **unsaid)).precision["experts"] == "nvfp4"
    assert pool(setup_of(tmp_path, model="unsloth/gpt-oss-20b-BF16", **unsaid)).precision["dense"] == "bf16"


def test_every_mode_has_one_spelling():
    assert {mode_named(mode) for mode in FORMATS} == set(FORMATS)


@pytest.mark.parametrize(
    ("given", "layout", "gpus"),
    [
        (
            {"pp_size": "", "attention_dp_size": "", "moe_tp_size": "", "moe_ep_size": "", "gpus": ""},
            (4, 1, 1, 4, 1),
            4,
        ),
        ({"tp_size": "", "moe_tp_size": "", "moe_ep_size": "4"}, (4, 1, 1, 1, 4), 4),
        ({"tp_size": "1", "attention_dp_size": "4", "moe_tp_size": "", "moe_ep_size": ""}, (1, 1, 4, 1, 4), 4),
        ({"tp_size": "4.0", "gpus": "8"}, (4, 1, 1, 4, 1), 8),
    ],
)
def test_degrees_that_are_not_said_follow_from_the_others(tmp_path, given, layout, gpus):
    setup = setup_of(tmp_path, **given)
    assert setup.layout == layout
    assert setup.gpus == gpus


ODD = [
    ({"concurrency": "0"}, "concurrency = `0`"),
    ({"concurrency": ""}, "concurrency = ``"),
    ({"concurrency": "10000000"}, "more than the 65536"),
    ({"isl": "-5"}, "isl = `-5`"),
    ({"osl": "1e400"}, "osl = `1e400`"),
    ({"tp_size": "NaN"}, "tp_size = `NaN`"),
    ({"tp_size": "", "gpus": ""}, "neither tp_size nor gpus"),
    ({"model": ""}, "no model"),
    ({"system": "abacus"}, "abacus"),
    ({"backend": "lmdeploy"}, "lmdeploy"),
    ({"moe_ep_size": "3"}, "3 x 4 does not divide"),
    ({"isl": "100000000"}, "leave no room"),
]


def test_odd_rows_keep_their_places_and_good_ones_are_predicted(tmp_path):
    good = {**ROW, "concurrency": "2", "isl": "64", "osl": "32"}
    rows = [good, *({**good, **change} for change, _ in ODD), good]
    shuffled = [{"note": 'ä, "b"\nc', **dict(reversed(row.items()))} for row in rows]
    found = list(csv.DictReader(io.StringIO(compare(table(tmp_path, shuffled, "\r\n")).text)))
    assert [{name: row[name] for name in shuffled[0]} for row in found] == shuffled
    for row, (_, word) in zip(found[1:-1], ODD, strict=True):
        assert word in row["reason"]
        assert row["predicted_tpot_ms"] == ""
    assert found[0] == found[-1]
    assert float(found[0]["predicted_tpot_ms"]) > 0


def test_frameworks_that_run_one_kernel_are_predicted_alike(tmp_path):
    """vLLM and SGLang both run OpenAI's Triton kernels for GPT-OSS on Hopper: host and pace are all that tells them."""
    rows = [{**ROW, "backend": name, "concurrency": "32", "isl": "256", "osl": "64"} for name in ("vllm", "sglang")]
    found = csv.DictReader(io.StringIO(compare(table(tmp_path, rows)).text))
    vllm, sglang = (float(row["predicted_tpot_ms"]) for row in found)
    assert vllm == pytest.approx(sglang, rel=0.25)


def test_a_row_that_moesim_itself_fails_at_is_lost_alone(tmp_path, monkeypatch):
    rows = [{**ROW, "isl": "64", "osl": "32"}, {**ROW, "isl": "65", "osl": "32"}]
    generate = prediction.generate
    monkeypatch.setattr(prediction, "generate", lambda workload, seed: 1 / (workload.requests.input.mean - 0.9 * 64))
    first, other = csv.DictReader(io.StringIO(compare(table(tmp_path, rows)).text))
    assert "please report it: ZeroDivisionError" in first["reason"]
    assert "please report it" in other["reason"]
    monkeypatch.setattr(prediction, "generate", generate)
    assert [row["reason"] for row in csv.DictReader(io.StringIO(compare(table(tmp_path, rows)).text))] == ["", ""]


def test_models_without_experts_are_predicted_whatever_is_said_of_experts(tmp_path):
    dense = {**ROW, "model": "Qwen/Qwen3-32B", "precision": "bf16", "gemm_quant_mode": "", "moe_quant_mode": ""}
    some = [{**dense, "isl": "64", "osl": "32", "moe_tp_size": tp, "moe_ep_size": ep} for tp, ep in ("41", "14", "11")]
    first, *others = csv.DictReader(io.StringIO(compare(table(tmp_path, some)).text))
    assert 1 < float(first["predicted_tpot_ms"]) < 100
    assert {row["predicted_tpot_ms"] for row in others} == {first["predicted_tpot_ms"]}


@pytest.mark.parametrize("backend", ["trtllm", "sglang"])
def test_what_public_benchmarks_ran_has_room(tmp_path, backend):
    """DeepSeek-R1 in fp8 runs on four B200: drivers report 191.5 GB where 180 are printed, and weights take 168."""
    row = {**ROW, "model": "deepseek-ai/DeepSeek-R1-0528", "system": "b200_sxm", "backend": backend, "osl": "64"}
    fp8 = {"precision": "fp8", "gemm_quant_mode": "fp8", "moe_quant_mode": "fp8_block"}
    (found,) = csv.DictReader(io.StringIO(compare(table(tmp_path, [{**row, **fp8, "concurrency": "2"}])).text))
    assert found["reason"] == ""


def test_a_file_of_no_rows_gives_its_columns(tmp_path):
    file = tmp_path / "head.csv"
    file.write_text(",".join([*ROW, "note"]) + "\r\n")
    text = compare(file).text
    assert text.startswith(",".join([*ROW, "note"]) + ",predicted_ttft_ms")
    assert len(text.splitlines()) == 1


def test_a_column_without_a_name_is_kept_and_columns_of_ours_are_replaced(tmp_path):
    file = tmp_path / "index.csv"
    file.write_text(",reason," + ",".join(ROW) + "\n7,old," + ",".join(ROW.values()) + "\n")
    columns, rows = read_table(file)
    nothing = [Predicted(reason="new")]
    (row,) = csv.DictReader(io.StringIO(with_predictions(columns, rows, nothing, shipped_spread())))
    assert (row[""], row["reason"]) == ("7", "new")


def test_a_row_of_too_many_cells_is_not_guessed_at(tmp_path):
    file = tmp_path / "more.csv"
    line = ",".join(ROW.values())
    file.write_text("\n".join([",".join(ROW), line + ",", line + ",8", line[:20]]))
    whole, more, cut = read_table(file)[1]
    assert whole.setup is not None
    assert "16 cells under 15 columns" in more.reason
    assert cut.setup is None


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "lacks"),
        (b"\0\0\0", "lacks|cannot be read"),
        (b"model,model,system,backend,isl,osl,concurrency\n", "more than once"),
        (b"model," * LONGEST, "longer than"),
        (b"model\xff,system", "cannot be read"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, word):
    file = tmp_path / "file.csv"
    file.write_bytes(content)
    with pytest.raises(InputError, match=word):
        read_table(file)


def test_an_unknown_system_is_refused_wherever_it_is_used(tmp_path):
    with pytest.raises(PlanError, match="abacus"):
        pool(setup_of(tmp_path, system="abacus"))

"""Published tables: made-up ones with the defects of the real ones, in the same format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from moesim.calibrate.cases import Cases
from moesim.calibrate.cli import app
from moesim.calibrate.fit import predict
from moesim.calibrate.from_tables import bench_of, fit_kernel, profile_of, understood
from moesim.calibrate.published import (
    attentions,
    dispatches,
    exchanges,
    gemms,
    mixtures,
    own_reductions,
    published,
    reductions,
)
from moesim.calibrate.ranking import by_key, quickest, ranked
from moesim.calibrate.tables import DEVICES, NODES, STAMPS, folder_of, read_table, tables_of
from worlds import uncalibrated

from moesim.files.fits import load_fits
from moesim.files.profiles import profile_names
from moesim.ground.errors import InputError, MoesimError
from moesim.world.hardware import run_by

NODE = uncalibrated("nvidia/hgx-h100")
H100 = "NVIDIA H100 80GB HBM3"


def write(root: Path, place: str, rows: dict[str, object], version: str = "1.0") -> Path:
    """Write a table as the package lays it out."""
    family, framework, name = place.split("/")
    path = root / "h100_sxm" / family / framework / version / f"{name}_perf.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"device": H100, **rows}).to_parquet(path)
    return path


def products(number: int = 400, kernel: str = "linear", floor: float = 2e-3) -> dict[str, object]:
    """Dense products timed by a roofline, ms."""
    rng = np.random.default_rng(3)
    m, n, k = (2 ** rng.integers(low, 13, number) for low in (0, 6, 6))
    took = floor + 1e3 * (2.0 * m * n * k / 8e14 + 2.0 * n * k / 3e12)
    return {"kernel_source": kernel, "gemm_dtype": "bfloat16", "m": m, "n": n, "k": k, "latency": took}


def messages(**changes: object) -> dict[str, object]:
    size, ranks, name = np.meshgrid(2 ** np.arange(8, 28, 2), [2, 4, 8], ["all_reduce", "alltoall"])
    rows = {"op_name": name.ravel(), "num_gpus": ranks.ravel(), "message_size": size.ravel()}
    return {**rows, "nccl_dtype": "half", "latency": 0.01 + size.ravel() * 2 / 3e8, **changes}


def folder(root: Path) -> Path:
    return folder_of("h100_sxm", root)


def test_messages_are_elements_and_not_bytes(tmp_path: Path) -> None:
    write(tmp_path, "comm/nccl/nccl", messages())
    (found,) = reductions(folder(tmp_path), "h100_sxm")
    assert (found.inputs["size"].min(), found.inputs["size"].max()) == (512.0, 2.0**27)
    (moved,) = exchanges(folder(tmp_path), "h100_sxm")
    assert (moved.inputs["moved"] / moved.inputs["messages"]).min() == 512 / 8
    write(tmp_path, "comm/nccl/nccl", messages(nccl_dtype="int8"))
    assert next(reductions(folder(tmp_path), "h100_sxm")).inputs["size"].min() == 256.0


def test_reductions_of_frameworks_are_read_as_replayed_in_a_graph(tmp_path: Path) -> None:
    for version, took in (("0.9.0", 2.0), ("0.24.0", 1.0)):
        rows = {
            "kernel_source": np.repeat(["custom_eager", "custom_graph"], 3), "allreduce_dtype": "bfloat16",
            "num_gpus": 2, "message_size": np.tile([128, 256, 512], 2), "latency": took,
        }  # fmt: skip
        write(tmp_path, "comm/vllm/custom_allreduce", rows, version)
    (found,) = own_reductions(folder(tmp_path), "h100_sxm")
    assert (found.key, found.kernel) == ("all_reduce/nvlink", "vllm 0.24.0 custom_graph")
    assert found.inputs["size"].tolist() == [256.0, 512.0, 1024.0]


def low_latency(**changes: object) -> dict[str, object]:
    tokens, nodes, experts = (grid.ravel() for grid in np.meshgrid(np.arange(1, 25), [1, 2, 8], [16, 128]))
    times = {f"{way}_avg_t_us": 10.0 + 0.05 * tokens for way in ("dispatch", "combine")}
    sizes = {"node_num": nodes, "hidden_size": 1024, "num_token": tokens, "num_topk": 4, "num_experts": experts}
    return {"kernel_source": "deepep", **sizes, **times, **changes}


def test_low_latency_all_to_alls_are_read_inside_a_node_and_between_nodes(tmp_path: Path) -> None:
    """Four fp8 rows with eight scales, 4224 bytes a token, 7/8 to other gpus; half and 7/8 of it to other nodes."""
    rows = low_latency()
    rows["combine_avg_t_us"][-1] = np.nan  # a row that was not timed is left out
    write(tmp_path, "comm/sglang/wideep_deepep_ll", rows, "0.5.6")
    found = {cases.key: cases for cases in dispatches(folder(tmp_path), "h100_sxm")}
    assert list(found) == ["dispatch/nvlink", "dispatch/rail", "combine/nvlink", "combine/rail"]
    assert [len(cases) for cases in found.values()] == [24, 48, 24, 47]
    assert sorted(found["dispatch/nvlink"].inputs["moved"] / 4224) == [tokens * 7 / 8 for tokens in range(1, 25)]
    between = found["dispatch/rail"]
    assert {name: (v.min(), v.max()) for name, v in between.inputs.items()} == {
        "moved": (2112.0, 24 * 3696.0), "messages": (8.0, 56.0), "experts": (128.0, 128.0), "ranks": (16.0, 64.0)
    }  # fmt: skip
    assert between.seconds.min() == pytest.approx(10.05e-6)


def test_low_latency_fits_are_those_of_the_framework_that_brings_the_kernels(tmp_path: Path) -> None:
    write(tmp_path, "comm/sglang/wideep_deepep_ll", low_latency(), "0.5.6")
    found = profile_of("h100_sxm", tmp_path)
    assert set(found) == {f"{way}/{tier}@sglang" for way in ("dispatch", "combine") for tier in ("nvlink", "rail")}


def test_rows_measured_twice_are_one_and_the_newest_version_counts(tmp_path: Path) -> None:
    rows = products()
    doubled = {name: np.tile(values, 2) if isinstance(values, np.ndarray) else values for name, values in rows.items()}
    write(tmp_path, "gemm/vllm/gemm", doubled, "0.24.0")
    write(tmp_path, "gemm/vllm/gemm", products(kernel="old"), "0.9.0")
    assert [table.version for table in tables_of(folder(tmp_path), "gemm", "gemm")] == ["0.24.0", "0.9.0"]
    (found,) = gemms(folder(tmp_path), "h100_sxm")
    assert found.kernel == "vllm 0.24.0 linear"
    assert len(found) == len(np.unique(np.stack([rows[name] for name in "mnk"], 1), axis=0))


def test_tables_whose_host_was_timed_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "gemm/vllm/gemm", products(floor=0.150))
    assert list(gemms(folder(tmp_path), "h100_sxm")) == []


def experts() -> dict[str, object]:
    tokens, parts = np.meshgrid(2 ** np.arange(13), np.repeat([1, 2, 4, 8], 20))
    shape = {"hidden_size": 4096, "inter_size": 2048, "topk": 8, "num_experts": 64}
    how = {"kernel_source": "cutlass", "moe_dtype": "fp8_block", "moe_tp_size": 1, "distribution": "power_law_1.2"}
    sizes = {"num_tokens": tokens.ravel() + np.arange(tokens.size), "moe_ep_size": parts.ravel()}  # none is merged
    return {**shape, **how, **sizes, "latency": 0.05 + 1e-3 * tokens.ravel()}


def test_divided_experts_are_read_where_kernels_touch_their_own_rows_only(tmp_path: Path) -> None:
    write(tmp_path, "moe/trtllm/moe", experts())
    write(tmp_path, "moe/vllm/moe", experts())
    everywhere, alone = mixtures(folder(tmp_path), "h100_sxm")
    assert (everywhere.kernel, alone.kernel) == ("trtllm 1.0 cutlass", "vllm 1.0 cutlass")
    assert set(everywhere.inputs["ep"]) == {1.0, 2.0, 4.0, 8.0}
    assert set(alone.inputs["ep"]) == {1.0}


@pytest.mark.parametrize(("even", "kept"), [(0.5, 4.0), (2.0, 1.0)])
def test_experts_that_the_timed_layer_chose_itself_are_told_by_even_spreads(
    tmp_path: Path, even: float, kept: float
) -> None:
    """Of DeepSeek-V3's sizes even tokens are quicker than skewed ones only if they reach fewer experts."""
    tokens, width, spread = np.meshgrid(2 ** np.arange(13), 128 * np.arange(1, 11), ["balanced", "power_law_1.2"])
    sizes = {"num_tokens": tokens.ravel(), "inter_size": width.ravel(), "distribution": spread.ravel()}
    sizes |= {"hidden_size": 7168, "num_experts": 256, "topk": 8, "moe_tp_size": 1, "moe_ep_size": 1}
    took = np.where(sizes["distribution"] == "balanced", even, 1.0)
    how = {"kernel_source": "cutlass", "moe_dtype": "fp8_block", "latency": took}
    write(tmp_path, "moe/vllm/moe", sizes | how)
    (cases,) = mixtures(folder(tmp_path), "h100_sxm")
    assert set(cases.inputs["kept"]) == {kept}


def test_kernels_that_a_framework_does_not_run_are_not_read(tmp_path: Path) -> None:
    """SGLang computes GPT-OSS's experts with other kernels than its tables of fused_moe hold."""
    fused = {"kernel_source": "sglang_fused_moe_triton", "moe_ep_size": 1}
    write(tmp_path, "moe/sglang/moe", experts() | fused | {"moe_dtype": "w4a16_mxfp4"})
    write(tmp_path, "moe/vllm/moe", experts() | {"moe_dtype": "w4a16_mxfp4", "moe_ep_size": 1})
    assert [cases.kernel for cases in mixtures(folder(tmp_path), "h100_sxm")] == ["vllm 1.0 cutlass"]
    write(tmp_path, "moe/sglang/moe", experts() | fused | {"moe_dtype": "fp8_block"})
    assert [cases.dtype for cases in mixtures(folder(tmp_path), "h100_sxm")] == ["fp8_block", "mxfp4"]


def test_windows_bound_the_pairs_and_slow_layouts_are_left_out(tmp_path: Path) -> None:
    rows = {
        "kernel_source": "fa3", "attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "step": 0, "head_dim": 64,
        "batch_size": np.arange(1, 601), "isl": 100, "num_key_value_heads": np.repeat([8, 1, 8], 200),
        "num_heads": np.repeat([8, 64, 8], 200), "window_size": np.repeat([0, 0, 10], 200), "latency": 0.1,
    }  # fmt: skip
    write(tmp_path, "attention/sglang/context_attention", rows)
    whole, window = attentions(folder(tmp_path), "h100_sxm")
    assert (whole.key, window.key) == ("attention_prefill/bf16/gqa", "attention_prefill/bf16/window")
    assert len(whole) == len(window) == 200
    assert whole.inputs["pairs"][0] == 100 * 101 / 2
    assert window.inputs["pairs"][0] / window.inputs["prompts"][0] == sum(min(token, 10) for token in range(1, 101))


def test_a_table_is_fitted_and_predicts_its_held_out_rows(tmp_path: Path) -> None:
    write(tmp_path, "gemm/vllm/gemm", products())
    (cases,) = published(folder(tmp_path), "h100_sxm")
    fitted = fit_kernel("h100_sxm", cases)
    off = np.abs(np.log(predict(cases, bench_of("h100_sxm", cases), fitted.fit) / cases.seconds))
    assert off.mean() < 0.15
    assert understood(fitted.fit)


def test_the_command_writes_fits_with_their_notice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "gemm/vllm/gemm", products())
    out = tmp_path / "mine.yaml"
    app(
        ["from-tables", "--system", "h100_sxm", "--data", str(tmp_path), "--out", str(out)],
        result_action="return_value",
    )
    shown = capsys.readouterr()
    assert "gemm/bf16: within" in shown.out
    assert "vllm 1.0 linear" in shown.err
    assert "Copyright (c) 2025-2026 NVIDIA" in out.read_text()
    assert set(load_fits(out, "mine")) == {"gemm/bf16"}


def test_attention_of_a_table_without_windows_is_over_whole_contexts(tmp_path: Path) -> None:
    """As that of A100 under SGLang 0.5.10 and vLLM 0.14, whose tables have no such column."""
    rows = np.arange(400)
    shapes = {"batch_size": 1 + rows % 4, "isl": 16 + rows, "num_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    dtypes = {"kernel_source": "flash", "attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "step": 0}
    write(tmp_path, "attention/sglang/context_attention", {**dtypes, **shapes, "latency": 0.01 + rows * 1e-4})
    (found,) = attentions(folder(tmp_path), "h100_sxm")
    assert found.key == "attention_prefill/bf16/gqa"
    assert len(found) == 400


BROKEN = {
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is not a whole Parquet file"),
    "foreign": (lambda path: path.write_text("m,n,k\n1,2,3\n"), "is not a whole Parquet file"),
    "lacking": (lambda path: rewrite(path, n=None), "n: the table has no such column; it is a table of another kind"),
    "zero": (lambda path: rewrite(path, latency=0.0), "latency: 400 rows have no positive time; remove those rows"),
    "none": (lambda path: rewrite(path, latency=np.nan), "latency: 400 rows have no positive time"),
    "text": (lambda path: rewrite(path, latency="fast"), "latency: holds no numbers; it is a table of another kind"),
    "damaged": (
        lambda path: path.write_bytes(path.read_bytes()[:200].ljust(path.stat().st_size - 8, b"x") + b"\1\0\0\0PAR1"),
        "is not a whole Parquet file",
    ),
    "other": (lambda path: rewrite(path, device="NVIDIA H200"), "device: measured on `NVIDIA H200`, not H100"),
    "near": (lambda path: rewrite(path, device="NVIDIA GH100"), "device: measured on `NVIDIA GH100`, not H100"),
}


def rewrite(path: Path, **changes: object) -> None:
    found = pd.read_parquet(path)
    kept = found.drop(columns=[name for name, value in changes.items() if value is None])
    kept.assign(**{name: value for name, value in changes.items() if value is not None}).to_parquet(path)


@pytest.mark.parametrize("how", BROKEN)
def test_a_table_that_is_wrong_is_refused_by_name_and_nothing_is_written(how: str, tmp_path: Path) -> None:
    path = write(tmp_path, "gemm/vllm/gemm", products())
    spoil, message = BROKEN[how]
    spoil(path)
    with pytest.raises(InputError, match=r"gemm_perf\.parquet") as caught:
        read_table(path, ("gemm_dtype", "m", "n", "k"), system="h100_sxm")
    assert message in str(caught.value)
    out = tmp_path / "mine.yaml"
    with pytest.raises(InputError):
        app(["from-tables", "--system", "h100_sxm", "--data", str(tmp_path), "--out", str(out)])
    assert not list(tmp_path.glob("mine*"))


def test_systems_without_tables_are_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(MoesimError, match=r"no tables of `h200_sxl`; did you mean `h200_sxm`\?"):
        folder_of("h200_sxl")
    with pytest.raises(MoesimError, match="has no tables of `h100_sxm`; name the folder that holds one"):
        folder_of("h100_sxm", tmp_path)


def test_every_system_has_a_device_a_node_and_a_stamp() -> None:
    assert set(DEVICES) == set(NODES) == set(STAMPS)
    assert set(DEVICES.values()) <= set(profile_names("device"))
    assert set(NODES.values()) <= set(profile_names("node"))


def kernel(name: str, took: float, numbers: range, **sizes: object) -> Cases:
    """Products timed by one kernel, in shapes that have numbers."""
    m = np.array(numbers, float)
    inputs = {"m": m, **{size: np.broadcast_to(value, m.shape) for size, value in sizes.items()}}
    return Cases(operation="gemm", dtype="bf16", kind="", kernel=name, inputs=inputs,
                 seconds=took * m, family=np.zeros(len(m), int))  # fmt: skip


def test_kernels_are_compared_where_both_were_timed() -> None:
    """On shapes of its own the slow one is quick; a kernel that shares no shape stands last, however quick."""
    quick, slow = kernel("a", 1.0, range(1, 9)), kernel("b", 2.0, range(5, 12))
    slow.seconds[4:] = 1e-6
    alone = kernel("c", 1e-9, range(100, 103))
    assert [one.kernel for one in ranked([alone, slow, quick])] == ["a", "b", "c"]
    assert [one.kernel for one in ranked([alone, kernel("d", 1.0, range(200, 210))])] == ["d", "c"]


def test_kernels_that_a_framework_shares_are_ranked_among_its_own() -> None:
    """Of fp8 blocks TensorRT-LLM's tables hold slower kernels than its own that FlashInfer brings to SGLang."""

    def of(name: str, took: float, dtype: str) -> Cases:
        return replace(kernel(name, took, range(1, 9)), operation="grouped_gemm", dtype=dtype)

    shared, own = "sglang 0.5 sglang_flashinfer_trtllm_moe", "trtllm 1.3 deepgemm"
    for dtype, names in (("fp8_block", [shared, own]), ("bf16", [own])):
        owners = by_key([of(own, 2.0, dtype), of(shared, 1.0, dtype), of("sglang 0.5 triton", 0.5, dtype)])
        assert [one.kernel for one in owners[f"grouped_gemm/{dtype}"]["tensorrt_llm"]] == names


def test_a_quicker_kernel_of_the_same_framework_is_one_that_may_run() -> None:
    """Shapes 5 to 8 were timed on both, 5 and 6 quicker on the other."""
    chosen, other = kernel("a", 1.0, range(1, 9)), kernel("b", 2.0, range(5, 12))
    other.seconds[:2] = 0.25
    assert quickest(chosen, [other]).seconds.tolist() == [*chosen.seconds[:4], 0.25, 0.25, *chosen.seconds[6:]]
    assert quickest(chosen, []) is chosen


def test_kernels_that_disagree_widen_the_interval() -> None:
    """The other kernel takes half as long on every second shape: the interval grows, the fit stays."""
    rng = np.random.default_rng(0)
    sizes = {name: 2.0 ** rng.integers(low, 13, 120) for name, low in (("m", 0), ("n", 6), ("k", 6))}
    known = Cases(operation="gemm", dtype="bf16", kind="", kernel="vllm a", inputs=sizes, seconds=np.ones(120),
                  family=np.arange(120) % 5)  # fmt: skip
    bench = bench_of("h100_sxm", known)
    known = replace(known, seconds=predict(known, bench, bench.prior(known)))
    other = replace(known, kernel="vllm b", seconds=known.seconds * np.tile([0.5, 2.0], 60))
    alone, both = (fit_kernel("h100_sxm", known, others=others).fit for others in ([], [other]))
    assert both.params == alone.params
    assert both.point > 3 * alone.point
    assert both.source.title.endswith("the fastest of 2, 60 points")


def test_every_framework_runs_its_own_fastest_kernel(tmp_path: Path) -> None:
    """The fastest of all is what plans look up unless their framework has another."""
    for framework, floor in (("vllm", 2e-3), ("trtllm", 4e-3)):
        write(tmp_path, f"gemm/{framework}/gemm", products(floor=floor))
    fits = profile_of("h100_sxm", tmp_path)
    assert set(fits) == {"gemm/bf16", "gemm/bf16@tensorrt_llm"}
    node = replace(NODE, device=replace(NODE.device, fits=fits))
    found = {
        name: run_by(node, name).device.fits["gemm/bf16"].source.title for name in ("vllm", "tensorrt_llm", "plain")
    }
    assert ["vllm" in found["vllm"], "trtllm" in found["tensorrt_llm"], "vllm" in found["plain"]] == [True] * 3


def test_a_reduction_that_belongs_to_no_framework_is_the_usual_one(tmp_path: Path) -> None:
    write(tmp_path, "comm/nccl/nccl", messages())
    size, ranks = (each.ravel() for each in np.meshgrid(2 ** np.arange(8, 28, 2), [2, 4, 8]))
    rows = {"kernel_source": "graph", "allreduce_dtype": "bfloat16", "num_gpus": ranks, "message_size": size}
    write(tmp_path, "comm/vllm/custom_allreduce", {**rows, "latency": 0.004 + size * 2 / 3e8})
    fits = profile_of("h100_sxm", tmp_path)
    assert "nccl" in fits["all_reduce/nvlink"].source.title
    assert "vllm" in fits["all_reduce/nvlink@vllm"].source.title

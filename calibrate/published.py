"""Rows of published tables as timed points of our operations, defects handled.

What is done about the defects that the tables are known to have:

* Sizes of messages are elements, not bytes; they are multiplied by the dtype's size.
* Rows that appear twice are merged (`tables.read_table`); of several versions of a framework the newest counts.
* Products in blocks of fp8 that vLLM times with its host (floors of 50 us and more) are left out by `FLOORS`.
* Experts that vLLM and SGLang divided over gpus are left out, see `ONLY_LOCAL`.
* Where the layer that was timed routed DeepSeek-V3's tokens itself, rows reach fewer experts than they say: `_limited`.
* Attention of more than 32 query heads to a key-value head, where one kernel falls back to a slow one, is left out.
* DeepEP's tables of H200 for version 0.5.6 are a copy of those of H100 and are not read.
* Tables of all-to-alls by vLLM and TensorRT-LLM (`moe_a2a`) start at 47 to 71 us for one token, where SGLang's of the
  same kernels start at 10: the host was timed, and they are not read.
* Of fewer than 128 experts DeepEP's low-latency kernels leave processors idle; those rows are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from jaxtyping import Bool

from moesim.schedules.costs.collectives import ROUNDS

from .asops import ACTIVATION
from .cases import Cases, Floats, family_of
from .tables import Table, read_table, tables_of

FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "bfloat16": "bf16",
        "fp8": "fp8",
        "fp8_block": "fp8_block",
        "nvfp4": "nvfp4",
        "int4_wo": "int4_128",
        "w4a16_mxfp4": "mxfp4",
        "w4a8_mxfp4_mxfp8": "mxfp4",
    }
)
"""Storage formats of ours for theirs; rows in others are not read."""

FLOOR = 40e-6
"""Fastest time of a table, s, above which it was the host that was timed and not the device."""
SHARING = 32
"""Query heads to a key-value head above which a table changes to another kernel."""
ONLY_LOCAL = ("trtllm",)
"""Frameworks whose kernels, of experts divided over gpus, touch the rows of their own experts only; the others' were
timed with every gpu's rows passing through, which no plan does, so of them undivided experts are read."""
NOT_RUN = frozenset({("sglang", "mxfp4", "sglang_fused_moe_triton")})
"""Kernels that a framework does not run by default for weights of a format: SGLang computes GPT-OSS's experts with the
Triton kernels of OpenAI, as vLLM does, but where FlashInfer has its own (`moe_runner_backend`)."""
KEPT = 4.0
"""Groups of experts, of 8, that DeepSeek-V3's router keeps for a token (topk_group of its config.json)."""
FEW = 200
"""Rows below which a kernel is not worth a fit."""
ELEMENT: Mapping[str, float] = MappingProxyType({"half": 2.0, "int8": 1.0})
"""Bytes of an element of a message."""


def published(folder: Path, system: str) -> Iterator[Cases]:
    """Read everything that is fitted of a system, one operation, dtype and kernel at a time."""
    for read in (gemms, mixtures, attentions, latents, reductions, own_reductions, exchanges, dispatches):
        yield from read(folder, system)


def gemms(folder: Path, system: str) -> Iterator[Cases]:
    """Read dense products."""
    for table, dtype, kernel, rows in _kernels(folder, system, ("gemm", "gemm"), ("gemm_dtype", "m", "n", "k")):
        if rows.latency.min() * 1e-3 < FLOOR:
            inputs = {name: _floats(rows, name) for name in ("m", "n", "k")}
            family = family_of(inputs["n"], inputs["k"])
            yield _cases("gemm", dtype, "", _named(table, kernel), inputs, rows, family)


def mixtures(folder: Path, system: str) -> Iterator[Cases]:
    """Read experts of a layer on one gpu."""
    columns = (
        "moe_dtype",
        "num_tokens",
        "hidden_size",
        "inter_size",
        "topk",
        "num_experts",
        "moe_tp_size",
        "moe_ep_size",
        "distribution",
    )
    for table, dtype, kernel, rows in _kernels(folder, system, ("moe", "moe"), columns):
        if (table.framework, dtype, kernel) in NOT_RUN:
            continue
        whole = (rows.inter_size % rows.moe_tp_size == 0) & (rows.num_experts % rows.moe_ep_size == 0)
        alone = (rows.moe_ep_size == 1) | (table.framework in ONLY_LOCAL)
        if np.count_nonzero(whole & alone) >= FEW:
            yield _mixture(table, dtype, kernel, rows[whole & alone])


def _mixture(table: Table, dtype: str, kernel: str, rows: pd.DataFrame) -> Cases:
    alpha = rows.distribution.str.extract(r"power_law_([\d.]+)", expand=False).astype(float).fillna(0.0)
    gated = 1.0 if "nongated" in kernel else 2.0
    inputs = {
        "tokens": _floats(rows, "num_tokens"),
        "dim": _floats(rows, "hidden_size"),
        "width": _floats(rows, "inter_size") / _floats(rows, "moe_tp_size"),
        "topk": _floats(rows, "topk"),
        "experts": _floats(rows, "num_experts"),
        "ep": _floats(rows, "moe_ep_size"),
        "alpha": alpha.to_numpy(float),
        "matrices": np.full(len(rows), gated),
        "kept": np.where(_limited(rows, alpha), KEPT, 1.0),
    }
    family = family_of(inputs["dim"], _floats(rows, "inter_size"), inputs["topk"], inputs["experts"])
    return _cases("grouped_gemm", dtype, "", _named(table, kernel), inputs, rows, family)


def _limited(rows: pd.DataFrame, alpha: pd.Series) -> Bool[np.ndarray, " row"]:
    """Tell which rows were routed by DeepSeek-V3's router, of its sizes, whatever they say of how tokens were spread.

    Tokens spread evenly reach all experts, and so take longer than skewed ones as long as weights are what takes time.
    Where they take less, the layer that was timed has chosen again, from 4 of 8 groups: half of the experts.
    """
    sizes = (rows.hidden_size == 7168) & (rows.num_experts == 256) & (rows.topk == 8)
    few = rows[sizes & rows.num_tokens.between(48, 128) & (rows.moe_ep_size == 1)]
    same = ["num_tokens", "inter_size", "moe_tp_size"]
    even, skewed = (few[found].groupby(same).latency.mean() for found in (alpha[few.index] == 0, alpha[few.index] > 0))
    return np.asarray(sizes & ((even / skewed).median() < 1))


def attentions(folder: Path, system: str) -> Iterator[Cases]:
    """Read attention of grouped-query heads, over whole contexts and over windows."""
    columns = (
        "kv_cache_dtype",
        "attn_dtype",
        "batch_size",
        "isl",
        "step",
        "num_heads",
        "num_key_value_heads",
        "head_dim",
        "window_size",
    )
    for name, phase in (("context_attention", "prefill"), ("generation_attention", "decode")):
        for table, dtype, kernel, rows in _kernels(folder, system, ("attention", name), columns):
            usual = rows[rows.num_heads <= SHARING * rows.num_key_value_heads]
            for kind, some in (("gqa", usual[usual.window_size == 0]), ("window", usual[usual.window_size > 0])):
                for multiplied, part in some.groupby("attn_dtype"):
                    if len(part) >= FEW:
                        named = f"{kernel} {multiplied}" if dtype != "bf16" else kernel
                        yield _attention(table, phase, dtype, kind, named, part)


def _attention(table: Table, phase: str, dtype: str, kind: str, kernel: str, rows: pd.DataFrame) -> Cases:
    window = np.where(rows.window_size > 0, rows.window_size, np.inf).astype(float)
    dims = {
        "heads": _floats(rows, "num_heads"),
        "kv_heads": _floats(rows, "num_key_value_heads"),
        "key_dim": _floats(rows, "head_dim"),
        "value_dim": _floats(rows, "head_dim"),
    }
    inputs = {**dims, **_sizes(rows, phase, window)}
    family = family_of(*dims.values())
    return _cases(f"attention_{phase}", dtype, kind, _named(table, kernel), inputs, rows, family)


def _sizes(rows: pd.DataFrame, phase: str, window: Floats) -> dict[str, Floats]:
    batch, length = _floats(rows, "batch_size"), _floats(rows, "isl")
    if phase == "decode":
        seen = np.minimum(length + _floats(rows, "step"), window)
        return {"tokens": batch, "prompts": batch, "pairs": batch * seen, "keys": batch * seen}
    wide = np.minimum(length, window)  # the first tokens see all before them, the others a whole window
    pairs = batch * (wide * (wide + 1) / 2 + (length - wide) * wide)
    return {"tokens": batch * length, "prompts": batch, "pairs": pairs, "keys": batch * length}


def latents(folder: Path, system: str) -> Iterator[Cases]:
    """Read latent attention."""
    columns = ("kv_cache_dtype", "batch_size", "isl", "step", "num_heads")
    for name, phase in (("context_mla", "prefill"), ("generation_mla", "decode")):
        for table, dtype, kernel, rows in _kernels(folder, system, ("mla", name), columns):
            heads = _floats(rows, "num_heads")
            dims = {"heads": heads, "kv_heads": heads, "key_dim": 0 * heads + 192, "value_dim": 0 * heads + 128}
            inputs = {**dims, **_sizes(rows, phase, np.full(len(rows), np.inf))}
            yield _cases(f"attention_{phase}", dtype, "mla", _named(table, kernel), inputs, rows, family_of(heads))


def reductions(folder: Path, system: str) -> Iterator[Cases]:
    """Read NCCL's reductions and gathers, one after the other."""
    for rows in _messages(folder, system):
        for form in ROUNDS:
            part = rows[rows.op_name == form]
            inputs = {"size": _bytes(part), "ranks": _floats(part, "num_gpus")}
            if len(part):
                yield _cases(form, "", _link(system), "nccl", inputs, part, family_of(inputs["ranks"]))


def own_reductions(folder: Path, system: str) -> Iterator[Cases]:
    """Read the all-reduces that frameworks bring along, from the newest table of each; replayed in a graph."""
    seen: set[str] = set()
    for table in tables_of(folder, "comm", "custom_allreduce"):
        if table.framework not in seen:
            seen.add(table.framework)
            columns = ("kernel_source", "allreduce_dtype", "num_gpus", "message_size")
            rows = read_table(table.path, columns, system=system)
            for kernel, part in rows[~rows.kernel_source.str.contains("eager")].groupby("kernel_source", sort=True):
                inputs = {"size": ACTIVATION * _floats(part, "message_size"), "ranks": _floats(part, "num_gpus")}
                named = _named(table, str(kernel))
                yield _cases("all_reduce", "", _link(system), named, inputs, part, family_of(inputs["ranks"]))


def exchanges(folder: Path, system: str) -> Iterator[Cases]:
    """Read NCCL's all-to-all: what stays on a gpu is not moved."""
    for rows in _messages(folder, system):
        part = rows[rows.op_name == "alltoall"]
        ranks = _floats(part, "num_gpus")
        inputs = {"moved": _bytes(part) * (ranks - 1) / ranks, "messages": ranks - 1, "ranks": ranks}
        if len(part):
            yield _cases("all_to_all", "", _link(system), "nccl", inputs, part, family_of(ranks))


def dispatches(folder: Path, system: str) -> Iterator[Cases]:
    """Read DeepEP's low-latency kernels, inside a node and between nodes, each from the newest table that has them.

    Every chosen expert gets a copy of a token. Between nodes only what crosses the card counts: what stays is quicker.
    """
    columns = ("node_num", "hidden_size", "num_token", "num_topk", "num_experts")
    seen: set[str] = set()
    for table in tables_of(folder, "comm", "wideep_deepep_ll"):
        if (system, table.version) in COPIES:
            continue
        for way in ROW:
            rows = read_table(table.path, columns, system=system, times=(f"{way}_avg_t_us",), gaps=True)
            rows = rows[rows.num_experts >= EXPERTS]
            for link, part in ((_link(system), rows[rows.node_num == 1]), (RAIL, rows[rows.node_num > 1])):
                if len(part) >= SOME and f"{way}/{link}" not in seen:
                    seen.add(f"{way}/{link}")
                    yield _dispatch(table, way, link, GPUS.get(system, 8), part)


def _dispatch(table: Table, way: str, link: str, gpus: int, rows: pd.DataFrame) -> Cases:
    nodes, experts = _floats(rows, "node_num"), _floats(rows, "num_experts")
    blocks, messages = (nodes, gpus * (nodes - 1)) if link == RAIL else (0 * nodes + gpus, 0 * nodes + gpus - 1.0)
    row = _floats(rows, "num_topk") * _floats(rows, "hidden_size") * ROW[way]
    inputs = {
        "moved": _floats(rows, "num_token") * row * (blocks - 1) / blocks,
        "messages": messages,
        "experts": experts,
        "ranks": gpus * nodes,
    }
    family = family_of(nodes, _floats(rows, "hidden_size"), _floats(rows, "num_topk"), experts)
    timed = rows.assign(latency=rows[f"{way}_avg_t_us"] * 1e-3)
    return _cases(way, "", link, _named(table, "deepep"), inputs, timed, family)


RAIL = "rail"
"""The tier between nodes, a card for each gpu."""
ROW: Mapping[str, float] = MappingProxyType({"dispatch": 1 + 4 / 128, "combine": 2.0})
"""Bytes that an element of a token takes: fp8 with a scale for each 128 on the way out, bf16 on the way back."""
SOME = 16
"""Rows below which they are not worth a fit."""
EXPERTS = 128
"""Experts from which DeepEP's low-latency kernels keep a gpu's processors busy."""
GPUS: Mapping[str, int] = MappingProxyType({"gb200": 4, "gb300": 4})
"""Gpus of a node where they are not eight."""
COPIES = (("h200_sxm", "0.5.6.post2"),)
"""Tables of DeepEP that repeat another system's number for number."""


def _messages(folder: Path, system: str) -> Iterator[pd.DataFrame]:
    """Read the newest NCCL's messages."""
    for table in islice(tables_of(folder, "comm", "nccl"), 1):
        yield read_table(table.path, ("op_name", "nccl_dtype", "num_gpus", "message_size"), system=system)


def _bytes(rows: pd.DataFrame) -> Floats:
    return _floats(rows, "message_size") * rows.nccl_dtype.map(ELEMENT).to_numpy(float)


def _link(system: str) -> str:
    """Name the tier inside a node."""
    return "pcie" if system in ("l40s", "rtx_pro_6000_server") else "nvlink"


WITHOUT = MappingProxyType({"window_size": 0})
"""Columns that came later, and what tables that lack them timed: attention over whole contexts, as those of A100."""


def _kernels(
    folder: Path, system: str, place: tuple[str, str], columns: Sequence[str]
) -> Iterator[tuple[Table, str, str, pd.DataFrame]]:
    """Give the rows of each dtype (the first column) and kernel, from the newest table of a framework that has them.

    An older table counts only for what no newer one has: a dtype, or of experts, whose kernels differ in what they
    do (gated or not), a kernel.
    """
    seen: set[tuple[str, ...]] = set()
    for table in tables_of(folder, *place):
        found = read_table(table.path, (*columns, "kernel_source"), system=system, absent=WITHOUT)
        new: set[tuple[str, ...]] = set()
        for (theirs, kernel), rows in found.groupby([columns[0], "kernel_source"], sort=True):
            known = (table.framework, str(theirs), str(kernel) if place[0] == "moe" else "")
            if theirs in FORMATS and len(rows) >= FEW and known not in seen:
                new.add(known)
                yield table, FORMATS[str(theirs)], str(kernel), rows
        seen |= new


def _named(table: Table, kernel: str) -> str:
    """Name a kernel by its framework, version and what the table calls it."""
    return f"{table.framework} {table.version} {kernel}".replace("/", "-")


def _floats(rows: pd.DataFrame, name: str) -> Floats:
    return rows[name].to_numpy(float)


def _cases(
    operation: str,
    dtype: str,
    kind: str,
    kernel: str,
    inputs: Mapping[str, Floats],
    rows: pd.DataFrame,
    family: np.ndarray,
) -> Cases:
    seconds = rows.latency.to_numpy(float) * 1e-3
    return Cases(
        operation=operation, dtype=dtype, kind=kind, kernel=kernel, inputs=inputs, seconds=seconds, family=family
    )

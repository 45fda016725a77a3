"""Other tools' predictions, kept as files beside the cases, on exactly the rows that they were asked for.

Every tenth setup of the development file was given to aisimulate 0.13.0 (Apache-2.0, a pre-release of 2026-10-27,
offline, tables of measured kernels only) on 2026-11-23: to `cli_estimate`, which it carries over from aiconfigurator,
with the file's batch, and to `aisimulate predict`, as a closed loop of ten times the concurrency with lengths of 0.9 of
the nominal ones. A setup that it has no tables for, or finds too large, stays empty.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from .measured import Measured, Setup, throughput
from .prediction import Predicted
from .scores import Pair, scored

FILE = Path(__file__).parents[1] / "cases" / "serving" / "rivals.csv"
"""A sample of setups with what rivals predict: the columns of a setup, then `<tool>_ttft_ms` and `<tool>_tpot_ms`."""

TOOLS: Mapping[str, str] = {
    "estimate": "aiconfigurator's estimator, as in aisimulate 0.13",
    "predict": "aisimulate 0.13",
}
FIELDS = {
    "model": "model",
    "system": "system",
    "backend": "backend",
    "gemm": "gemm_quant_mode",
    "moe": "moe_quant_mode",
    "isl": "isl",
    "osl": "osl",
    "concurrency": "concurrency",
    "tp": "tp_size",
    "pp": "pp_size",
    "dp": "attention_dp_size",
    "etp": "moe_tp_size",
    "ep": "moe_ep_size",
    "gpus": "gpus",
}
TEXTS = ("model", "system", "backend", "gemm", "moe")


def rivals(rows: Sequence[Measured]) -> dict[str, list[Pair]]:
    """Set every tool's predictions beside the rows of the setups that it was asked for and could predict."""
    with FILE.open(newline="", encoding="utf-8") as lines:
        asked = [(_setup(line), line) for line in csv.DictReader(lines)]
    return {title: _pairs(rows, asked, tool) for tool, title in TOOLS.items()}


def _setup(line: Mapping[str, str]) -> Setup:
    read = {name: line[column] if name in TEXTS else int(line[column]) for name, column in FIELDS.items()}
    return Setup(**read)  # type: ignore[arg-type]  # names and texts by the table above


def _pairs(rows: Sequence[Measured], asked: Sequence[tuple[Setup, Mapping[str, str]]], tool: str) -> list[Pair]:
    known = {setup: found for setup, line in asked if (found := _predicted(setup, line, tool)) is not None}
    kept = [row for row in rows if row.setup in known]
    return scored(kept, [known[row.setup] for row in kept if row.setup is not None])


def _predicted(setup: Setup, line: Mapping[str, str], tool: str) -> Predicted | None:
    if not line[f"{tool}_ttft_ms"]:
        return None
    ttft, tpot = (float(line[f"{tool}_{metric}_ms"]) / 1e3 for metric in ("ttft", "tpot"))
    return Predicted(ttft=ttft, tpot=tpot, throughput=throughput(setup, ttft, tpot))


def same_rows(ours: Sequence[Pair], theirs: Sequence[Pair]) -> list[Pair]:
    """Keep our predictions of exactly the rows that another tool predicted."""
    wanted = {id(row) for row, _ in theirs}
    return [pair for pair in ours if id(pair[0]) in wanted]
